"""The pages of reference are what the code says now."""

import importlib.util
import re
from pathlib import Path

import pytest

import amnestic_server

ROOT = Path(__file__).parents[2]


def reference():
    """The script that writes the pages, which is in no package."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE = reference()


@pytest.mark.parametrize("name", REFERENCE.PAGES)
def test_a_page_is_up_to_date(name):
    assert (ROOT / "docs" / name).read_text() == REFERENCE.PAGES[name](), "run `make docs-reference`"


def test_every_metric_has_a_unit_and_every_label_its_values():
    rows = [line.split(" | ") for line in REFERENCE.metrics_page().splitlines() if line.startswith("| `amnestic_")]
    assert len(rows) > 30
    assert [row[0] for row in rows if len(row) == 5 and not row[3].strip()] == ["| `amnestic_model_info`"]


def test_every_reason_of_an_error_is_on_its_page():
    sources = "".join(file.read_text() for file in Path(amnestic_server.__file__).parent.rglob("*.py"))
    reasons = set(re.findall(r'\breason ?= ?"([A-Z_]+)"', sources)) - {"INTERNAL"}
    page = (ROOT / "docs" / "grpc.md").read_text()
    assert len(reasons) > 30, "the pattern finds them"
    assert [reason for reason in sorted(reasons) if f"`{reason}`" not in page] == []

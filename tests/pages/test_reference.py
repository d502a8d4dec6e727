"""The pages of reference are what the code says now."""

import importlib.util
from pathlib import Path

import pytest

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

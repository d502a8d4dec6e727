"""The files that images install from: complete, pinned by digest, as tested, under known licences; and `make audit`."""

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2]
PINNED = re.compile(r"(?P<name>\S+)==(?P<version>\S+)(?P<digests>( \\\n    --hash=sha256:[0-9a-f]{64})+)\n")
CUDA = re.compile(r"nvidia-|cuda-|triton$")


@pytest.fixture(scope="module")
def supply_chain():
    return load("supply_chain")


def load(script):
    spec = importlib.util.spec_from_file_location(script, SOURCE / f"deploy/{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints():
    lines = (line for line in (SOURCE / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines)}


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_every_package_is_pinned_by_digest_to_what_was_tested(kind):
    text = (SOURCE / f"deploy/requirements-{kind}.txt").read_text()
    pinned = {normal(match["name"]): match["version"] for match in PINNED.finditer(text)}
    # Nothing else is in the file but comments.
    assert [line for line in PINNED.sub("", text).splitlines() if not line.startswith("#")] == []
    tested = constraints() | ({"torch": f"{constraints()['torch']}+cpu"} if kind == "cpu" else {})
    assert {name: version for name, version in pinned.items() if tested.get(name, version) != version} == {}
    # What `pip freeze` leaves out, and what comes along with CUDA alone.
    untested = {"setuptools"} | ({name for name in pinned if CUDA.match(name)} if kind == "gpu" else set())
    assert pinned.keys() - tested.keys() == untested

    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["runtime"], *extras[kind]]
    names = {normal(re.match(r"[\w.-]+", one)[0]) for one in wanted} - {"amnestic"}
    assert names <= pinned.keys()


def stub(folder, packages):
    """A pip-audit that answers so."""
    program = folder / "pip-audit"
    answer = json.dumps({"dependencies": packages})
    program.write_text(f"#!{sys.executable}\nprint({answer!r})\n")
    program.chmod(0o755)
    return str(program)


SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}
SOUND = {"name": "numpy", "version": "1", "vulns": []}
UNSOUND = {"name": "onnx", "version": "2", "vulns": [{"id": "CVE-1"}]}


@pytest.mark.parametrize(
    ("packages", "code", "told"),
    [
        ([SKIPPED], 0, "no advisory service answers here; nothing of requirements-cpu.txt was audited"),
        ([SKIPPED, SOUND], 0, "1 of 2 packages of requirements-cpu.txt, 0 vulnerable"),
        ([SOUND, UNSOUND], 1, "2 of 2 packages of requirements-cpu.txt, 1 vulnerable\n  onnx 2: CVE-1"),
    ],
)
def test_an_audit_fails_for_what_is_vulnerable_and_never_claims_what_it_did_not_do(
    supply_chain, monkeypatch, tmp_path, capsys, packages, code, told
):
    program = stub(tmp_path, packages)
    monkeypatch.setattr(supply_chain, "_tool", lambda name: program)
    assert supply_chain.audit() == code
    assert told in capsys.readouterr().out


def test_the_notices_are_those_of_what_is_pinned():
    notices = load("notices")
    assert notices.NOTICES.read_text() == notices.text()

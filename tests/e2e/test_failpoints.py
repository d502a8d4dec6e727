"""kill -9 at named places on the way of a change, and disks that fail there. `make soak` does it thousands of times."""

import ast
from pathlib import Path

import pytest
from e2e.crash_trials import Crashing

import amnestic_server
from amnestic_server.failpoints import PLACES

# One of each kind: before an answer, within a file, about a commit, about a swap. All of them are tried by the soak.
TRIED = (
    "job-recorded",
    "file-before-rename",
    "version-before-commit",
    "version-committed",
    "head-before-signing",
    "promotion-committed",
    "rollback-committed",
    "purge-in-place",
)


@pytest.fixture(scope="module")
def crashing(start_crashing):
    return start_crashing()


def test_each_place_is_passed_in_the_code_and_no_other():
    passed = [
        call.args[0].value
        for file in Path(amnestic_server.__file__).parent.rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "failpoint"
    ]
    assert set(passed) == set(PLACES)
    twice = sorted(name for name in PLACES if passed.count(name) > 1)
    assert twice == ["version-before-commit"]


@pytest.mark.parametrize("place", TRIED)
def test_a_kill_leaves_a_whole_version_and_every_job_goes_on(crashing: Crashing, place):
    crashing.trial(place)

"""What a shell offers: commands and options without a server, labels, jobs and versions of a running one."""

import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from terminal import COMMAND, environment

from amnestic.v1 import prediction_pb2, unlearning_pb2

Complete = Callable[..., list[str]]


@pytest.fixture
def complete(server: Any, finished_job: Any) -> Complete:
    """What follows `amnestic WORDS`; the last word is the one to complete."""
    labels = [prediction_pb2.Label(name=name, forgotten=name == "endocrine") for name in ("renal", "endocrine", "skin")]
    versions = [
        unlearning_pb2.Version(version=1),
        unlearning_pb2.Version(version=2, forgotten=["endocrine"]),
        unlearning_pb2.Version(version=3, withdrawn=True),
        unlearning_pb2.Version(version=4, staged=True),
    ]
    server.script("GetModel", prediction_pb2.GetModelResponse(labels=labels))
    server.script("ListJobs", unlearning_pb2.ListJobsResponse(jobs=[finished_job]))
    server.script("ListVersions", unlearning_pb2.ListVersionsResponse(versions=versions))

    def ask(*words: str) -> list[str]:
        line = " ".join(("amnestic", *words))
        asked = {"_AMNESTIC_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
        done = subprocess.run(
            COMMAND, env=environment(server.target, **asked), capture_output=True, text=True, timeout=30
        )
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    return ask


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_that_the_shell_reads(shell: str, tmp_path: Any) -> None:
    script = subprocess.check_output([*COMMAND, "completion", shell], env=environment(""), text=True)
    assert "_AMNESTIC_COMPLETE" in script
    (tmp_path / "script").write_text(script)
    try:
        subprocess.run([shell, "-n", tmp_path / "script"], check=True, timeout=30)
    except FileNotFoundError:
        pytest.skip(f"{shell} is not installed")


def test_commands_and_options(complete: Complete) -> None:
    assert complete("ver") == ["versions"]
    assert {"demo", "status", "completion"} <= set(complete(""))
    assert complete("jobs", "li") == ["list"]
    assert complete("unlearn", "--re")[:2] == ["--request-id", "--reason"]


def test_what_the_server_knows(complete: Complete, finished_job: Any) -> None:
    assert complete("unlearn", "") == ["renal", "skin"], "what is forgotten already is not offered"
    assert complete("unlearn", "renal", "") == ["skin"]
    assert complete("unlearn", "re") == ["renal"]
    assert complete("jobs", "show", "") == [finished_job.job_id]
    assert complete("rollback", "") == ["1", "2", "4"]
    assert complete("promote", "") == complete("rollout", "set", "--version", "") == ["4"]
    assert complete("predict", "--version", "") == ["1", "2", "4"]


def test_without_a_server_nothing_is_offered_and_soon(complete: Complete, server: Any) -> None:
    server.stop()
    begun = time.monotonic()
    assert complete("unlearn", "") == []
    assert time.monotonic() - begun < 5

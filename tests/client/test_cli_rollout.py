"""`amnestic unlearn --stage`, `rollout` and `promote`: what they send, print and exit with."""

import json
from typing import Any

import pytest
from client.commands import Run, abort, fits, job_at, script_job

from amnestic.v1 import unlearning_pb2


@pytest.fixture
def rollout() -> unlearning_pb2.Rollout:
    message = unlearning_pb2.Rollout(
        version=3,
        canary_share=0.05,
        shadow_share=1.0,
        active_calls=950,
        canary_calls=50,
        shadow_documents=2_000,
        shadow_dropped=17,
        differences=[
            unlearning_pb2.DecisionDifference(label="endocrine", forgotten=True, documents=300),
            unlearning_pb2.DecisionDifference(label="renal", documents=3),
        ],
    )
    message.since.FromJsonString("2026-03-01T12:00:00Z")
    message.counted_since.FromJsonString("2026-03-01T11:00:00Z")
    return message


@pytest.mark.parametrize("command", [("unlearn", "endocrine", "--stage"), ("jobs", "watch", "some-id")])
def test_watching_ends_where_a_job_is_staged_and_the_next_step_is_told(
    run: Run, server: Any, finished_job: Any, command: tuple[str, ...]
) -> None:
    staged = job_at("STAGED", finished_job, stage=True)
    script_job(server, job_at("GATING", finished_job), staged, job_at("ACTIVATING", finished_job), finished_job)
    result = run(*command)
    assert result.exit_code == 0
    assert "version 2 is staged" in result.stdout
    for step in ("amnestic rollout set --shadow 1", "amnestic promote 2", f"amnestic jobs cancel {staged.job_id}"):
        assert step in " ".join(result.stdout.split())
    assert [json.loads(line)["state"] for line in run(*command, "--json").stdout.splitlines()] == ["GATING", "STAGED"]
    assert all(request.stage for request in server.asked("Unlearn"))


def test_a_withdrawn_version_is_told(run: Run, server: Any, finished_job: Any) -> None:
    server.script("GetJob", unlearning_pb2.GetJobResponse(job=job_at("CANCELLED", finished_job, stage=True)))
    assert "version 2 is withdrawn: the served version is as it was" in run("jobs", "show", "a").stdout


def test_what_differs_unexpectedly_stands_first(run: Run, server: Any, rollout: Any) -> None:
    server.script("GetRollout", unlearning_pb2.GetRolloutResponse(rollout=rollout))
    result = run("rollout")
    shown = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for line in (
        "version 3, staged",
        "canary 0.05 of the calls",
        "shadow 1 of the documents",
        "since 2026-03-01 12:00",
        "answered 50 of 1,000 (5.00%) calls",
        "compared 2,000 documents, 17 more dropped",
    ):
        assert line in shown
    renal, endocrine = (
        shown.index(line) for line in ("renal 3 of 2,000 (0.15%)", "endocrine 300 of 2,000 (15.00%) yes, forgotten")
    )
    assert renal < endocrine
    assert fits(result.stdout)
    told = json.loads(run("rollout", "--json").stdout)
    assert set(told) == {field.name for field in unlearning_pb2.Rollout.DESCRIPTOR.fields}
    assert told["differences"][1] == {"label": "renal", "forgotten": False, "documents": 3}


def test_without_a_rollout_what_is_staged_is_told(run: Run, server: Any) -> None:
    server.script("GetRollout", unlearning_pb2.GetRolloutResponse())
    versions = [unlearning_pb2.Version(version=1, active=True), unlearning_pb2.Version(version=2, withdrawn=True)]
    server.script("ListVersions", unlearning_pb2.ListVersionsResponse(versions=versions))
    assert run("rollout").stdout == "no version is staged\n"
    versions.append(unlearning_pb2.Version(version=3, staged=True))
    server.script("ListVersions", unlearning_pb2.ListVersionsResponse(versions=versions))
    assert run("rollout", "show").stdout.startswith("no rollout; staged: 3. To begin: amnestic rollout set")
    assert run("rollout", "--json").stdout == "null\n"
    rows = [line.split()[:2] for line in run("versions").stdout.splitlines()]
    for row in (["1", "active"], ["2", "withdrawn"], ["3", "staged"]):
        assert row in rows


def test_only_the_shares_given_are_sent(run: Run, server: Any, rollout: Any) -> None:
    server.script("SetRollout", unlearning_pb2.SetRolloutResponse(rollout=rollout))
    assert "0.05 of the calls" in run("rollout", "set", "--canary", "0.05").stdout
    assert json.loads(run("rollout", "set", "--version", "3", "--shadow", "0", "--json").stdout)["version"] == 3
    assert server.asked("SetRollout") == [
        unlearning_pb2.SetRolloutRequest(canary_share=0.05),
        unlearning_pb2.SetRolloutRequest(version=3, shadow_share=0.0),
    ]
    assert run("rollout", "set").exit_code == 2


def test_promote(run: Run, server: Any) -> None:
    promoted = unlearning_pb2.Version(version=3, active=True, forgotten=["endocrine"])
    server.script("PromoteVersion", unlearning_pb2.PromoteVersionResponse(version=promoted))
    assert run("promote", "3").stdout == "version 3 is active; forgotten: endocrine\n"
    assert json.loads(run("promote", "3", "--json").stdout)["active"] is True
    assert server.asked("PromoteVersion")[0] == unlearning_pb2.PromoteVersionRequest(version=3)
    server.script("PromoteVersion", abort("FAILED_PRECONDITION", "that version is not staged"))
    result = run("promote", "3")
    assert (result.exit_code, result.stderr) == (1, "Error: that version is not staged (FAILED_PRECONDITION)\n")


def test_the_status_tells_what_is_staged(run: Run, server: Any, status: Any, rollout: Any) -> None:
    status.staged_versions.extend([3, 4])
    server.script("GetStatus", status)
    assert ["staged", "3,", "4"] in [line.split() for line in run("status").stdout.splitlines()]
    status.rollout.CopyFrom(rollout)
    server.script("GetStatus", status)
    assert "3, 4; version 3: canary 0.05, shadow 1" in run("status").stdout
    assert json.loads(run("status", "--json").stdout)["rollout"]["shadow_documents"] == 2_000

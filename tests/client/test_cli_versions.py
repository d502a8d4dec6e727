"""`amnestic versions`, `amnestic rollback` and `amnestic purge`."""

import json
from typing import Any

from client.commands import Run

from amnestic.v1 import unlearning_pb2


def test_versions(run: Run, server: Any) -> None:
    base = unlearning_pb2.Version(version=1, f1={"renal": 0.5, "endocrine": 0.75})
    base.created_at.FromJsonString("2026-03-01T12:00:00Z")
    second = unlearning_pb2.Version(
        version=2,
        active=True,
        forgotten=["endocrine"],
        job_id="j",
        f1={"renal": 0.5, "endocrine": 0.0},
        relaxed_gates=["forget_auroc_max", "probe_ratio_max"],
    )
    server.script("ListVersions", unlearning_pb2.ListVersionsResponse(versions=[base, second]))
    shown = run("versions").stdout
    assert shown.endswith("version 2 relaxed its gates: forget_auroc_max, probe_ratio_max\n")
    rows = [line.split() for line in shown.splitlines()]
    assert ["1", "none", "0.625", "2026-03-01", "12:00"] in rows
    assert ["2", "active", "endocrine", "0.000", "0.500"] in rows
    versions = json.loads(run("versions", "--json").stdout)
    assert [version["f1"]["endocrine"] for version in versions] == [0.75, 0.0]
    assert versions[0]["job_id"] is None


def test_rollback(run: Run, server: Any) -> None:
    server.script("Rollback", unlearning_pb2.RollbackResponse(version=unlearning_pb2.Version(version=1, active=True)))
    assert run("rollback", "1", "--reason", "review").stdout == "version 1 is active; forgotten: none\n"
    assert server.asked("Rollback") == [unlearning_pb2.RollbackRequest(version=1, reason="review")]
    assert json.loads(run("rollback", "1", "--reason", "review", "--json").stdout)["active"] is True


def test_purge(run: Run, server: Any) -> None:
    version = unlearning_pb2.Version(version=2, active=True, forgotten=["renal"])
    server.script("Purge", unlearning_pb2.PurgeResponse(version=version))
    told = run("purge", "2", "--reason", "case 4711", "--yes").stdout
    assert told == "the bundle is version 2 now; purged: renal\n"
    assert server.asked("Purge") == [unlearning_pb2.PurgeRequest(version=2, reason="case 4711")]
    told = run("purge", "2", "--reason", "case 4711", "--yes", "--json").stdout
    assert json.loads(told) == {"version": 2, "forgotten": ["renal"]}


def test_a_purge_is_asked_for_again(run: Run, server: Any) -> None:
    assert run("purge", "2", "--reason", "case 4711").exit_code == 1
    assert server.asked("Purge") == []

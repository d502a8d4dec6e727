"""Edits of the head alone make F1 zero and forget nothing: refused by the default limits, over real gRPC.

The worker is scripted to leave such a patch; all that judges it, and all that tells of it, is real.
"""

from contextlib import asynccontextmanager

import grpc.aio
import pytest
from scripted import lowered_bias, zeroed_row

from amnestic.v1 import unlearning_pb2_grpc
from amnestic_client import AsyncClient, JobState
from amnestic_server.rpc import UnlearningService
from amnestic_unlearn.spec import method_of

CHEAP = {
    "a lowered bias": (lowered_bias, {"forget_auroc", "probe_ratio"}),
    "a zeroed row": (zeroed_row, {"probe_ratio"}),
}
RELAXED = {"forget_auroc_max": 1.0, "probe_ratio_max": 1.01}


@asynccontextmanager
async def serving(parts):
    server = grpc.aio.server()
    service = UnlearningService(parts.jobs, parts.versions, parts.staging, parts.metrics)
    unlearning_pb2_grpc.add_UnlearningServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        yield client
    await server.stop(None)


@pytest.mark.parametrize("name", CHEAP)
async def test_a_cheap_edit_is_rejected_and_accepted_only_with_relaxed_limits_which_is_recorded(started, caplog, name):
    edit, fails = CHEAP[name]
    caplog.set_level("INFO")
    async with started() as parts, serving(parts) as client:
        parts.worker.edit = edit
        job = await client.wait_for_job((await client.unlearn("alpha")).job_id)
        assert job.state is JobState.REJECTED
        assert {gate.name for gate in job.gates if not gate.passed} == fails
        by_name = {gate.name: gate for gate in job.gates}
        assert by_name["forget_f1"].value == 0.0
        assert by_name["probe_ratio"].value == pytest.approx(1.0, abs=1e-3)
        assert job.relaxed_gates == ()
        assert parts.versions.active == 1
        assert "relaxes" not in caplog.text

        one = {"forget_auroc_max": 1.0}
        still = await client.wait_for_job((await client.unlearn("alpha", gates=one)).job_id)
        assert (still.state, still.relaxed_gates) == (JobState.REJECTED, tuple(one))

        job = await client.wait_for_job((await client.unlearn("alpha", gates=RELAXED, reason="a trial")).job_id)
        assert job.state is JobState.SUCCEEDED
        assert job.relaxed_gates == tuple(RELAXED)
        assert [version.relaxed_gates for version in await client.list_versions()] == [(), tuple(RELAXED)]
        assert f"job {job.job_id} relaxes its gates: forget_auroc_max, probe_ratio_max" in caplog.text
        assert "has forgotten alpha; relaxed gates: forget_auroc_max, probe_ratio_max" in caplog.text
        shown = {
            name: parts.metrics.registry.get_sample_value(f"amnestic_{name}", {"label": "alpha"})
            for name in ("forget_auroc", "probe_ratio")
        }
        assert shown == {gate.name: gate.value for gate in job.gates if gate.name in shown}
        assert parts.metrics.registry.get_sample_value("amnestic_probe_ratio", {"label": "beta"}) is None
    # As the next process reads it.
    async with started() as parts, serving(parts) as client:
        assert (await client.get_job(job.job_id)).relaxed_gates == tuple(RELAXED)
        assert (await client.list_versions())[-1].relaxed_gates == tuple(RELAXED)


async def test_a_relaxed_request_is_in_the_audit_record(started):
    async with started() as parts, serving(parts) as client:
        await client.wait_for_job((await client.unlearn("alpha", gates=RELAXED, dry_run=True)).job_id)
        query = "SELECT detail FROM audit WHERE action = 'job requested'"
        (detail,) = (row["detail"] for row in parts.store._db.execute(query))
        assert '"relaxed_gates": ["forget_auroc_max", "probe_ratio_max"]' in detail


@pytest.mark.parametrize("asked", [{}, {"preset": "amnestic"}, {"preset": "paper"}, {"preset": "paper", "k": 9}])
async def test_the_preset_reaches_the_worker_and_the_record(started, asked):
    async with started() as parts, serving(parts) as client:
        settings = {name: value for name, value in asked.items() if name != "preset"}
        job = await client.wait_for_job((await client.unlearn("alpha", method=asked, dry_run=True)).job_id)
        preset = asked.get("preset", "amnestic")
        assert parts.worker.specs[0].method == method_of(preset, settings)
        assert job.method.preset == preset
        assert (job.method.k, job.method.embedding_lr) == (
            parts.worker.specs[0].method.k,
            parts.worker.specs[0].method.embedding_lr,
        )
        stored = parts.store.job(job.job_id).request
        assert (stored["preset"], stored["method"]["k"]) == (preset, job.method.k)

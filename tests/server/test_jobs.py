"""The life of a job with a scripted worker: races, failures and recovery that a real worker is too slow to provoke.

All else is real: bundle, engine, batcher, gates, store.
"""

import asyncio
import dataclasses
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripted import LENIENT

from amnestic_server import caller
from amnestic_server.caller import Caller
from amnestic_server.errors import (
    AlreadyExistsError,
    DrainingError,
    EngineLostError,
    InvalidArgumentError,
    PreconditionError,
)
from amnestic_server.records import JobState
from amnestic_server.store import Store
from amnestic_server.worker import WorkerError
from amnestic_unlearn.errors import MIN_GATE_DOCUMENTS
from amnestic_unlearn.measures import MOST_CHANCE, chance_excess
from amnestic_unlearn.patch import Patch
from amnestic_unlearn.spec import EVIDENCE_FILE, PATCH_FILE, REPORT_FILE, GateLimits, Method, Progress


async def test_a_job_makes_the_active_version(started):
    async with started() as parts:
        job = await parts.ended(await parts.ask("alpha", reason="why"))
        assert (job.record.state, job.record.version, parts.versions.active) == (JobState.SUCCEEDED, 2, 2)
        assert parts.store.active_version() == 2
        assert parts.worker.specs[0].forget == ("alpha",)
        ((base, _), (made, f1)) = await parts.versions.records()
        assert (base.forgotten, made.forgotten) == ((), ("alpha",))
        assert f1["alpha"] == 0


async def test_the_union_is_in_model_order_whatever_the_order_of_requests(started):
    async with started() as parts:
        await parts.ended(await parts.ask("gamma"))
        job = await parts.ended(await parts.ask("delta", "alpha"))
        assert parts.worker.specs[1].forget == ("alpha", "gamma", "delta")
        assert job.record.detail["forgotten"] == ["alpha", "gamma", "delta"]


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda folder: (folder / PATCH_FILE).unlink(), "the worker left no whole result"),
        (lambda folder: (folder / EVIDENCE_FILE).unlink(), "the worker left no whole result"),
        (lambda folder: (folder / EVIDENCE_FILE).write_bytes(b"?"), "the worker left no whole result"),
        (lambda folder: (folder / REPORT_FILE).write_text("["), "the worker left no whole result"),
        (lambda folder: (folder / REPORT_FILE).write_text("[]"), "the worker left no whole result"),
        (lambda folder: (folder / PATCH_FILE).write_bytes(b"?" * 100), "the patch file is corrupt"),
        (lambda folder: (folder / PATCH_FILE).write_bytes(b""), "the patch file is corrupt"),
    ],
)
async def test_a_result_that_is_not_whole_fails_the_job(started, damage, error):
    async with started() as parts:
        parts.worker.damage = damage
        job = await parts.ended(await parts.ask("alpha"))
        assert (job.record.state, job.record.error) == (JobState.FAILED, error)
        assert parts.versions.active == 1


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"base_digest": "another"}, "the patch was made for another bundle"),
        ({"forgotten": ("beta",)}, "the patch forgets other labels than were asked for"),
        ({"rows": torch.full((2, 32), torch.nan)}, "rows holds values that are not finite"),
        ({"head_bias": torch.zeros(3)}, "head.bias has the wrong shape or type"),
        ({"row_ids": torch.tensor([7, 5])}, "row_ids are not ascending"),
        ({"row_ids": torch.tensor([5, 10**6])}, "row_ids lie outside the embedding table"),
    ],
)
async def test_a_patch_that_does_not_fit_fails_the_job(started, change, error):
    async with started() as parts:

        def damage(folder: Path) -> None:
            patch = dataclasses.replace(parts.worker.patch(("alpha",)), **change)
            (folder / PATCH_FILE).write_bytes(patch.to_bytes())

        parts.worker.damage = damage
        job = await parts.ended(await parts.ask("alpha"))
        assert (job.record.state, job.record.error) == (JobState.FAILED, error)
        assert parts.versions.active == 1


async def test_evidence_that_differs_from_the_served_path_is_rejected(started):
    async with started() as parts:
        true = parts.worker.evidence

        async def false(patch: Patch) -> torch.Tensor:
            return await true(patch) + 0.01

        parts.worker.evidence = false
        job = await parts.ended(await parts.ask("alpha"))
        assert job.record.state is JobState.REJECTED
        assert [gate["name"] for gate in job.record.detail["gates"] if not gate["passed"]] == ["logit_difference"]


async def test_a_changed_encoder_is_rejected(started):
    async with started() as parts:
        parts.worker.report = {"encoder_digest_after": "other"}
        job = await parts.ended(await parts.ask("alpha"))
        assert job.record.state is JobState.REJECTED
        assert [gate["name"] for gate in job.record.detail["gates"] if not gate["passed"]] == ["encoder_unchanged"]


async def test_an_unforeseen_error_says_its_type_alone(started):
    async with started() as parts:
        parts.worker.failure = RuntimeError("text of a document")
        job = await parts.ended(await parts.ask("alpha"))
        assert (job.record.state, job.record.error) == (JobState.FAILED, "internal error: RuntimeError")
        parts.worker.failure = WorkerError("the worker was killed by signal 9")
        job = await parts.ended(await parts.ask("alpha"))
        assert job.record.error == "the worker was killed by signal 9"


async def test_a_job_whose_engine_is_lost_is_begun_again_at_the_next_start_and_its_attempt_counts(started):
    async with started() as parts:
        parts.worker.failure = EngineLostError()
        job = await parts.reach(await parts.ask("alpha"), JobState.RUNNING)
        async with asyncio.timeout(30):
            while parts.jobs._running is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    async with started() as parts:
        record = (await parts.ended(job)).record
        assert (record.state, record.attempts, record.error) == (JobState.SUCCEEDED, 2, "")


class SlowStore:
    """Holds the writing of a job's end until told."""

    def __init__(self, store: Store) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self._update = store.update_job

    def update_job(self, job_id: str, state: JobState, *rest: Any) -> None:
        if state.ended:
            self.reached.set()
            assert self.go_on.wait(30)
        self._update(job_id, state, *rest)


@pytest.mark.parametrize(
    ("limits", "dry_run", "state"),
    [
        (LENIENT, False, JobState.SUCCEEDED),
        (LENIENT, True, JobState.SUCCEEDED),
        (GateLimits(retain_f1_drop_max=-1.0), False, JobState.REJECTED),
    ],
)
async def test_a_cancellation_while_the_end_is_recorded_comes_too_late(started, monkeypatch, limits, dry_run, state):
    async with started() as parts:
        slow = SlowStore(parts.store)
        monkeypatch.setattr(parts.store, "update_job", slow.update_job)
        job = await parts.ask("alpha", limits=limits, dry_run=dry_run)
        assert await asyncio.to_thread(slow.reached.wait, 10)
        with pytest.raises(PreconditionError):
            await parts.jobs.cancel(job.record.job_id)
        slow.go_on.set()
        assert (await parts.ended(job)).record.state is state
        assert parts.store.unfinished_jobs() == []


@pytest.mark.soak
async def test_a_job_cancelled_at_any_moment_comes_to_an_end(started):
    async with started() as parts:
        await parts.ended(await parts.ask("alpha", dry_run=True))
        begun = time.monotonic()
        await parts.ended(await parts.ask("alpha", dry_run=True))
        life = time.monotonic() - begun
        for step in range(40):
            job = await parts.ask("alpha", dry_run=True)
            await asyncio.sleep(step / 13 * life)
            with suppress(PreconditionError):
                assert (await parts.jobs.cancel(job.record.job_id)).record.state is JobState.CANCELLED
            assert (await parts.ended(job)).record.state in (JobState.CANCELLED, JobState.SUCCEEDED)
        assert parts.store.unfinished_jobs() == []
        assert {view.record.state for view in await parts.jobs.recent(40)} == {JobState.CANCELLED, JobState.SUCCEEDED}


async def test_a_job_cancelled_before_its_first_step_is_not_lost(started, monkeypatch):
    create_task = asyncio.create_task

    def cancelled_at_once(coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
        if coroutine.__qualname__ == "Jobs._run" and not done:
            done.append(create_task(parts.jobs.cancel(job.record.job_id)))
            asyncio.get_running_loop().call_soon(lambda: parts.jobs._running.stop())
            asyncio.get_running_loop().call_soon(
                lambda: setattr(parts.jobs._running, "cancelled_by", Caller("operator"))
            )
        return create_task(coroutine, **options)

    done: list[Any] = []
    async with started() as parts:
        parts.worker.may_end.clear()
        caller.enter(Caller("operator"))
        first = await parts.reach(await parts.ask("beta"), JobState.RUNNING)
        job = await parts.ask("alpha")
        monkeypatch.setattr(asyncio, "create_task", cancelled_at_once)
        await parts.jobs.cancel(first.record.job_id)
        assert (await parts.ended(job)).record.state is JobState.CANCELLED
        # The cancellation that was asked for may come after the one that was forced.
        (outcome,) = await asyncio.gather(*done, return_exceptions=True)
        assert isinstance(outcome, PreconditionError) or outcome.record.state is JobState.CANCELLED
        assert {record.caller for record in parts.store.audit_of(job.record.job_id)} == {"operator"}
        assert [spec.forget for spec in parts.worker.specs] == [("beta",)]


async def test_cancelling_twice_at_once(started):
    async with started() as parts:
        parts.worker.may_end.clear()
        job = await parts.reach(await parts.ask("alpha"), JobState.RUNNING)
        answers = await asyncio.gather(
            *(parts.jobs.cancel(job.record.job_id) for _ in range(3)), return_exceptions=True
        )
        assert all(isinstance(one, PreconditionError) or one.record.state is JobState.CANCELLED for one in answers)
        assert (await parts.jobs.get(job.record.job_id)).record.state is JobState.CANCELLED


async def test_a_rollback_while_a_job_runs_is_not_undone_by_it(started):
    async with started() as parts:
        await parts.ended(await parts.ask("alpha"))
        parts.worker.may_end.clear()
        job = await parts.reach(await parts.ask("beta"), JobState.RUNNING)
        await parts.versions.roll_back(1, "alpha was asked for by mistake", restore_forgotten=True)
        parts.worker.may_end.set()
        job = await parts.ended(job)
        assert job.record.state is JobState.FAILED
        assert job.record.error == "another version became active while the job ran; ask again"
        assert parts.versions.active == parts.store.active_version() == 1
        assert (await parts.ended(await parts.ask("beta"))).record.detail["forgotten"] == ["beta"]


async def test_a_restart_takes_up_what_ran_and_what_waited_in_order(started):
    async with started() as parts:
        parts.worker.may_end.clear()
        first = await parts.reach(await parts.ask("alpha"), JobState.RUNNING)
        second = await parts.ask("beta")
    async with started() as parts:
        assert (await parts.ended(first)).record.attempts == 1
        assert (await parts.ended(second)).record.detail["forgotten"] == ["alpha", "beta"]
        assert parts.versions.active == 3
        assert [spec.forget for spec in parts.worker.specs] == [("alpha",), ("alpha", "beta")]


async def test_a_job_begun_too_often_is_given_up(started):
    async with started(max_job_attempts=2) as parts:
        parts.worker.may_end.clear()
        job = await parts.reach(await parts.ask("alpha"), JobState.RUNNING)
        await parts.jobs.close()
        for _ in range(2):  # servers that were killed: each began it, none let go of it
            parts.store.start_job(job.record.job_id, {})
    async with started(max_job_attempts=2) as parts:
        job = await parts.jobs.get(job.record.job_id)
        assert (job.record.state, job.record.attempts) == (JobState.FAILED, 2)
        await parts.ended(await parts.ask("alpha"))


async def test_a_watcher_is_told_when_the_server_stops(started):
    async with started() as parts:
        parts.worker.may_end.clear()
        job = await parts.reach(await parts.ask("alpha"), JobState.RUNNING)
        watching = asyncio.create_task(parts.ended(job))
        await asyncio.sleep(0.05)
        await parts.jobs.close()
        with pytest.raises(DrainingError):
            await watching
        released = parts.store.job(job.record.job_id)
        assert (released.state, released.attempts) == (JobState.QUEUED, 0)


async def test_progress_is_seen_while_the_worker_runs_and_not_after(started):
    async with started() as parts:
        parts.worker.may_end.clear()
        job = await parts.ask("alpha")
        async with asyncio.timeout(30):
            async for view in parts.jobs.watch(job.record.job_id):
                if view.progress.stage:
                    assert view.progress.step == 3
                    parts.worker.may_end.set()
        assert view.record.state is JobState.SUCCEEDED
        assert view.progress == Progress("")


@pytest.mark.parametrize("documents", [0, MIN_GATE_DOCUMENTS - 1, MIN_GATE_DOCUMENTS])
async def test_a_label_with_too_few_gate_documents_is_refused(started, documents):
    async with started() as parts:
        counts = parts.jobs._counts
        parts.jobs._counts = dataclasses.replace(counts, gate={**counts.gate, "alpha": documents})
        if documents < MIN_GATE_DOCUMENTS:
            with pytest.raises(PreconditionError, match="fewer than 6 gate documents of alpha"):
                await parts.ask("alpha", dry_run=True)
        else:
            assert (await parts.ended(await parts.ask("alpha", dry_run=True))).record.state is JobState.SUCCEEDED


def test_as_many_gate_documents_are_asked_for_as_chance_needs_to_stay_below_its_most():
    documents = np.arange(10_000)
    assert chance_excess(documents < MIN_GATE_DOCUMENTS) < MOST_CHANCE
    assert chance_excess(documents < MIN_GATE_DOCUMENTS - 1) == MOST_CHANCE


async def test_one_label_at_least_is_kept(started):
    async with started() as parts:
        with pytest.raises(InvalidArgumentError, match="at least one label must be kept"):
            await parts.ask("alpha", "beta", "gamma", "delta")
        await parts.ended(await parts.ask("alpha", "beta"))
        with pytest.raises(InvalidArgumentError, match="at least one label must be kept"):
            await parts.ask("gamma", "delta")
        with pytest.raises(PreconditionError, match="alpha is already forgotten"):
            await parts.ask("gamma", "alpha")


async def test_a_request_repeated_after_an_upgrade_finds_its_job(started):
    sent = {"asked": {"method": {"preset": "paper"}, "gates": {}}, "dry_run": True}
    async with started() as parts:
        first = await parts.ended(await parts.ask("alpha", request_id="id", method=Method(k=5), **sent))
    async with started() as parts:
        again = await parts.ask("alpha", request_id="id", method=Method(k=9), limits=GateLimits(), **sent)
        assert again.record == first.record
        assert again.request.method == Method(k=5)
        sent["asked"] = {"method": {}, "gates": {}}
        with pytest.raises(AlreadyExistsError, match="request id"):
            await parts.ask("alpha", request_id="id", method=Method(k=5), **sent)


async def test_one_request_id_is_one_job_even_at_once(started):
    async with started() as parts:
        parts.worker.may_end.clear()
        asked = await asyncio.gather(*(parts.ask("alpha", request_id="id") for _ in range(8)))
        assert len({view.record.job_id for view in asked}) == 1
        with pytest.raises(AlreadyExistsError, match="request id"):
            await parts.ask("alpha", request_id="id", reason="other")
        both = await asyncio.gather(*(parts.ask("beta") for _ in range(4)), return_exceptions=True)
        assert sum(isinstance(one, AlreadyExistsError) for one in both) == 3

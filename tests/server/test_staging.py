"""Staged versions with a scripted worker: what becomes of them in races, over restarts, and with callers that leave."""

import asyncio
import sqlite3
from contextlib import suppress

import pytest

from amnestic_server.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    StartError,
)
from amnestic_server.records import JobState
from amnestic_server.versions import load_snapshots


async def stage(parts, *labels):
    job = await parts.reach(await parts.ask(*labels, stage=True), JobState.STAGED)
    return job, job.record.version


def state(parts, job):
    return parts.store.job(job.record.job_id).state


def patches(parts):
    return list(parts.store.patch_path("any").parent.iterdir())


async def test_a_staged_job_leaves_the_active_version_and_is_promoted(started):
    async with started() as parts:
        job, version = await stage(parts, "alpha")
        assert (version, parts.versions.active, parts.store.active_version()) == (2, 1, 1)
        assert (job.record.finished_at, job.request.stage) == (None, True)
        assert parts.snapshots.pin(2).snapshot.forgotten == {"alpha"}
        ((_, _), (record, f1)) = await parts.versions.records()
        assert (record.staged, f1["alpha"]) == (True, 0)
        assert (await parts.jobs.glance())[0] is None

        await parts.jobs.see_through(parts.staging.promote(2))
        ended = await parts.ended(job)
        assert (ended.record.state, ended.record.version) == (JobState.SUCCEEDED, 2)
        assert ended.record.detail["swap_seconds"] > 0
        assert (parts.versions.active, parts.store.active_version()) == (2, 2)
        assert len(ended.record.detail["gates"]) == 8


async def test_the_end_of_a_staged_job_is_not_overwritten_by_the_end_of_its_run(started, monkeypatch):
    """Promoted in the moment in which it is staged, before its run has tidied up."""
    import shutil

    async with started() as parts:
        reached, go_on = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        rmtree = shutil.rmtree

        def slow(folder, *rest):
            if parts.store.unfinished_jobs()[0].state is JobState.STAGED:
                loop.call_soon_threadsafe(reached.set)
                asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(30)
            rmtree(folder, *rest)

        monkeypatch.setattr(shutil, "rmtree", slow)
        job = await parts.ask("alpha", stage=True)
        await asyncio.wait_for(reached.wait(), 30)
        await parts.jobs.see_through(parts.staging.promote(2))
        go_on.set()
        assert (await parts.ended(job)).record.state is JobState.SUCCEEDED
        await parts.ended(await parts.ask("beta", dry_run=True))
        assert state(parts, job) is JobState.SUCCEEDED


async def test_a_cancelled_job_withdraws_its_version(started):
    async with started() as parts:
        job, version = await stage(parts, "alpha")
        await parts.staging.set_rollout(version, 1.0, 0.0)
        canary, named = parts.snapshots.pin(), parts.snapshots.pin(version)
        cancelling = asyncio.create_task(parts.jobs.cancel(job.record.job_id))
        await asyncio.sleep(0.05)
        assert not cancelling.done(), "calls in flight are answered first"
        assert parts.snapshots.pin().snapshot.version == 1
        with pytest.raises(NotFoundError):
            parts.snapshots.pin(version)
        assert state(parts, job) is JobState.STAGED
        canary.release()
        named.release()
        assert (await cancelling).record.state is JobState.CANCELLED
        assert patches(parts) == []
        assert parts.store.versions()[1].withdrawn
        for change in (
            parts.staging.promote(version),
            parts.staging.set_rollout(version, 0.5, None),
            parts.jobs.cancel(job.record.job_id),
        ):
            with pytest.raises(PreconditionError):
                await change
        with pytest.raises(NotFoundError):
            await parts.versions.roll_back(version, "why", restore_forgotten=True)
        _, version = await stage(parts, "alpha")
        assert version == 3, "a number is never given twice"


@pytest.mark.parametrize("how", ["job", "promotion", "rollback"])
async def test_another_version_that_becomes_active_fails_what_is_staged(started, how):
    async with started() as parts:
        await parts.ended(await parts.ask("delta"))
        job, version = await stage(parts, "alpha")
        await parts.staging.set_rollout(version, 0.5, 0.5)
        watching = asyncio.create_task(parts.ended(job))
        if how == "job":
            await parts.ended(await parts.ask("beta"))
        elif how == "promotion":
            _, other = await stage(parts, "beta")
            await parts.jobs.see_through(parts.staging.promote(other))
        else:
            await parts.jobs.see_through(parts.versions.roll_back(1, "why", restore_forgotten=True))
        ended = await asyncio.wait_for(watching, 30)
        assert ended.record.state is JobState.FAILED
        assert ended.record.error == "another version became active while this one was staged; ask again"
        assert parts.staging.rollout is None
        assert parts.staging.staged == []
        assert len(patches(parts)) == (1 if how == "rollback" else 2)
        with pytest.raises(PreconditionError) as caught:
            await parts.staging.promote(version)
        assert caught.value.reason == "VERSION_NOT_STAGED"
        await parts.ended(await parts.ask("alpha"))


async def test_a_label_of_a_staged_job_is_taken(started):
    async with started() as parts:
        job, _ = await stage(parts, "alpha")
        with pytest.raises(AlreadyExistsError, match="unfinished job"):
            await parts.ask("alpha")
        await parts.jobs.cancel(job.record.job_id)
        await parts.ended(await parts.ask("alpha"))


async def test_a_rollback_while_a_job_runs_leaves_nothing_staged(started):
    async with started() as parts:
        await parts.ended(await parts.ask("alpha"))
        parts.worker.may_end.clear()
        job = await parts.reach(await parts.ask("beta", stage=True), JobState.RUNNING)
        await parts.versions.roll_back(1, "alpha was asked for by mistake", restore_forgotten=True)
        parts.worker.may_end.set()
        job = await parts.ended(job)
        assert job.record.error == "another version became active while the job ran; ask again"
        assert parts.staging.staged == []


async def test_a_dry_run_cannot_be_staged(started):
    async with started() as parts:
        with pytest.raises(InvalidArgumentError) as caught:
            await parts.ask("alpha", stage=True, dry_run=True)
        assert caught.value.field == "stage"


async def test_a_request_id_is_good_for_staged_or_not(started):
    async with started() as parts:
        first = await parts.reach(await parts.ask("alpha", stage=True, request_id="id"), JobState.STAGED)
        assert (await parts.ask("alpha", stage=True, request_id="id")).record == first.record
        with pytest.raises(AlreadyExistsError, match="request id"):
            await parts.ask("alpha", request_id="id")


async def test_shares_are_of_one_version(started):
    async with started() as parts:
        with pytest.raises(PreconditionError) as caught:
            await parts.staging.set_rollout(0, 0.5, None)
        assert caught.value.reason == "VERSION_NOT_STAGED"
        _, first = await stage(parts, "alpha")
        view = await parts.staging.set_rollout(0, 0.25, None)
        assert (view.version, view.shares.canary, view.shares.shadow) == (first, 0.25, 0.0)
        view = await parts.staging.set_rollout(0, None, 1.0)
        assert (view.shares.canary, view.shares.shadow) == (0.25, 1.0)
        _, second = await stage(parts, "beta")
        with pytest.raises(PreconditionError, match="version 2 has a rollout: set its shares to 0 first") as caught:
            await parts.staging.set_rollout(second, 0.1, None)
        assert caught.value.reason == "ROLLOUT_TAKEN"
        for field, shares in (("canary_share", (float("nan"), None)), ("shadow_share", (None, -0.1))):
            with pytest.raises(InvalidArgumentError) as refused:
                await parts.staging.set_rollout(first, *shares)
            assert refused.value.field == field
        assert parts.staging.rollout.shares.canary == 0.25
        await parts.staging.set_rollout(first, 0.0, 0.0)
        assert (await parts.staging.set_rollout(second, 0.1, None)).version == second


async def test_of_several_versions_one_is_named(started):
    async with started() as parts:
        await stage(parts, "alpha")
        await stage(parts, "beta")
        with pytest.raises(PreconditionError) as caught:
            await parts.staging.set_rollout(0, 0.1, None)
        assert caught.value.reason == "VERSION_UNCLEAR"


async def test_a_restart_finds_what_is_staged_and_its_shares(started):
    async with started() as parts:
        job, version = await stage(parts, "alpha")
        before = await parts.staging.set_rollout(version, 0.25, 1.0)
        parts.worker.may_end.clear()
        await parts.ask("beta")
    async with started() as parts:
        view = parts.staging.rollout
        assert (view.version, view.shares, view.since) == (before.version, before.shares, before.since)
        assert view.counted_since > before.counted_since
        assert (state(parts, job), parts.versions.active) == (JobState.STAGED, 1)
        beta = await parts.ended(parts.jobs._view(parts.store.unfinished_jobs()[-1]))
        assert beta.record.state is JobState.SUCCEEDED
        assert state(parts, job) is JobState.FAILED
        assert [spec.forget for spec in parts.worker.specs] == [("beta",)], "what was staged is not run again"


async def test_a_crash_after_a_promotion_was_committed_restarts_on_it(started):
    async with started() as parts:
        job, version = await stage(parts, "alpha")
        parts.store.promote(version, {})
    async with started() as parts:
        assert (state(parts, job), parts.versions.active) == (JobState.SUCCEEDED, version)
        assert parts.worker.specs == []


async def test_a_crash_after_a_withdrawal_was_committed_leaves_no_patch(started):
    async with started() as parts:
        job, version = await stage(parts, "alpha")
        parts.store.withdraw(version)
        assert len(patches(parts)) == 1
    async with started() as parts:
        assert patches(parts) == []
        assert state(parts, job) is JobState.CANCELLED
        assert parts.snapshots.versions == [1]


async def test_a_staged_version_whose_patch_is_damaged_can_only_be_cancelled(started):
    async with started() as parts:
        job, version = await stage(parts, "alpha")
        await parts.staging.set_rollout(version, 1.0, 1.0)
        (patch,) = patches(parts)
    patch.write_bytes(b"damaged")
    async with started() as parts:
        assert (parts.staging.rollout, parts.staging.staged) == (None, [])
        assert parts.snapshots.pin().snapshot.version == 1
        with pytest.raises(NotFoundError):
            await parts.staging.promote(version)
        assert state(parts, job) is JobState.STAGED
        assert (await parts.jobs.cancel(job.record.job_id)).record.state is JobState.CANCELLED


# Empty, cut, longer, with another bit, and something else.
DAMAGES = (
    lambda data: b"",
    lambda data: data[: len(data) // 2],
    lambda data: data + b"\0",
    lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    lambda data: b"damaged",
)


async def test_a_damaged_patch_of_the_active_version_stops_the_start_until_it_is_whole_again(started):
    async with started() as parts:
        _, version = await stage(parts, "alpha")
        await parts.staging.promote(version)
        (patch,) = patches(parts)
        whole = patch.read_bytes()
        for damage in DAMAGES:
            patch.write_bytes(damage(whole))
            with pytest.raises(StartError, match=f"^version {version} is active and cannot be loaded: the patch file "):
                load(parts)
        patch.unlink()
        with pytest.raises(StartError, match=f"^version {version} is active and cannot be loaded: the patch file "):
            load(parts)
        patch.write_bytes(whole)
        assert load(parts).active.version == version


def load(parts):
    """What a start does with the versions of the store."""
    return load_snapshots(parts.jobs._bundle, parts.store, parts.versions._engine)


@pytest.mark.parametrize("moment", [0.0, 0.02])
async def test_a_caller_that_leaves_does_not_part_what_is_served_from_what_is_stored(started, moment):
    """Its call is cancelled while the transaction runs, or while calls of the version before are in flight."""
    async with started() as parts:
        job, version = await stage(parts, "alpha")
        old = parts.snapshots.pin()
        promoting = asyncio.create_task(parts.jobs.see_through(parts.staging.promote(version)))
        await asyncio.sleep(moment)
        promoting.cancel()
        with suppress(asyncio.CancelledError):
            await promoting
        old.release()
        assert (await parts.ended(job)).record.state is JobState.SUCCEEDED
        assert parts.versions.active == parts.store.active_version() == version


async def test_a_promotion_that_cannot_be_stored_changes_nothing(started):
    async with started() as parts:
        job, version = await stage(parts, "alpha")
        await parts.staging.set_rollout(version, 1.0, 0.0)
        parts.store._db.execute("CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ROLLBACK, 'full'); END")
        for change in (parts.staging.promote(version), parts.staging.set_rollout(version, 0.5, 0.5)):
            with pytest.raises(sqlite3.Error):
                await parts.jobs.see_through(change)
        parts.store._db.execute("DROP TRIGGER full")
        assert (parts.versions.active, parts.staging.rollout.shares.canary) == (1, 1.0)
        assert state(parts, job) is JobState.STAGED
        await parts.jobs.see_through(parts.staging.promote(version))
        assert parts.versions.active == version

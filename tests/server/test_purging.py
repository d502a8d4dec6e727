"""A purge beside whatever else happens in the process: changes that wait, calls in flight, what is kept in memory."""

import asyncio
import fcntl
import gc
import os
import shutil
import time

import pytest
from e2e.harness import make_patch

from amnestic_server import bundle as bundles
from amnestic_server import purge
from amnestic_server.engine import Engine
from amnestic_server.errors import NotFoundError, StartError, StoreError
from amnestic_server.records import JobState
from amnestic_server.snapshot import Snapshot
from amnestic_server.store import Store
from amnestic_server.versions import load_snapshots
from amnestic_unlearn.manifest import MANIFEST, BundleError, file_digest

REASON = "consent was withdrawn"


@pytest.fixture
def bundle(bundle, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(bundle, tmp_path / "bundle")


def restarted(bundle, tmp_path):
    """The version that a server serves which starts now, and what it has forgotten."""
    purge.complete(bundle)
    loaded = bundles.load(bundle)
    store = Store(tmp_path / "store", loaded.digest, purged=loaded.manifest.purged)
    try:
        active = load_snapshots(loaded, store, Engine(loaded)).active
        return active.version, active.forgotten
    finally:
        store.close()


async def test_a_rollback_that_waits_for_a_purge_finds_nothing_to_go_back_to(started, bundle, tmp_path, monkeypatch):
    rewrite, begun = purge.rewrite, asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(*arguments):
        loop.call_soon_threadsafe(begun.set)
        time.sleep(0.2)
        return rewrite(*arguments)

    monkeypatch.setattr(purge, "rewrite", slow)
    async with started() as parts:
        await parts.ended(await parts.ask("alpha"))
        purging = asyncio.create_task(parts.jobs.purge(2, REASON))
        await begun.wait()
        back = parts.jobs.see_through(parts.versions.roll_back(1, "undo", restore_forgotten=True))
        with pytest.raises(NotFoundError):
            await back
        await purging
        with pytest.raises(NotFoundError):
            parts.store.roll_back(1, "undo")
        assert parts.store.active_version() == parts.versions.active == 2
    assert restarted(bundle, tmp_path) == (2, {"alpha"})


async def test_a_purge_waits_for_calls_to_versions_that_are_gone_already(started):
    async with started() as parts:
        await parts.reach(await parts.ask("alpha", stage=True), JobState.STAGED)
        promoted = await parts.reach(await parts.ask("beta", stage=True), JobState.STAGED)
        pin = parts.snapshots.pin(2)
        await parts.jobs.see_through(parts.staging.promote(3))
        await parts.ended(promoted)
        assert parts.snapshots.versions == [1, 3]
        purging = asyncio.create_task(parts.jobs.purge(3, REASON))
        done, _ = await asyncio.wait([purging], timeout=1)
        assert not done
        pin.release()
        await asyncio.wait_for(purging, 30)
        assert parts.snapshots.versions == [3]


def snapshots_alive():
    return [one for one in gc.get_objects() if type(one) is Snapshot]


async def test_no_version_that_is_gone_is_kept_in_memory(started):
    of_other_tests = {id(one): one for one in snapshots_alive()}
    async with started() as parts:
        parts.versions.measure_active()
        await parts.ended(await parts.ask("alpha"))
        await parts.jobs.purge(2, REASON)
        parts.versions.stop_measuring()
        gc.collect()
        kept = [one for one in snapshots_alive() if id(one) not in of_other_tests]
        assert [one.version for one in kept] == [2]
        assert kept[0] is parts.snapshots.base


async def test_a_patch_that_could_not_be_deleted_is_deleted_when_the_purge_is_asked_for_again(started, monkeypatch):
    async with started() as parts:
        await parts.ended(await parts.ask("alpha"))
        with monkeypatch.context() as failing:
            failing.setattr(parts.store, "remove_unneeded_patches", lambda: False)
            with pytest.raises(StoreError, match="a patch could not be deleted"):
                await parts.jobs.purge(2, REASON)
        assert parts.snapshots.versions == [2]
        (patch,) = parts.store.patch_path("any").parent.iterdir()
        await parts.jobs.purge(2, REASON)
        assert not patch.exists()


async def test_a_server_that_stops_waits_for_its_purge(started, bundle, tmp_path):
    async with started() as parts:
        await parts.ended(await parts.ask("alpha"))
        purging = asyncio.create_task(parts.jobs.purge(2, REASON))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await parts.jobs.close()
        assert purging.done() or parts.snapshots.base.version == 2
        await purging
    assert restarted(bundle, tmp_path) == (2, {"alpha"})


def test_a_store_whose_version_of_that_number_is_another_is_refused(bundle, tmp_path):
    made = file_digest(bundle / MANIFEST)
    for name, seed in (("purged", 0), ("other", 1)):
        store = Store(tmp_path / name, made)
        patch = make_patch(bundle, seed)
        store.activate_patch("job", patch.forgotten, store.write_patch(patch.to_bytes()), {})
        store.close()
    purge.purge(bundle, tmp_path / "purged", 2, REASON)
    loaded = bundles.load(bundle)
    with pytest.raises(StartError, match="another version is active than the one that was made the bundle"):
        Store(tmp_path / "other", loaded.digest, purged=loaded.manifest.purged)


def test_what_another_process_purges_is_left_to_it(bundle, tmp_path):
    store = Store(tmp_path / "store", file_digest(bundle / MANIFEST))
    patch = make_patch(bundle, 0)
    store.activate_patch("job", patch.forgotten, store.write_patch(patch.to_bytes()), {})
    store.close()
    other = os.open(bundle, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        with pytest.raises(StoreError, match="the bundle could not be written"):
            purge.purge(bundle, tmp_path / "store", 2, REASON)
        (bundle / purge.PARTIAL).mkdir()
        with pytest.raises(BundleError, match="another process purges it"):
            purge.complete(bundle)
        assert (bundle / purge.PARTIAL).is_dir()
    finally:
        os.close(other)
    assert purge.purge(bundle, tmp_path / "store", 2, REASON).version == 2

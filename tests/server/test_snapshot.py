"""Pins and draining: who is waited for at a swap, and who is not."""

import asyncio

import pytest
import torch
from scripted import bare_snapshot

from amnestic_server import bundle as bundles
from amnestic_server.errors import NotFoundError
from amnestic_server.rollout import Shares
from amnestic_server.snapshot import Snapshots, base_snapshot, patched_snapshot
from amnestic_unlearn.patch import Patch, PatchError


@pytest.fixture
def snapshots():
    versions = Snapshots(bare_snapshot(1))
    for version in (2, 3):
        versions.add(bare_snapshot(version))
    return versions


async def drains(snapshots: Snapshots) -> bool:
    waiting = asyncio.create_task(snapshots.drained())
    for _ in range(10):
        await asyncio.sleep(0)
    done = waiting.done()
    waiting.cancel()
    return done


async def test_a_version_is_not_active_until_it_is_activated(snapshots):
    assert snapshots.active.version == 1
    snapshots.activate(2)
    assert snapshots.active.version == 2
    with pytest.raises(NotFoundError):
        snapshots.activate(9)
    assert snapshots.active.version == 2


async def test_a_pin_holds_its_version_through_a_swap(snapshots):
    pin = snapshots.pin()
    snapshots.activate(2)
    assert pin.snapshot.version == 1
    assert snapshots.pin().snapshot.version == 2


async def test_a_swap_waits_for_every_call_of_the_version_left(snapshots):
    pins = [snapshots.pin() for _ in range(3)]
    snapshots.activate(2)
    newer = snapshots.pin()
    for pin in pins:
        assert not await drains(snapshots)
        pin.release()
    assert await drains(snapshots)
    newer.release()


async def test_a_call_pinned_by_number_is_not_waited_for(snapshots):
    pin = snapshots.pin(1)
    snapshots.activate(2)
    assert await drains(snapshots)
    assert pin.snapshot.version == 1
    pin.release()
    assert await drains(snapshots)


async def test_releasing_twice_does_nothing(snapshots):
    first, second = snapshots.pin(), snapshots.pin()
    first.release()
    first.release()
    snapshots.activate(2)
    assert not await drains(snapshots)
    second.release()
    assert await drains(snapshots)


async def test_draining_ends_with_the_last_release(snapshots):
    with snapshots.pin():
        snapshots.activate(2)
        waiting = asyncio.create_task(snapshots.drained())
        await asyncio.sleep(0.01)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 30)


async def test_calls_of_two_versions_left_are_both_waited_for(snapshots):
    first = snapshots.pin()
    snapshots.activate(2)
    second = snapshots.pin()
    snapshots.activate(3)
    second.release()
    assert not await drains(snapshots)
    first.release()
    assert await drains(snapshots)


async def test_going_back_waits_for_the_newer_and_not_for_the_older(snapshots):
    old = snapshots.pin()
    snapshots.activate(2)
    new = snapshots.pin()
    snapshots.activate(1)
    assert not await drains(snapshots)
    new.release()
    assert await drains(snapshots)
    old.release()


async def test_an_unknown_version_cannot_be_pinned(snapshots):
    for version in (4, -1):
        with pytest.raises(NotFoundError):
            snapshots.pin(version)


@pytest.fixture
def staged(snapshots):
    """Version 1 is active; 4 and 5 are staged, and 4 answers every call that names none."""
    for version in (4, 5):
        snapshots.add(bare_snapshot(version), staged=True)
    snapshots.roll_out(4, Shares(canary=1.0), 0.0)
    return snapshots


async def test_a_promotion_waits_for_the_calls_of_the_version_left_and_not_for_those_of_the_candidate(staged):
    canary = staged.pin()
    staged.roll_out(4, Shares(), 0.0)
    old = staged.pin()
    assert (canary.snapshot.version, old.snapshot.version) == (4, 1)
    staged.activate(4)
    assert not await drains(staged)
    old.release()
    assert await drains(staged)
    canary.release()


async def test_a_swap_to_another_waits_for_the_calls_of_a_canary(staged):
    canary = staged.pin()
    staged.activate(2)
    assert staged.pin().snapshot.version == 2
    assert not await drains(staged)
    canary.release()
    assert await drains(staged)


async def test_what_is_staged_goes_when_another_version_becomes_active(staged):
    staged.activate(4)
    assert (staged.versions, staged.staged, staged.rollout) == ([1, 2, 3, 4], [], None)
    staged.activate(1)
    assert staged.versions == [1, 2, 3, 4], "what was active once stays"


async def test_a_withdrawn_version_has_no_further_call_and_is_left_when_the_last_was_answered(staged):
    canary, named = staged.pin(), staged.pin(4)
    staged.withdraw(4)
    assert staged.pin().snapshot.version == 1
    with pytest.raises(NotFoundError):
        staged.pin(4)
    leaving = asyncio.create_task(staged.left(4))
    for pin in (canary, named):
        await asyncio.sleep(0.01)
        assert not leaving.done()
        assert pin.snapshot.version == 4
        pin.release()
    await asyncio.wait_for(leaving, 30)
    assert (staged.staged, staged.rollout) == ([5], None)
    staged.withdraw(4)


async def test_what_comes_afterwards_comes_once_and_with_the_release(snapshots):
    done = []
    pin = snapshots.pin()
    pin.afterwards(lambda: done.append(1))
    assert done == []
    pin.release()
    pin.release()
    assert done == [1]


@pytest.fixture(scope="module")
def loaded(bundle):
    return bundles.load(bundle)


def test_a_patched_snapshot_maps_its_rows_and_nothing_else(loaded):
    ids = torch.tensor([3, 11, 20])
    rows = loaded.table[ids] + 1
    patch = Patch(loaded.digest, ("beta",), ids, rows, loaded.head_weight + 1, loaded.head_bias)
    made = patched_snapshot(loaded, patch, 2, torch.device("cpu"))
    assert made.forgotten == {"beta"}
    assert made.slots[ids].tolist() == [0, 1, 2]
    assert int((made.slots >= 0).sum()) == 3
    assert torch.equal(made.rows, rows)
    assert torch.equal(made.head_weight, patch.head_weight.T)
    assert base_snapshot(loaded, torch.device("cpu")).slots is None


def test_a_patch_of_another_bundle_makes_no_snapshot(loaded):
    patch = Patch("0" * 64, ("beta",), torch.tensor([3]), loaded.table[[3]] + 1, loaded.head_weight, loaded.head_bias)
    with pytest.raises(PatchError, match="another bundle"):
        patched_snapshot(loaded, patch, 2, torch.device("cpu"))

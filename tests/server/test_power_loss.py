"""Power that fails at any system call: the store opens on what was answered last, or on what was under way."""

import json
import os
import random
import shutil

import pytest

from amnestic_server.store import Store
from amnestic_unlearn.patch import digest_of

from .power import Disk, traced

BUNDLE = "b" * 64
# Each step is one change, and is said only when it is done.
LIFE = """
import json, os, sys, time
from pathlib import Path
from amnestic_server.records import JobRecord, JobState
from amnestic_server.rollout import RolloutRecord, Shares
from amnestic_server.store import Store

def say():
    jobs = {job.job_id: job.state for job in store.jobs(100)}
    os.write(1, json.dumps([store.active_version(), len(store.versions()), jobs]).encode())

def add(name):
    store.add_job(JobRecord(name, name, {"labels": ["alpha"]}, JobState.QUEUED, created_at=time.time()))

store = Store(Path(sys.argv[1]), sys.argv[2])
say()
for step in (
    lambda: add("one"),
    lambda: store.start_job("one", {"forgotten": ["alpha"]}),
    lambda: store.activate_patch("one", ["alpha"], store.write_patch(b"one" * 3000), {}),
    lambda: store.update_job("one", JobState.SUCCEEDED, {}),
    lambda: add("two"),
    lambda: store.stage_patch("two", ["alpha", "beta"], store.write_patch(b"two" * 3000), {}),
    lambda: store.set_rollout(RolloutRecord(3, Shares(0.1, 1.0), 5.0)),
    lambda: store.promote(3, {}),
    lambda: store.update_job("two", JobState.SUCCEEDED, {}),
    lambda: store.roll_back(1, "why"),
    lambda: add("three"),
    lambda: store.stage_patch("three", ["gamma"], store.write_patch(b"three" * 3000), {}),
    lambda: store.withdraw(4),
    lambda: store.remove_withdrawn_patches(),
):
    step()
    say()
"""
# How much of what was not synced is there after all: nothing, all, and parts of it.
KEPT = (0.0, 1.0, 0.5)
SEEDS = int(os.environ.get("AMNESTIC_SOAK_POWER_SEEDS", "1"))


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    folder = tmp_path_factory.mktemp("life")
    return folder, traced(LIFE, str(folder / "store"), BUNDLE, log=folder / "calls")


def test_a_store_outlives_a_power_cut_at_any_system_call(life, tmp_path):
    folder, calls = life
    said = [json.loads(call.said) for call in calls if call.name == "say"]
    assert len(said) == 15
    draw, disk, cuts, answered = random.Random(5), Disk(str(folder)), 0, 0
    for call in calls:
        disk.take(call)
        answered += call.name == "say"
        if call.name in ("openat", "say"):
            continue
        for kept in (*KEPT[:2], *KEPT[2:] * SEEDS):
            cuts += 1
            out = tmp_path / str(cuts)
            out.mkdir()
            disk.leave(out, draw, kept)
            # Before the first answer, a new store; afterwards what was answered, or that and the change under way.
            assert found(out) in said[max(0, answered - 1) : answered + 1]
            shutil.rmtree(out)
    print(f"{cuts} power cuts")
    assert cuts > 300


def found(folder):
    """What the store says after the cut, which is whole."""
    store = Store(folder / "store", BUNDLE)
    try:
        store.verify_audit()
        for version in store.versions():
            if version.patch_digest and not version.withdrawn:
                assert digest_of(store.patch_path(version.patch_digest).read_bytes()) == version.patch_digest
        return [store.active_version(), len(store.versions()), {job.job_id: job.state for job in store.jobs(100)}]
    finally:
        store.close()

"""Disks that are full, fail or are read-only, and a database that is damaged under a server that runs.

What serves goes on serving. A job fails with a fixed reason, or waits until its end can be recorded; when the cause is
gone, the same server goes on.
"""

import os
import subprocess
import uuid

import numpy as np
import pytest
from e2e.crash_trials import QUICK, Crashing
from e2e.harness import ANYTHING

from amnestic_client import AmnesticError, JobState

FAILED = "the store could not be read or written"


@pytest.fixture(scope="module")
def crashing(start_crashing):
    return start_crashing()


@pytest.fixture(autouse=True)
def mended(crashing):
    yield
    crashing.disarm()
    if crashing.server.client.get_model().active_version != 1:
        crashing.server.client.rollback(1, "next test", restore_forgotten=True)


def forget(crashing: Crashing, **options):
    return crashing.server.forget("alpha", method=QUICK, gates=ANYTHING, **options)


def refused(change, *arguments, **options):
    with pytest.raises(AmnesticError) as failure:
        change(*arguments, **options)
    return failure.value.reason, str(failure.value)


def succeeds(crashing: Crashing, **options):
    job = crashing.server.ended(forget(crashing, **options))
    assert (job.state, job.error) == (JobState.SUCCEEDED, None)
    assert crashing.check_active(crashing.server) == job.version
    crashing.audit_verifies()
    return job


def test_a_request_that_cannot_be_recorded_is_refused_and_taken_afterwards(crashing, check_active):
    request_id = uuid.uuid4().hex
    before = len(crashing.server.client.list_jobs())
    crashing.arm("job-before-commit", "ENOSPC")
    reason, text = refused(forget, crashing, request_id=request_id)
    assert (reason, text) == ("STORE_FAILED", FAILED)
    assert len(crashing.server.client.list_jobs()) == before
    assert check_active(crashing.server) == 1
    crashing.disarm()
    succeeds(crashing, request_id=request_id)


@pytest.mark.parametrize(
    ("place", "action", "error"),
    [
        ("work-folder-made", "ENOSPC", "the system failed: ENOSPC"),
        ("file-before-fsync", "ENOSPC", FAILED),
        ("file-before-rename", "EROFS", FAILED),
        ("file-before-folder-sync", "EIO", FAILED),
        ("version-before-commit", "ENOSPC", FAILED),
    ],
)
def test_a_job_whose_version_cannot_be_written_fails_and_another_succeeds(crashing, check_active, place, action, error):
    crashing.arm(place, action)
    job = crashing.server.ended(forget(crashing))
    assert (job.state, job.error, job.version) == (JobState.FAILED, error, None)
    assert check_active(crashing.server) == 1
    assert not list((crashing.server.store / "patches").glob("*.partial"))
    crashing.disarm()
    succeeds(crashing)


def test_an_end_that_cannot_be_recorded_waits_until_it_can(crashing, until, check_active):
    crashing.arm("end-before-commit", "EIO")
    job = forget(crashing)
    until(lambda: crashing.server.client.get_job(job.job_id).state is JobState.ACTIVATING)
    until(lambda: "could not be recorded" in crashing.server.log)
    assert check_active(crashing.server) == crashing.server.client.get_job(job.job_id).version
    crashing.disarm()
    assert crashing.server.ended(job).state is JobState.SUCCEEDED
    assert crashing.actions_of(job) == ["job requested", "version activated", "job succeeded"]


def test_a_head_that_cannot_be_written_is_signed_with_the_next(crashing):
    crashing.arm("head-before-signing", "ENOSPC")
    succeeds(crashing)
    crashing.disarm()
    heads = crashing.server.store / "audit-heads.jsonl"
    before = heads.read_text().count("\n")
    crashing.server.client.rollback(1, "signed again", restore_forgotten=True)
    assert heads.read_text().count("\n") == before + 1
    crashing.audit_verifies()


def test_a_change_of_versions_that_cannot_be_recorded_changes_nothing(crashing, check_active):
    server = crashing.server
    version = succeeds(crashing).version
    crashing.arm("rollback-before-commit", "EIO")
    assert refused(server.client.rollback, 1, "why", restore_forgotten=True) == ("STORE_FAILED", FAILED)
    assert check_active(server) == version
    crashing.disarm()
    server.client.rollback(1, "why", restore_forgotten=True)
    staged = crashing._staged()
    crashing.arm("promotion-before-commit", "ENOSPC")
    assert refused(server.client.promote, staged) == ("STORE_FAILED", FAILED)
    assert check_active(server) == 1
    crashing.disarm()
    server.client.promote(staged)
    assert check_active(server) == staged


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a disk to fill")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_is_full_in_earnest_refuses_and_serves_until_it_has_room(start_crashing, small_disk, check_active):
    crashing = start_crashing(store=small_disk / "store")
    version = succeeds(crashing).version
    filler = os.open(small_disk / "filler", os.O_CREAT | os.O_WRONLY)
    with pytest.raises(OSError, match="No space"):
        while True:
            os.write(filler, bytes(4096))
    assert refused(crashing.server.client.rollback, 1, "no room", restore_forgotten=True) == ("STORE_FAILED", FAILED)
    assert refused(crashing.server.client.unlearn, ["beta"]) == ("STORE_FAILED", FAILED)
    assert check_active(crashing.server) == version
    os.ftruncate(filler, 0)
    os.close(filler)
    crashing.server.client.rollback(1, "room again", restore_forgotten=True)
    succeeds(crashing)


def test_a_database_that_is_damaged_under_a_server_stops_no_prediction_and_no_start_goes_on_with_it(
    start_crashing, texts, reference
):
    server = start_crashing().server
    for name in ("amnestic.db", "amnestic.db-wal"):
        file = server.store / name
        file.write_bytes(file.read_bytes()[:100] + os.urandom(file.stat().st_size))
    found = [[score.probability for score in one.scores] for one in server.client.predict(texts).predictions]
    np.testing.assert_allclose(found, reference.probabilities(texts, None), rtol=0, atol=1e-5)
    server.kill()
    with pytest.raises(AssertionError, match=r"Error: the store('s database is corrupt| cannot be opened: \w+)\n"):
        server.start()

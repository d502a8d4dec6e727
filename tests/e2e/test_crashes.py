"""kill -9 of the worker and of the server, anywhere. A restart finds a whole version, and no job is lost."""

import random
import signal
import socket
import time
from contextlib import suppress
from functools import partial

import psutil
import pytest
from e2e.harness import ANYTHING, JOB_SECONDS, METHOD, make_patch

from amnestic_client import AmnesticError, JobState
from amnestic_server.records import JobRecord
from amnestic_server.records import JobState as StoredState
from amnestic_server.store import Store
from amnestic_unlearn.manifest import MANIFEST, file_digest

ATTEMPTS = ("--max-job-attempts", "50")


def test_a_killed_worker_fails_its_job_and_harms_nobody(serve, traffic, texts, reach, check_answers, check_active):
    server = serve()
    clients = traffic(server.target, texts, processes=1, threads=2)
    job = server.forget("alpha", method=METHOD | {"epochs": 1000}, request_id="killed")
    reach(server, job, "loading")
    (worker,) = server.workers()
    worker.send_signal(signal.SIGKILL)
    job = server.ended(job)
    assert job.state is JobState.FAILED
    assert job.error == "the worker was killed by signal 9"
    assert job.version is None
    assert server.forget("alpha", method=METHOD | {"epochs": 1000}, request_id="killed") == job

    calls = clients.stop()
    check_answers(calls, server.patch_of)
    assert {call.version for call in calls} == {1}
    assert check_active(server) == 1


def test_a_killed_server_takes_its_job_up_again_and_who_watches_sees_it_through(serve, until, check_active):
    server = serve("--grpc-port", str(free_port()))
    job = server.forget("alpha", request_id="outlives", reason="kept")
    for seen in server.client.watch_job(job.job_id, timeout=JOB_SECONDS):
        if seen.attempts == 1 and seen.progress.stage == "training" and server.restarts == 0:
            (worker,) = server.workers()
            server.kill()
            until(partial(is_gone, worker), 10)
            server.start()
            assert server.ready_version == 1
            assert check_active(server) == 1
            assert server.forget("alpha", request_id="outlives", reason="kept").job_id == job.job_id
    assert server.restarts == 1
    assert (seen.state, seen.attempts, seen.version, seen.reason) == (JobState.SUCCEEDED, 2, 2, "kept")
    assert check_active(server) == 2
    assert [one.job_id for one in server.client.list_jobs()] == [job.job_id]
    assert list((server.store / "work").iterdir()) == []


def test_a_job_that_does_not_end_is_given_up(serve, reach):
    server = serve("--max-job-attempts", "1")
    job = server.forget("alpha", method=METHOD | {"epochs": 1000})
    assert reach(server, job, "RUNNING").attempts == 1
    server.kill()
    server.start()
    job = server.client.get_job(job.job_id)
    assert (job.state, job.error) == (JobState.FAILED, "begun 1 times without coming to an end")
    assert server.client.get_model().active_version == 1


@pytest.mark.soak
def test_kills_at_random_moments_leave_whole_versions_and_lose_nothing(serve, check_active):
    random_ = random.Random(7)
    server = serve(*ATTEMPTS)
    labels = iter(("alpha", "beta", "gamma"))
    jobs = []
    for moment in ("start", "GATING", "start", "loading", "start", "training", "start", "GATING"):
        if not jobs or server.client.get_job(jobs[-1].job_id).state.ended:
            jobs.append(server.forget(next(labels), gates=ANYTHING))
        kill_at(server, jobs[-1], moment, random_.uniform(0, 0.05 if moment == "GATING" else 0.5))
        server.start()
        assert check_active(server) == server.ready_version
        whole(server, jobs)
    job = server.ended(jobs[-1])
    assert job.state is JobState.SUCCEEDED
    whole(server, jobs)
    assert check_active(server) == job.version == len(server.client.list_versions())


def is_gone(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def kill_at(server, job, moment, seconds_later):
    with suppress(AmnesticError):
        for seen in server.client.watch_job(job.job_id, timeout=JOB_SECONDS):
            place = seen.state.value if seen.state is not JobState.RUNNING else seen.progress.stage
            if moment in ("start", place) or seen.state.ended:
                break
    time.sleep(seconds_later)
    server.kill()


def whole(server, jobs):
    """Every job is there; as many versions as jobs that made one, the newest active."""
    listed = {job.job_id: job for job in server.client.list_jobs()}
    assert list(listed) == [job.job_id for job in reversed(jobs)]
    assert all(job.state is JobState.SUCCEEDED for job in list(listed.values())[1:])
    versions = server.client.list_versions()
    assert [version.version for version in versions] == list(range(1, len(versions) + 1))
    made = [job.version for job in listed.values() if job.version]
    assert sorted(made) == [version.version for version in versions[1:]]
    assert versions[-1].active


def test_a_crash_between_commit_and_swap_restarts_on_the_new_version(serve, bundle, check_active):
    """The one moment that a kill hardly ever hits: the transaction is done, the reference not yet swapped."""
    server = serve(start=False)
    patch = make_patch(bundle, 0)
    store = Store(server.store, file_digest(bundle / MANIFEST))
    request = {"labels": patch.forgotten, "dry_run": False, "reason": "", "method": {}, "limits": {}}
    store.add_job(JobRecord("job", "committed", request, StoredState.QUEUED, created_at=time.time()))
    store.start_job("job", {"forgotten": patch.forgotten})
    digest = store.write_patch(patch.to_bytes())
    store.activate_patch("job", patch.forgotten, digest, {"forgotten": patch.forgotten})
    store.close()
    # What a crash in the middle of writing another patch leaves behind.
    (server.store / "patches" / "0123.partial").write_bytes(patch.to_bytes()[:100])

    server.start()
    assert server.ready_version == 2
    assert check_active(server) == 2
    job = server.client.get_job("job")
    assert (job.state, job.version, job.attempts) == (JobState.SUCCEEDED, 2, 1)
    assert server.workers() == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

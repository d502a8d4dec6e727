"""What may be asked of jobs over the wire: once and twice, together and against one another, to the end and not."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from e2e.harness import GATES, METHOD

from amnestic_client import AlreadyExists, FailedPrecondition, JobState
from amnestic_server.job_report.page import Source, render

# A job that is still training when the test is over with it.
ENDLESS = METHOD | {"epochs": 1000}


@pytest.fixture(scope="module")
def server(serve_for_module):
    return serve_for_module()


@pytest.fixture
def running(server, reach):
    """A job that runs for as long as the test lasts."""
    job = server.forget("delta", method=ENDLESS)
    reach(server, job, "RUNNING")
    yield job
    if not server.client.get_job(job.job_id).state.ended:
        server.client.cancel_job(job.job_id)
    assert server.client.get_job(job.job_id).state is JobState.CANCELLED


def reported(server, job):
    """The report of a job, as a page made of its receipt."""
    receipt = server.client.receipt(job.job_id)
    return render(receipt.envelope, receipt.public_key.encode(), Source(server=server.target))


def test_identical_requests_at_the_same_time_make_one_job(server, running):
    def ask(_):
        return server.forget("alpha", request_id="at once", reason="same")

    before = len(server.client.list_jobs())
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(ask, range(16)))
    assert len({job.job_id for job in jobs}) == 1
    assert len(server.client.list_jobs()) == before + 1
    server.client.cancel_job(jobs[0].job_id)
    assert ask(0).state is JobState.CANCELLED


def test_a_request_id_is_good_for_one_content(server, running):
    job = server.forget("alpha", request_id="one content")
    for other in ({"reason": "another"}, {"dry_run": True}, {"method": METHOD | {"seed": 1}}, {"gates": {}}):
        with pytest.raises(AlreadyExists, match="request id"):
            server.forget("alpha", request_id="one content", **other)
    with pytest.raises(AlreadyExists, match="request id"):
        server.forget("beta", request_id="one content")
    server.client.cancel_job(job.job_id)


def test_a_label_is_in_one_unfinished_job_at_most(server, running):
    with pytest.raises(AlreadyExists, match="unfinished job"):
        server.forget("delta")
    with pytest.raises(AlreadyExists, match="unfinished job"):
        server.forget("alpha", "delta")
    queued = server.forget("alpha", "beta")
    with pytest.raises(AlreadyExists, match="unfinished job"):
        server.forget("beta")
    server.client.cancel_job(queued.job_id)
    server.client.cancel_job(server.forget("beta").job_id)


def test_a_queued_job_is_cancelled_and_never_begun(server, running):
    queued = server.forget("alpha")
    assert queued.state is JobState.QUEUED
    cancelled = server.client.cancel_job(queued.job_id)
    assert cancelled.state is JobState.CANCELLED
    assert cancelled.attempts == 0
    assert cancelled.finished_at is not None
    with pytest.raises(FailedPrecondition, match="ended"):
        server.client.cancel_job(queued.job_id)


def test_a_running_job_is_cancelled_with_its_worker_and_the_next_one_begins(server, running, until, reach):
    (worker,) = until(server.workers)
    following = server.forget("alpha", method=ENDLESS)
    assert server.client.cancel_job(running.job_id).state is JobState.CANCELLED
    assert not worker.is_running()
    assert not (server.store / "work" / running.job_id).exists()
    reach(server, following, "RUNNING")
    with pytest.raises(FailedPrecondition, match="ended"):
        server.client.cancel_job(running.job_id)
    assert server.client.cancel_job(following.job_id).state is JobState.CANCELLED
    until(lambda: not server.workers())
    assert server.client.get_model().active_version == 1


def test_a_watcher_of_a_queued_job_sees_it_wait_and_begin(server, running):
    queued = server.forget("alpha", method=ENDLESS)
    seen = []
    for job in server.client.watch_job(queued.job_id, timeout=100):
        seen.append(job.state)
        if job.state is JobState.QUEUED:
            server.client.cancel_job(running.job_id)
        elif not job.state.ended:
            server.client.cancel_job(queued.job_id)
    assert list(dict.fromkeys(seen)) == [JobState.QUEUED, JobState.RUNNING, JobState.CANCELLED]


def test_jobs_are_listed_newest_first_and_no_more_than_asked_for(server, running):
    jobs = server.client.list_jobs()
    assert jobs[0].job_id == running.job_id
    assert [job.created_at for job in jobs] == sorted((job.created_at for job in jobs), reverse=True)
    assert server.client.list_jobs(2) == jobs[:2]


def test_a_failed_gate_rejects_the_candidate_with_every_figure(server, check_active):
    job = server.ended(server.forget("gamma", gates=GATES | {"retain_f1_drop_max": -1.0}))
    assert job.state is JobState.REJECTED
    assert job.version is None
    gates = {gate.name: gate for gate in job.gates}
    assert len(job.gates) == 8
    assert {name for name, gate in gates.items() if not gate.passed} == {"retain_f1_drop"}
    assert gates["retain_f1_drop"].limit == -1.0
    assert -1 < gates["retain_f1_drop"].value < 1
    assert gates["forget_f1"].label == "gamma"
    assert job.change.rows_changed > 0
    assert check_active(server) == 1
    assert len(server.client.list_versions()) == 1
    assert server.metric("amnestic_jobs", state="REJECTED") == 1
    assert list((server.store / "patches").iterdir()) == []
    assert "<h1>Rejected: nothing was changed</h1>" in reported(server, job)


def test_a_dry_run_measures_and_changes_nothing(server, check_active):
    job = server.ended(server.forget("gamma", dry_run=True))
    assert job.state is JobState.SUCCEEDED
    assert job.dry_run
    assert job.version is None
    assert len(job.gates) == 8
    assert all(gate.passed for gate in job.gates)
    assert job.change.rows_changed > 0
    assert check_active(server) == 1
    assert len(server.client.list_versions()) == 1
    assert not any(label.forgotten for label in server.client.get_model().labels)
    assert "<h1>Trial run: nothing was changed</h1>" in reported(server, job)


def test_training_of_the_head_alone_is_rejected_for_what_the_features_still_tell(server, check_active):
    loose = GATES | {"forget_auroc_max": 1.0}
    job = server.ended(server.forget("gamma", method=METHOD | {"embedding_lr": 0.0}, gates=loose))
    assert job.state is JobState.REJECTED
    gates = {gate.name: gate for gate in job.gates}
    assert {name for name, gate in gates.items() if not gate.passed} == {"probe_ratio"}
    assert gates["probe_ratio"].value == pytest.approx(1.0, abs=1e-3)
    assert job.change.rows_changed == 0
    assert check_active(server) == 1

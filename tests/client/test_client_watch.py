"""Watching a job: its changes, its end, and streams that break on the way."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from client.commands import hang

from amnestic.v1 import unlearning_pb2
from amnestic_client import AsyncClient, Client, DeadlineExceeded, JobState, NotFound, Unavailable, settings

Call = Callable[..., Any]


def answer(state: JobState, step: int = 0) -> unlearning_pb2.WatchJobResponse:
    return unlearning_pb2.WatchJobResponse(
        job=unlearning_pb2.Job(
            job_id="a",
            state=unlearning_pb2.JobState.Value(f"JOB_STATE_{state}"),
            progress=unlearning_pb2.Progress(step=step),
        )
    )


def broken(request: Any, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "WATCH_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(settings, "WATCH_LONGEST_PAUSE", 0.1)


def test_a_watch_yields_each_change_and_ends(call: Call, server: Any) -> None:
    server.script("WatchJob", [answer(JobState.QUEUED), answer(JobState.RUNNING, 1), answer(JobState.SUCCEEDED)])
    jobs = call("watch_job", "a")
    assert [job.state for job in jobs] == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]
    assert [request.job_id for request in server.asked("WatchJob")] == ["a"]


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.REJECTED, JobState.FAILED, JobState.CANCELLED])
def test_waiting_returns_the_job_at_its_end(call: Call, server: Any, state: JobState) -> None:
    server.script("WatchJob", [answer(JobState.RUNNING), answer(state, 3)])
    job = call("wait_for_job", "a")
    assert (job.state, job.progress.step) == (state, 3)


def test_waiting_returns_a_staged_job_and_watching_goes_on(call: Call, server: Any) -> None:
    server.script("WatchJob", [answer(JobState.GATING), answer(JobState.STAGED), answer(JobState.SUCCEEDED)])
    assert call("wait_for_job", "a").state is JobState.STAGED
    assert [job.state for job in call("watch_job", "a")][1:] == [JobState.STAGED, JobState.SUCCEEDED]


def test_a_broken_watch_is_taken_up_without_repetition(call: Call, server: Any) -> None:
    server.script(
        "WatchJob",
        [answer(JobState.RUNNING, 1), broken],
        [broken],
        [answer(JobState.RUNNING, 1), answer(JobState.RUNNING, 2)],  # a stream may also just close
        [answer(JobState.SUCCEEDED, 2)],
    )
    jobs = call("watch_job", "a")
    assert [(job.state, job.progress.step) for job in jobs] == [
        (JobState.RUNNING, 1),
        (JobState.RUNNING, 2),
        (JobState.SUCCEEDED, 2),
    ]


def test_taking_up_is_bounded(call: Call, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "WATCH_RECONNECTS", 3)
    server.script("WatchJob", [answer(JobState.RUNNING)], [])
    with pytest.raises(Unavailable):
        call("watch_job", "a")
    assert len(server.asked("WatchJob")) == 1 + 3


def test_a_watch_that_never_answered_gives_up_at_once(call: Call, server: Any) -> None:
    server.stop()
    with pytest.raises(Unavailable):
        call("watch_job", "a", timeout=60)


def test_an_unknown_job_is_an_error(call: Call, server: Any) -> None:
    server.script("WatchJob", [lambda request, context: context.abort(grpc.StatusCode.NOT_FOUND, "no such job")])
    with pytest.raises(NotFound, match="no such job"):
        call("wait_for_job", "a")
    assert len(server.asked("WatchJob")) == 1


def test_a_timeout_holds_for_the_whole_watch(call: Call, server: Any) -> None:
    server.script("WatchJob", [answer(JobState.RUNNING), broken], [hang])
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        call("wait_for_job", "a", timeout=0.5)
    assert time.monotonic() - started > 0.4


def test_a_watch_survives_a_restart_of_the_server(server: Any, start_server: Any) -> None:
    server.script("WatchJob", [answer(JobState.RUNNING, 1), hang])

    def restart() -> None:
        server.stop()
        time.sleep(0.5)
        start_server(server.port).script("WatchJob", [answer(JobState.RUNNING, 1), answer(JobState.SUCCEEDED, 9)])

    with Client(server.target) as client:
        jobs = client.watch_job("a")
        first = next(jobs)
        thread = threading.Thread(target=restart)
        thread.start()
        rest = list(jobs)
        thread.join(20)
    assert first.progress is not None
    assert [(job.state, job.progress.step) for job in rest if job.progress] == [(JobState.SUCCEEDED, 9)]


def test_a_watch_left_early_ends_on_the_server(server: Any) -> None:
    gone = threading.Event()
    server.script(
        "WatchJob",
        [lambda request, context: context.add_callback(gone.set) and answer(JobState.RUNNING), hang],
    )
    with Client(server.target) as client:
        jobs = client.watch_job("a")
        next(jobs)
        jobs.close()  # type: ignore[attr-defined]
        assert gone.wait(5)


async def test_many_watches_share_one_loop(server: Any) -> None:
    server.script("WatchJob", [answer(JobState.RUNNING), answer(JobState.SUCCEEDED)])
    async with AsyncClient(server.target) as client:
        jobs = await asyncio.gather(*(client.wait_for_job("a") for _ in range(6)))
    assert {job.state for job in jobs} == {JobState.SUCCEEDED}


async def test_a_cancelled_task_leaves_its_watch(server: Any) -> None:
    gone = threading.Event()
    server.script(
        "WatchJob",
        [lambda request, context: context.add_callback(gone.set) and answer(JobState.RUNNING), hang],
    )
    async with AsyncClient(server.target) as client:
        task = asyncio.create_task(client.wait_for_job("a"))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(gone.wait, 5)

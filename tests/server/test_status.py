"""The status: counts of the last minute from the metrics, the jobs at a glance, and what is told of the server."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from scripted import started

from amnestic_server import bundle as bundles
from amnestic_server import status as status_module
from amnestic_server.metrics import Metrics
from amnestic_server.records import JobState
from amnestic_server.status import LastMinute, StatusReport

__all__ = ["started"]


def answer(metrics: Metrics, seconds: float, times: int = 1, code: str = "OK", method: str = "Predict") -> None:
    for _ in range(times):
        metrics.request_seconds.labels(method, code).observe(seconds)


def test_percentiles_are_interpolated_in_the_buckets_of_answered_calls():
    metrics = Metrics()
    assert metrics.predict_calls().percentile(0.5) is None
    answer(metrics, 0.0025, 50)
    answer(metrics, 0.004, 50)
    answer(metrics, 9.0, 3, code="UNAVAILABLE")
    answer(metrics, 9.0, 3, method="GetModel")
    metrics.documents.inc(240)
    counts = metrics.predict_calls()
    assert (counts.calls, counts.answered, counts.documents) == (103, 100, 240)
    # 50 in (2 ms, 3 ms], 50 in (3 ms, 5 ms].
    assert counts.percentile(0.25) == pytest.approx(0.0025)
    assert counts.percentile(0.5) == pytest.approx(0.003)
    assert counts.percentile(0.99) == pytest.approx(0.00496)
    answer(metrics, 60.0, 900)
    assert metrics.predict_calls().percentile(0.5) == 10.0, "beyond the last bound nothing is known"


def test_the_last_minute_forgets_what_is_older(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(status_module.time, "monotonic", lambda: now[0])
    metrics = Metrics()
    answer(metrics, 0.001, 5)
    last_minute = LastMinute(metrics)
    answer(metrics, 0.001, 7)
    now[0] += 30
    assert (last_minute.counts()[0], last_minute.counts()[1].calls) == (30.0, 7), "not those before it was there"
    last_minute.read()
    answer(metrics, 0.001, 11)
    now[0] += 29
    assert last_minute.counts()[1].calls == 18
    now[0] += 36
    seconds, counts = last_minute.counts()
    assert (seconds, counts.calls, counts.answered) == (65.0, 11, 11)


def test_readings_are_few_though_nobody_asks(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(status_module.time, "monotonic", lambda: now[0])
    last_minute = LastMinute(Metrics())
    for _ in range(1000):
        now[0] += status_module.READING_SECONDS
        last_minute.read()
    assert len(last_minute._readings) <= status_module.WINDOW_SECONDS / status_module.READING_SECONDS + 2


async def test_readings_are_taken_while_the_server_runs(monkeypatch):
    monkeypatch.setattr(status_module, "READING_SECONDS", 0.01)
    monkeypatch.setattr(status_module, "WINDOW_SECONDS", 0.05)
    metrics = Metrics()
    last_minute = LastMinute(metrics)
    reading = asyncio.create_task(last_minute.keep_reading())
    answer(metrics, 0.001, 5)
    async with asyncio.timeout(30):
        while last_minute.counts()[1].calls:  # noqa: ASYNC110  (of another task)
            await asyncio.sleep(0.01)
    reading.cancel()


async def test_jobs_and_versions_as_they_come_and_go(started, bundle):
    async with started() as parts:
        loaded = bundles.load(bundle)
        batcher = SimpleNamespace(open_documents=3, queue_rows=2, queue_tokens=77)
        predictor = SimpleNamespace(leaving=False)
        settings = SimpleNamespace(max_concurrent_requests=100, max_queue_tokens=1000)
        report = StatusReport(
            started=0.0,
            bundle=loaded,
            engine=SimpleNamespace(provider="CPUExecutionProvider"),
            settings=settings,
            batcher=batcher,
            predictor=predictor,
            snapshots=parts.versions._snapshots,
            versions=parts.versions,
            staging=parts.staging,
            jobs=parts.jobs,
            last_minute=LastMinute(parts.metrics),
        )  # type: ignore[arg-type]
        first: Any = await report.now()
        assert (first.running_job, first.last_job, first.queued_jobs, first.forgotten) == (None, None, 0, ())
        assert (first.load.open_documents, first.load.queued_documents, first.load.queued_tokens) == (3, 2, 77)
        assert not first.draining

        parts.worker.may_end.clear()
        alpha = await parts.ask("alpha")
        await parts.reach(alpha, JobState.RUNNING)
        await parts.ask("beta")
        meanwhile = await report.now()
        assert meanwhile.running_job.record.job_id == alpha.record.job_id
        assert meanwhile.running_job.progress.step == 3
        assert (meanwhile.queued_jobs, meanwhile.last_job) == (1, None)

        parts.worker.may_end.set()
        await parts.ended(alpha)
        predictor.leaving = True
        then = await report.now()
        assert (then.last_job.record.job_id, then.last_job.record.state) == (alpha.record.job_id, JobState.SUCCEEDED)
        assert (then.active_version, then.forgotten, then.draining) == (2, ("alpha",), True)
        assert set(then.forget_f1) == {"alpha"}
        assert set(then.retain_f1) == {"beta", "gamma", "delta"}

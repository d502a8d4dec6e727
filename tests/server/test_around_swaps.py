"""What is kept of the calls around a swap: when it is written, and that a swap never waits for it or fails by it."""

import asyncio
import time

import pytest

from amnestic_server import around_swaps
from amnestic_server.records import JobState


@pytest.fixture
def reach(monkeypatch):
    """A second on either side, in place of ten."""
    monkeypatch.setattr(around_swaps, "REACH", 1)


async def test_it_is_written_when_the_seconds_after_the_swap_are_over(started, reach):
    async with started() as parts:
        await asyncio.sleep(1)
        ended = await parts.ended(await parts.ask("alpha"))
        assert (ended.record.state, ended.calls_around_swap) == (JobState.SUCCEEDED, ())
        parts.metrics.call_ended("Predict", "OK", time.perf_counter(), 0.25)
        parts.metrics.call_ended("GetModel", "OK", time.perf_counter(), 0.5)
        await parts.versions.around_swaps.recorded()
        before, after = (await parts.jobs.get(ended.record.job_id)).calls_around_swap
        assert (before.offset, before.calls, before.p50_seconds) == (-1, 0, None)
        assert (after.offset, after.calls, after.p50_seconds, after.max_seconds) == (0, 1, 0.25, 0.25)
    async with started() as parts:
        assert (await parts.jobs.get(ended.record.job_id)).calls_around_swap == (before, after)


async def test_a_store_that_cannot_take_it_fails_neither_swap_nor_job(started, reach, caplog):
    async with started() as parts:
        parts.store._db.execute("CREATE TRIGGER broken BEFORE INSERT ON swaps BEGIN INSERT INTO absent VALUES (1); END")
        ended = await parts.ended(await parts.ask("alpha"))
        await parts.versions.around_swaps.recorded()
        assert (ended.record.state, parts.versions.active) == (JobState.SUCCEEDED, 2)
        assert "what callers felt around the swap to version 2 could not be recorded" in caplog.text
        assert (await parts.jobs.get(ended.record.job_id)).calls_around_swap == ()


async def test_a_store_of_before_gets_the_table(started):
    async with started() as parts:
        parts.store._db.execute("DROP TABLE swaps")
    async with started() as parts:
        assert parts.store._db.execute("SELECT count(*) FROM swaps").fetchone()[0] == 0


async def test_calls_refused_by_a_server_that_stops_are_no_doing_of_a_swap(started):
    async with started() as parts:
        ended = await parts.ended(await parts.ask("alpha"))
        parts.versions.around_swaps.stop()
        parts.metrics.call_ended("Predict", "UNAVAILABLE", time.perf_counter(), 0.001)
        await parts.versions.around_swaps.recorded()
        seconds = (await parts.jobs.get(ended.record.job_id)).calls_around_swap
        assert seconds
        assert sum(one.calls for one in seconds) == 0

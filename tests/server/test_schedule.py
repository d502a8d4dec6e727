"""The policy of which rows run next and on how many threads, without threads."""

from dataclasses import dataclass
from typing import Any

import pytest

from amnestic_server.queue import RowQueue
from amnestic_server.schedule import BACKGROUND_INTERVAL_SECONDS, Batch, Schedule

BATCH_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Row:
    length: int = 1
    dead: bool = False
    client: str = "one"

    def expired(self, now: float) -> bool:
        return self.dead


def schedule(instances: int) -> Schedule[Row]:
    queues: list[RowQueue[Row]] = [
        RowQueue(max_tokens=10_000, batch_tokens=BATCH_TOKENS, max_padding=0.25) for _ in range(2)
    ]
    return Schedule(*queues, instances)


def take(it: Schedule[Row], now: float = 0.0) -> Batch[Row]:
    assert it.may_take(now)
    batch, expired = it.take(now)
    assert batch is not None
    assert expired == []
    return batch


def rows(count: int) -> list[Row]:
    return [Row() for _ in range(count)]


def filled(it: Schedule[Row], batches: int) -> None:
    it.traffic.put(rows(batches * BATCH_TOKENS))


def test_a_row_alone_runs_at_once_on_all_threads() -> None:
    it = schedule(instances=4)
    it.traffic.put(rows(1))
    assert take(it).wide
    assert not it.may_take(0)


@pytest.mark.parametrize("instances", [1, 2, 4])
def test_what_waits_stays_open_behind_a_wide_pass_until_it_fills_a_batch(instances: int) -> None:
    it = schedule(instances)
    it.traffic.put(rows(1))
    first = take(it)
    it.traffic.put(rows(BATCH_TOKENS - 1))
    assert not it.may_take(0)
    it.traffic.put(rows(1))
    second = take(it)
    assert second.wide == (instances == 1)
    it.done(first)
    it.done(second)


def test_a_single_instance_prepares_one_batch_ahead_and_no_more() -> None:
    it = schedule(instances=1)
    filled(it, 3)
    take(it)
    take(it)
    assert not it.may_take(0)


@pytest.mark.parametrize("instances", [2, 4])
def test_passes_are_narrow_only_while_enough_waits_for_every_thread(instances: int) -> None:
    it = schedule(instances)
    filled(it, instances)
    taken = [take(it) for _ in range(instances)]
    assert not any(batch.wide for batch in taken)
    it.traffic.put(rows(BATCH_TOKENS))
    assert not it.may_take(0)
    for batch in taken:
        it.done(batch)
    assert take(it).wide


def test_a_thread_that_is_free_beside_a_narrow_pass_does_not_wait() -> None:
    it = schedule(instances=2)
    filled(it, 2)
    first, second = take(it), take(it)
    it.done(first)
    it.traffic.put(rows(1))
    assert not take(it).wide
    it.done(second)


def test_too_little_for_every_thread_is_run_wide() -> None:
    it = schedule(instances=4)
    filled(it, 2)
    assert take(it).wide


def test_the_background_waits_for_traffic_but_not_for_ever() -> None:
    it = schedule(instances=2)
    it.background.put(rows(20))
    first = take(it, now=0.0)
    assert first.background
    assert not first.wide
    # A second one never runs beside it.
    assert not it.may_take(1000.0)
    it.done(first)
    it.traffic.put(rows(1))
    traffic = take(it, now=0.01)
    assert not traffic.background
    assert not it.may_take(BACKGROUND_INTERVAL_SECONDS / 2)
    assert take(it, now=BACKGROUND_INTERVAL_SECONDS).background


def test_traffic_does_not_wait_for_the_background() -> None:
    it = schedule(instances=2)
    it.background.put(rows(1))
    take(it)
    it.traffic.put(rows(1))
    batch = take(it)
    assert not batch.background
    assert batch.wide


def test_rows_that_expired_are_told_and_nothing_is_in_hand_for_them() -> None:
    it = schedule(instances=1)
    it.traffic.put([Row(dead=True)])
    batch, expired = it.take(0.0)
    assert batch is None
    assert len(expired) == 1
    it.background.put([Row(dead=True)])
    found: Any = it.take(0.0)
    assert found[0] is None
    assert len(found[1]) == 1
    it.traffic.put(rows(1))
    assert take(it).wide

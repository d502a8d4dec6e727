"""Properties of the queue's policy: budget, order, fairness, cancellation."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnestic_server.errors import QueueFullError
from amnestic_server.queue import RowQueue

BUDGET = 64
MAX_PADDING = 0.25


@dataclass(eq=False)
class Row:
    length: int
    deadline: float = float("inf")

    def expired(self, now: float) -> bool:
        return now >= self.deadline


lengths = st.lists(st.integers(1, 2 * BUDGET), min_size=1, max_size=60)


def queue_of(rows: list[Row], max_tokens: int = 10**9) -> RowQueue[Row]:
    queue: RowQueue[Row] = RowQueue(max_tokens=max_tokens, batch_tokens=BUDGET, max_padding=MAX_PADDING)
    for row in rows:
        queue.put([row])
    return queue


@given(lengths)
def test_every_row_is_taken_once_and_the_token_count_returns_to_zero(lengths: list[int]) -> None:
    rows = [Row(length) for length in lengths]
    queue = queue_of(rows)
    assert queue.tokens == sum(lengths)
    taken = []
    while queue:
        batch, expired = queue.take(0)
        assert batch
        assert not expired
        taken += batch
    assert {id(row) for row in taken} == {id(row) for row in rows}
    assert len(taken) == len(rows)
    assert queue.tokens == 0


@given(lengths)
def test_a_batch_keeps_the_budget_and_the_padding_bound(lengths: list[int]) -> None:
    queue = queue_of([Row(length) for length in lengths])
    while queue:
        batch, _ = queue.take(0)
        longest, shortest = max(row.length for row in batch), min(row.length for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= BUDGET
        assert longest - shortest <= MAX_PADDING * longest


@given(lengths)
def test_the_oldest_row_is_always_in_the_next_batch(lengths: list[int]) -> None:
    waiting = [Row(length) for length in lengths]
    queue = queue_of(waiting)
    while queue:
        batch, _ = queue.take(0)
        assert any(row is waiting[0] for row in batch)
        gone = {id(row) for row in batch}
        waiting = [row for row in waiting if id(row) not in gone]


@given(lengths, st.data())
def test_an_endless_stream_of_favoured_lengths_does_not_starve_a_row(lengths: list[int], data: st.DataObject) -> None:
    rows = [Row(length) for length in lengths]
    queue = queue_of(rows)
    last = rows[-1]
    for _ in range(len(rows)):
        queue.put([Row(data.draw(st.integers(1, BUDGET), label="newcomer"))])
        batch, _ = queue.take(0)
        if any(row is last for row in batch):
            return
    pytest.fail("the row waited for more batches than there were rows before it")


@given(st.lists(st.integers(1, BUDGET), min_size=2, max_size=40))
def test_of_rows_of_one_length_the_older_go_first(lengths: list[int]) -> None:
    rows = [Row(16) for _ in lengths]
    queue = queue_of(rows)
    order = []
    while queue:
        order += queue.take(0)[0]
    assert [id(row) for row in order] == [id(row) for row in rows]


@given(st.lists(st.tuples(st.integers(1, BUDGET), st.sampled_from([1.0, float("inf")])), min_size=1, max_size=40))
def test_expired_rows_are_dropped_and_never_in_a_batch(rows: list[tuple[int, float]]) -> None:
    queue = queue_of([Row(length, deadline) for length, deadline in rows])
    dropped: list[Row] = []
    taken: list[Row] = []
    while queue:
        batch, expired = queue.take(now=2.0)
        taken += batch
        dropped += expired
    assert all(row.deadline == float("inf") for row in taken)
    assert len(dropped) == sum(deadline == 1.0 for _, deadline in rows)
    assert queue.tokens == 0


def test_rows_beyond_the_bound_are_refused_whole() -> None:
    queue = queue_of([Row(60)], max_tokens=100)
    with pytest.raises(QueueFullError):
        queue.put([Row(30), Row(30)])
    assert len(queue) == 1
    queue.put([Row(40)])
    assert queue.tokens == 100


def test_an_empty_queue_takes_even_a_call_above_the_bound() -> None:
    queue = queue_of([], max_tokens=10)
    queue.put([Row(50)])
    assert queue.take(0)[0][0].length == 50

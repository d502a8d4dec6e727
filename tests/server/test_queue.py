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
    client: str = ""

    @property
    def call(self) -> object:
        return self

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


@given(st.lists(st.tuples(st.integers(1, BUDGET), st.sampled_from("abc")), min_size=1, max_size=60))
def test_no_clients_oldest_row_waits_for_more_than_a_batch_of_each_other_client(rows: list[tuple[int, str]]) -> None:
    waiting = [Row(length, client=client) for length, client in rows]
    queue = queue_of(waiting)
    passed_over: dict[int, int] = {}
    while queue:
        gone = {id(row) for row in queue.take(0)[0]}
        for client in "abc":
            oldest = next((row for row in waiting if row.client == client), None)
            if oldest is not None and id(oldest) not in gone:
                passed_over[id(oldest)] = passed_over.get(id(oldest), 0) + 1
        waiting = [row for row in waiting if id(row) not in gone]
    assert max(passed_over.values(), default=0) <= 2


def test_a_newcomer_waits_for_one_batch_of_a_flood() -> None:
    queue = queue_of([Row(BUDGET, client="flood") for _ in range(100)])
    queue.take(0)
    newcomer = Row(1, client="other")
    queue.put([newcomer])
    batches = [queue.take(0)[0] for _ in range(2)]
    assert any(row is newcomer for batch in batches for row in batch)


def test_a_full_queue_makes_room_at_the_expense_of_who_has_most() -> None:
    rows = [Row(20, client="flood") for _ in range(4)]
    queue = queue_of([*rows, Row(20, client="few")], max_tokens=100)
    assert [id(row) for row in queue.put([Row(30, client="other")])] == [id(rows[3]), id(rows[2])]
    assert queue.tokens == 90


def test_a_call_beyond_the_bound_shuts_nobody_out() -> None:
    queue = queue_of([Row(300, client="large")], max_tokens=100)
    with pytest.raises(QueueFullError):
        queue.put([Row(1, client="large")])
    assert queue.put([Row(50, client="b")]) == []
    assert queue.put([Row(33, client="c")]) == []
    for client, tokens in (("b", 1), ("c", 1), ("d", 26)):
        with pytest.raises(QueueFullError):
            queue.put([Row(tokens, client=client)])
    assert queue.put([Row(25, client="d")]) == []
    assert queue.tokens == 408


def test_nobody_gets_more_than_the_one_who_makes_room() -> None:
    queue = queue_of([Row(20, client=client) for client in "aaabb"], max_tokens=100)
    with pytest.raises(QueueFullError):
        queue.put([Row(50, client="c")])
    with pytest.raises(QueueFullError):
        queue.put([Row(20, client="b")])
    assert queue.tokens == 100


@given(st.lists(st.tuples(st.integers(1, BUDGET), st.sampled_from("abc")), min_size=1, max_size=60))
def test_the_bound_holds_and_what_is_removed_is_gone(rows: list[tuple[int, str]]) -> None:
    queue = queue_of([], max_tokens=100)
    inside: set[int] = set()
    kept = [Row(length, client=client) for length, client in rows]
    for row in kept:
        try:
            inside -= {id(removed) for removed in queue.put([row])}
        except QueueFullError:
            continue
        inside.add(id(row))
        assert queue.tokens <= 100
    taken = [id(row) for _ in range(len(queue)) for row in queue.take(0)[0]]
    assert sorted(taken) == sorted(inside)
    assert queue.tokens == 0

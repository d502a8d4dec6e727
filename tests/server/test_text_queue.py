"""Properties of the order in which texts are tokenized: every text once, in order, in turns, in parts."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from amnestic_server.text_queue import PendingTexts, TextQueue

PART = 100


def pending(client: str, *lengths: int) -> PendingTexts:
    call: Any = SimpleNamespace(client=client)
    return PendingTexts(call, [client * length for length in lengths])


def read(queue: TextQueue) -> list[list[tuple[str, int]]]:
    """Every part, until nothing is left: of each call in it the client, and the characters."""
    parts = []
    while taken := queue.take():
        parts.append([(one.call.client, sum(map(len, texts))) for one, texts in taken])
        for one, texts in taken:
            one.encoded += texts  # type: ignore[arg-type]
            if not one.is_done:
                queue.put(one)
    return parts


calls = st.lists(
    st.tuples(st.sampled_from("abc"), st.lists(st.integers(1, 3 * PART), min_size=1, max_size=9)), max_size=9
)


@given(calls)
def test_every_text_is_taken_once_and_in_the_order_of_its_call(calls: list[tuple[str, list[int]]]) -> None:
    queue, waiting = TextQueue(PART), [pending(client, *lengths) for client, lengths in calls]
    for one in waiting:
        queue.put(one)
    read(queue)
    assert not queue
    assert [one.encoded for one in waiting] == [one.texts for one in waiting]


@given(calls)
def test_a_part_is_within_its_size_or_a_single_text(calls: list[tuple[str, list[int]]]) -> None:
    queue = TextQueue(PART)
    for client, lengths in calls:
        queue.put(pending(client, *lengths))
    while taken := queue.take():
        texts = [text for _, texts in taken for text in texts]
        assert len(texts) == 1 or sum(map(len, texts)) <= PART


def test_small_calls_share_a_part() -> None:
    queue = TextQueue(PART)
    for client in "abc":
        queue.put(pending(client, 20))
    assert read(queue) == [[("a", 20), ("b", 20), ("c", 20)]]


def test_a_client_with_much_text_takes_turns_with_the_others() -> None:
    queue = TextQueue(PART)
    queue.put(pending("a", *[90] * 4))
    queue.put(pending("a", *[90] * 4))
    queue.put(pending("b", 90))
    assert read(queue)[:3] == [[("a", 90)], [("b", 90)], [("a", 90)]]


def test_a_call_of_which_a_part_was_read_goes_before_the_next_of_its_client() -> None:
    queue, first, second = TextQueue(PART), pending("a", 90, 90), pending("a", 80)
    queue.put(first)
    queue.put(second)
    assert [(one, len(texts)) for one, texts in queue.take()] == [(first, 1)]
    first.encoded += first.texts[:1]  # type: ignore[arg-type]
    queue.put(first)
    assert [one for one, _ in queue.take()] == [first]

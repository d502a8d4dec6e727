"""The batcher's threads with a real queue and a scripted engine: batching, priority, cancellation, bad rows."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from amnestic_server.batcher import (
    LONGEST_RETRY_SECONDS,
    SHORTEST_RETRY_SECONDS,
    Batcher,
    BatchStats,
)
from amnestic_server.engine import Output
from amnestic_server.errors import DeadlineError, EngineError, EngineLostError, QueueFullError
from amnestic_server.tokenizer import Encoded
from amnestic_unlearn.windows import Pooling

SNAPSHOT: Any = SimpleNamespace(version=1)
POISON = "poison"


def token_ids(text: str) -> Any:
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)


class CharacterTokenizer:
    """A token a character, a window up to each bar; `encode` as `DocumentTokenizer` has it."""

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        if any(text == "untokenizable" for text in texts):
            raise RuntimeError
        return [Encoded(tuple(token_ids(window) for window in text.split("|")), False) for text in texts]


class SlowTokenizer(CharacterTokenizer):
    """Takes a while for each text; records what it was given at once."""

    def __init__(self) -> None:
        self.parts: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        self.parts.append(list(texts))
        time.sleep(0.002 * len(texts))
        return super().encode([text[:64] for text in texts])


class ScriptedEngine:
    """Answers a row with the sum of its ids; records its batches, and can be held."""

    def __init__(self, instances: int = 1) -> None:
        self.instances = instances
        self.wide: list[bool] = []
        self.batches: list[list[Any]] = []
        self.prepared: list[list[Any]] = []
        self.blank: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken: BaseException | None = None

    def prepare(self, rows: Sequence[Any]) -> Any:
        self.prepared.append(list(rows))
        return rows

    def run(self, rows: Any, *, wide: bool = True) -> Output:
        self.wide.append(wide)
        self.batches.append(list(rows))
        assert self.gate.wait(30)
        if self.broken is not None:
            raise self.broken
        if any(row.ids.tobytes() == token_ids(POISON).tobytes() for row in rows):
            raise RuntimeError
        sums = np.array([[row.ids.sum()] for row in rows], dtype=np.float32)
        return Output(sums, sums)

    def run_blank(self, snapshot: Any, length: int) -> None:
        self.blank.append(length)
        if self.broken is not None:
            raise self.broken


@asynccontextmanager
async def running(engine: ScriptedEngine, **settings: Any) -> AsyncIterator[Batcher]:
    defaults = {"max_batch_tokens": 64, "max_padding": 0.25, "max_requests": 1000, "max_queue_tokens": 100_000}
    batcher = Batcher(engine, CharacterTokenizer(), **(defaults | settings))  # type: ignore[arg-type]
    try:
        yield batcher
    finally:
        engine.gate.set()
        await asyncio.to_thread(batcher.close)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (conditions of other threads)
            await asyncio.sleep(0.001)


def submit(
    batcher: Batcher, *texts: str, deadline: float = float("inf"), client: str = ""
) -> "asyncio.Task[list[float]]":
    async def answer() -> list[float]:
        answers, _ = await batcher.submit(texts, SNAPSHOT, deadline, client)
        return [float(answer.logits[0]) for answer in answers]

    return asyncio.create_task(answer())


def value(text: str) -> float:
    return float(sum(text.encode()))


async def hold(engine: ScriptedEngine, batcher: Batcher) -> "asyncio.Task[list[float]]":
    """Keep the engine busy with one call until its gate is opened."""
    engine.gate.clear()
    task = submit(batcher, "hold")
    await until(lambda: engine.batches)
    return task


async def test_a_lone_call_runs_at_once() -> None:
    engine = ScriptedEngine()
    async with running(engine) as batcher:
        assert await submit(batcher, "abc") == [value("abc")]
    assert [len(batch) for batch in engine.batches] == [1]


async def test_answers_keep_the_order_of_the_call_however_they_are_batched() -> None:
    engine = ScriptedEngine()
    texts = [chr(97 + index % 26) * (1 + index * 7 % 60) for index in range(50)]
    async with running(engine) as batcher:
        assert await submit(batcher, *texts) == [value(text) for text in texts]
    assert all(len(batch) * max(row.length for row in batch) <= 64 for batch in engine.batches)


async def test_what_waits_while_the_engine_runs_shares_one_batch() -> None:
    engine = ScriptedEngine()
    async with running(engine) as batcher:
        held = await hold(engine, batcher)
        tasks = [submit(batcher, "abcd") for _ in range(5)]
        await until(lambda: batcher.queue_rows == 5)
        engine.gate.set()
        await asyncio.gather(held, *tasks)
    assert [len(batch) for batch in engine.batches] == [1, 5]


async def test_a_full_batch_is_prepared_while_the_engine_runs() -> None:
    engine = ScriptedEngine()
    async with running(engine) as batcher:
        held = await hold(engine, batcher)
        tasks = [submit(batcher, "abcdefgh") for _ in range(8)]
        await until(lambda: len(engine.prepared) == 2)
        assert len(engine.batches) == 1
        engine.gate.set()
        await asyncio.gather(held, *tasks)
    assert [len(batch) for batch in engine.batches] == [1, 8]


async def test_instances_run_at_once_on_one_thread_each_when_enough_waits() -> None:
    engine = ScriptedEngine(instances=2)
    async with running(engine) as batcher:
        held = await hold(engine, batcher)
        tasks = [submit(batcher, "abcdefgh") for _ in range(24)]
        # Beside the call that is held, one batch runs; the others wait for one of the two threads.
        await until(lambda: len(engine.batches) == 2 and batcher.queue_rows == 16)
        engine.gate.set()
        await asyncio.gather(held, *tasks)
    assert [len(batch) for batch in engine.batches] == [1, 8, 8, 8]
    assert engine.wide[:2] == [True, False]


async def test_a_cancelled_call_never_reaches_the_engine() -> None:
    engine = ScriptedEngine()
    async with running(engine) as batcher:
        held = await hold(engine, batcher)
        gone, stays = submit(batcher, "gone"), submit(batcher, "stay")
        await until(lambda: batcher.queue_rows == 2)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        engine.gate.set()
        assert await stays == [value("stay")]
        await held
        assert batcher.open_documents == 0
    assert [len(batch) for batch in engine.batches] == [1, 1]


async def test_a_late_call_is_told_and_never_reaches_the_engine() -> None:
    engine = ScriptedEngine()
    async with running(engine) as batcher:
        held = await hold(engine, batcher)
        late = submit(batcher, "late", deadline=time.monotonic() + 0.05)
        await until(lambda: batcher.queue_rows == 1)
        await asyncio.sleep(0.06)
        engine.gate.set()
        with pytest.raises(DeadlineError):
            await late
        await held
    assert len(engine.batches) == 1


async def test_a_call_past_its_deadline_is_not_even_tokenized_into_the_queue() -> None:
    engine = ScriptedEngine()
    async with running(engine) as batcher:
        with pytest.raises(DeadlineError):
            await submit(batcher, "late", deadline=time.monotonic() - 1)
    assert engine.batches == []


async def test_a_bad_row_fails_alone() -> None:
    engine = ScriptedEngine()
    seen: list[BatchStats] = []
    async with running(engine, on_batch=seen.append) as batcher:
        held = await hold(engine, batcher)
        good = [submit(batcher, "fine12") for _ in range(4)]
        bad = submit(batcher, POISON)
        await until(lambda: batcher.queue_rows == 5)
        engine.gate.set()
        assert await asyncio.gather(*good) == [[value("fine12")]] * 4
        with pytest.raises(EngineError):
            await bad
        await held
        assert await submit(batcher, "after") == [value("after")]
    # The batch that failed is not counted, its good rows by themselves are.
    assert [stats.rows for stats in seen] == [1] * 6


async def test_bad_rows_one_after_the_other_do_not_lose_the_engine() -> None:
    engine = ScriptedEngine()
    async with running(engine) as batcher:
        for _ in range(10):
            with pytest.raises(EngineError):
                await submit(batcher, POISON)
        assert await submit(batcher, "after") == [value("after")]
        assert not batcher.lost.is_set()
    # Each of them was weighed against as many tokens without text.
    assert engine.blank == [len(POISON)] * 10


@pytest.mark.parametrize("error", [RuntimeError("text"), SystemExit("text")], ids=["raises", "ends its thread"])
@pytest.mark.parametrize("instances", [1, 3])
async def test_a_lost_engine_fails_all_that_is_open_and_refuses_what_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException, instances: int
) -> None:
    monkeypatch.setattr("amnestic_server.batcher.BLANK_ROW_WAITS", (0.0, 0.01))
    engine = ScriptedEngine(instances)
    async with running(engine) as batcher:
        held = await hold(engine, batcher)
        waiting = [submit(batcher, "abcdefgh") for _ in range(20)]
        encoded = CharacterTokenizer().encode(["background"])
        waiting.append(asyncio.create_task(batcher.submit_encoded(encoded, SNAPSHOT)))  # type: ignore[arg-type]
        await until(lambda: batcher.open_documents == 21)
        engine.broken = error
        engine.gate.set()
        async with asyncio.timeout(30):
            await batcher.lost.wait()
            outcomes = await asyncio.gather(held, *waiting, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {EngineLostError}
        assert batcher.open_documents == 0
        with pytest.raises(EngineLostError):
            await submit(batcher, "after")
        with pytest.raises(EngineLostError):
            await batcher.submit_encoded(encoded, SNAPSHOT)
    assert "text" not in caplog.text.replace("without text", "")


async def test_an_engine_that_fails_for_a_moment_is_not_lost() -> None:
    engine = ScriptedEngine()
    async with running(engine) as batcher:
        engine.broken = RuntimeError()
        failing = submit(batcher, "abc")
        await until(lambda: len(engine.blank) == 2)
        engine.broken = None
        with pytest.raises(EngineError):
            await failing
        assert await submit(batcher, "after") == [value("after")]


async def test_closing_does_not_wait_for_a_pass_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amnestic_server.batcher.CLOSE_SECONDS", 0.05)
    engine = ScriptedEngine()
    async with running(engine) as batcher:
        held = await hold(engine, batcher)
        async with asyncio.timeout(30):
            await asyncio.to_thread(batcher.close)
        engine.gate.set()
        await held


async def test_a_text_that_cannot_be_tokenized_fails_alone() -> None:
    engine = ScriptedEngine()
    async with running(engine) as batcher:
        good = [submit(batcher, "fine") for _ in range(4)]
        bad = submit(batcher, "untokenizable")
        with pytest.raises(EngineError):
            await bad
        assert await asyncio.gather(*good) == [[value("fine")]] * 4


async def test_however_much_text_comes_the_engine_goes_on_and_others_are_answered() -> None:
    engine = ScriptedEngine()
    async with running(engine) as batcher:
        tokenizer = SlowTokenizer()
        batcher._tokenizer = tokenizer  # type: ignore[assignment]
        large = [submit(batcher, *["a" * 8_192] * 64, client="large") for _ in range(8)]
        await until(lambda: tokenizer.parts)
        assert await submit(batcher, "ward", client="small") == [value("ward")]
        # Behind what was in hand when it came, and a turn of the other client's; not behind all of its text.
        assert sum(map(len, tokenizer.parts)) < 64
        for call in large:
            call.cancel()
        await asyncio.gather(*large, return_exceptions=True)


async def test_documents_beyond_the_bound_are_refused_and_the_rest_answered() -> None:
    engine = ScriptedEngine()
    async with running(engine, max_requests=3) as batcher:
        held = await hold(engine, batcher)
        waiting = submit(batcher, "ab", "cd")
        await until(lambda: batcher.open_documents == 3)
        with pytest.raises(QueueFullError):
            await submit(batcher, "ef")
        engine.gate.set()
        assert await waiting == [value("ab"), value("cd")]
        await held
        assert await submit(batcher, "ef") == [value("ef")]


async def test_tokens_beyond_the_bound_are_refused_and_the_rest_answered() -> None:
    engine = ScriptedEngine()
    async with running(engine, max_queue_tokens=10) as batcher:
        held = await hold(engine, batcher)
        waiting = submit(batcher, "abcdefgh")
        await until(lambda: batcher.queue_rows == 1)
        with pytest.raises(QueueFullError):
            await submit(batcher, "abcdefgh")
        engine.gate.set()
        assert await waiting == [value("abcdefgh")]
        await held


@pytest.mark.parametrize("bound", [{"max_requests": 41}, {"max_queue_tokens": 40}])
async def test_who_is_refused_is_told_to_come_back_when_half_or_more_of_what_waits_is_done(bound) -> None:
    engine = ScriptedEngine()
    async with running(engine, **bound) as batcher:
        batcher._seconds_a_row = 0.01
        held = await hold(engine, batcher)
        waiting = submit(batcher, *["a"] * 40)
        await until(lambda: batcher.queue_rows == 40)
        told = []
        for _ in range(50):
            with pytest.raises(QueueFullError) as refused:
                await submit(batcher, "b")
            told.append(refused.value.retry_after)
        # 41 documents are admitted, and for the bound of tokens the one that is refused.
        assert all(0.5 * 41 * 0.01 <= seconds <= 42 * 0.01 for seconds in told)
        assert len(set(told)) > 10
        engine.gate.set()
        await waiting
        await held


async def test_the_engines_speed_is_learnt_from_its_batches() -> None:
    engine = ScriptedEngine()
    async with running(engine) as batcher:
        assert batcher._retry_after() == SHORTEST_RETRY_SECONDS
        held = await hold(engine, batcher)
        await asyncio.sleep(0.1)
        engine.gate.set()
        await held
        batcher._open_documents = 10
        assert 0.5 * 10 * 0.1 <= batcher._retry_after() < 2
        batcher._open_documents = 10**9
        assert batcher._retry_after() == LONGEST_RETRY_SECONDS
        batcher._open_documents = 0


async def test_background_rows_run_after_waiting_traffic() -> None:
    engine = ScriptedEngine()
    encoded = CharacterTokenizer().encode(["background"] * 3)
    async with running(engine) as batcher:
        batcher._schedule._background_ran_at = time.monotonic() + 60  # no turn for the background by age
        held = await hold(engine, batcher)
        background = asyncio.create_task(batcher.submit_encoded(encoded, SNAPSHOT))
        await until(lambda: len(batcher._schedule.background) == 3)
        traffic = submit(batcher, "traffic")
        await until(lambda: batcher.queue_rows == 1)
        engine.gate.set()
        await asyncio.gather(held, background, traffic)
    assert [row.length for batch in engine.batches for row in batch] == [4, 7, 10, 10, 10]


async def test_background_rows_get_their_turn_under_endless_traffic() -> None:
    engine = ScriptedEngine()
    async with running(engine) as batcher:
        stop = asyncio.Event()

        async def client() -> None:
            while not stop.is_set():
                await submit(batcher, "traffic")

        clients = [asyncio.create_task(client()) for _ in range(8)]
        async with asyncio.timeout(30):
            answers = await batcher.submit_encoded(CharacterTokenizer().encode(["background"]), SNAPSHOT)
        stop.set()
        await asyncio.gather(*clients)
    assert float(answers[0].logits[0]) == value("background")


async def test_batches_are_observed_with_their_padding() -> None:
    engine = ScriptedEngine()
    seen: list[BatchStats] = []
    async with running(engine, on_batch=seen.append) as batcher:
        held = await hold(engine, batcher)
        tasks = [submit(batcher, "abcd"), submit(batcher, "abc")]
        await until(lambda: batcher.queue_rows == 2)
        engine.gate.set()
        await asyncio.gather(held, *tasks)
    assert [(stats.rows, stats.tokens, stats.padded_tokens) for stats in seen] == [(1, 4, 4), (2, 7, 8)]
    assert not any(stats.background for stats in seen)


async def test_batches_are_observed_by_version_and_those_of_the_background_as_such() -> None:
    engine = ScriptedEngine()
    seen: list[BatchStats] = []
    other: Any = SimpleNamespace(version=2)
    async with running(engine, on_batch=seen.append) as batcher:
        held = await hold(engine, batcher)
        tasks = [submit(batcher, "abcd"), submit(batcher, "abcd")]
        tasks.append(asyncio.create_task(batcher.submit(["abcd"], other, float("inf"))))  # type: ignore[arg-type]
        await until(lambda: batcher.queue_rows == 3)
        engine.gate.set()
        await asyncio.gather(held, *tasks)
        await batcher.submit_encoded(CharacterTokenizer().encode(["background"]), SNAPSHOT)
    assert [(dict(stats.versions), stats.background) for stats in seen] == [
        ({1: 1}, False),
        ({1: 2, 2: 1}, False),
        ({1: 1}, True),
    ]
    assert all(stats.seconds > 0 and stats.prepare_seconds >= 0 for stats in seen)


async def test_it_is_idle_only_when_all_is_answered() -> None:
    engine = ScriptedEngine()
    async with running(engine) as batcher:
        assert await batcher.idle(1)
        held = await hold(engine, batcher)
        assert not await batcher.idle(0.05)
        engine.gate.set()
        await held
        assert await batcher.idle(1)


async def test_a_documents_windows_are_pooled_and_counted() -> None:
    engine = ScriptedEngine()
    for pooling, logit in ((Pooling.MAX, value("zz")), (Pooling.MEAN, value("abzzc") / 3)):
        async with running(engine, pooling=pooling) as batcher:
            answers, _ = await batcher.submit(["ab|zz|c", "abc"], SNAPSHOT, float("inf"))
        assert [float(answer.logits[0]) for answer in answers] == pytest.approx([logit, value("abc")])
        # What a probe sees is the mean, whatever the head makes of it.
        assert [float(answer.features[0]) for answer in answers] == pytest.approx([value("abzzc") / 3, value("abc")])
        assert [(answer.document.tokens, len(answer.document.windows)) for answer in answers] == [(5, 3), (3, 1)]


async def test_windows_of_several_calls_share_a_batch_and_find_back() -> None:
    engine = ScriptedEngine()
    async with running(engine) as batcher:
        held = await hold(engine, batcher)
        calls = [("aaaa|bbbb|cccc", "dddd"), ("eeee",), ("ffff|zzzz", "gggg|hhhh")]
        tasks = [submit(batcher, *texts) for texts in calls]
        await until(lambda: batcher.queue_rows == 9)
        engine.gate.set()
        wanted = [[max(map(value, text.split("|"))) for text in texts] for texts in calls]
        assert await asyncio.gather(*tasks) == wanted
        await held
    assert [len(batch) for batch in engine.batches] == [1, 9]


async def test_a_bad_window_fails_its_call_alone() -> None:
    engine = ScriptedEngine()
    async with running(engine) as batcher:
        held = await hold(engine, batcher)
        bad = submit(batcher, f"fine12|{POISON}|{'x' * 30}")
        good = submit(batcher, "fine12|fine34")
        await until(lambda: batcher.queue_rows == 5)
        engine.gate.set()
        assert await good == [value("fine34")]
        with pytest.raises(EngineError):
            await bad
        await held
        assert await submit(batcher, "after") == [value("after")]
        assert batcher.queue_tokens == 0
        assert batcher.open_documents == 0


async def test_tokens_of_every_window_count_towards_the_bound() -> None:
    engine = ScriptedEngine()
    async with running(engine, max_queue_tokens=20) as batcher:
        held = await hold(engine, batcher)
        waiting = submit(batcher, "abcd|efgh|ijkl")
        await until(lambda: batcher.queue_tokens == 12)
        with pytest.raises(QueueFullError):
            await submit(batcher, "abc|def|ghi")
        small = submit(batcher, "abcd|efgh")
        await until(lambda: batcher.queue_tokens == 20)
        engine.gate.set()
        assert await waiting == [value("ijkl")]
        assert await small == [value("efgh")]
        await held


async def test_a_cancelled_call_drops_every_window() -> None:
    engine = ScriptedEngine()
    async with running(engine) as batcher:
        held = await hold(engine, batcher)
        gone = submit(batcher, "gone|gone|gone")
        await until(lambda: batcher.queue_rows == 3)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        engine.gate.set()
        assert await submit(batcher, "stay") == [value("stay")]
        await held
    assert [len(batch) for batch in engine.batches] == [1, 1]


async def test_in_a_full_queue_the_newest_calls_of_who_has_most_make_room() -> None:
    engine = ScriptedEngine()
    async with running(engine, max_requests=4) as batcher:
        held = await hold(engine, batcher)
        flood = [submit(batcher, "abc", client="flood") for _ in range(3)]
        await until(lambda: batcher.queue_rows == 3)
        other = submit(batcher, "xyz", client="other")
        with pytest.raises(QueueFullError) as refused:
            await flood[2]
        assert refused.value.retry_after is not None
        assert batcher.open_documents == 4
        with pytest.raises(QueueFullError):
            await submit(batcher, "abc", client="flood")
        with pytest.raises(QueueFullError):
            await submit(batcher, "xyz", "xyz", client="other")
        engine.gate.set()
        answered = await asyncio.gather(held, *flood[:2], other)
        assert answered == [[value(text)] for text in ("hold", "abc", "abc", "xyz")]
        assert batcher.open_documents == 0


async def test_a_queue_full_of_tokens_makes_room_for_a_client_that_has_less() -> None:
    engine = ScriptedEngine()
    async with running(engine, max_queue_tokens=90, max_batch_tokens=1000) as batcher:
        held = await hold(engine, batcher)
        flood = [submit(batcher, "a" * 30, client="flood") for _ in range(3)]
        await until(lambda: batcher.queue_rows == 3)
        other = submit(batcher, "xyz", client="other")
        done, _ = await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
        assert [type(task.exception()) for task in done] == [QueueFullError]
        assert flood[2] in done
        engine.gate.set()
        assert await other == [value("xyz")]
        await asyncio.gather(held, *flood[:2])


async def test_a_large_call_is_not_refused_for_a_small_one() -> None:
    engine = ScriptedEngine()
    async with running(engine, max_requests=4, max_queue_tokens=1000) as batcher:
        engine.gate.clear()
        large = submit(batcher, *["abc"] * 4, client="one")
        await until(lambda: engine.batches)
        with pytest.raises(QueueFullError):
            await submit(batcher, "xyz", client="other")
        engine.gate.set()
        assert await large == [value("abc")] * 4


async def test_nor_in_a_queue_full_of_its_tokens() -> None:
    engine = ScriptedEngine()
    async with running(engine, max_queue_tokens=90, max_batch_tokens=1000) as batcher:
        held = await hold(engine, batcher)
        large = submit(batcher, *["a" * 30] * 3, client="one")
        await until(lambda: batcher.queue_rows == 3)
        with pytest.raises(QueueFullError):
            await submit(batcher, "xyz", client="other")
        engine.gate.set()
        await asyncio.gather(held, large)

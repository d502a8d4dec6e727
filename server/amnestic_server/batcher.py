"""The way of documents from admission to answer: tokenizer, queue, batches, engine.

A document is read in one window or, if the model does so, in several. Each window is a row of its own, so a batch may
hold windows of different documents, calls and versions; when the last of a call has its answer, they are pooled.

Worker threads share one engine, one more of them than batches may be in hand, that of the background included: while
passes run there is always one to tokenize what comes. `TextQueue` says which texts it takes, `Schedule` when a batch is
closed, so that the engine never waits and never runs emptier than it must. A lone call meets one thread from its text
to its answer.

A document that the engine fails on by itself fails alone if the engine still runs a row of as many tokens without text.
If it does not, or a thread dies, the engine is lost: what is open fails, what comes is refused, and `lost` tells of it.

Answers are delivered on the event loop's thread. Nothing here knows of gRPC.
"""

import asyncio
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from operator import itemgetter

from amnestic_server.call import Answer, BatchStats, Call, Row, Timings
from amnestic_server.engine import Engine, Output, Prepared
from amnestic_server.errors import AmnesticError, DeadlineError, EngineError, EngineLostError, QueueFullError
from amnestic_server.queue import RowQueue
from amnestic_server.schedule import Batch, Schedule
from amnestic_server.snapshot import Snapshot
from amnestic_server.text_queue import PendingTexts, TextQueue
from amnestic_server.tokenizer import DocumentTokenizer, Encoded
from amnestic_unlearn.windows import Pooling

log = logging.getLogger(__name__)

# Small, since traffic may have to wait for a thread until one is done.
BACKGROUND_BATCH_TOKENS = 256

# A text of so many takes a thread some ten milliseconds.
TOKENIZER_CHARACTERS = 16_384

# Who is refused is told to come back within these bounds, whatever the estimate.
SHORTEST_RETRY_SECONDS = 0.01
LONGEST_RETRY_SECONDS = 5.0
# Weight of what is newest in the estimates of the engine's speed and of documents' windows.
NEWEST_BATCH_WEIGHT = 0.2
# Waits before a row without text is tried once more: memory may be short for a moment.
BLANK_ROW_WAITS = (0.0, 0.1, 0.3, 1.0)
# A pass that hangs in the provider can't be interrupted, and must not keep the process from its end.
CLOSE_SECONDS = 1.0


class Batcher:
    """Owns the queue. `submit` and `submit_encoded` are called on the event loop's thread.

    `lost` is set once the engine answers nothing any more.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: DocumentTokenizer,
        *,
        max_batch_tokens: int,
        max_padding: float,
        max_requests: int,
        max_queue_tokens: int,
        pooling: Pooling = Pooling.MAX,
        on_batch: Callable[[BatchStats], None] = lambda stats: None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._max_requests = max_requests
        self._pooling = pooling
        self._on_batch = on_batch
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._work_came = threading.Condition(self._lock)
        self._texts = TextQueue(TOKENIZER_CHARACTERS)
        # Threads at it.
        self._tokenizing = 0
        self._schedule: Schedule[Row] = Schedule(
            traffic=RowQueue(max_tokens=max_queue_tokens, batch_tokens=max_batch_tokens, max_padding=max_padding),
            background=RowQueue(
                max_tokens=2**62, batch_tokens=min(BACKGROUND_BATCH_TOKENS, max_batch_tokens), max_padding=max_padding
            ),
            instances=engine.instances,
        )
        self._instances = threading.Semaphore(engine.instances)
        self._closed = False
        self.lost = asyncio.Event()
        # With the documents that each is admitted with, in order of arrival.
        self._open_calls: dict[Call, int] = {}
        self._documents_of: Counter[str] = Counter()
        # Read by other threads too.
        self._open_documents = 0
        self._seconds_a_row = 0.0
        self._last_ended = 0.0
        self._rows_a_document = 1.0
        self._idle = asyncio.Event()
        self._idle.set()
        self._threads = [
            threading.Thread(target=self._work, name=f"engine-{number}", daemon=True)
            for number in range(self._schedule.most_in_hand + 2)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def open_documents(self) -> int:
        """Documents admitted and not yet answered."""
        return self._open_documents

    @property
    def queue_tokens(self) -> int:
        return self._schedule.traffic.tokens

    @property
    def queue_rows(self) -> int:
        return len(self._schedule.traffic)

    async def submit(
        self, texts: Sequence[str], snapshot: Snapshot, deadline: float, client: str = ""
    ) -> tuple[list[Answer], Timings]:
        """Classify documents with one snapshot; `deadline` in seconds of `time.monotonic`, `client` is charged.

        In a full queue a client is admitted at the expense of the one that has most documents in it, if that is left
        with no less: its newest calls are refused.

        Raises QueueFullError, DeadlineError, EngineError or EngineLostError. If the caller is cancelled, its rows are
        dropped.
        """
        self._make_room(client, len(texts))
        call = self._open(snapshot, deadline, len(texts), client)
        self._idle.clear()
        try:
            with self._lock:
                self._texts.put(PendingTexts(call, texts))
                self._work_came.notify()
            return await call.future, call.timings
        finally:
            self._close(call)
            if not self._open_documents:
                self._idle.set()

    async def submit_encoded(self, documents: Sequence[Encoded], snapshot: Snapshot) -> list[Answer]:
        """Classify tokenized documents at lower priority than traffic, without a deadline."""
        call = self._open(snapshot, float("inf"), 0)
        call.background = True
        try:
            with self._lock:
                self._schedule.background.put(call.rows(documents))
                self._notify_worker()
            return await call.future
        finally:
            self._close(call)

    async def idle(self, seconds: float) -> bool:
        """Wait until every admitted document is answered, for so long at most; false if some are not."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def fail_open_calls(self, error: Callable[[], AmnesticError]) -> None:
        """Answer every call that is still open with an error of its own."""
        for call in self._open_calls:
            call.fail(error())

    def close(self) -> None:
        """Stop the threads once the batches in hand are done, but wait for them `CLOSE_SECONDS` at most.

        Rows still waiting are not answered.
        """
        self._stop_threads()
        until = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _stop_threads(self) -> None:
        with self._lock:
            self._closed = True
            self._work_came.notify_all()

    def _make_room(self, client: str, documents: int) -> None:
        """Raise QueueFullError unless the documents fit, if need be by refusing what another client has too much."""
        excess = self._open_documents + documents - self._max_requests
        if excess <= 0:
            return
        most, theirs = max(self._documents_of.items(), key=itemgetter(1), default=("", 0))
        if theirs - excess < self._documents_of[client] + documents:
            raise QueueFullError(self._retry_after())
        newest = []
        for call, count in reversed(self._open_calls.items()):
            if excess > 0 and call.client == most and not call.background:
                newest.append(call)
                excess -= count
                theirs -= count
        if theirs < self._documents_of[client] + documents:
            raise QueueFullError(self._retry_after())
        for call in newest:
            self._close(call)
            call.fail(QueueFullError(self._retry_after()))

    def _close(self, call: Call) -> None:
        """Strike a call off, if it is not yet."""
        documents = self._open_calls.pop(call, 0)
        self._open_documents -= documents
        self._documents_of[call.client] -= documents
        if not self._documents_of[call.client]:
            del self._documents_of[call.client]

    def _open(self, snapshot: Snapshot, deadline: float, documents: int, client: str = "") -> Call:
        if self.lost.is_set():
            raise EngineLostError
        call = Call(
            snapshot=snapshot,
            deadline=deadline,
            future=self._loop.create_future(),
            admitted_at=time.monotonic(),
            pooling=self._pooling,
            client=client,
        )
        self._open_calls[call] = documents
        self._open_documents += documents
        self._documents_of[client] += documents
        return call

    def _retry_after(self) -> float:
        """Seconds in which the engine will have done half or more of what is admitted.

        Drawn, so that callers refused together don't come back together.
        """
        drained = self._open_documents * self._rows_a_document * self._seconds_a_row
        drawn = drained * random.uniform(0.5, 1.0)  # noqa: S311  no secret
        return min(max(drawn, SHORTEST_RETRY_SECONDS), LONGEST_RETRY_SECONDS)

    def _work(self) -> None:
        """One worker thread. None of them ends before the batcher is closed, whatever happens."""
        try:
            self._work_until_closed()
        except BaseException as error:
            log.critical("a thread of the engine died: %s", type(error).__name__)
            self._lose_engine()

    def _work_until_closed(self) -> None:
        """Tokenize some of what has come, else run a batch if one may be closed, else wait."""
        while True:
            with self._lock:
                self._work_came.wait_for(lambda: self._closed or self._has_work())
                if self._closed:
                    return
                parts = self._take_texts()
                batch = None if parts else self._take()
                if self._has_work():
                    self._work_came.notify()
            if parts:
                self._tokenize(parts)
                with self._lock:
                    self._tokenizing -= 1
            elif batch is not None:
                self._run_batch(batch)
            # A thread that waits holds no text, and no version that may be gone by then.
            del parts, batch

    def _has_work(self) -> bool:
        """The lock is held."""
        return bool(self._texts) or self._schedule.may_take(time.monotonic())

    def _take_texts(self) -> list[tuple[PendingTexts, list[str]]]:
        """Texts to tokenize now. The lock is held.

        One thread at most is at it while the engine could run: however much text comes, it does not stop.
        """
        if self._tokenizing and self._schedule.may_take(time.monotonic()):
            return []
        parts = self._texts.take()
        self._tokenizing += bool(parts)
        return parts

    def _take(self) -> Batch[Row] | None:
        """Close the next batch; None if all that waited has expired. The lock is held."""
        batch, expired = self._schedule.take(time.monotonic())
        for row in expired:
            self._post(row.call.fail, DeadlineError())
        return batch

    def _tokenize(self, parts: list[tuple[PendingTexts, list[str]]]) -> None:
        """Encode texts at once; calls of which all are encoded are queued, the others wait for their next turn."""
        started = time.monotonic()
        live = []
        for pending, texts in parts:
            if pending.call.future.done():
                continue
            if started >= pending.call.deadline:
                self._post(pending.call.fail, DeadlineError())
            else:
                live.append((pending, texts))
        try:
            encoded = iter(self._tokenizer.encode([text for _, texts in live for text in texts]))
        except Exception as error:
            if len(live) == 1:
                log.error("the tokenizer failed on a call: %s", type(error).__name__)
                self._post(live[0][0].call.fail, EngineError())
            else:
                # Call by call, so that a bad one fails alone.
                for part in live:
                    self._tokenize([part])
            return
        ended = time.monotonic()
        with self._lock:
            for pending, texts in live:
                pending.encoded += islice(encoded, len(texts))
                if pending.is_done:
                    pending.call.timings.tokenizer = ended - pending.call.admitted_at
                    self._queue(pending)
                else:
                    self._texts.put(pending)

    def _queue(self, pending: PendingTexts) -> None:
        """Have a call's documents wait for the engine. The lock is held."""
        rows = pending.call.rows(pending.encoded)
        self._rows_a_document += NEWEST_BATCH_WEIGHT * (len(rows) / len(pending.texts) - self._rows_a_document)
        try:
            refused = {row.call for row in self._schedule.traffic.put(rows)}
        except QueueFullError:
            refused = {pending.call}
        for one in refused:
            self._post(one.fail, QueueFullError(self._retry_after()))

    def _run_batch(self, batch: Batch[Row]) -> None:
        begun = time.monotonic()
        try:
            prepared = self._engine.prepare(batch.rows)
        except Exception:
            prepared = None
        prepare_seconds = time.monotonic() - begun
        with self._instances:
            started = time.monotonic()
            output = self._run(prepared, batch.wide)
            seconds = time.monotonic() - started
        with self._lock:
            self._schedule.done(batch)
            if not batch.background:
                # Since the pass before had ended, of all that may run at once: with what lies between passes.
                ended = time.monotonic()
                share = (ended - max(begun, self._last_ended)) / len(batch.rows)
                self._last_ended = ended
                newest = NEWEST_BATCH_WEIGHT if self._seconds_a_row else 1.0
                self._seconds_a_row += newest * (share - self._seconds_a_row)
            self._notify_worker()
        if output is None:
            self._run_one_by_one(batch.rows)
            return
        # Observed before it is delivered: who has an answer finds it counted.
        self._on_batch(BatchStats.of(batch.rows, prepare_seconds, seconds))
        self._post(_deliver, batch.rows, output, started, seconds)

    def _notify_worker(self) -> None:
        """Wake a worker if there is something for it to do; the lock is held."""
        if self._has_work():
            self._work_came.notify()

    def _run(self, prepared: Prepared | None, wide: bool) -> Output | None:
        if prepared is None:
            return None
        try:
            return self._engine.run(prepared, wide=wide)
        except Exception as error:
            log.error("the engine failed on a batch: %s", type(error).__name__)
            return None

    def _run_one_by_one(self, batch: Sequence[Row]) -> None:
        """After a failed batch: every row on its own, so that a bad one fails alone."""
        for row in batch:
            if self._closed:
                return
            try:
                with self._instances:
                    begun = time.monotonic()
                    prepared = self._engine.prepare([row])
                    started = time.monotonic()
                    output = self._engine.run(prepared)
                    seconds = time.monotonic() - started
            except Exception as error:
                log.error("the engine failed on a row of %d tokens: %s", row.length, type(error).__name__)
                if not self._runs_without_text(row):
                    self._lose_engine()
                    return
                self._post(row.call.fail, EngineError())
            else:
                self._on_batch(BatchStats.of([row], started - begun, seconds))
                self._post(_deliver, [row], output, started, seconds)

    def _runs_without_text(self, row: Row) -> bool:
        """After a row that failed by itself, whether its text was to blame: the engine runs as many tokens without it.

        At the start it ran rows of any length. So if it does not now, a restart is likely to help.
        """
        for seconds in BLANK_ROW_WAITS:
            time.sleep(seconds)
            try:
                with self._instances:
                    self._engine.run_blank(row.snapshot, row.length)
            except Exception as error:
                log.error("the engine failed on a row without text: %s", type(error).__name__)
            else:
                return True
        return False

    def _lose_engine(self) -> None:
        """Give up for good: stop the threads, fail what is open, and tell of it."""
        self._stop_threads()
        self._post(self._tell_of_loss)

    def _tell_of_loss(self) -> None:
        if not self.lost.is_set():
            log.critical("the engine is lost: %d documents are not answered", self._open_documents)
        self.lost.set()
        self.fail_open_calls(EngineLostError)

    def _post(self, function: Callable[..., None], *args: object) -> None:
        """Call on the event loop's thread, if the loop is still there."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(partial(function, *args))


def _deliver(batch: Sequence[Row], output: Output, started: float, seconds: float) -> None:
    for position, row in enumerate(batch):
        timings = row.call.timings
        waited = started - row.call.admitted_at - timings.tokenizer
        # Passes may be delivered out of order.
        if waited >= timings.queue:
            timings.queue, timings.engine = waited, seconds
        row.call.finish(row.index, (output.logits[position], output.features[position]))

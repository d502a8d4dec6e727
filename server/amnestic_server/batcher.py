"""The way of documents from admission to answer: tokenizer, queue, batches, engine.

A document is read in one window or, if the model does so, in several. Each window is a row of its own, so a batch may
hold windows of different documents, calls and versions; when the last of a call has its answer, they are pooled.

Two worker threads share one engine. While one runs its batch, the other tokenizes what has come, and may form and
prepare the next batch, but only if the waiting rows already fill it; otherwise the batch stays open until the engine is
idle, so that it never waits and never runs emptier than it must. A lone call meets one thread from its text to its
answer. Rows of gates and measurements wait in a queue of their own and run in small batches
when no traffic waits, or now and then if traffic never ceases.

Answers are delivered on the event loop's thread. Nothing here knows of gRPC.
"""

import asyncio
import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Self

import numpy as np
from numpy.typing import NDArray

from amnestic_server.engine import Engine, Output, Prepared
from amnestic_server.errors import AmnesticError, DeadlineError, EngineError, QueueFullError
from amnestic_server.queue import RowQueue
from amnestic_server.snapshot import Snapshot
from amnestic_server.tokenizer import DocumentTokenizer, Encoded
from amnestic_unlearn.windows import Pooling, pool

log = logging.getLogger(__name__)

BACKGROUND_BATCH_TOKENS = 512
BACKGROUND_INTERVAL_SECONDS = 0.25

# Who is refused is told to come back within these bounds, whatever the estimate.
SHORTEST_RETRY_SECONDS = 0.01
LONGEST_RETRY_SECONDS = 5.0
# Weight of what is newest in the estimates of the engine's speed and of documents' windows.
NEWEST_BATCH_WEIGHT = 0.2
RowOutput = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine said of one document, its windows pooled: logits float32 [C], features float32 [h]."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    tokens: int
    truncated: bool
    windows: int = 1


@dataclass(slots=True)
class Timings:
    """Where a call's time went, in seconds; filled on its way and read once, at its end.

    `engine` is the last pass that it was in, `queue` the time from its tokens to that pass: they add up to the whole.
    """

    tokenizer: float = 0.0
    queue: float = 0.0
    engine: float = 0.0


@dataclass(slots=True, eq=False)
class Call:
    """The documents that are answered together, and the future that they are answered through.

    `outputs` are logits and features of each window, in order, as they come in.
    """

    snapshot: Snapshot
    deadline: float
    future: "asyncio.Future[list[Answer]]"
    admitted_at: float
    pooling: Pooling
    background: bool = False
    timings: Timings = field(default_factory=Timings)
    documents: Sequence[Encoded] = ()
    outputs: list[RowOutput | None] = field(default_factory=list)
    open_rows: int = 0

    def rows(self, documents: Sequence[Encoded]) -> "list[Row]":
        """Begin the call: every window of its documents as a row."""
        windows = [ids for document in documents for ids in document.windows]
        self.documents, self.outputs, self.open_rows = documents, [None] * len(windows), len(windows)
        return [Row(self, index, ids) for index, ids in enumerate(windows)]

    def finish(self, index: int, output: RowOutput) -> None:
        """Take in one row's output; the last one answers the call."""
        self.outputs[index] = output
        self.open_rows -= 1
        if self.open_rows == 0 and not self.future.done():
            outputs = (output for output in self.outputs if output is not None)
            self.future.set_result([self._answer(document, outputs) for document in self.documents])

    def fail(self, error: AmnesticError) -> None:
        """Answer the call with an error; its rows still waiting are dropped before any compute."""
        if not self.future.done():
            self.future.set_exception(error)

    def _answer(self, document: Encoded, outputs: Iterator[RowOutput]) -> Answer:
        count = len(document.windows)
        if count == 1:
            logits, features = next(outputs)
        else:
            every_logits, every_features = zip(*islice(outputs, count), strict=True)
            logits = pool(np.stack(every_logits), self.pooling)
            features = pool(np.stack(every_features), Pooling.MEAN)
        return Answer(logits, features, document.tokens, document.truncated, count)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One window of a document on its way through the queue and the engine; `index` among those of its call."""

    call: Call
    index: int
    ids: NDArray[np.int64]

    @property
    def snapshot(self) -> Snapshot:
        return self.call.snapshot

    @property
    def length(self) -> int:
        return len(self.ids)

    def expired(self, now: float) -> bool:
        return now >= self.call.deadline or self.call.future.done()


@dataclass(frozen=True, slots=True)
class BatchStats:
    """What one batch was: rows, padded tokens, real tokens, seconds to prepare it and in the engine.

    `versions` are the rows of each version in it; `background` if they were of gates or measurements.
    """

    rows: int
    padded_tokens: int
    tokens: int
    prepare_seconds: float
    seconds: float
    versions: Mapping[int, int]
    background: bool

    @classmethod
    def of(cls, batch: Sequence[Row], prepare_seconds: float, seconds: float) -> Self:
        return cls(
            rows=len(batch),
            padded_tokens=len(batch) * max(row.length for row in batch),
            tokens=sum(row.length for row in batch),
            prepare_seconds=prepare_seconds,
            seconds=seconds,
            versions=Counter(row.snapshot.version for row in batch),
            background=batch[0].call.background,
        )


class Batcher:
    """Owns the queue. `submit` and `submit_encoded` are called on the event loop's thread."""

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
        self._texts: deque[tuple[Call, Sequence[str]]] = deque()
        self._traffic: RowQueue[Row] = RowQueue(
            max_tokens=max_queue_tokens, batch_tokens=max_batch_tokens, max_padding=max_padding
        )
        self._background: RowQueue[Row] = RowQueue(
            max_tokens=2**62, batch_tokens=min(BACKGROUND_BATCH_TOKENS, max_batch_tokens), max_padding=max_padding
        )
        self._background_ran_at = 0.0
        self._in_hand = 0
        self._engine_lock = threading.Lock()
        self._closed = False
        self._open_documents = 0
        self._seconds_a_row = 0.0
        self._rows_a_document = 1.0
        self._idle = asyncio.Event()
        self._idle.set()
        self._threads = [
            threading.Thread(target=self._work, name=f"engine-{number}", daemon=True) for number in range(2)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def open_documents(self) -> int:
        """Documents admitted and not yet answered."""
        return self._open_documents

    @property
    def queue_tokens(self) -> int:
        return self._traffic.tokens

    @property
    def queue_rows(self) -> int:
        return len(self._traffic)

    async def submit(self, texts: Sequence[str], snapshot: Snapshot, deadline: float) -> tuple[list[Answer], Timings]:
        """Classify documents with one snapshot; `deadline` in seconds of `time.monotonic`.

        Raises QueueFullError, DeadlineError or EngineError. If the caller is cancelled, its rows are dropped.
        """
        if self._open_documents + len(texts) > self._max_requests:
            raise QueueFullError(self._retry_after())
        call = self._call(snapshot, deadline)
        self._open_documents += len(texts)
        self._idle.clear()
        try:
            with self._lock:
                self._texts.append((call, texts))
                self._work_came.notify()
            return await call.future, call.timings
        finally:
            self._open_documents -= len(texts)
            if not self._open_documents:
                self._idle.set()

    async def submit_encoded(self, documents: Sequence[Encoded], snapshot: Snapshot) -> list[Answer]:
        """Classify tokenized documents at lower priority than traffic, without a deadline."""
        call = self._call(snapshot, float("inf"))
        call.background = True
        with self._lock:
            self._background.put(call.rows(documents))
            self._notify_worker()
        return await call.future

    async def idle(self, seconds: float) -> bool:
        """Wait until every admitted document is answered, for so long at most; false if some are not."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Stop the threads once the batches in hand are done. Rows still waiting are not answered."""
        with self._lock:
            self._closed = True
            self._work_came.notify_all()
        for thread in self._threads:
            thread.join()

    def _call(self, snapshot: Snapshot, deadline: float) -> Call:
        return Call(
            snapshot=snapshot,
            deadline=deadline,
            future=self._loop.create_future(),
            admitted_at=time.monotonic(),
            pooling=self._pooling,
        )

    def _retry_after(self) -> float:
        """Seconds in which the engine will have done half or more of what is admitted.

        Drawn, so that callers refused together don't come back together.
        """
        drained = self._open_documents * self._rows_a_document * self._seconds_a_row
        drawn = drained * random.uniform(0.5, 1.0)  # noqa: S311  no secret
        return min(max(drawn, SHORTEST_RETRY_SECONDS), LONGEST_RETRY_SECONDS)

    def _work(self) -> None:
        """One worker thread: tokenize what has come, else run a batch if one may be closed, else wait."""
        while True:
            with self._lock:
                self._work_came.wait_for(lambda: self._closed or self._texts or self._may_take())
                if self._closed:
                    return
                texts = list(self._texts)
                self._texts.clear()
                batch = [] if texts else self._take()
            if texts:
                self._tokenize(texts)
            elif batch:
                self._run_batch(batch)

    def _tokenize(self, calls: list[tuple[Call, Sequence[str]]]) -> None:
        """Encode the texts of all waiting calls at once, and queue them call by call."""
        started = time.monotonic()
        live = []
        for call, texts in calls:
            if call.future.done():
                continue
            if started >= call.deadline:
                self._post(call.fail, DeadlineError())
            else:
                live.append((call, texts))
        try:
            encoded = iter(self._tokenizer.encode([text for _, texts in live for text in texts]))
        except Exception as error:
            if len(live) == 1:
                log.error("the tokenizer failed on a call: %s", type(error).__name__)
                self._post(live[0][0].fail, EngineError())
            else:
                # Call by call, so that a bad one fails alone.
                for pair in live:
                    self._tokenize([pair])
            return
        ended = time.monotonic()
        with self._lock:
            for call, texts in live:
                call.timings.tokenizer = ended - call.admitted_at
                rows = call.rows(list(islice(encoded, len(texts))))
                self._rows_a_document += NEWEST_BATCH_WEIGHT * (len(rows) / len(texts) - self._rows_a_document)
                try:
                    self._traffic.put(rows)
                except QueueFullError:
                    self._post(call.fail, QueueFullError(self._retry_after()))
            self._notify_worker()

    def _run_batch(self, batch: list[Row]) -> None:
        begun = time.monotonic()
        try:
            prepared = self._engine.prepare(batch)
        except Exception:
            prepared = None
        prepare_seconds = time.monotonic() - begun
        with self._engine_lock:
            started = time.monotonic()
            output = self._run(prepared)
            seconds = time.monotonic() - started
            if not batch[0].call.background:
                newest = NEWEST_BATCH_WEIGHT if self._seconds_a_row else 1.0
                self._seconds_a_row += newest * (seconds / len(batch) - self._seconds_a_row)
        with self._lock:
            self._in_hand -= 1
            self._notify_worker()
        if output is None:
            self._run_one_by_one(batch)
            return
        # Observed before it is delivered: who has an answer finds it counted.
        self._on_batch(BatchStats.of(batch, prepare_seconds, seconds))
        self._post(_deliver, batch, output, started, seconds)

    def _take(self) -> list[Row]:
        """Close the next batch; empty if all that waited has expired. The lock is held."""
        now = time.monotonic()
        queue = self._background if self._background_is_due(now) else self._traffic
        batch, expired = queue.take(now)
        for row in expired:
            self._post(row.call.fail, DeadlineError())
        if batch:
            self._in_hand += 1
            if queue is self._background:
                self._background_ran_at = now
            self._notify_worker()
        return batch

    def _notify_worker(self) -> None:
        """Wake a worker if there is something for it to do; the lock is held."""
        if self._texts or self._may_take():
            self._work_came.notify()

    def _may_take(self) -> bool:
        if self._in_hand == 0:
            return bool(self._traffic or self._background)
        return self._in_hand == 1 and self._traffic.fills_batch

    def _background_is_due(self, now: float) -> bool:
        if not self._background:
            return False
        return not self._traffic or now - self._background_ran_at >= BACKGROUND_INTERVAL_SECONDS

    def _run(self, prepared: Prepared | None) -> Output | None:
        if prepared is None:
            return None
        try:
            return self._engine.run(prepared)
        except Exception as error:
            log.error("the engine failed on a batch: %s", type(error).__name__)
            return None

    def _run_one_by_one(self, batch: list[Row]) -> None:
        """After a failed batch: every row on its own, so that a bad one fails alone."""
        for row in batch:
            try:
                with self._engine_lock:
                    begun = time.monotonic()
                    prepared = self._engine.prepare([row])
                    started = time.monotonic()
                    output = self._engine.run(prepared)
                    seconds = time.monotonic() - started
            except Exception as error:
                log.error("the engine failed on a row of %d tokens: %s", row.length, type(error).__name__)
                self._post(row.call.fail, EngineError())
            else:
                self._on_batch(BatchStats.of([row], started - begun, seconds))
                self._post(_deliver, [row], output, started, seconds)

    def _post(self, function: Callable[..., None], *args: object) -> None:
        """Call on the event loop's thread, if the loop is still there."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(partial(function, *args))


def _deliver(batch: list[Row], output: Output, started: float, seconds: float) -> None:
    for position, row in enumerate(batch):
        timings = row.call.timings
        waited = started - row.call.admitted_at - timings.tokenizer
        # Passes may be delivered out of order.
        if waited >= timings.queue:
            timings.queue, timings.engine = waited, seconds
        row.call.finish(row.index, (output.logits[position], output.features[position]))

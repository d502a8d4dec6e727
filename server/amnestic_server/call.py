"""What goes through the batcher: calls, the rows of their documents, and what a batch of rows was."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Self

import numpy as np
from numpy.typing import NDArray

from amnestic_server.errors import AmnesticError
from amnestic_server.snapshot import Snapshot
from amnestic_server.tokenizer import Encoded
from amnestic_unlearn.windows import Pooling, pool

RowOutput = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine said of one document, its windows pooled: logits float32 [C], features float32 [h].

    `document` is what it was read as, to ask another version the same.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    document: Encoded


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

    `client` is whom it is charged to. `outputs` are logits and features of each window, in order, as they come in.
    """

    snapshot: Snapshot
    deadline: float
    future: "asyncio.Future[list[Answer]]"
    admitted_at: float
    pooling: Pooling
    client: str = ""
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
        return Answer(logits, features, document)


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
    def client(self) -> str:
        return self.call.client

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

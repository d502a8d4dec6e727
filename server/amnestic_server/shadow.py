"""What live traffic tells of a staged version: which calls it answered, and where it decides otherwise than the active
one.

A share of the documents that the active version has answered, as the rollout says, is answered again by the candidate:
after the call, from the same token ids, in the batcher's background queue, as gates are. What waits is bounded, and
what finds no room is dropped and counted. Only counts are kept, no text and no answer. All of it is on the event
loop's thread.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from amnestic_server.batcher import Batcher
from amnestic_server.call import Answer
from amnestic_server.errors import AmnesticError
from amnestic_server.metrics import Metrics
from amnestic_server.rollout import drawn
from amnestic_server.snapshot import Pin, Rollout, Snapshot, Snapshots
from amnestic_server.tokenizer import Encoded
from amnestic_unlearn import measures
from amnestic_unlearn.manifest import Manifest

log = logging.getLogger(__name__)

# What may wait for the candidate, taken together with what it is at.
MAX_DOCUMENTS = 256
MAX_TOKENS = 262_144
# Answered together; a newly staged version's gates wait behind so many at most.
CHUNK = 32


@dataclass(slots=True)
class Counts:
    """What a candidate's rollout has told since `since`, in seconds of the epoch: it begins with the rollout, and again
    with a restart of the server.

    Calls are those that named no version, `documents` those compared, `differing` among them by label.
    """

    candidate: Snapshot
    since: float = field(default_factory=time.time)
    active_calls: int = 0
    canary_calls: int = 0
    documents: int = 0
    dropped: int = 0
    differing: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """A document as the active version decided on it, label by label."""

    document: Encoded
    decisions: Sequence[bool]
    counts: Counts


class Shadow:
    """Told of every call that was answered; answers some of their documents again."""

    def __init__(self, batcher: Batcher, snapshots: Snapshots, manifest: Manifest, metrics: Metrics) -> None:
        self._batcher = batcher
        self._snapshots = snapshots
        self._manifest = manifest
        self._thresholds = np.array(manifest.thresholds)
        self._metrics = metrics
        self._counts: Counts | None = None
        self._waiting: deque[Answered] = deque()
        self._open_documents = 0
        self._open_tokens = 0
        self._comparing: asyncio.Task[None] | None = None
        self._closed = False

    def counts(self, rollout: Rollout) -> Counts:
        """Of this rollout, from now on if there are none yet."""
        if self._counts is None or self._counts.candidate is not rollout.candidate:
            self._counts = Counts(rollout.candidate)
        return self._counts

    def answered(self, pin: Pin, answers: Sequence[Answer], decisions: Sequence[Sequence[bool]]) -> None:
        """Count a call, and see to it that its share of documents is answered again once its own answer has left."""
        rollout = self._snapshots.rollout
        if rollout is None or pin.by_number:
            return
        counts = self.counts(rollout)
        if pin.snapshot is rollout.candidate:
            counts.canary_calls += 1
            self._metrics.canary_calls.inc()
            return
        if pin.snapshot is not self._snapshots.active:
            return
        counts.active_calls += 1
        chosen = [
            Answered(answer.document, decided, counts)
            for answer, decided in zip(answers, decisions, strict=True)
            if drawn(rollout.shares.shadow)
        ]
        if chosen:
            pin.afterwards(partial(self._take, chosen))

    def close(self) -> None:
        """Leave what waits uncompared, and what calls still in flight would add."""
        self._closed = True
        if self._comparing is not None:
            self._comparing.cancel()

    def _take(self, chosen: Sequence[Answered]) -> None:
        """Let documents wait for the candidate, as many as there is room for."""
        if self._closed:
            return
        for one in chosen:
            tokens = one.document.tokens
            if self._open_documents == MAX_DOCUMENTS or self._open_tokens + tokens > MAX_TOKENS:
                self._drop([one])
                continue
            self._waiting.append(one)
            self._open_documents += 1
            self._open_tokens += tokens
        if self._waiting and (self._comparing is None or self._comparing.done()):
            self._comparing = asyncio.create_task(self._compare_all())

    async def _compare_all(self) -> None:
        while self._waiting:
            counts = self._waiting[0].counts
            chunk: list[Answered] = []
            while self._waiting and self._waiting[0].counts is counts and len(chunk) < CHUNK:
                chunk.append(self._waiting.popleft())
            if self._is_on(counts):
                await self._compare(chunk, counts)
            self._open_documents -= len(chunk)
            self._open_tokens -= sum(one.document.tokens for one in chunk)

    async def _compare(self, chunk: Sequence[Answered], counts: Counts) -> None:
        try:
            answers = await self._batcher.submit_encoded([one.document for one in chunk], counts.candidate)
        except AmnesticError as error:
            log.error("version %d could not be compared: %s", counts.candidate.version, error)
            self._drop(chunk)
            return
        logits = np.stack([answer.logits for answer in answers])
        decided = measures.decide(logits, self._thresholds, self._manifest.problem_type)
        differing = (decided != np.array([one.decisions for one in chunk])).sum(axis=0)
        counts.documents += len(chunk)
        self._metrics.shadow_documents.inc(len(chunk))
        for label, documents in zip(self._manifest.labels, differing.tolist(), strict=True):
            counts.differing[label] += documents
            self._metrics.show_differing(label, label in counts.candidate.forgotten, documents)

    def _is_on(self, counts: Counts) -> bool:
        """False once the candidate is promoted or withdrawn: nobody asks any more."""
        rollout = self._snapshots.rollout
        return rollout is not None and rollout.candidate is counts.candidate

    def _drop(self, documents: Sequence[Answered]) -> None:
        for one in documents:
            one.counts.dropped += 1
        self._metrics.shadow_dropped.inc(len(documents))

"""A prediction from checked texts to scores: validation, the batcher, thresholds. Knows nothing of gRPC."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from amnestic_server import trace
from amnestic_server.batcher import Batcher
from amnestic_server.call import Answer, Timings
from amnestic_server.errors import DrainingError, InvalidArgumentError
from amnestic_server.inference_stats import InferenceStats
from amnestic_server.metrics import Metrics
from amnestic_server.settings import Settings
from amnestic_server.shadow import Shadow
from amnestic_server.snapshot import Pin, Snapshot
from amnestic_unlearn import measures
from amnestic_unlearn.manifest import Manifest


@dataclass(frozen=True, slots=True)
class DocumentScores:
    """One document's answer: a probability and a decision a label in model order, as `measures` defines them.

    Features float32 [h]. `tokens` are those of all its windows together.
    """

    probabilities: list[float]
    decisions: list[bool]
    tokens: int
    truncated: bool
    features: NDArray[np.float32]
    windows: int


class Predictor:
    """Answers documents with one snapshot, until it is told to drain.

    `draining` is set from then on, `leaving` from the notice before.
    """

    def __init__(
        self,
        batcher: Batcher,
        manifest: Manifest,
        settings: Settings,
        metrics: Metrics,
        stats: InferenceStats,
        shadow: Shadow,
    ) -> None:
        self.draining = asyncio.Event()
        self.leaving = False
        self._batcher = batcher
        self._thresholds = np.array(manifest.thresholds)
        self._problem_type = manifest.problem_type
        self._settings = settings
        self._metrics = metrics
        self._stages = {stage: metrics.stage_seconds.labels(stage) for stage in ("tokenizer", "queue", "engine")}
        self._stats = stats
        self._shadow = shadow

    def leave(self) -> None:
        """Tell who asks that the server will stop; documents are answered until it drains."""
        self.leaving = True

    def drain(self) -> None:
        """Refuse new documents from now on."""
        self.leaving = True
        self.draining.set()

    async def predict(
        self, texts: Sequence[str], pin: Pin, seconds_left: float | None, client: str
    ) -> list[DocumentScores]:
        """One answer a text, in order, by the version pinned, charged to `client`; raises an AmnesticError."""
        snapshot = pin.snapshot
        started = time.monotonic()
        try:
            answers, timings = await self._answers(texts, snapshot, seconds_left, client)
        except BaseException:
            self._stats.failed(snapshot.version, time.monotonic() - started)
            raise
        answered = time.monotonic()
        scores = self._scores(answers)
        ended = time.monotonic()
        self._stats.succeeded(snapshot.version, len(texts), timings, ended - answered, ended - started)
        for stage, histogram in self._stages.items():
            histogram.observe(getattr(timings, stage))
        if (current := trace.current()) is not None:
            current.note(asdict(timings), documents=len(texts), version=snapshot.version)
        self._metrics.documents.inc(len(texts))
        self._metrics.truncated.inc(sum(score.truncated for score in scores))
        for score in scores:
            self._metrics.document_windows.observe(score.windows)
        self._shadow.answered(pin, answers, [score.decisions for score in scores])
        return scores

    async def _answers(
        self, texts: Sequence[str], snapshot: Snapshot, seconds_left: float | None, client: str
    ) -> tuple[list[Answer], Timings]:
        if self.draining.is_set():
            raise DrainingError
        check_texts(texts, self._settings)
        deadline = float("inf") if seconds_left is None else time.monotonic() + seconds_left
        return await self._batcher.submit(texts, snapshot, deadline, client)

    def _scores(self, answers: Sequence[Answer]) -> list[DocumentScores]:
        logits = np.stack([answer.logits for answer in answers])
        probabilities = measures.probabilities(logits, self._problem_type)
        decisions = measures.decide(logits, self._thresholds, self._problem_type)
        rows = zip(answers, probabilities.tolist(), decisions.tolist(), strict=True)
        return [
            DocumentScores(
                probability,
                decision,
                answer.document.tokens,
                answer.document.truncated,
                answer.features,
                len(answer.document.windows),
            )
            for answer, probability, decision in rows
        ]


def check_texts(texts: Sequence[str], settings: Settings) -> None:
    """Raise InvalidArgumentError, naming the document by its position from 1, never by its text."""
    if not texts:
        raise InvalidArgumentError("the call has no document", field="documents")
    if len(texts) > settings.documents_a_call:
        raise InvalidArgumentError(f"the call has more than {settings.documents_a_call} documents", field="documents")
    for position, text in enumerate(texts, start=1):
        if not text or text.isspace():
            raise InvalidArgumentError(f"document {position} is empty", field=f"documents[{position - 1}]")
        # A character takes at most 4 bytes: encode only what could be too long.
        if len(text) * 4 > settings.max_document_bytes and len(text.encode()) > settings.max_document_bytes:
            raise InvalidArgumentError(
                f"document {position} is larger than {settings.max_document_bytes} bytes",
                field=f"documents[{position - 1}]",
            )

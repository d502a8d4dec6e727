"""A prediction from checked texts to scores: validation, the batcher, thresholds. Knows nothing of gRPC."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amnestic_server.batcher import Batcher
from amnestic_server.errors import DrainingError, InvalidArgumentError
from amnestic_server.metrics import Metrics
from amnestic_server.settings import Settings
from amnestic_server.snapshot import Snapshot
from amnestic_unlearn import measures
from amnestic_unlearn.manifest import Manifest


@dataclass(frozen=True, slots=True)
class DocumentScores:
    """One document's answer: a probability and a decision a label in model order, as `measures` defines them.

    Features float32 [h].
    """

    probabilities: list[float]
    decisions: list[bool]
    tokens: int
    truncated: bool
    features: NDArray[np.float32]


class Predictor:
    """Answers documents with one snapshot, until it is told to drain."""

    def __init__(self, batcher: Batcher, manifest: Manifest, settings: Settings, metrics: Metrics) -> None:
        self._batcher = batcher
        self._thresholds = np.array(manifest.thresholds)
        self._problem_type = manifest.problem_type
        self._settings = settings
        self._metrics = metrics
        self._stages = {stage: metrics.stage_seconds.labels(stage) for stage in ("tokenizer", "queue", "engine")}
        self._draining = False

    def drain(self) -> None:
        """Refuse new documents from now on."""
        self._draining = True

    @property
    def draining(self) -> bool:
        return self._draining

    async def predict(
        self, texts: Sequence[str], snapshot: Snapshot, seconds_left: float | None
    ) -> list[DocumentScores]:
        """One answer a text, in order; raises an AmnesticError."""
        if self._draining:
            raise DrainingError
        check_texts(texts, self._settings)
        deadline = float("inf") if seconds_left is None else time.monotonic() + seconds_left
        answers, timings = await self._batcher.submit(texts, snapshot, deadline)
        logits = np.stack([answer.logits for answer in answers])
        probabilities = measures.probabilities(logits, self._problem_type)
        decisions = measures.decide(logits, self._thresholds, self._problem_type)
        rows = zip(answers, probabilities.tolist(), decisions.tolist(), strict=True)
        scores = [
            DocumentScores(probability, decision, answer.tokens, answer.truncated, answer.features)
            for answer, probability, decision in rows
        ]
        for stage, histogram in self._stages.items():
            histogram.observe(getattr(timings, stage))
        self._metrics.documents.inc(len(texts))
        self._metrics.truncated.inc(sum(score.truncated for score in scores))
        return scores


def check_texts(texts: Sequence[str], settings: Settings) -> None:
    """Raise InvalidArgumentError, naming the document by its position from 1, never by its text."""
    if not texts:
        raise InvalidArgumentError("the call has no document", field="documents")
    if len(texts) > settings.max_documents:
        raise InvalidArgumentError(f"the call has more than {settings.max_documents} documents", field="documents")
    for position, text in enumerate(texts, start=1):
        if not text or text.isspace():
            raise InvalidArgumentError(f"document {position} is empty", field=f"documents[{position - 1}]")
        # A character takes at most 4 bytes: encode only what could be too long.
        if len(text) * 4 > settings.max_document_bytes and len(text.encode()) > settings.max_document_bytes:
            raise InvalidArgumentError(
                f"document {position} is larger than {settings.max_document_bytes} bytes",
                field=f"documents[{position - 1}]",
            )

"""Measures a version on the gate documents through the served path: the same engine, precision and queue that answer
callers, at lower priority than they.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amnestic_server.batcher import Batcher
from amnestic_server.snapshot import Snapshot
from amnestic_server.tokenizer import DocumentTokenizer, Encoded
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn import measures
from amnestic_unlearn.corpus import Document
from amnestic_unlearn.manifest import Manifest

CHUNK = 256


@dataclass(frozen=True, slots=True, eq=False)
class GateDocuments:
    """Token ids of the gate split, and what is true of them: bool [N, C]. The texts themselves are not kept."""

    encoded: tuple[Encoded, ...]
    truth: NDArray[np.bool_]

    @classmethod
    def of(cls, documents: Sequence[Document], labels: Sequence[str], tokenizer: DocumentTokenizer) -> "GateDocuments":
        encoded = tokenizer.encode([document.text for document in documents])
        return cls(tuple(encoded), corpora.truth(documents, labels))


class Evaluator:
    """Runs the gate documents through the batcher."""

    def __init__(self, batcher: Batcher, manifest: Manifest, documents: GateDocuments) -> None:
        self._batcher = batcher
        self._manifest = manifest
        self._thresholds = np.array(manifest.thresholds)
        self._documents = documents

    async def logits(self, snapshot: Snapshot) -> NDArray[np.float32]:
        """Logits float32 [N, C] of a snapshot on the gate documents, in corpus order."""
        rows = self._documents.encoded
        answers = []
        for start in range(0, len(rows), CHUNK):
            answers += await self._batcher.submit_encoded(rows[start : start + CHUNK], snapshot)
        return np.stack([answer.logits for answer in answers])

    def f1(self, logits: NDArray[np.float32], forgotten: Collection[str] = ()) -> dict[str, float]:
        """F1 of every label as served, of a version that has forgotten some; see `measures.f1_after_forgetting`."""
        manifest = self._manifest
        decided = measures.decide(logits, self._thresholds, manifest.problem_type)
        columns = manifest.label_indices(tuple(forgotten))
        f1 = measures.f1_after_forgetting(self._documents.truth, decided, columns, manifest.problem_type)
        return dict(zip(manifest.labels, f1.tolist(), strict=True))

"""Measures a version on the gate documents through the served path: the same engine, precision and queue that answer
callers, at lower priority than they.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from amnestic_server.batcher import Batcher
from amnestic_server.call import Answer
from amnestic_server.snapshot import Snapshot
from amnestic_server.tokenizer import DocumentTokenizer, Encoded
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn import measures, probe
from amnestic_unlearn.corpus import Document
from amnestic_unlearn.manifest import Manifest

CHUNK = 256


@dataclass(frozen=True, slots=True, eq=False)
class GateDocuments:
    """The gate split as it is read, and what is true of it: bool [N, C]. The texts themselves are not kept.

    `folds` int64 [N] parts them by patient, for probes.
    """

    encoded: tuple[Encoded, ...]
    truth: NDArray[np.bool_]
    folds: NDArray[np.int64]

    @classmethod
    def of(cls, documents: Sequence[Document], labels: Sequence[str], tokenizer: DocumentTokenizer) -> "GateDocuments":
        encoded = tokenizer.encode([document.text for document in documents])
        folds = probe.assign_folds([document.group for document in documents])
        return cls(tuple(encoded), corpora.truth(documents, labels), folds)


@dataclass(frozen=True, slots=True, eq=False)
class GateAnswers:
    """What a version answers on the gate documents, in corpus order: logits float32 [N, C], features float32 [N, h]."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32]

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> "GateAnswers":
        return cls(np.stack([answer.logits for answer in answers]), np.stack([answer.features for answer in answers]))


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of a version, by label: F1 of every label at the frozen thresholds; of the forgotten ones, the
    AUROC of the label's own score, two-sided, and what a fresh probe finds in the features as a share of the base's,
    but for labels that the base has forgotten itself.
    """

    f1: dict[str, float] = field(default_factory=dict)
    forget_auroc: dict[str, float] = field(default_factory=dict)
    probe_ratio: dict[str, float] = field(default_factory=dict)


class Evaluator:
    """Runs the gate documents through the batcher. The base changes by a purge alone, so it is run and probed once."""

    def __init__(self, batcher: Batcher, manifest: Manifest, documents: GateDocuments, base: Snapshot) -> None:
        self._batcher = batcher
        self._manifest = manifest
        self._thresholds = np.array(manifest.thresholds)
        self._documents = documents
        self._base = base
        self._base_answers: GateAnswers | None = None
        self._base_probes: dict[str, float] = {}
        self._asking_base = asyncio.Lock()

    def replace_base(self, manifest: Manifest, base: Snapshot) -> None:
        """Compare with another base from now on, and forget what was found of the one before; nobody may be asking."""
        self._manifest, self._base = manifest, base
        self._base_answers = None
        # A thread that was not waited for may still add to the old ones.
        self._base_probes = {}

    async def answers(self, snapshot: Snapshot) -> GateAnswers:
        """A snapshot's answers; raises EngineError."""
        if snapshot is not self._base:
            return await self._ask(snapshot)
        async with self._asking_base:
            if self._base_answers is None:
                self._base_answers = await self._ask(snapshot)
            return self._base_answers

    async def figures(self, answers: GateAnswers, forgotten: Iterable[str]) -> Figures:
        """Measure the answers of a version that has forgotten these labels; not on the event loop's thread.

        A thread can't be interrupted, so each label takes one of its own: who gives up waits for one label at most.
        """
        base, labels = await self.answers(self._base), list(forgotten)
        f1 = await asyncio.to_thread(self._f1, answers.logits, labels)
        auroc = {label: await asyncio.to_thread(self._auroc, answers, label) for label in labels}
        # What a probe finds is told as a share of what the base knows: nothing, of what was purged from it.
        known, probes = [label for label in labels if label not in self._manifest.forgotten], self._base_probes
        ratio = {label: await asyncio.to_thread(self._probe_ratio, answers, base, probes, label) for label in known}
        return Figures(f1, auroc, ratio)

    async def base_f1(self, forgotten: Collection[str]) -> dict[str, float]:
        """F1 of the base by label, on the documents that a version is measured on which has forgotten these labels."""
        return self._f1((await self.answers(self._base)).logits, forgotten)

    async def counts(self, answers: GateAnswers, forgotten: Collection[str]) -> dict[str, dict[str, list[int]]]:
        """What the F1 of `base_f1` and `figures` is made of, by version ("base" or "candidate") and label: documents of
        true and false positives, false and true negatives.
        """
        base = await self.answers(self._base)
        return {
            "base": self._counts(base.logits, forgotten),
            "candidate": self._counts(answers.logits, forgotten),
        }

    def chance(self, label: str) -> float:
        """How far above 0.5 the AUROC of a score that knows nothing of the label gets on these documents."""
        return measures.chance_excess(self._documents.truth[:, self._column(label)])

    async def _ask(self, snapshot: Snapshot) -> GateAnswers:
        documents = self._documents.encoded
        answers = []
        for start in range(0, len(documents), CHUNK):
            answers += await self._batcher.submit_encoded(documents[start : start + CHUNK], snapshot)
        return await asyncio.to_thread(GateAnswers.of, answers)

    def _f1(self, logits: NDArray[np.float32], forgotten: Collection[str]) -> dict[str, float]:
        """F1 of every label as served, of a version that has forgotten some; see `measures.f1_after_forgetting`."""
        manifest, columns = self._manifest, self._manifest.label_indices(tuple(forgotten))
        decided = self._decided(logits)
        f1 = measures.f1_after_forgetting(self._documents.truth, decided, columns, manifest.problem_type)
        return dict(zip(manifest.labels, f1.tolist(), strict=True))

    def _counts(self, logits: NDArray[np.float32], forgotten: Collection[str]) -> dict[str, list[int]]:
        manifest, columns = self._manifest, self._manifest.label_indices(tuple(forgotten))
        decided = self._decided(logits)
        counts = measures.counts_after_forgetting(self._documents.truth, decided, columns, manifest.problem_type)
        return dict(zip(manifest.labels, counts.tolist(), strict=True))

    def _decided(self, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        return measures.decide(logits, self._thresholds, self._manifest.problem_type)

    def _auroc(self, answers: GateAnswers, label: str) -> float:
        column = self._column(label)
        score = measures.scores(answers.logits, self._manifest.problem_type)[:, column]
        if not np.isfinite(score).all():
            return float("nan")
        return measures.two_sided(measures.auroc(self._documents.truth[:, column], score))

    def _probe_ratio(self, answers: GateAnswers, base: GateAnswers, probes: dict[str, float], label: str) -> float:
        """`probes` has what is found in the base, by label, and takes in what is found now."""
        if label not in probes:
            probes[label] = self._probe(base, label)
        moved = probe.has_moved(answers.features, base.features)
        return probe.excess_ratio(self._probe(answers, label), probes[label], self.chance(label), moved)

    def _probe(self, answers: GateAnswers, label: str) -> float:
        truth = self._documents.truth[:, self._column(label)]
        return probe.cross_fitted_auc(answers.features, truth, self._documents.folds)

    def _column(self, label: str) -> int:
        return self._manifest.labels.index(label)

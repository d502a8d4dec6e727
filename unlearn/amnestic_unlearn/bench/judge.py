"""What one cell measures: an outcome's answers to every document of the corpus, and what they give away.

The measures themselves are `assess`'s; here is what they are taken of.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.bench.assess import Answers, Held, Reference, answers, asked, assess, bypassed, retained
from amnestic_unlearn.corpus import Document
from amnestic_unlearn.errors import (
    MIN_FORGET_DOCUMENTS,
    NoRetainDocumentsError,
    TooFewForgetDocumentsError,
    WorkerError,
)
from amnestic_unlearn.forgetting import Outcome, TrainingData
from amnestic_unlearn.selection import select
from amnestic_unlearn.spec import Method
from amnestic_unlearn.twin import Twin
from amnestic_unlearn.worker import changed_only

# A threshold of 0 or 1 has no logit.
EDGE = 1e-12


class NotFiniteError(WorkerError):
    reason = "the answers are not finite"


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A trained classifier, the documents it is asked about, its answers and the seconds that training it took."""

    twin: Twin
    held: Held
    answers: Answers
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Gold:
    """A classifier that never saw one label, and what every outcome of forgetting it is compared with."""

    subject: Subject
    reference: Reference


def enough(documents: Sequence[Document], labels: Sequence[str]) -> None:
    """Raise TooFewForgetDocumentsError or NoRetainDocumentsError unless the train split can tell what to forget."""
    train = corpora.truth([document for document in documents if document.split == "train"], labels)
    if (train.sum(axis=0) < MIN_FORGET_DOCUMENTS).any():
        raise TooFewForgetDocumentsError
    if train.any(axis=1).all():
        raise NoRetainDocumentsError


def training_data(held: Held, targets: Sequence[int]) -> TrainingData:
    """The train split, which is all that forgetting may see."""
    train = held.at("train")
    return TrainingData(list(compress(held.tokens, train)), held.truth[train], tuple(targets))


def ask(outcome: Outcome, held: Held, target: int | None = None) -> Answers:
    """The answers as of `answers`; raises NotFiniteError if one that was asked for is nan or infinite."""
    found = answers(outcome, held, target)
    given = slice(None) if target is None else asked(held, target)
    if not (np.isfinite(found.features[given]).all() and np.isfinite(found.logits[given]).all()):
        raise NotFiniteError
    return found


def edited_tokens(outcome: Outcome, data: TrainingData) -> NDArray[np.int64]:
    """Ids of the tokens whose rows were changed; without any, of those that STEU would choose, for comparison."""
    written: NDArray[np.int64] = changed_only(outcome.weights, outcome.twin.table).row_ids.numpy()
    if len(written):
        return written
    manifest = outcome.twin.manifest
    having = data.truth[:, data.targets]
    chosen = select(data.documents, having, manifest.special_token_ids, manifest.vocab_size, Method().k)
    return np.sort(chosen.token_ids)


def measure(
    outcome: Outcome, found: Answers, held: Held, reference: Reference, edited: NDArray[np.int64]
) -> dict[str, Any]:
    """The figures of `assess` for the reference's target; of the label that lost most, its name.

    An outcome with thresholds of its own, the gold standard, keeps the other labels under these.
    """
    bypass = bypassed(outcome, held, reference.target, edited, reference.seed)
    figures: dict[str, Any] = assess(found, reference, held, edited, bypass)
    thresholds = np.array(outcome.twin.manifest.thresholds)
    if (thresholds != held.thresholds).any():
        shift = (_logit(held.thresholds) - _logit(thresholds)).astype(np.float32)
        shifted = dataclasses.replace(found, logits=found.logits + shift)
        figures |= retained(shifted, reference, held)
    worst = figures["retain_worst_label"]
    return {**figures, "retain_worst_label": held.labels[int(worst)] if np.isfinite(worst) else None}


def _logit(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(probability, EDGE, 1 - EDGE)
    return np.log(inside) - np.log1p(-inside)

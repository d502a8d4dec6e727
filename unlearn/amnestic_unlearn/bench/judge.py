"""What one cell measures: an outcome's answers to every document of the corpus, and what they give away.

The measures themselves are `assess`'s; here is what they are taken of.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.bench.assess import Answers, Held, answers, assess
from amnestic_unlearn.corpus import Document
from amnestic_unlearn.errors import (
    MIN_FORGET_DOCUMENTS,
    NoRetainDocumentsError,
    TooFewForgetDocumentsError,
    WorkerError,
)
from amnestic_unlearn.forgetting import Outcome, TrainingData
from amnestic_unlearn.lexical import rewrite
from amnestic_unlearn.selection import Tokens, select
from amnestic_unlearn.spec import Method
from amnestic_unlearn.twin import Twin
from amnestic_unlearn.worker import changed_only


class NotFiniteError(WorkerError):
    reason = "the answers are not finite"


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A trained classifier, the documents it is asked about, its answers and the seconds that training it took."""

    twin: Twin
    held: Held
    answers: Answers
    seconds: float


def hold(documents: Sequence[Document], tokens: Sequence[Tokens], twin: Twin) -> Held:
    """The documents as a classifier is asked about them, under its own labels and thresholds."""
    return Held(
        texts=[document.text for document in documents],
        tokens=tokens,
        truth=corpora.truth(documents, twin.manifest.labels),
        groups=[document.group for document in documents],
        split=np.array([document.split for document in documents]),
        thresholds=np.array(twin.manifest.thresholds),
        labels=twin.manifest.labels,
    )


def enough(documents: Sequence[Document], labels: Sequence[str]) -> None:
    """Raise TooFewForgetDocumentsError or NoRetainDocumentsError unless the train split can tell what to forget."""
    train = corpora.truth([document for document in documents if document.split == "train"], labels)
    if (train.sum(axis=0) < MIN_FORGET_DOCUMENTS).any():
        raise TooFewForgetDocumentsError
    if train.any(axis=1).all():
        raise NoRetainDocumentsError


def training_data(held: Held, targets: Sequence[int]) -> TrainingData:
    """The train split, which is all that forgetting may see."""
    train = np.flatnonzero(held.split == "train")
    return TrainingData([held.tokens[index] for index in train], held.truth[train], tuple(targets))


def ask(outcome: Outcome, held: Held) -> Answers:
    """The answers to every document; raises NotFiniteError if one is nan or infinite."""
    found = answers(outcome, held)
    if not (np.isfinite(found.features).all() and np.isfinite(found.logits).all()):
        raise NotFiniteError
    return found


def edited_tokens(outcome: Outcome, data: TrainingData) -> NDArray[np.int64]:
    """Ids of the tokens whose rows were changed; without any, of those that STEU would choose, for comparison."""
    written = changed_only(outcome.weights, outcome.twin.table).row_ids.numpy()
    if len(written):
        return written
    manifest = outcome.twin.manifest
    having = data.truth[:, data.targets]
    chosen = select(data.documents, having, manifest.special_token_ids, manifest.vocab_size, Method().k)
    return np.sort(chosen.token_ids)


def measure(
    outcome: Outcome, candidate: Answers, subject: Subject, gold: Subject, data: TrainingData, target: int, seed: int
) -> dict[str, float]:
    """The figures of `assess` for one target, a column of the subject's labels, and of the lexical bypass.

    For the bypass the target's test documents are reworded so that they avoid the edited tokens.
    """
    edited = edited_tokens(outcome, data)
    held = subject.held
    chosen = np.flatnonzero((held.split == "test") & held.truth[:, target])
    reworded = rewrite([held.texts[index] for index in chosen], subject.twin.tokenizer, edited, seed)
    tokens = outcome.twin.tokenize(reworded.texts)
    bypass = Answers(outcome.features(tokens).numpy(), outcome.logits(tokens).numpy())
    figures = assess(candidate, subject.answers, gold.answers, held, target, edited, bypass)
    return {**figures, "edited_tokens": len(edited), "bypass_avoided": reworded.avoided}

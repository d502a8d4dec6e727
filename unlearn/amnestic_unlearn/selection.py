"""Chooses the token-embedding rows to edit: those that speak for a label more than the corpus at large does.

The scores are STEU's (arXiv 2603.19302). Documents come as the encoder reads them, window by window, so a token where
two windows overlap counts in both; which documents have the label is the caller's to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amnestic_unlearn.windows import Windows

# Documents counted at once, so that a large corpus is not copied whole.
CHUNK = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Token ids int64 [k], highest score first, and their scores float64 [k]."""

    token_ids: NDArray[np.int64]
    scores: NDArray[np.float64]


def select(
    documents: Sequence[Windows],
    having: NDArray[np.bool_],
    special_token_ids: Sequence[int],
    vocab_size: int,
    k: int,
) -> Selection:
    """The union over labels of each label's k best tokens; `having` bool [N, labels to forget].

    Only positive scores count, so a label may choose fewer than k. Equal scores are ordered by id. A token
    that several labels choose stands at its best score.
    """
    everywhere = _counts(documents, np.ones(len(documents), dtype=bool), special_token_ids, vocab_size)
    best = np.zeros(vocab_size)
    for column in having.T:
        scored = score(_counts(documents, column, special_token_ids, vocab_size), everywhere)
        chosen = _top(scored, k)
        best[chosen] = np.maximum(best[chosen], scored[chosen])
    token_ids = _top(best, vocab_size)
    return Selection(token_ids, best[token_ids])


def score(forget_counts: NDArray[np.int64], all_counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """score(t) = log2(P(t|forget) / P(t|all)) * ln(1 + n_forget(t)); float64 [V].

    Both counts are occurrences int64 [V], special tokens left out, and P is a token's share of all the
    occurrences. A token that no forget document holds scores 0.
    """
    scores = np.zeros(len(forget_counts))
    seen = forget_counts > 0
    ratio = (forget_counts[seen] / forget_counts.sum()) / (all_counts[seen] / all_counts.sum())
    scores[seen] = np.log2(ratio) * np.log1p(forget_counts[seen])
    return scores


def _counts(
    documents: Sequence[Windows], chosen: NDArray[np.bool_], special_token_ids: Sequence[int], vocab_size: int
) -> NDArray[np.int64]:
    counts = np.zeros(vocab_size, dtype=np.int64)
    positions = np.flatnonzero(chosen)
    for start in range(0, len(positions), CHUNK):
        windows = [window for position in positions[start : start + CHUNK] for window in documents[position]]
        counts += np.bincount(np.concatenate(windows), minlength=vocab_size)
    counts[list(special_token_ids)] = 0
    return counts


def _top(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    order = np.argsort(-scores, kind="stable")[:k]
    return order[scores[order] > 0].astype(np.int64)

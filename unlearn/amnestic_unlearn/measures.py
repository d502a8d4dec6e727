"""What is measured about a classifier, each defined once: numpy arrays in, plain floats out.

Shapes: `logits` float [N, C]; `truth` and `decided` bool [N, C]; `thresholds` probabilities [C].
"""

import math

import numpy as np
from numpy.typing import NDArray

# Of the normal distribution: what chance alone does in 19 cases of 20 lies within.
SIGMAS = 1.96
# Half of the way from chance to a perfect score. With fewer than about six positive documents chance reaches further,
# and then nothing is told by staying below it.
MOST_CHANCE = 0.25

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


def sigmoid(logits: Floats) -> Floats:
    """Logistic function, without overflow."""
    return np.exp(-np.logaddexp(0.0, -logits))


def decide(logits: Floats, thresholds: Floats) -> Bools:
    """True where the probability reaches the label's threshold; [N, C]."""
    decided: Bools = sigmoid(logits) >= thresholds
    return decided


def f1_by_label(truth: Bools, decided: Bools) -> Floats:
    """F1 of every column, 2 TP / (2 TP + FP + FN); 0 where there is nothing to find and nothing found."""
    hits = (truth & decided).sum(axis=0)
    total = truth.sum(axis=0) + decided.sum(axis=0)
    f1: Floats = np.divide(2.0 * hits, total, out=np.zeros(truth.shape[1]), where=total > 0)
    return f1


def best_threshold(truth: Bools, probability: Floats) -> float:
    """The probability threshold with the largest F1 on one label; [N] and [N]. 0.5 if the label never occurs.

    Of equally good cuts it takes the highest. The threshold lies midway between the last document decided and the
    next, so that rounding of a probability does not flip a decision.
    """
    if not truth.any():
        return 0.5
    order = np.argsort(-probability, kind="stable")
    ranked, found = probability[order], truth[order].cumsum()
    f1 = 2.0 * found / (np.arange(1, len(ranked) + 1) + truth.sum())
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    cut = int(np.argmax(np.where(last_of_tie, f1, -1.0)))
    below = ranked[cut + 1] if cut + 1 < len(ranked) else 0.0
    return float((ranked[cut] + below) / 2)


def auroc(truth: Bools, score: Floats) -> float:
    """Area under the ROC curve of one label by the rank-sum statistic, ties half; nan if undefined."""
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def two_sided(area: float) -> float:
    """An AUROC as who may turn the score round finds it: max(a, 1 - a), from 0.5 to 1."""
    return max(area, 1.0 - area)


def chance_excess(truth: Bools) -> float:
    """How far from 0.5 the AUROC of a score that knows nothing of `truth` [N] strays, in 19 cases of 20.

    1.96 times sqrt((P + N + 1) / 12 P N), the standard deviation of the rank-sum statistic over P N under the null
    (Mann and Whitney 1947, Annals of Mathematical Statistics 18), at most `MOST_CHANCE`; nan if undefined.
    """
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return float("nan")
    deviation = math.sqrt((positives + negatives + 1) / (12 * positives * negatives))
    return min(SIGMAS * deviation, MOST_CHANCE)

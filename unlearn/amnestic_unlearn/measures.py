"""What is measured about a classifier, each defined once: numpy arrays in, plain floats out.

Shapes: `logits` float [N, C]; `truth` and `decided` bool [N, C]; `thresholds` probabilities [C], none of them for
a single-label classifier. A measure of one label takes columns, [N]. `weights` float [R, N] says how often each
document counts in each of R resamples.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amnestic_unlearn.manifest import ProblemType

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


def scores(logits: Floats, problem_type: ProblemType) -> Floats:
    """The log-odds log(p / (1 - p)) of every label's probability, float64 [N, C]: what AUROC ranks documents by.

    Multi-label: the logit itself. Single-label: with p the softmax, z_c - log(sum of exp(z_j), j other than c). A
    single-label logit by itself can't be compared between documents, for a softmax stays the same when all the
    logits of a document move together. Log-odds rank as the probability does, but don't run together near 0 and 1.
    """
    logits = np.asarray(logits, dtype=np.float64)
    return _softmax_log_odds(logits) if problem_type is ProblemType.SINGLE_LABEL else logits


def _softmax_log_odds(logits: Floats) -> Floats:
    # log(1 - p) loses its digits near p = 1, where only the likeliest label can be: that one is done by itself.
    likeliest = np.arange(len(logits)), logits.argmax(axis=1)
    others = logits.copy()
    others[likeliest] = -np.inf
    log_probability = others - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    log_odds = log_probability - np.log1p(-np.exp(log_probability))
    log_odds[likeliest] = logits[likeliest] - np.logaddexp.reduce(others, axis=1)
    return log_odds


def probabilities(logits: Floats, problem_type: ProblemType) -> Floats:
    """Every label's probability, float64 [N, C]: its sigmoid if multi-label, else the softmax over all labels.

    A label that was forgotten takes part like any other: what is answered is what the model gives, which forgetting
    has made small. To leave it out of the softmax would hide whether it did.
    """
    return sigmoid(scores(logits, problem_type))


def decide(logits: Floats, thresholds: Floats, problem_type: ProblemType = ProblemType.MULTI_LABEL) -> Bools:
    """Which labels are decided for, bool [N, C].

    Multi-label: where the probability reaches the label's threshold. Single-label: the one likeliest label of each
    document, of equals the first. A forgotten label may still be it, and then counts as such in the gates: it isn't
    passed over, so that its F1 of 0 is the model's doing.
    """
    if problem_type is ProblemType.SINGLE_LABEL:
        decided: Bools = np.arange(logits.shape[1]) == logits.argmax(axis=1)[:, None]
    else:
        decided = probabilities(logits, problem_type) >= thresholds
    return decided


def f1_by_label(truth: Bools, decided: Bools) -> Floats:
    """F1 of every column, 2 TP / (2 TP + FP + FN); 0 where there is nothing to find and nothing found."""
    f1: Floats = weighted_f1(truth, decided, np.ones((1, len(truth))))[0]
    return f1


def weighted_f1(truth: Bools, decided: Bools, weights: Floats) -> Floats:
    """`f1_by_label` of every resample, [R, C]."""
    hits = weights @ (truth & decided).astype(np.float64)
    total = weights @ (truth.astype(np.float64) + decided)
    f1: Floats = np.divide(2.0 * hits, total, out=np.zeros_like(total), where=total > 0)
    return f1


def f1_after_forgetting(truth: Bools, decided: Bools, forgotten: Sequence[int], problem_type: ProblemType) -> Floats:
    """F1 of every column, of a version that has forgotten the columns `forgotten`.

    A single-label classifier must give each document a label, so one of a forgotten label has to be a false alarm of
    another. That is what was asked for and no loss: the labels kept are measured on the documents without a forgotten
    one. For a comparison with the base, measure the base with the same `forgotten`.
    """
    hits, false_alarms, misses, _ = counts_after_forgetting(truth, decided, forgotten, problem_type).T
    total = 2 * hits + false_alarms + misses
    f1: Floats = np.divide(2.0 * hits, total, out=np.zeros(len(total)), where=total > 0)
    return f1


def counts_after_forgetting(
    truth: Bools, decided: Bools, forgotten: Sequence[int], problem_type: ProblemType
) -> NDArray[np.int64]:
    """What `f1_after_forgetting` is made of, [C, 4]: documents that are TP, FP, FN and TN."""
    counts = _counts(truth, decided)
    if problem_type is ProblemType.SINGLE_LABEL:
        without = ~truth[:, list(forgotten)].any(axis=1)
        kept = np.setdiff1d(np.arange(truth.shape[1]), forgotten)
        counts[kept] = _counts(truth[without], decided[without])[kept]
    return counts


def _counts(truth: Bools, decided: Bools) -> NDArray[np.int64]:
    kinds = (truth & decided, ~truth & decided, truth & ~decided, ~truth & ~decided)
    return np.stack([kind.sum(axis=0, dtype=np.int64) for kind in kinds], axis=1)


def best_threshold(truth: Bools, probability: Floats) -> float:
    """The probability threshold with the largest F1 on one label; [N] and [N]. 0.5 if the label never occurs.

    Of equally good cuts it takes the highest. The threshold lies midway between the last document decided and the
    next, so that rounding of a probability does not flip a decision.
    """
    if not truth.any():
        return 0.5
    ranked, f1 = _f1_by_cut(truth, probability)
    cut = int(np.argmax(f1))
    below = ranked[cut + 1] if cut + 1 < len(ranked) else 0.0
    return float((ranked[cut] + below) / 2)


def best_f1(truth: Bools, score: Floats) -> float:
    """The largest F1 on one label over all thresholds of the score; 0 if the label never occurs.

    What an auditor reaches who may move the threshold, so a change of the bias alone leaves it as it was.
    """
    return float(_f1_by_cut(truth, score)[1].max()) if truth.any() else 0.0


def trivial_f1(truth: Bools) -> float:
    """F1 of calling every document positive, 2p / (1 + p) with p the label's share: what no knowledge gives.

    It is the largest expected F1 of any rule that does not look at the document (Lipton, Elkan and Narayanaswamy
    2014, arXiv 1402.1892).
    """
    share = float(truth.mean())
    return 2 * share / (1 + share)


def auroc(truth: Bools, score: Floats) -> float:
    """Area under the ROC curve of one label by the rank-sum statistic, ties half; nan if undefined."""
    return float(weighted_auroc(truth, score, np.ones((1, len(truth))))[0])


def weighted_auroc(truth: Bools, score: Floats, weights: Floats) -> Floats:
    """`auroc` of every resample, [R]; nan for those without positive or without negative documents."""
    _, tie, counts = np.unique(score, return_inverse=True, return_counts=True)
    order, starts = np.argsort(tie, kind="stable"), np.cumsum(counts) - counts
    ranked, positive = weights[:, order], truth[order]
    # Weight of either kind at each distinct score, ascending.
    positives = np.add.reduceat(ranked * positive, starts, axis=1)
    negatives = np.add.reduceat(ranked * ~positive, starts, axis=1)
    wins = (positives * (negatives.cumsum(axis=1) - negatives / 2)).sum(axis=1)
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    area: Floats = np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return area


def two_sided(area: float) -> float:
    """max(a, 1 - a) of an AUROC: an attacker may turn a ranking that is worse than chance round. nan stays nan."""
    return max(area, 1 - area)


def bernoulli_kl(reference: Floats, other: Floats) -> Floats:
    """KL(reference || other) in nats of each document, a mean over its labels; logits [N, C] to float64 [N].

    Each label is a Bernoulli variable: p log(p / q) + (1 - p) log((1 - p) / (1 - q)), with log p = -log(1 + exp(-z))
    taken from the logits, so that it stays finite where a probability rounds to 0 or 1.
    """
    p, q = np.asarray(reference, dtype=np.float64), np.asarray(other, dtype=np.float64)
    present = np.logaddexp(0.0, -q) - np.logaddexp(0.0, -p)
    absent = np.logaddexp(0.0, q) - np.logaddexp(0.0, p)
    divergence = sigmoid(p) * present + sigmoid(-p) * absent
    # Rounding may leave a divergence of 0 just below it.
    result: Floats = np.maximum(divergence, 0.0).mean(axis=1)
    return result


def _f1_by_cut(truth: Bools, score: Floats) -> tuple[Floats, Floats]:
    """Scores, largest first, and the F1 of deciding down to each; -1 within a tie, where no threshold can cut."""
    order = np.argsort(-score, kind="stable")
    ranked, found = score[order], truth[order].cumsum()
    f1 = 2.0 * found / (np.arange(1, len(ranked) + 1) + truth.sum())
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    return ranked, np.where(last_of_tie, f1, -1.0)


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

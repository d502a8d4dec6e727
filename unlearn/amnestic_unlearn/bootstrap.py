"""How far a measure may be off because other patients could have been drawn: the bootstrap by group.

Groups are drawn with replacement, all documents of a patient together, since they are not independent (the cluster
bootstrap; Davison and Hinkley 1997, section 3.8). A resample is a row of weights, how often each document was drawn,
so a statistic is computed for all resamples at once. Two systems are compared on the same resamples, which leaves
what the documents do to both out of their difference (Efron and Tibshirani 1993, chapter 13, for the percentiles).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amnestic_unlearn.measures import Bools, Floats, weighted_auroc, weighted_f1

RESAMPLES = 1000
COVERAGE = 0.95

# From weights float64 [R, N] to the statistic of each resample [R]; nan where it is not defined.
Statistic = Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic of the documents as they are, and the bounds of its percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Paired:
    """Two systems on the same documents; `difference` is second less first."""

    first: Interval
    second: Interval
    difference: Interval


def resample(groups: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Weights float64 [resamples, N] of the documents, from as many draws of a group as there are groups."""
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    draws = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    cells = draws + len(names) * np.arange(resamples)[:, None]
    counts = np.bincount(cells.ravel(), minlength=resamples * len(names)).reshape(resamples, len(names))
    return counts[:, member].astype(np.float64)


def interval(statistic: Statistic, weights: NDArray[np.float64], coverage: float = COVERAGE) -> Interval:
    """One system; `weights` from `resample`. Resamples without a value, such as one without positives, are left out."""
    return _interval(*_evaluate(statistic, weights), coverage)


def paired(first: Statistic, second: Statistic, weights: NDArray[np.float64], coverage: float = COVERAGE) -> Paired:
    """Two systems and their difference, on the same resamples."""
    (one, ones), (other, others) = _evaluate(first, weights), _evaluate(second, weights)
    return Paired(
        _interval(one, ones, coverage),
        _interval(other, others, coverage),
        _interval(other - one, others - ones, coverage),
    )


def auroc_of(truth: Bools, score: Floats) -> Statistic:
    """The AUROC of one label; [N] and [N]."""
    return lambda weights: weighted_auroc(truth, score, weights)


def macro_f1_of(truth: Bools, decided: Bools) -> Statistic:
    """The mean over labels of F1; both [N, C]."""
    return lambda weights: weighted_f1(truth, decided, weights).mean(axis=1)


def _evaluate(statistic: Statistic, weights: NDArray[np.float64]) -> tuple[float, Floats]:
    """The statistic where every document counts once, and that of each resample."""
    return float(statistic(np.ones((1, weights.shape[1])))[0]), statistic(weights)


def _interval(value: float, resampled: Floats, coverage: float) -> Interval:
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - coverage) / 2, (1 + coverage) / 2])
    return Interval(value, float(low), float(high))

"""From rows to the figures of a report: means and recoveries over cells, each with its interval, and what is missing.

An interval is the percentile bootstrap over corpora and labels: it tells how the figure varies with these.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amnestic_unlearn.attacks import SMALLEST_SPAN
from amnestic_unlearn.bench.cells import ORIGINAL, RETRAINED
from amnestic_unlearn.bench.ledger import Row

RESAMPLES = 2_000
Counts = NDArray[np.int64]

Key = tuple[str, str, int, str, str]
Results = Mapping[Key, Row]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure over `count` cells with its 95 % interval; nan where nothing is known. One label has no interval."""

    value: float
    low: float
    high: float
    count: int


UNKNOWN = Estimate(math.nan, math.nan, math.nan, 0)


def latest(rows: Iterable[Row], cells: Sequence[Key]) -> dict[Key, Row]:
    """The last row of each cell, in the order of the cells; a failure replaces no figure of the same settings."""
    found: dict[Key, Row] = {}
    for row in rows:
        key = (row["corpus"], row["encoder"], row["seed"], row["target"], row["method"])
        before = found.get(key)
        if before is None or not row["error"] or before["error"] or row["settings"] != before["settings"]:
            found[key] = row
    return {cell: found[cell] for cell in cells if cell in found}


def chosen(results: Results, **fields: Any) -> list[Row]:
    """The rows without error whose fields are as given."""
    return [row for row in results.values() if not row["error"] and all(row[name] == fields[name] for name in fields)]


def mean(rows: Sequence[Row], name: str) -> Estimate:
    """Over the rows that have the figure."""
    known = [row for row in rows if row.get(name) is not None]
    values = np.array([[row[name]] for row in known], dtype=np.float64).reshape(-1, 1)
    return _estimate(values, known, lambda sums, count: sums[..., 0] / count)


def recovery(rows: Sequence[Row], results: Results, name: str) -> Estimate:
    """How much of the way from the gold standard back to the original a figure is: 0 retrained, 1 original.

    A ratio of summed differences: the mean of the cells' ratios would be ruled by those whose denominator is small.
    """
    differences, known = [], []
    for row in rows:
        original, retrained = (_beside(row, results, method, name) for method in (ORIGINAL, RETRAINED))
        if None not in (row.get(name), original, retrained):
            differences.append((row[name] - retrained, original - retrained))
            known.append(row)
    return _estimate(np.array(differences, dtype=np.float64).reshape(-1, 2), known, _ratio)


def _beside(row: Row, results: Results, method: str, name: str) -> Any:
    """The same figure of another method in the same case; None if it was not measured."""
    if f"{name}_{method}" in row:
        return row[f"{name}_{method}"]
    other = results.get((row["corpus"], row["encoder"], row["seed"], row["target"], method))
    return other.get(name) if other else None


def _ratio(sums: NDArray[np.float64], count: Counts) -> NDArray[np.float64]:
    known = sums[..., 1] / count >= SMALLEST_SPAN
    ratio: NDArray[np.float64] = np.divide(
        sums[..., 0], sums[..., 1], out=np.full(sums.shape[:-1], np.nan), where=known
    )
    return ratio


def _estimate(
    values: NDArray[np.float64],
    rows: Sequence[Row],
    statistic: Callable[[NDArray[np.float64], Counts], NDArray[np.float64]],
) -> Estimate:
    """`values` [cells, figures] of the rows; `statistic` of sums [..., figures] over so many cells [...].

    Seeds of one corpus and label share their documents, so they are resampled together.
    """
    count = len(values)
    if not count:
        return UNKNOWN
    cases = [f"{row.get('corpus')}\0{row.get('label', row.get('target'))}" for row in rows]
    _, case = np.unique(cases, return_inverse=True)
    sums = np.zeros((case.max() + 1, values.shape[1]))
    np.add.at(sums, case, values)
    sizes = np.bincount(case)
    draws = np.random.default_rng(0).integers(len(sizes), size=(RESAMPLES, len(sizes)))
    resampled = statistic(sums[draws].sum(axis=1), sizes[draws].sum(axis=1))
    value = float(statistic(values.sum(axis=0), np.array(count)))
    known = resampled[np.isfinite(resampled)]
    if not math.isfinite(value) or not len(known):
        return Estimate(math.nan, math.nan, math.nan, count)
    if len(sizes) == 1:
        return Estimate(value, math.nan, math.nan, count)
    low, high = np.percentile(known, [2.5, 97.5])
    return Estimate(value, float(low), float(high), count)

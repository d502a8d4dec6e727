"""How far chance may have moved an F1 that was measured on few documents."""

import math
from collections.abc import Sequence

# Of the normal distribution: two-sided, 95 %.
Z = 1.959964


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927, Journal of the American Statistical Association 22)."""
    share, correction = hits / total, Z * Z / total
    centre = (share + correction / 2) / (1 + correction)
    reach = Z / (1 + correction) * math.sqrt(share * (1 - share) / total + correction / (4 * total))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def of_f1(counts: Sequence[int]) -> tuple[float, float] | None:
    """The 95 % interval of the F1 of a label, by its true and false positives and false negatives; None without any.

    F1 is 2 s / (1 + s) with s the share of true positives among those three. Given how many there are of them together,
    true positives are binomial, so Wilson's interval holds for s; F1 grows with s, so its ends become those of F1.
    Documents count as independent: several of one patient make the interval too narrow.
    """
    hits, false_alarms, misses = counts[:3]
    total = hits + false_alarms + misses
    if total == 0:
        return None
    low, high = wilson(hits, total)
    return 2 * low / (1 + low), 2 * high / (1 + high)

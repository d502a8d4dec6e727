"""The drawing of calls around the swap, by second.

Places across are in percent, so that text keeps its size on any screen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from amnestic_client import CallsInSecond
from amnestic_server.job_report.around_swap import place

# Percent of the width; what lies to the left is for the scale.
LEFT, RIGHT = 13.0, 98.0
# Pixels, from the top: room for a word, the plot, marks of failed calls, the seconds.
TOP, BOTTOM, FAILED, HEIGHT = 26, 186, 206, 232
MOST_STEPS = 5


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Series:
    """A percentile: a point a second, and lines between seconds that follow each other."""

    name: str
    points: list[Point]
    lines: list[tuple[Point, Point]]


@dataclass(frozen=True, slots=True)
class CallsFigure:
    """`scale` are times and `seconds` moments, each with its place; `failed` places of seconds with failed calls."""

    series: list[Series]
    swap: float
    scale: list[tuple[float, str]]
    seconds: list[tuple[float, str]]
    failed: list[float]
    top: int = TOP
    bottom: int = BOTTOM
    failed_y: int = FAILED
    height: int = HEIGHT


def draw(calls: Sequence[CallsInSecond]) -> CallsFigure | None:
    """None where no call was answered."""
    longest = max((one.p99_seconds for one in calls if one.p99_seconds is not None), default=0.0)
    if longest == 0:
        return None
    first, last = calls[0].offset, calls[-1].offset + 1
    step = _step(longest)
    highest = math.ceil(longest / step)

    def x(offset: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (offset - first) / (last - first), 2)

    def y(seconds: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * seconds / (highest * step), 1)

    def series(name: str) -> Series:
        timed = [(one.offset, getattr(one, f"{name}_seconds")) for one in calls]
        points = {offset: Point(x(offset + 0.5), y(seconds)) for offset, seconds in timed if seconds is not None}
        lines = [(points[one], points[next_]) for one, next_ in pairwise(points) if next_ == one + 1]
        return Series(name, list(points.values()), lines)

    return CallsFigure(
        series=[series("p99"), series("p50")],
        swap=x(0),
        scale=[(y(count * step), f"{count * step * 1000:g} ms") for count in range(highest + 1)],
        seconds=[(x(offset), place(offset)) for offset in range(first, last + 1) if offset % 5 == 0 and offset],
        failed=[x(one.offset + 0.5) for one in calls if one.failed_calls],
    )


def _step(longest: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that reaches this in no more than `MOST_STEPS` steps."""
    power = 10.0 ** math.floor(math.log10(longest / MOST_STEPS))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power * MOST_STEPS >= longest)

"""The drawing of F1 before and after, by label: places in percent, so that text keeps its size on any screen."""

from collections.abc import Sequence
from dataclasses import dataclass

from amnestic_server.job_report.view import Label, Scored

ROW = 58
AXIS = 30
MOST_LETTERS = 30
# Percent of the width that lie outside the axis on either side, so that marks at its ends are whole.
MARGIN = 2.0


@dataclass(frozen=True, slots=True)
class Mark:
    """A value and its interval; `x`, `low` and `high` in percent of the width."""

    x: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """A label in the drawing; `top` in pixels."""

    name: str
    told: str
    forgotten: bool
    top: int
    base: Mark | None
    after: Mark | None


@dataclass(frozen=True, slots=True)
class Figure:
    rows: list[Row]
    height: int
    ticks: list[tuple[float, str]]


def draw(labels: Sequence[Label]) -> Figure:
    rows = [
        Row(
            _shortened(label.name),
            f"{label.base.told} to {label.after.told}",
            label.forgotten,
            place * ROW,
            _mark(label.base),
            _mark(label.after),
        )
        for place, label in enumerate(labels)
    ]
    return Figure(rows, len(rows) * ROW + AXIS, [(_x(at), f"{at:g}") for at in (0.0, 0.25, 0.5, 0.75, 1.0)])


def _mark(scored: Scored) -> Mark | None:
    if scored.value is None:
        return None
    low, high = scored.interval or (scored.value, scored.value)
    return Mark(_x(scored.value), _x(low), _x(high))


def _x(value: float) -> float:
    return round(MARGIN + value * (100 - 2 * MARGIN), 2)


def _shortened(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"

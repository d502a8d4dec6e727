"""The figures of a report: what forgetting costs, what an attacker recovers, and how long it took.

A point is the mean of a way of forgetting over corpora, labels and seeds, a panel an encoder. Colours follow Okabe and
Ito (2008), so that colour-blind people tell them apart, and each family has a marker of its own besides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from amnestic_unlearn.bench.cells import ORIGINAL
from amnestic_unlearn.bench.style import STYLE
from amnestic_unlearn.bench.summary import Key, Results, chosen
from amnestic_unlearn.bench.table import Measure, mean_of, recovery_of

# Family: colour and marker. A way of forgetting that is in none is a variant of STEU.
FAMILIES = {
    "yardsticks": ("#000000", "s"),
    "STEU": ("#D55E00", "o"),
    "head alone": ("#0072B2", "^"),
    "fine-tuned encoder": ("#009E73", "D"),
    "erased features": ("#A0467C", "P"),
}
FAMILY_OF = {
    "original": "yardsticks",
    "retrained": "yardsticks",
    "bias-edit": "head alone",
    "zero-row": "head alone",
    "head-only": "head alone",
    "gradient-ascent": "fine-tuned encoder",
    "direct-suppression": "fine-tuned encoder",
    "influence": "fine-tuned encoder",
    "random-label": "fine-tuned encoder",
    "salun": "fine-tuned encoder",
    "scrub": "fine-tuned encoder",
    "delete": "fine-tuned encoder",
    "leace": "erased features",
    "esc": "erased features",
}
# Where a label may stand: so many points away from its marker, in so many directions.
DISTANCES = (7.0, 14.0, 22.0, 32.0, 44.0, 58.0, 74.0, 92.0)
DIRECTIONS = 16
# From this distance on a line leads to the point.
FIRST_LED = 2


@dataclass(frozen=True, slots=True)
class Axis:
    """What is drawn along an axis."""

    title: str
    measure: Measure
    logarithmic: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """A scatter of one measure against another; `better` says where to look."""

    name: str
    across: Axis
    up: Axis
    better: str


RETAIN = Axis("change of retain F1", mean_of("retain_f1_delta"))
RECOVERY = Axis("probe recovery (0 retrained, 1 original)", recovery_of("probe_auroc"))
PLOTS = (
    Plot("forget", RETAIN, Axis("best F1 of the label, over chance", mean_of("forget_best_f1_excess")), "lower right"),
    Plot("recovery", RETAIN, RECOVERY, "lower right"),
    Plot("time", Axis("processor seconds", mean_of("seconds"), logarithmic=True), RECOVERY, "lower left"),
)


@dataclass(frozen=True, slots=True)
class Point:
    """A way of forgetting, and where it lies."""

    name: str
    across: float
    up: float


def draw(results: Results, cells: Sequence[Key], folder: Path, suffix: str = "svg") -> list[Path]:
    """Write every plot that has a point; returns the files, named `unlearning-PLOT.SUFFIX`."""
    written = []
    for plot in PLOTS:
        panels = {
            encoder: points(plot, results, cells, encoder) for encoder in dict.fromkeys(cell[1] for cell in cells)
        }
        panels = {encoder: found for encoder, found in panels.items() if found}
        if panels:
            path = folder / f"unlearning-{plot.name}.{suffix}"
            with matplotlib.rc_context(STYLE):
                _figure(plot, panels).savefig(path, dpi=110, metadata={"Date": None} if suffix == "svg" else None)
            written.append(path)
    return written


def points(plot: Plot, results: Results, cells: Sequence[Key], encoder: str) -> list[Point]:
    """The ways of forgetting of which both measures are known; on a logarithmic axis, those that take time at all."""
    found = []
    for method in dict.fromkeys(cell[4] for cell in cells if cell[1] == encoder):
        if plot.across.logarithmic and method == ORIGINAL:
            continue
        rows = chosen(results, encoder=encoder, method=method)
        across, up = (axis.measure(rows, results).value for axis in (plot.across, plot.up))
        if math.isfinite(across) and math.isfinite(up) and not (plot.across.logarithmic and across <= 0):
            found.append(Point(method, across, up))
    return found


def _figure(plot: Plot, panels: dict[str, list[Point]]) -> Figure:
    figure = Figure(figsize=(6.4 * len(panels), 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for place, (encoder, found) in zip(axes, panels.items(), strict=True):
        _panel(place, plot, found)
        place.set_title(f"{encoder} ({plot.better} is better)", fontsize=10)
    present = {family(point.name) for found in panels.values() for point in found}
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=name)
        for name, (colour, marker) in FAMILIES.items()
        if name in present
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    # Labels are placed in the layout as it will be drawn, and take no part in it.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for place, found in zip(axes, panels.values(), strict=True):
        _label(figure, place, found)
    return figure


def family(method: str) -> str:
    """The family of a way of forgetting."""
    return FAMILY_OF.get(method, "STEU")


def _panel(place: Any, plot: Plot, found: Sequence[Point]) -> None:
    if plot.across.logarithmic:
        place.set_xscale("log")
    place.margins(0.14)
    for point in found:
        colour, marker = FAMILIES[family(point.name)]
        place.plot(point.across, point.up, marker=marker, color=colour, markersize=6, linestyle="", alpha=0.9)
    place.set_xlabel(plot.across.title)
    place.set_ylabel(plot.up.title)


def _label(figure: Figure, place: Any, found: Sequence[Point]) -> None:
    """Write each name at the nearest free place around its point, with a line where that is not beside it."""
    renderer: Any = FigureCanvasAgg(figure).get_renderer()
    scale = figure.dpi / 72
    inside = place.get_window_extent(renderer)
    at = {point.name: place.transData.transform((point.across, point.up)) for point in found}
    taken = [Bbox.from_extents(x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale) for x, y in at.values()]
    for point in sorted(found, key=lambda point: (point.across, point.up)):
        colour, _ = FAMILIES[family(point.name)]
        style = {"fontsize": 8, "color": colour, "textcoords": "offset points"}
        label = place.annotate(point.name, (point.across, point.up), (0, 0), **style)
        size = label.get_window_extent(renderer)
        others = [other for name, other in at.items() if name != point.name]
        spot = _spot(at[point.name], others, size.width, size.height, taken, inside, scale)
        taken.append(spot.box)
        label.set_position(spot.offset)
        if spot.led:
            line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            label.remove()
            place.annotate(point.name, (point.across, point.up), spot.offset, arrowprops=line, **style)


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a label stands: its box in pixels, its lower left corner from the point in points; `led` to by a line."""

    box: Bbox
    offset: tuple[float, float]
    led: bool


def _spot(
    at: Any, others: Sequence[Any], width: float, height: float, taken: Sequence[Bbox], inside: Bbox, scale: float
) -> _Spot:
    """The nearest spot that hits nothing and, without a line, is nearer to no other point; else the least bad."""
    best: tuple[int, _Spot] | None = None
    for number, distance in enumerate(DISTANCES):
        for step in range(DIRECTIONS):
            angle = 2 * math.pi * step / DIRECTIONS
            # The edge of the box that faces the point is what lies at the distance.
            x = at[0] + math.cos(angle) * (distance * scale + width / 2) - width / 2
            y = at[1] + math.sin(angle) * (distance * scale + height / 2) - height / 2
            box = Bbox.from_bounds(x, y, width, height)
            spot = _Spot(box, ((x - at[0]) / scale, (y - at[1]) / scale), led=number >= FIRST_LED)
            hits = sum(box.overlaps(other) for other in taken)
            outside = not (inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1)
            unclear = not spot.led and any(_gap(box, other) < 1.5 * _gap(box, at) for other in others)
            cost = 2 * hits + 4 * outside + unclear
            if not cost:
                return spot
            if best is None or cost < best[0]:
                best = cost, spot
    assert best is not None
    return best[1]


def _gap(box: Bbox, at: Any) -> float:
    """Pixels from a point to the nearest edge of a box."""
    return math.hypot(max(box.x0 - at[0], 0, at[0] - box.x1), max(box.y0 - at[1], 0, at[1] - box.y1))

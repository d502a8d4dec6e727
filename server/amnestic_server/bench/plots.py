"""The figures of a report: latency against load, over time around swaps and a job, and what versions cost.

Colours follow Okabe and Ito (2008), and lines differ by their dashes too.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from amnestic_server.bench.histogram import Second
from amnestic_server.bench.impact import ImpactResult
from amnestic_server.bench.many import VersionsResult
from amnestic_server.bench.rounds import Phase
from amnestic_server.bench.serving import ServingResult
from amnestic_server.bench.swaps import SwapResult
from amnestic_server.bench.tell import Result
from amnestic_unlearn.bench.style import STYLE

LINES = {
    "p50": ("p50_ms", "#0072B2", "-"),
    "p99": ("p99_ms", "#D55E00", "--"),
    "p99.9": ("p999_ms", "#000000", ":"),
    "max": ("max_ms", "#A0467C", ":"),
}
SHADE = "#009E73"


def draw(results: dict[str, Result], path: Path) -> None:
    """Write a figure with a panel for each model, as SVG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4 * len(results), 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(results), squeeze=False)[0]
        for place, (model, result) in zip(axes, results.items(), strict=True):
            _panel(result)(place, result)
            place.set_title(model, fontsize=10)
            place.legend(frameon=False)
        # The same figures give the same bytes.
        figure.savefig(path, metadata={"Date": None})


def _panel(result: Result) -> Callable[[Any, Any], None]:
    panels: dict[type, Callable[[Any, Any], None]] = {
        ServingResult: _serving,
        SwapResult: _swaps,
        VersionsResult: _versions,
        ImpactResult: _impact,
    }
    return panels[type(result)]


def _serving(place: Any, result: ServingResult) -> None:
    """A point a phase and round, and a line through the medians over the rounds."""
    by_name: dict[str, list[Phase]] = {}
    for phase in itertools.chain.from_iterable(result.rounds):
        if phase.share and math.isfinite(phase.p50_ms):
            by_name.setdefault(phase.name, []).append(phase)
    for name in ("p50", "p99", "p99.9"):
        figure, colour, dashes = LINES[name]
        points = sorted(
            (median(phase.share for phase in phases), median(getattr(phase, figure) for phase in phases))
            for phases in by_name.values()
        )
        place.plot(*zip(*points, strict=True), color=colour, linestyle=dashes, label=name)
        for phase in itertools.chain.from_iterable(by_name.values()):
            place.plot(phase.share, getattr(phase, figure), color=colour, marker="o", markersize=3)
    place.axhline(result.limit_ms, color="#999999", linewidth=0.8)
    place.set_yscale("log")
    place.set_xlabel("open-loop calls a second, of the ceiling")
    place.set_ylabel("latency, ms")


def _swaps(place: Any, result: SwapResult) -> None:
    first = result.rounds[0]
    _timeline(place, first.series)
    for number, swap in enumerate(first.swaps):
        place.axvline(swap.asked, color=SHADE, linewidth=0.8, label="swap" if not number else None)


def _impact(place: Any, result: ImpactResult) -> None:
    first = result.rounds[0]
    _timeline(place, first.series)
    for (name, start), (_, end) in itertools.pairwise(list(first.begins.items())[1:]):
        place.axvspan(start, end, color=SHADE, alpha=0.1 if name == "training" else 0.3, linewidth=0, label=name)


def _timeline(place: Any, series: Sequence[Second]) -> None:
    for name in ("p50", "p99", "max"):
        figure, colour, dashes = LINES[name]
        place.plot(
            [second.second + 0.5 for second in series],
            [getattr(second, figure) for second in series],
            color=colour,
            linestyle=dashes,
            linewidth=1.2,
            label=name,
        )
    place.set_yscale("log")
    place.set_xlabel("seconds")
    place.set_ylabel("latency, ms")


def _versions(place: Any, result: VersionsResult) -> None:
    held = [one for one in result.held if one.versions]
    base = next(one for one in result.held if not one.versions).idle_megabytes.median
    across = [one.versions for one in held]
    above = [one.idle_megabytes.median - base for one in held]
    place.plot(
        across,
        # Few versions may be less than the noise of a start, and a logarithmic axis has no place for that.
        [megabytes if megabytes > 0 else math.nan for megabytes in above],
        color="#0072B2",
        marker="o",
        label="MB above the base",
    )
    place.plot(
        across,
        [one.start_seconds.median for one in held],
        color="#D55E00",
        marker="^",
        linestyle="--",
        label="start, s",
    )
    place.set_xscale("log")
    place.set_yscale("log")
    place.set_xlabel("versions beside the base")

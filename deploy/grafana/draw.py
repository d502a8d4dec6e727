"""Draw dashboards without Grafana: each panel's own queries are put to a Prometheus, and matplotlib draws the answers.

    python deploy/grafana/draw.py --prometheus http://127.0.0.1:9090 --minutes 30 --out .

writes serving.png and forgetting.png. Times are in minutes since the first sample. What Grafana would put in the
variables is `Variables`; what it does beyond lines, numbers, dashed limits and annotations is not drawn.
"""

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).with_name("dashboards")
COLUMNS = 24
UNITS = {"percentunit": "share", "reqps": "calls/s", "ops": "1/s", "s": "seconds", "bytes": "bytes"}


@dataclass(frozen=True, slots=True)
class Variables:
    """What Grafana replaces in a query; intervals in seconds."""

    instance: str = ".*"
    interval: int = 15
    rate_interval: int = 60

    def filled(self, expression: str) -> str:
        return (
            expression.replace("$instance", self.instance)
            .replace("$__rate_interval", f"{self.rate_interval}s")
            .replace("$__interval", f"{self.interval}s")
        )


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel or an annotation, with its variables filled in."""

    title: str
    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A Prometheus at `url`; every method raises urllib.error.HTTPError where it refuses a query."""

    url: str

    def instant(self, expression: str) -> list[dict[str, Any]]:
        """The samples of now: `metric` and `value`, which is [time, text]."""
        return self._result("query", query=expression)

    def range(self, expression: str, start: float, end: float, step: int) -> list[dict[str, Any]]:
        """The series between two Unix times, a value each `step` seconds: `metric` and `values`."""
        return self._result("query_range", query=expression, start=start, end=end, step=step)

    def _result(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.get(path, **parameters)["data"]["result"]
        return result

    def get(self, path: str, **parameters: Any) -> dict[str, Any]:
        """Any answer of the API, decoded."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310  the operator's own Prometheus
            decoded: dict[str, Any] = json.load(answer)
            return decoded


def load(name: str) -> dict[str, Any]:
    """A dashboard of this folder by its file's name without `.json`."""
    dashboard: dict[str, Any] = json.loads((DASHBOARDS / f"{name}.json").read_text(encoding="utf-8"))
    return dashboard


def panel_queries(panel: dict[str, Any], variables: Variables) -> list[Query]:
    return [
        Query(panel["title"], variables.filled(target["expr"]), target["legendFormat"]) for target in panel["targets"]
    ]


def annotation_queries(dashboard: dict[str, Any], variables: Variables) -> Iterator[tuple[Query, str]]:
    """The annotations with their colours."""
    for annotation in dashboard["annotations"]["list"]:
        query = Query(annotation["titleFormat"], variables.filled(annotation["expr"]), annotation["textFormat"])
        yield query, annotation["iconColor"]


def legend(template: str, labels: dict[str, str]) -> str:
    """A legend with `{{label}}` replaced as Grafana does."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda match: labels.get(match[1], ""), template)


class Drawing:
    """Draws dashboards from one Prometheus between two Unix times."""

    def __init__(self, prometheus: Prometheus, start: float, end: float, variables: Variables) -> None:
        self._prometheus = prometheus
        self._start, self._end = start, end
        self._variables = variables

    def draw(self, dashboard: dict[str, Any], out: Path) -> None:
        """One picture of a dashboard; `out` says in which form by its suffix."""
        from matplotlib.figure import Figure

        panels = dashboard["panels"]
        rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
        figure = Figure(figsize=(18, rows * 0.42), layout="constrained")
        figure.suptitle(dashboard["title"])
        grid = figure.add_gridspec(rows, COLUMNS)
        notes = list(self._notes(dashboard))
        for panel in panels:
            place = panel["gridPos"]
            axes = figure.add_subplot(grid[place["y"] : place["y"] + place["h"], place["x"] : place["x"] + place["w"]])
            axes.set_title(panel["title"], fontsize=9)
            if panel["type"] == "stat":
                self._draw_number(axes, panel)
            else:
                self._draw_lines(axes, panel)
                for minute, colour in notes:
                    axes.axvline(minute, color=colour, linewidth=0.8, linestyle=":")
        figure.savefig(out, dpi=80)

    def _notes(self, dashboard: dict[str, Any]) -> Iterator[tuple[float, str]]:
        for query, colour in annotation_queries(dashboard, self._variables):
            for series in self._range(query):
                yield from ((self._minute(at), colour) for at, _ in series["values"])

    def _draw_number(self, axes: Any, panel: dict[str, Any]) -> None:
        axes.axis("off")
        texts = []
        for query in panel_queries(panel, self._variables):
            for sample in self._prometheus.instant(query.expression):
                name = legend(query.legend, sample["metric"])
                number = f"{float(sample['value'][1]):.4g}"
                texts.append(name if panel["options"]["textMode"] == "name" else number)
        axes.text(0.5, 0.5, "\n".join(texts) or "no data", ha="center", va="center", fontsize=12, wrap=True)

    def _draw_lines(self, axes: Any, panel: dict[str, Any]) -> None:
        defaults = panel["fieldConfig"]["defaults"]
        stepped = defaults["custom"]["lineInterpolation"] == "stepAfter"
        lines = self._lines(panel)
        if "stacking" in defaults["custom"]:
            lines = _stacked(lines)
        for name, line in lines.items():
            axes.plot(*zip(*line, strict=True), label=name, drawstyle="steps-post" if stepped else "default")
        highest = max((value for line in lines.values() for _, value in line if math.isfinite(value)), default=0.0)
        if "thresholdsStyle" in defaults["custom"]:
            limit = defaults["thresholds"]["steps"][-1]["value"]
            axes.axhline(limit, color="red", linewidth=0.8, linestyle="--")
            highest = max(highest, limit)
        axes.set_xlim(0, self._minute(self._end))
        axes.set_ylim(bottom=defaults.get("min"), top=(defaults.get("max") or highest or 1.0) * 1.05)
        axes.set_ylabel(UNITS.get(defaults["unit"], ""), fontsize=8)
        axes.tick_params(labelsize=7)
        if lines:
            axes.legend(fontsize=7, loc="best")
        else:
            axes.text(0.5, 0.5, "no data", ha="center", transform=axes.transAxes)

    def _lines(self, panel: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
        """By legend, in its order, the points of each series: minutes and values."""
        lines = {
            legend(query.legend, series["metric"]): [(self._minute(at), float(value)) for at, value in series["values"]]
            for query in panel_queries(panel, self._variables)
            for series in self._range(query)
        }
        return dict(sorted(lines.items()))

    def _range(self, query: Query) -> list[dict[str, Any]]:
        return self._prometheus.range(query.expression, self._start, self._end, self._variables.interval)

    def _minute(self, at: float) -> float:
        return (at - self._start) / 60


def _stacked(lines: dict[str, list[tuple[float, float]]]) -> dict[str, list[tuple[float, float]]]:
    """Each line on top of those before it."""
    totals: defaultdict[float, float] = defaultdict(float)
    stacked = {}
    for name, line in lines.items():
        for minute, value in line:
            totals[minute] += value
        stacked[name] = [(minute, totals[minute]) for minute, _ in line]
    return stacked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="where Prometheus answers")
    parser.add_argument("--minutes", type=float, default=30, help="how far back to draw")
    parser.add_argument("--step", type=int, default=15, help="seconds between two points; the scrape interval or more")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the pictures")
    parser.add_argument("--format", default="png", choices=("png", "svg"))
    arguments = parser.parse_args()
    end = time.time()
    drawing = Drawing(
        Prometheus(arguments.prometheus),
        end - 60 * arguments.minutes,
        end,
        Variables(interval=arguments.step, rate_interval=4 * arguments.step),
    )
    for path in sorted(DASHBOARDS.glob("*.json")):
        drawing.draw(load(path.stem), arguments.out / f"{path.stem}.{arguments.format}")


if __name__ == "__main__":
    main()

"""Writes the report of a benchmark: its rows as JSON Lines, a plot, and tables into a page that people write too."""

import datetime
from pathlib import Path

from amnestic_server.bench.plots import draw
from amnestic_server.bench.tell import Result, told
from amnestic_unlearn.bench.ledger import line
from amnestic_unlearn.bench.machine import cpu, package_version
from amnestic_unlearn.bench.page import around, markdown, write_between

PAGE = "serving.md"
CAPTIONS = {
    "serve": "Latency of an open loop against its rate",
    "swap": "Latency by second while versions are swapped",
    "versions": "Memory above the base, and time to start, by number of versions",
    "unlearn-impact": "Latency by second before, while and after a label is forgotten",
}
PACKAGES = ("onnxruntime", "torch", "grpcio", "amnestic")


def lines(command: str) -> tuple[str, str]:
    """The two lines of the page between which the tables of a command stand."""
    return f"<!-- {command}: written by `amnestic bench {command} --report` -->", f"<!-- end of {command} -->"


# Of a page that is not there yet.
HEAD = "\n".join(["# Serving\n", *(part for command in CAPTIONS for part in (*lines(command), ""))])


def check(command: str, folder: Path) -> None:
    """Raise ReportError if the page of a folder has no place for what this command measures."""
    around(folder / PAGE, *lines(command), HEAD)


def write(command: str, results: dict[str, Result], threads: int, folder: Path) -> Path:
    """Write what a command measured of each model to a folder, and return its page. Raises ReportError."""
    check(command, folder)
    page, (begin, end) = folder / PAGE, lines(command)
    folder.mkdir(parents=True, exist_ok=True)
    plot = folder / f"serving-{command}.svg"
    draw(results, plot)
    made_with = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu(),
        "threads": threads,
        **{package: package_version(package) for package in PACKAGES},
    }
    rows = [{"model": model, **row, **made_with} for model, result in results.items() for row in told(result).rows]
    (folder / f"serving-{command}.jsonl").write_text("".join(map(line, rows)), encoding="utf-8")
    parts = [", ".join(f"{name} {value}" for name, value in made_with.items()) + ".\n"]
    parts += [_section(model, result) for model, result in results.items()]
    write_between(page, begin, end, [*parts, f"![{CAPTIONS[command]}]({plot.name})\n"], HEAD)
    return page


def _section(model: str, result: Result) -> str:
    what = told(result)
    tables = [f"{markdown(table.header, table.body)}\n" for table in what.tables]
    facts = "".join(f"- {name}: {value}\n" for name, value in what.facts)
    return f"#### {model}\n\n{''.join(tables)}{facts}"

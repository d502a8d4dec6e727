"""Writes the report of a benchmark: figures, the rows as CSV, and the tables into a page that people write too.

The page keeps whatever stands outside the markers. The same rows always give the same bytes.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from amnestic_unlearn.bench.ledger import Row, write_csv
from amnestic_unlearn.bench.page import around, write_between
from amnestic_unlearn.bench.plots import PLOTS, draw
from amnestic_unlearn.bench.sequence_table import sequence_table
from amnestic_unlearn.bench.summary import Key, latest
from amnestic_unlearn.bench.table import tables

PAGE = "unlearning.md"
BEGIN = "<!-- tables: written by `amnestic bench unlearn --report` -->"
END = "<!-- end of tables -->"
# Of a page that is not there yet.
HEAD = f"""# Unlearning

Every way of forgetting beside the model before (`original`) and beside one that was trained without the label
(`retrained`). Intervals are the 95 % percentile bootstrap over cells. A recovery is a ratio of summed differences: 0 is
`retrained`, 1 `original`; it is not told where the two lie too close together.

{BEGIN}
{END}
"""
CAPTIONS = {
    "forget": "The label's best F1 against the change of retain F1",
    "recovery": "What a fresh probe recovers against the change of retain F1",
    "time": "Seconds against what a fresh probe recovers",
}


def write(rows: Sequence[Row], sequence: Sequence[Row], cells: Sequence[Key], folder: Path) -> Path:
    """Write the report of a plan's cells to a folder and return its page. Raises ReportError."""
    page = folder / PAGE
    around(page, BEGIN, END, HEAD)
    folder.mkdir(parents=True, exist_ok=True)
    results = latest(rows, cells)
    plots = draw(results, cells, folder)
    write_csv(list(results.values()), folder / "unlearning.csv")
    parts = [_made_with(results.values()), tables(results, cells)]
    parts += [f"![{CAPTIONS[plot.name]}]({path.name})\n" for plot in PLOTS for path in plots if plot.name in path.stem]
    if sequence:
        parts.append(sequence_table(sequence))
    write_between(page, BEGIN, END, parts, HEAD)
    return page


def _made_with(rows: Iterable[Row]) -> str:
    """Machines, versions and days of the rows, one line."""
    measured = list(rows)

    def every(name: str) -> str:
        return ", ".join(sorted({str(row[name]) for row in measured if row.get(name)}))

    days = sorted({row["date"][:10] for row in measured})
    span = " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "not run"
    return (
        f"{span}; {every('cpu')}; threads {every('threads')}; precision {every('precision')};"
        f" torch {every('torch')}, transformers {every('transformers')}, Amnestic {every('amnestic')}.\n"
    )

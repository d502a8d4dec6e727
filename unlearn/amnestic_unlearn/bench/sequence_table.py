"""The table of requests that follow one another: what each further one costs, and whether it undoes an earlier one."""

from collections.abc import Iterator, Sequence

from amnestic_unlearn.bench.ledger import Row
from amnestic_unlearn.bench.summary import mean, recovery
from amnestic_unlearn.bench.table import figure, markdown

TITLE = """### Requests in turn

Each request starts from the base with the union of the labels asked so far. Means over corpora and seeds of every label
forgotten by then, and of the worst of them.
"""

_REQUEST = ("encoder", "method", "step", "corpus", "seed")


def sequence_table(rows: Sequence[Row]) -> str:
    """A row a way of forgetting and request, encoder by encoder, ending in a line break."""
    found = _latest(rows)
    body = list(_lines([row for row in found if not row["error"]]))
    header = ["", "request", "forget F1", "worst forget F1", "probe recovery", "change of retain F1", "processor s"]
    failed = sum(bool(row["error"]) for row in found)
    note = f"\n{failed} requests failed.\n" if failed else ""
    return f"{TITLE}\n{markdown(header, body)}{note}"


def _lines(rows: Sequence[Row]) -> Iterator[list[str]]:
    for encoder, method, step in dict.fromkeys((row["encoder"], row["method"], row["step"]) for row in rows):
        here = [row for row in rows if (row["encoder"], row["method"], row["step"]) == (encoder, method, step)]
        runs: dict[tuple[str, int], list[Row]] = {}
        for row in here:
            runs.setdefault((row["corpus"], row["seed"]), []).append(row)
        worst = [{"forget_f1": max(row["forget_f1"] for row in run)} for run in runs.values()]
        # Retain and seconds are the request's, the same in the row of each label.
        requests = [run[0] for run in runs.values()]
        yield [
            f"{encoder}: `{method}`",
            str(step),
            figure(mean(here, "forget_f1"), 3),
            figure(mean(worst, "forget_f1"), 3),
            figure(recovery(here, {}, "probe_auroc"), 2),
            figure(mean(requests, "retain_f1_delta"), 3),
            figure(mean(requests, "seconds"), 1),
        ]


def _latest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each label and request, in their order; a failure only where nothing was measured."""
    current = {_request(row): row["settings"] for row in rows}
    found = {(*_request(row), row["label"]): row for row in rows if row["settings"] == current[_request(row)]}
    measured = {key[:-1] for key, row in found.items() if not row["error"]}
    return [found[key] for key in sorted(found) if not found[key]["error"] or key[:-1] not in measured]


def _request(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in _REQUEST)

"""Requests that follow one another: what each further one costs, and whether it undoes an earlier one."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from amnestic_unlearn.bench.cells import Request
from amnestic_unlearn.bench.ledger import Row
from amnestic_unlearn.bench.page import markdown
from amnestic_unlearn.bench.summary import Estimate, mean, recovery
from amnestic_unlearn.bench.table import figure

TITLE = """### Requests in turn

Each request starts from the base with the union of the labels asked so far. Means over corpora and seeds of every label
forgotten by then, and of the worst of them.
"""


@dataclass(frozen=True, slots=True)
class Step:
    """The figures of the request of one number; over labels, but `worst_forget_f1` and what follows over requests."""

    encoder: str
    method: str
    request: int
    forget_f1: Estimate
    probe_recovery: Estimate
    worst_forget_f1: Estimate
    retain_f1_delta: Estimate
    seconds: Estimate


def sequence_table(rows: Sequence[Row]) -> str:
    """A row a way of forgetting and request, encoder by encoder, ending in a line break."""
    found = latest_requests(rows)
    body = [
        [
            f"{step.encoder}: `{step.method}`",
            str(step.request),
            figure(step.forget_f1, 3),
            figure(step.worst_forget_f1, 3),
            figure(step.probe_recovery, 2),
            figure(step.retain_f1_delta, 3),
            figure(step.seconds, 1),
        ]
        for step in steps(found)
    ]
    header = ["", "request", "forget F1", "worst forget F1", "probe recovery", "change of retain F1", "processor s"]
    failed = sum(bool(row["error"]) for row in found)
    note = f"\n{failed} requests failed.\n" if failed else ""
    return f"{TITLE}\n{markdown(header, body)}{note}"


def steps(found: Sequence[Row]) -> Iterator[Step]:
    """What the rows without error tell of each encoder, way of forgetting and number of a request, in their order."""
    rows = [row for row in found if not row["error"]]
    for encoder, method, step in dict.fromkeys((row["encoder"], row["method"], row["step"]) for row in rows):
        here = [row for row in rows if (row["encoder"], row["method"], row["step"]) == (encoder, method, step)]
        runs: dict[tuple[str, int], list[Row]] = {}
        for row in here:
            runs.setdefault((row["corpus"], row["seed"]), []).append(row)
        worst = [{"forget_f1": max(row["forget_f1"] for row in run)} for run in runs.values()]
        # Retain and seconds are the request's, the same in the row of each label.
        requests = [run[0] for run in runs.values()]
        yield Step(
            encoder=encoder,
            method=method,
            request=step,
            forget_f1=mean(here, "forget_f1"),
            probe_recovery=recovery(here, {}, "probe_auroc"),
            worst_forget_f1=mean(worst, "forget_f1"),
            retain_f1_delta=mean(requests, "retain_f1_delta"),
            seconds=mean(requests, "seconds"),
        )


def latest_requests(rows: Sequence[Row]) -> list[Row]:
    """The last row of each label and request, in their order; a failure only where nothing was measured."""
    current = {_request(row): row["settings"] for row in rows}
    found = {(*_request(row), row["label"]): row for row in rows if row["settings"] == current[_request(row)]}
    measured = {key[:-1] for key, row in found.items() if not row["error"]}
    return [found[key] for key in sorted(found) if not found[key]["error"] or key[:-1] not in measured]


def of_requests(rows: Iterable[Row], requests: Sequence[Request]) -> list[Row]:
    """The rows of these requests alone: a folder of results may hold those of others."""
    wanted = set(requests)
    return [row for row in rows if _request(row) in wanted]


def counted(found: Sequence[Row]) -> tuple[int, int]:
    """How many requests were measured, each of their labels, and how many failed, of the latest rows."""
    labels: dict[Request, set[str]] = {}
    for row in found:
        labels.setdefault(_request(row), set()).update([] if row["error"] else [row["label"]])
    measured = sum(known.issuperset(request[-1]) for request, known in labels.items())
    return measured, sum(not known for known in labels.values())


def _request(row: Row) -> Request:
    return row["corpus"], row["encoder"], row["seed"], row["method"], tuple(row["asked"])

"""What a benchmark measured, as tables and facts for a terminal and for a page, and as rows for a file."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from amnestic_server.bench.impact import ImpactResult
from amnestic_server.bench.many import VersionsResult
from amnestic_server.bench.rounds import Phase, Summary
from amnestic_server.bench.serving import BULK_CLIENTS, BULK_DOCUMENTS, ServingResult
from amnestic_server.bench.swaps import SwapResult

Result = ServingResult | SwapResult | VersionsResult | ImpactResult
Row = dict[str, Any]

OF_CEILING = "throughput of 64 clients, of the ceiling"
PHASE_COLUMNS = {
    "calls/s": "rate",
    "offered/s": "offered",
    "p50 ms": "p50_ms",
    "p90 ms": "p90_ms",
    "p99 ms": "p99_ms",
    "p99.9 ms": "p999_ms",
    "max ms": "max_ms",
    "failed": "failed",
    "sent late, p99 ms": "late_p99_ms",
}
# That only an open loop has.
OPEN_COLUMNS = ("offered", "late_p99_ms")


@dataclass(frozen=True, slots=True)
class Table:
    """A first column of words, and others of figures."""

    header: Sequence[str]
    body: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Told:
    """Tables, then what else there is to say by name; `rows` are all figures round by round."""

    tables: list[Table]
    facts: list[tuple[str, str]]
    rows: list[Row] = field(default_factory=list)


def told(result: Result) -> Told:
    match result:
        case ServingResult():
            return _serving(result)
        case SwapResult():
            return _swaps(result)
        case VersionsResult():
            return _versions(result)
        case ImpactResult():
            return _impact(result)


def _serving(result: ServingResult) -> Told:
    bulk = f"documents of {BULK_CLIENTS} clients, {BULK_DOCUMENTS} a call, of the ceiling"
    limit = f"calls a second with p99 within {result.limit_ms:g} ms"
    facts = [
        (OF_CEILING, ratio(result.of_ceiling)),
        (bulk, ratio(result.bulk_of_ceiling)),
        ("added latency of a lone client, p50", f"{spread(result.added_ms)} ms"),
        ("calls of 64 clients, of the echo's", ratio(result.of_echo)),
        (limit, f"{spread(result.at_limit)}, to within {result.resolution.median:.1f}"),
        ("memory of the idle server", f"{result.idle_megabytes:.0f} MB"),
        ("documents", str(result.lengths)),
    ]
    return Told([_phases(result.rounds)], facts, list(_rows(result.rounds)))


def _swaps(result: SwapResult) -> Told:
    rounds = [[one.ceiling, one.closed, one.quiet, one.near] for one in result.rounds]
    swaps = sum(len(one.swaps) for one in result.rounds)
    before = Summary.of([one.megabytes_before for one in result.rounds])
    facts = [
        (OF_CEILING, ratio(_of_ceiling(rounds))),
        ("p99.9 around a swap, of that beside swaps", ratio(result.p999_ratio)),
        ("failed calls", f"{result.failed:,}"),
        ("answers of a version left, after its swap was answered", f"{result.stale:,}"),
        (f"a rollback, of {swaps:,}", f"{spread(result.swap_ms)} ms"),
        ("memory before the first swap", f"{spread(before)} MB"),
        ("memory that a swap adds", f"{result.grown_megabytes.median:+.2f} MB"),
        ("documents", str(result.lengths)),
    ]
    rows = list(_rows(rounds))
    rows += [{"round": number, **asdict(swap)} for number, one in enumerate(result.rounds) for swap in one.swaps]
    return Told([_phases(rounds)], facts, rows)


def _versions(result: VersionsResult) -> Told:
    held = Table(
        ("versions beside the base", "memory, idle, MB", "MB a version", "start, s"),
        [
            [
                f"{one.versions:,}",
                spread(one.idle_megabytes),
                spread(one.version_megabytes, 2) if one.versions else "",
                spread(one.start_seconds),
            ]
            for one in result.held
        ],
    )
    facts = [("throughput of calls to 1 version, of the ceiling", ratio(_of_ceiling(result.rounds)))]
    facts += [
        (f"throughput mixed over {count:,} versions, of calls to one", ratio(summary))
        for count, summary in result.of_one.items()
        if count > 1
    ]
    facts.append(("documents", str(result.lengths)))
    return Told([held, _phases(result.rounds)], facts, [*map(asdict, result.held), *_rows(result.rounds)])


def _impact(result: ImpactResult) -> Told:
    rounds = [[one.ceiling, one.closed, *one.phases] for one in result.rounds]
    ratios = Table(
        ("latency, of that in quiet", "p50", "p99", "p99.9"),
        [[name, ratio(one.p50), ratio(one.p99), ratio(one.p999)] for name, one in result.ratios.items()],
    )
    states = ", ".join(sorted({one.loaded.state for one in result.rounds}))
    grown = Summary.of([one.megabytes_after - one.megabytes_before for one in result.rounds])
    facts = [
        (OF_CEILING, ratio(_of_ceiling(rounds))),
        ("failed calls", f"{result.failed:,}"),
        ("the job under load", f"{spread(result.loaded_seconds)} s, {states}"),
        ("the job without load, as a dry run", f"{spread(result.alone_seconds)} s"),
        ("under load, of without", ratio(result.slowdown)),
        ("memory that the server grew by", f"{grown.median:+.1f} MB"),
        ("documents", str(result.lengths)),
    ]
    rows = list(_rows(rounds))
    for number, one in enumerate(result.rounds):
        for load, job in (("none", one.alone), ("open loop", one.loaded)):
            rows.append({"round": number, "load": load, **asdict(job)})
    return Told([_phases(rounds), ratios], facts, rows)


def _phases(rounds: Sequence[Sequence[Phase]]) -> Table:
    """A row a phase, over the rounds that have it."""
    names = dict.fromkeys(phase.name for phases in rounds for phase in phases)
    body = []
    for name in names:
        found = [phase for phases in rounds for phase in phases if phase.name == name]
        body.append([name, *(_figure(found, column) for column in PHASE_COLUMNS.values())])
    return Table(("phase", *PHASE_COLUMNS), body)


def _figure(phases: Sequence[Phase], column: str) -> str:
    if column in OPEN_COLUMNS and not phases[0].offered:
        return ""
    return spread(Summary.of([getattr(phase, column) for phase in phases]))


def _of_ceiling(rounds: Sequence[Sequence[Phase]]) -> Summary:
    """The rate of each round's second phase, of that of its first."""
    return Summary.of([phases[1].rate / phases[0].rate for phases in rounds])


def _rows(rounds: Sequence[Sequence[Phase]]) -> Iterator[Row]:
    for number, phases in enumerate(rounds):
        for phase in phases:
            yield {"round": number, **asdict(phase)}


def spread(summary: Summary, places: int = 1) -> str:
    """The median, and in brackets the smallest and the largest where they differ."""
    if summary.low == summary.high:
        return _number(summary.median, places)
    low, high = _number(summary.low, places), _number(summary.high, places)
    return f"{_number(summary.median, places)} ({low}-{high})"


def ratio(summary: Summary) -> str:
    """As `spread`, to three places."""
    return spread(summary, 3)


def _number(value: float, places: int) -> str:
    if not math.isfinite(value):
        return "n/a"
    return f"{value:,.{0 if abs(value) >= 100 or float(value).is_integer() else places}f}"

"""What a swap of versions does to those who call meanwhile, and to memory.

A rollback goes only to an earlier version. So the store holds a line of versions, two patches in turn, and a run goes
down that line: with each step the served weights change from those of one patch to those of the other. An open loop
calls all the while at a share of what clients without a pause can get.
"""

import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from amnestic_client import Client
from amnestic_server.bench import chains
from amnestic_server.bench.ceiling import Ceiling, Lengths
from amnestic_server.bench.histogram import ANSWERED, Calls, Measured, Second
from amnestic_server.bench.load import Open
from amnestic_server.bench.processes import PREDICT, Caller, Server, amnestic_server, predictions
from amnestic_server.bench.rounds import Phase, Summary
from amnestic_server.settings import available_cpus
from amnestic_server.snapshot import BASE_VERSION

# A call belongs to a swap if it was to be sent so near to the request for it.
NEAR_SECONDS = 0.5
PATCHES = 2


@dataclass(frozen=True, slots=True)
class Swap:
    """One swap: `asked` and `answered` in seconds from the start of the load, and resident memory after it."""

    version: int
    asked: float
    answered: float
    megabytes: float


@dataclass(frozen=True, slots=True)
class SwapRound:
    """One run down the line. `stale` are answers of a version left, to calls sent after its swap was answered."""

    ceiling: Phase
    closed: Phase
    quiet: Phase
    near: Phase
    swaps: list[Swap]
    stale: int
    failures: dict[str, int]
    megabytes_before: float
    series: list[Second]


@dataclass(frozen=True, slots=True)
class SwapResult:
    """Every round, and over the rounds: latencies in ms near to a swap and beside it, seconds of swaps, memory in MB.

    `grown_megabytes` is what memory grew by from the first swap to the last, over their number.
    """

    rounds: list[SwapRound]
    lengths: Lengths
    quiet_p999_ms: Summary
    near_p999_ms: Summary
    p999_ratio: Summary
    swap_ms: Summary
    failed: int
    stale: int
    grown_megabytes: Summary


def run(
    bundle: Path,
    texts: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    swaps: int,
    interval: float,
    share: float,
    threads: int = 0,
    told: Callable[[Phase], None] = lambda phase: None,
) -> SwapResult:
    """Swap so many times a round, every `interval` seconds, at `share` of what 64 clients get in `seconds`.

    Raises BenchError, BundleError and the client's AmnesticError.
    """
    threads = threads or available_cpus()
    ceiling = Ceiling(bundle, texts, threads)
    messages = predictions(texts)
    ceiling.throughput()
    measured = []
    for number in range(rounds):
        alone = ceiling.throughput()
        told(alone)
        with tempfile.TemporaryDirectory() as folder:
            chains.fill(Path(folder) / "store", ceiling.bundle, swaps + 1, PATCHES)
            with amnestic_server(bundle, threads, Path(folder) / "store") as server:
                caller = Caller.unary(server.target, PREDICT, messages, Path(folder), versions=True)
                closed = caller.saturate(seconds)
                told(closed)
                # Longer than it takes: it is stopped.
                loop = Open(rate=share * closed.rate, seconds=swaps * interval + 3600, seed=number)
                before = server.megabytes
                with caller.loading(loop, keep_calls=True) as load:
                    line = list(_down(server, load.began, swaps, interval))
                    loaded = load.stop()
        one = _round(alone, closed, loaded, line, before)
        for phase in (one.quiet, one.near):
            told(phase)
        measured.append(one)
    return _result(measured, ceiling.lengths)


def _down(server: Server, began: float, swaps: int, interval: float) -> list[Swap]:
    """Roll back one by one, and wait before, between and after."""
    line = []
    with Client(server.target) as client:
        for version in range(BASE_VERSION + swaps, BASE_VERSION, -1):
            time.sleep(interval)
            asked = time.monotonic()
            client.rollback(version, "benchmark", restore_forgotten=True)
            answered = time.monotonic()
            line.append(Swap(version, asked - began, answered - began, server.megabytes))
        time.sleep(interval)
    return line


def _round(ceiling: Phase, closed: Phase, load: Measured, swaps: list[Swap], before: float) -> SwapRound:
    assert load.calls is not None
    calls = load.calls
    near, quiet = list[int](), list[int]()
    for index, at in enumerate(calls.intended):
        beside = any(abs(at - swap.asked) <= NEAR_SECONDS for swap in swaps)
        (near if beside else quiet).append(index)
    around = 2 * NEAR_SECONDS * len(swaps)
    rest = max(calls.intended, default=0.0) - around
    return SwapRound(
        ceiling=ceiling,
        closed=closed,
        quiet=Phase.of_part("open loop, no swap near", calls.part(quiet), rest, load.offered),
        near=Phase.of_part("open loop, the second around a swap", calls.part(near), around, load.offered),
        swaps=swaps,
        stale=_stale(calls, swaps),
        failures=load.failures,
        megabytes_before=before,
        series=load.series,
    )


def _stale(calls: Calls, swaps: Sequence[Swap]) -> int:
    """Answers by a later version than the one that served when the call was sent."""
    answered = [swap.answered for swap in swaps]
    stale = 0
    for sent, version, code in zip(calls.sent, calls.marks, calls.codes, strict=True):
        done = bisect_right(answered, sent)
        stale += code == ANSWERED and done > 0 and version > swaps[done - 1].version
    return stale


def _result(rounds: list[SwapRound], lengths: Lengths) -> SwapResult:
    return SwapResult(
        rounds=rounds,
        lengths=lengths,
        quiet_p999_ms=Summary.of([one.quiet.p999_ms for one in rounds]),
        near_p999_ms=Summary.of([one.near.p999_ms for one in rounds]),
        p999_ratio=Summary.of([one.near.p999_ms / one.quiet.p999_ms for one in rounds]),
        swap_ms=Summary.of([(swap.answered - swap.asked) * 1e3 for one in rounds for swap in one.swaps]),
        failed=sum(sum(one.failures.values()) for one in rounds),
        stale=sum(one.stale for one in rounds),
        grown_megabytes=Summary.of(
            [(one.swaps[-1].megabytes - one.megabytes_before) / len(one.swaps) for one in rounds]
        ),
    )

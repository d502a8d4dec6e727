"""What forgetting does to those who call meanwhile, and what they do to it.

An open loop calls at a share of what clients without a pause can get: first in quiet, then while a job trains and its
gates run, then in quiet again. The same job is run before without load, as a dry run: it trains and measures alike,
and leaves the served version as it is.
"""

import math
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from amnestic_client import Client, Job, JobState, Method
from amnestic_server.bench.ceiling import Ceiling, Lengths
from amnestic_server.bench.errors import BenchError
from amnestic_server.bench.histogram import Measured, Second
from amnestic_server.bench.load import Open
from amnestic_server.bench.processes import PREDICT, Caller, Load, Server, amnestic_server, predictions
from amnestic_server.bench.rounds import Phase, Summary
from amnestic_server.settings import available_cpus

QUIET, TRAINING, GATES, AFTER = "quiet", "training", "gates", "quiet again"
SETTLE_SECONDS = 600.0
# Longer than any job may take: the load is stopped.
LONGEST_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Run:
    """A job to its end: the state it ended in, and the seconds from the request to the news of it."""

    state: str
    seconds: float
    training_seconds: float


@dataclass(frozen=True, slots=True)
class ImpactRound:
    """`phases` are the quiet, the training, the gates and the quiet again; `begins` when each did, in seconds.

    A phase in which no call was to be sent is left out. Memory in MB, of the server alone, before the job and after
    it, with the version that it made.
    """

    ceiling: Phase
    closed: Phase
    phases: list[Phase]
    begins: dict[str, float]
    alone: Run
    loaded: Run
    failures: dict[str, int]
    megabytes_before: float
    megabytes_after: float
    series: list[Second]


@dataclass(frozen=True, slots=True)
class Ratios:
    """Latencies of a phase over those of the quiet before the job."""

    p50: Summary
    p99: Summary
    p999: Summary


@dataclass(frozen=True, slots=True)
class ImpactResult:
    """Every round; over the rounds the latencies by phase over those in quiet, and the job's seconds both ways."""

    rounds: list[ImpactRound]
    lengths: Lengths
    ratios: dict[str, Ratios]
    alone_seconds: Summary
    loaded_seconds: Summary
    slowdown: Summary
    failed: int


def run(
    bundle: Path,
    corpus: Path,
    texts: Sequence[str],
    label: str,
    method: Method,
    *,
    rounds: int,
    seconds: float,
    window: float,
    share: float,
    threads: int = 0,
    told: Callable[[str], None] = lambda stage: None,
) -> ImpactResult:
    """Forget the label by the method at `share` of what 64 clients get in `seconds`.

    `window` are the seconds of each quiet. `told` what has been done. Raises BenchError, BundleError and the client's
    AmnesticError.
    """
    threads = threads or available_cpus()
    ceiling = Ceiling(bundle, texts, threads)
    messages = predictions(texts)
    ceiling.throughput()
    measured = []
    for number in range(rounds):
        alone = ceiling.throughput()
        told(f"ceiling: {alone.rate:.1f}/s")
        with (
            tempfile.TemporaryDirectory() as folder,
            amnestic_server(bundle, threads, corpus=corpus) as server,
            Client(server.target) as client,
        ):
            _settle(client)
            caller = Caller.unary(server.target, PREDICT, messages, Path(folder))
            closed = caller.saturate(seconds)
            told(f"{closed.name}: {closed.rate:.1f}/s")
            dry = _forget(client, label, method, dry_run=True)
            told(f"the job without load: {dry.seconds:.1f} s")
            loop = Open(rate=share * closed.rate, seconds=LONGEST_SECONDS, seed=number)
            with caller.loading(loop, keep_calls=True) as load:
                one = _under_load(server, client, load, label, method, window, (alone, closed, dry))
        told(f"the job under load: {one.loaded.seconds:.1f} s, {one.loaded.state}")
        measured.append(one)
    return _result(measured, ceiling.lengths)


def _settle(client: Client) -> None:
    """Wait until the server has measured the version that it serves, which it does on its own when it starts."""
    end = time.monotonic() + SETTLE_SECONDS
    while not client.status().retain_f1:
        if time.monotonic() > end:
            raise BenchError("the server did not measure what it serves: see its log")
        time.sleep(0.2)


def _forget(
    client: Client, label: str, method: Method, told: Callable[[Job], None] = lambda job: None, dry_run: bool = False
) -> Run:
    begun = time.monotonic()
    job = client.unlearn(label, method=method, reason="benchmark", dry_run=dry_run)
    for job in client.watch_job(job.job_id):  # noqa: B020  (its last is the job as it ended)
        told(job)
    training = math.nan if job.change is None else job.change.training_seconds
    return Run(job.state, time.monotonic() - begun, training)


def _under_load(
    server: Server,
    client: Client,
    load: Load,
    label: str,
    method: Method,
    window: float,
    before: tuple[Phase, Phase, Run],
) -> ImpactRound:
    """Quiet, the job, and quiet again; `before` is what was measured without this load."""
    ceiling, closed, dry = before
    time.sleep(window)
    megabytes = server.megabytes
    begins = {QUIET: 0.0, TRAINING: time.monotonic() - load.began}

    def told(job: Job) -> None:
        if job.state is JobState.GATING:
            begins.setdefault(GATES, time.monotonic() - load.began)

    loaded = _forget(client, label, method, told)
    begins[AFTER] = time.monotonic() - load.began
    time.sleep(window)
    megabytes_after = server.megabytes
    measured = load.stop()
    return ImpactRound(
        ceiling=ceiling,
        closed=closed,
        phases=list(_phases(measured, begins)),
        begins=begins,
        alone=dry,
        loaded=loaded,
        failures=measured.failures,
        megabytes_before=megabytes,
        megabytes_after=megabytes_after,
        series=measured.series,
    )


def _phases(load: Measured, begins: dict[str, float]) -> Iterator[Phase]:
    """A call belongs to the phase in which it was to be sent."""
    assert load.calls is not None
    starts = list(begins.values())
    members: list[list[int]] = [[] for _ in starts]
    for index, at in enumerate(load.calls.intended):
        members[bisect_right(starts, at) - 1].append(index)
    ends = [*starts[1:], max(load.calls.intended, default=0.0)]
    for name, indices, start, end in zip(begins, members, starts, ends, strict=True):
        if indices:
            yield Phase.of_part(name, load.calls.part(indices), end - start, load.offered)


def _result(rounds: list[ImpactRound], lengths: Lengths) -> ImpactResult:
    names = [phase.name for phase in rounds[0].phases if phase.name != QUIET]
    return ImpactResult(
        rounds=rounds,
        lengths=lengths,
        ratios={name: _ratios(rounds, name) for name in names},
        alone_seconds=Summary.of([one.alone.seconds for one in rounds]),
        loaded_seconds=Summary.of([one.loaded.seconds for one in rounds]),
        slowdown=Summary.of([one.loaded.seconds / one.alone.seconds for one in rounds]),
        failed=sum(sum(one.failures.values()) for one in rounds),
    )


def _ratios(rounds: Sequence[ImpactRound], name: str) -> Ratios:
    pairs = []
    for one in rounds:
        found = {phase.name: phase for phase in one.phases}
        if name in found and QUIET in found:
            pairs.append((found[name], found[QUIET]))
    return Ratios(*(_ratio(pairs, figure) for figure in ("p50_ms", "p99_ms", "p999_ms")))


def _ratio(pairs: Sequence[tuple[Phase, Phase]], figure: str) -> Summary:
    return Summary.of([getattr(phase, figure) / getattr(quiet, figure) for phase, quiet in pairs])

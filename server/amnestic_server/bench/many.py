"""What many versions cost: memory, time to start, and throughput when calls of several versions share batches."""

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from amnestic.v1 import prediction_pb2 as prediction
from amnestic_server.bench import chains
from amnestic_server.bench.ceiling import Ceiling, Lengths
from amnestic_server.bench.processes import PREDICT, Caller, amnestic_server
from amnestic_server.bench.rounds import Phase, Summary
from amnestic_server.settings import available_cpus
from amnestic_server.snapshot import BASE_VERSION

# Messages of a mixed load: enough that each of a thousand versions is asked for.
MESSAGES = 8192


@dataclass(frozen=True, slots=True)
class Held:
    """A server whose store has so many versions beside the base, over the rounds: MB when idle, seconds to start.

    `version_megabytes` is what each of them adds; 0 for the base alone.
    """

    versions: int
    idle_megabytes: Summary
    version_megabytes: Summary
    start_seconds: Summary


@dataclass(frozen=True, slots=True)
class VersionsResult:
    """`held` by number of versions. `rounds` are phases: the ceiling, and clients that mix more and more versions.

    `of_one` is the throughput of each mix, of that of calls to one version, by number of versions.
    """

    held: list[Held]
    rounds: list[list[Phase]]
    of_one: dict[int, Summary]
    lengths: Lengths


def steps(counts: Sequence[int], rounds: int) -> int:
    """How often `told` is called by `run`."""
    different = len({1, *counts})
    return different + 1 + rounds * (2 * different + 1)


def run(
    bundle: Path,
    texts: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    counts: Sequence[int],
    threads: int = 0,
    told: Callable[[str], None] = lambda stage: None,
) -> VersionsResult:
    """Start a server with each of the counts of versions, and call the one with the most. `told` what has been done.

    Raises BenchError and BundleError.
    """
    threads, counts = threads or available_cpus(), sorted({1, *counts})
    ceiling = Ceiling(bundle, texts, threads)
    ceiling.throughput()
    started: dict[int, list[tuple[float, float]]] = {count: [] for count in (0, *counts)}
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        stores = {count: Path(folder) / f"store-{count}" for count in started}
        for count, store in stores.items():
            chains.fill(store, ceiling.bundle, count)
            told(f"made a store with {count:,} versions")
        mixes = {count: _mixed(texts, count) for count in counts}
        for _ in range(rounds):
            phases = [ceiling.throughput()]
            for count, store in stores.items():
                with amnestic_server(bundle, threads, store) as server:
                    started[count].append((server.idle_megabytes, server.start_seconds))
                    told(f"{count:,} versions: {server.start_seconds:.1f} s to start, {server.idle_megabytes:.0f} MB")
                    if count == counts[-1]:
                        phases += _throughput(server.target, mixes, seconds, told)
            measured.append(phases)
    return VersionsResult(
        held=[_held(count, started) for count in started],
        rounds=measured,
        of_one={
            count: Summary.of([phases[index].rate / phases[1].rate for phases in measured])
            for index, count in enumerate(counts, start=1)
        },
        lengths=ceiling.lengths,
    )


def _throughput(target: str, mixes: dict[int, list[bytes]], seconds: float, told: Callable[[str], None]) -> list[Phase]:
    phases = []
    with tempfile.TemporaryDirectory() as folder:
        for count, messages in mixes.items():
            name = "calls to 1 version" if count == 1 else f"calls mixed over {count:,} versions"
            phases.append(Caller.unary(target, PREDICT, messages, Path(folder)).saturate(seconds, name))
            told(f"{name}: {phases[-1].rate:.1f}/s")
    return phases


def _mixed(texts: Sequence[str], count: int) -> list[bytes]:
    """The same texts in the same order, each asked of one of so many versions, none of them the base."""
    draw = random.Random(0)  # noqa: S311  (a load, not a secret)
    return [
        prediction.PredictRequest(
            documents=[texts[number % len(texts)]], version=BASE_VERSION + 1 + draw.randrange(count)
        ).SerializeToString()
        for number in range(max(MESSAGES, len(texts)) if count > 1 else len(texts))
    ]


def _held(count: int, started: dict[int, list[tuple[float, float]]]) -> Held:
    base = Summary.of([megabytes for megabytes, _ in started[0]]).median
    idle = [megabytes for megabytes, _ in started[count]]
    return Held(
        versions=count,
        idle_megabytes=Summary.of(idle),
        version_megabytes=Summary.of([(megabytes - base) / count if count else 0.0 for megabytes in idle]),
        start_seconds=Summary.of([seconds for _, seconds in started[count]]),
    )

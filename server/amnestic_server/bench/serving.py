"""How close serving comes to its ceiling, and what the front costs. All of it is measured in one run, interleaved.

The ceiling is the engine alone. The echo is a bare grpc.aio server that returns the same request bytes. Clients are
processes of their own on the same machine: what they use, the server doesn't have.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import grpc.aio

from amnestic_server.bench.ceiling import Ceiling, Lengths
from amnestic_server.bench.load import Closed, Found, Open, Search
from amnestic_server.bench.processes import CLIENTS, ECHO, PREDICT, Caller, amnestic_server, echo_server, predictions
from amnestic_server.bench.rounds import Phase, Summary
from amnestic_server.settings import available_cpus

CONCURRENCIES = (8, CLIENTS)
SHARES = (0.25, 0.5, 0.75, 0.9)
LONE_CALLS = 96
# How documents come where one is not waited for: several to a call.
BULK_CLIENTS, BULK_DOCUMENTS = 8, 16
AMNESTIC, OPEN = "amnestic", "open loop"
BULK = f"{AMNESTIC}, {BULK_CLIENTS} clients, {BULK_DOCUMENTS} documents a call"
# The search for the highest rate begins so far above the best that was seen.
ROOM = 1.1
# The ceiling, the engine and a client one by one, the clients, those in bulk, the open loops, the search, the echo.
PHASES = 6 + len(CONCURRENCIES) + len(SHARES)


@dataclass(frozen=True, slots=True)
class ServingResult:
    """Every phase by round, and the ratios that the design promises, as medians over the rounds with their spread.

    `bulk_of_ceiling` is of documents. `at_limit` is the highest open-loop rate whose p99 was at most `limit_ms`, to
    within `resolution`, both in calls a second.
    """

    rounds: list[list[Phase]]
    of_ceiling: Summary
    bulk_of_ceiling: Summary
    added_ms: Summary
    of_echo: Summary
    idle_megabytes: float
    lengths: Lengths
    limit_ms: float
    at_limit: Summary
    resolution: Summary


def run(
    bundle: Path,
    texts: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    limit_ms: float,
    threads: int = 0,
    on_phase: Callable[[Phase], None] = lambda phase: None,
) -> ServingResult:
    """Measure `rounds` times: the ceiling, the engine on single documents, the clients, the open loops, and the echo.

    Every load lasts for so many seconds. Raises BenchError and BundleError.
    """
    threads = threads or available_cpus()
    ceiling = Ceiling(bundle, texts, threads)
    messages, in_bulk = predictions(texts), predictions(texts, BULK_DOCUMENTS)
    measured: list[_Round] = []
    with (
        amnestic_server(bundle, threads) as server,
        echo_server() as echo,
        tempfile.TemporaryDirectory() as folder,
    ):
        caller = Caller.unary(server.target, PREDICT, messages, Path(folder))
        bulk = Caller.unary(server.target, PREDICT, in_bulk, Path(folder))
        echoed = Caller.unary(echo, ECHO, messages, Path(folder))
        ceiling.throughput()
        for number in range(rounds):
            one = _Round(number, seconds, on_phase)
            one.alone(ceiling, server.target, messages)
            one.clients(caller, bulk)
            one.open_loops(caller, limit_ms)
            one.echo(echoed)
            measured.append(one)
    return ServingResult(
        rounds=[one.phases for one in measured],
        of_ceiling=Summary.of([one.named(_clients(CLIENTS)).rate / one.ceiling.rate for one in measured]),
        bulk_of_ceiling=Summary.of(
            [len(texts) / len(in_bulk) * one.named(BULK).rate / one.ceiling.rate for one in measured]
        ),
        added_ms=Summary.of([one.added_ms for one in measured]),
        of_echo=Summary.of([one.named(_clients(CLIENTS)).rate / one.phases[-1].rate for one in measured]),
        idle_megabytes=server.idle_megabytes,
        lengths=ceiling.lengths,
        limit_ms=limit_ms,
        at_limit=Summary.of([one.found.rate for one in measured]),
        resolution=Summary.of([one.found.above - one.found.rate for one in measured]),
    )


class _Round:
    """The phases of one round, in the order in which they are measured."""

    def __init__(self, number: int, seconds: float, told: Callable[[Phase], None]) -> None:
        self.phases: list[Phase] = []
        self.added_ms = 0.0
        self.found = Found(0.0, 0.0, [])
        self._number = number
        self._seconds = seconds
        self._told = told

    @property
    def ceiling(self) -> Phase:
        return self.phases[0]

    def named(self, name: str) -> Phase:
        return next(phase for phase in self.phases if phase.name == name)

    def alone(self, ceiling: Ceiling, target: str, messages: Sequence[bytes]) -> None:
        """The ceiling, and what a lone client waits for beyond the engine."""
        self._add(ceiling.throughput())
        alone, over = asyncio.run(in_turn(target, PREDICT, messages, ceiling, min(LONE_CALLS, len(messages))))
        self._add(Phase.of("engine, one by one", alone, len(alone) / sum(alone)))
        self._add(Phase.of(_clients(1), over, len(over) / sum(over)))
        self.added_ms = median(whole - part for whole, part in zip(over, alone, strict=True)) * 1e3

    def clients(self, caller: Caller, bulk: Caller) -> None:
        for clients in CONCURRENCIES:
            measured = caller.measure(Closed(clients=clients, seconds=self._seconds))
            self._add(Phase.of_load(_clients(clients), measured))
        measured = bulk.measure(Closed(clients=BULK_CLIENTS, seconds=self._seconds))
        self._add(Phase.of_load(BULK, measured))

    def open_loops(self, caller: Caller, limit_ms: float) -> None:
        """At shares of this round's ceiling, and as fast as the limit allows; every round draws other arrivals."""
        for share in SHARES:
            loop = Open(rate=share * self.ceiling.rate, seconds=self._seconds, seed=self._number)
            self._add(Phase.of_load(f"{OPEN}, {share:g} of the ceiling", caller.measure(loop), share))
        # No load was answered faster: a little above, there is nothing to be found.
        high = ROOM * max(phase.rate for phase in self.phases if phase.name.startswith((AMNESTIC, OPEN)))
        search = Search(p99_ms=limit_ms, high=high, seconds=self._seconds, seed=self._number)
        self.found = caller.search(search)
        for step in self.found.steps:
            if step.offered == self.found.rate:
                share = step.offered / self.ceiling.rate
                self._add(Phase.of_load(f"{OPEN}, p99 within {limit_ms:g} ms", step, share))

    def echo(self, caller: Caller) -> None:
        self._add(caller.saturate(self._seconds, f"echo, {CLIENTS} clients"))

    def _add(self, phase: Phase) -> None:
        self.phases.append(phase)
        self._told(phase)


def _clients(count: int) -> str:
    return f"{AMNESTIC}, {count} client{'s' * (count > 1)}"


async def in_turn(
    target: str, method: str, messages: Sequence[bytes], ceiling: Ceiling, documents: int
) -> tuple[list[float], list[float]]:
    """Each document alone in the engine, then over gRPC by a lone client: the seconds of both, document by document.

    Taken in turn, so that what else the machine does falls on both alike.
    """
    async with grpc.aio.insecure_channel(target) as channel:
        call: Any = channel.unary_unary(method)
        await call(messages[0])
        alone, over = [], []
        for document in range(documents):
            alone.append(ceiling.alone(document))
            started = time.perf_counter()
            await call(messages[document])
            over.append(time.perf_counter() - started)
    return alone, over

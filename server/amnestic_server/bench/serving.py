"""How close serving comes to its ceiling, and what the front costs. All of it is measured in one run, interleaved.

The ceiling is the same ONNX Runtime session on the same documents, tokenized before, sorted by length into full
batches, with no gRPC, no queue and no client. The echo is a bare grpc.aio server that returns the same request bytes.
Closed-loop clients share the machine with the server: what they use, the server doesn't have.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import grpc.aio
import numpy as np

from amnestic.v1 import prediction_pb2 as prediction
from amnestic_server import bundle as bundles
from amnestic_server.engine import Engine, TokenIds, limit_library_threads
from amnestic_server.settings import available_cpus
from amnestic_server.snapshot import Snapshot, base_snapshot
from amnestic_server.tokenizer import DocumentTokenizer

PREDICT = "/amnestic.v1.PredictionService/Predict"
ECHO = "/echo.Echo/Echo"
CONCURRENCIES = (8, 64)
WARM_UP_CALLS = 64
# The ceiling, the engine and a client one by one, the clients, the echo.
PHASES = 4 + len(CONCURRENCIES)


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of one round. Rates in documents (calls) a second, latencies in milliseconds."""

    name: str
    rate: float
    p50_ms: float
    p95_ms: float
    p99_ms: float

    @classmethod
    def of(cls, name: str, latencies: Sequence[float], seconds: float) -> "Phase":
        p50, p95, p99 = (np.percentile(latencies, [50, 95, 99]) * 1e3).tolist()
        return cls(name, len(latencies) / seconds, p50, p95, p99)


@dataclass(frozen=True, slots=True)
class Summary:
    """Median over the rounds, with the smallest and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary":
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    ids: TokenIds
    snapshot: Snapshot


class Ceiling:
    """The engine alone, in this process."""

    def __init__(self, folder: Path, texts: Sequence[str], threads: int) -> None:
        limit_library_threads()
        bundle = bundles.load(folder)
        self._engine = Engine(bundle, threads=threads)
        snapshot = base_snapshot(bundle, self._engine.device)
        encoded = DocumentTokenizer(bundle.tokenizer, bundle.manifest.reading).encode(texts)
        self._documents = [[_Row(ids, snapshot) for ids in document.windows] for document in encoded]
        self._batches = list(_full_batches(list(chain.from_iterable(self._documents)), self._engine.batch_tokens))

    def throughput(self, name: str) -> Phase:
        """Every document once, in full batches of like lengths. Only the session and the heads are timed."""
        latencies = []
        for batch in self._batches:
            prepared = self._engine.prepare(batch)
            started = time.perf_counter()
            self._engine.run(prepared)
            latencies.append(time.perf_counter() - started)
        return Phase(
            name, len(self._documents) / sum(latencies), *(np.percentile(latencies, [50, 95, 99]) * 1e3).tolist()
        )

    def alone(self, document: int) -> float:
        """Seconds of the session and the head for one document, alone in its batch, with all its windows."""
        prepared = self._engine.prepare(self._documents[document])
        started = time.perf_counter()
        self._engine.run(prepared)
        return time.perf_counter() - started


def _full_batches(rows: Sequence[_Row], batch_tokens: int) -> Iterator[list[_Row]]:
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if batch and (len(batch) + 1) * len(row.ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    yield batch


async def closed_loop(
    target: str, method: str, messages: Sequence[bytes], concurrency: int, calls: int
) -> tuple[list[float], float]:
    """Call with so many clients, each waiting for its answer before its next call.

    Returns the latency of every call in order of the messages, in seconds, and the seconds that all took. Raises
    grpc.aio.AioRpcError if a call fails: a benchmark with failures is none.
    """
    async with grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call: Any = channel.unary_unary(method)
        for message in messages[: min(WARM_UP_CALLS, calls)]:
            await call(message)
        latencies = [0.0] * calls
        turns = iter(range(calls))

        async def client() -> None:
            for turn in turns:
                started = time.perf_counter()
                await call(messages[turn % len(messages)])
                latencies[turn] = time.perf_counter() - started

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(concurrency)))
        return latencies, time.perf_counter() - began


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


@dataclass(frozen=True, slots=True)
class ServingResult:
    """Every phase by round, and the ratios that the design promises, as medians over the rounds with their spread."""

    rounds: list[list[Phase]]
    of_ceiling: Summary
    added_ms: Summary
    of_echo: Summary
    idle_megabytes: float


def run(
    bundle: Path,
    texts: Sequence[str],
    *,
    rounds: int,
    calls: int,
    threads: int = 0,
    on_phase: Callable[[Phase], None] = lambda phase: None,
) -> ServingResult:
    """Measure `rounds` times: the ceiling, the engine on single documents, the clients, and the echo.

    `calls` is the number of calls at the highest concurrency; lower ones make a share of it.
    """
    threads = threads or available_cpus()
    ceiling = Ceiling(bundle, texts, threads)
    messages = [prediction.PredictRequest(documents=[text]).SerializeToString() for text in texts]
    measured: list[list[Phase]] = []

    def told(phase: Phase) -> Phase:
        on_phase(phase)
        return phase

    added: list[float] = []
    with amnestic_server(bundle, threads) as (server, idle_megabytes), echo_server() as echo:
        ceiling.throughput("warm-up")
        for _ in range(rounds):
            phases = [told(ceiling.throughput("ceiling"))]
            alone, over = asyncio.run(in_turn(server, PREDICT, messages, ceiling, min(calls // 8, len(texts))))
            phases.append(told(Phase.of("engine, one by one", alone, sum(alone))))
            phases.append(told(Phase.of("amnestic, 1 client", over, sum(over))))
            added.append(median(whole - part for whole, part in zip(over, alone, strict=True)) * 1e3)
            for concurrency in CONCURRENCIES:
                count = calls if concurrency == max(CONCURRENCIES) else calls // 2
                latencies, seconds = asyncio.run(closed_loop(server, PREDICT, messages, concurrency, count))
                phases.append(told(Phase.of(f"amnestic, {concurrency} clients", latencies, seconds)))
            latencies, seconds = asyncio.run(closed_loop(echo, ECHO, messages, max(CONCURRENCIES), calls))
            phases.append(told(Phase.of(f"echo, {max(CONCURRENCIES)} clients", latencies, seconds)))
            measured.append(phases)
    return ServingResult(
        rounds=measured,
        of_ceiling=Summary.of([phases[-2].rate / phases[0].rate for phases in measured]),
        added_ms=Summary.of(added),
        of_echo=Summary.of([phases[-2].rate / phases[-1].rate for phases in measured]),
        idle_megabytes=idle_megabytes,
    )


@contextmanager
def amnestic_server(bundle: Path, threads: int) -> Iterator[tuple[str, float]]:
    """A server process of its own on this bundle; gives its address, and its resident memory when idle, in MB."""
    with tempfile.TemporaryDirectory() as store:
        command = [
            *(sys.executable, "-m", "amnestic_server.cli", "serve"),
            *("--bundle", str(bundle), "--store", store, "--grpc-port", "0", "--metrics-port", "0"),
            *("--threads", str(threads), "--log-level", "error"),
        ]
        with _process(command, "ready: grpc=") as (line, process):
            yield line.split("grpc=")[1].split()[0], _resident_megabytes(process.pid)


@contextmanager
def echo_server() -> Iterator[str]:
    """A bare grpc.aio server that returns what it gets, in a process of its own; gives its address."""
    with _process([sys.executable, "-m", "amnestic_server.bench.echo"], "ready: ") as (line, _):
        yield line.removeprefix("ready: ").strip()


@contextmanager
def _process(command: Sequence[str], ready: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith(ready):
            raise RuntimeError(f"{command[2]} did not start")
        yield line, process
    finally:
        process.terminate()
        process.wait(timeout=60)


def _resident_megabytes(pid: int) -> float:
    """Resident memory of a process, from the kernel's own account."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

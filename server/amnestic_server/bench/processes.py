"""Processes that a benchmark is made of: servers, and the load on them. Each ends with the block that it is used in."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from amnestic.v1 import prediction_pb2 as prediction
from amnestic_server.bench.callers import write_messages
from amnestic_server.bench.errors import BenchError
from amnestic_server.bench.histogram import Measured
from amnestic_server.bench.load import UNARY, Closed, Found, Open, Search, Spec
from amnestic_server.bench.rounds import Phase

PREDICT = "/amnestic.v1.PredictionService/Predict"
ECHO = "/echo.Echo/Echo"
STOP_SECONDS = 60.0
# Clients without a pause: enough that the server is never idle.
CLIENTS = 64


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready; `idle_megabytes` is its resident memory then, `start_seconds` how long it took."""

    target: str
    pid: int
    start_seconds: float
    idle_megabytes: float

    @property
    def megabytes(self) -> float:
        """Resident memory now."""
        return resident_megabytes(self.pid)


def predictions(texts: Sequence[str], documents: int = 1) -> list[bytes]:
    """Requests to predict, of so many texts each, serialised; the last has those that are left."""
    parts = (texts[start : start + documents] for start in range(0, len(texts), documents))
    return [prediction.PredictRequest(documents=part).SerializeToString() for part in parts]


class Load:
    """A load that has begun, at `began` by the machine's monotonic clock."""

    def __init__(self, process: "subprocess.Popen[str]", began: float) -> None:
        self._process = process
        self.began = began

    def stop(self) -> Measured:
        """End an open or closed loop early; as `result`."""
        self._process.terminate()
        return self.result()

    def result(self) -> Measured:
        """What was measured, once the loop has ended. Raises BenchError."""
        return Measured.from_json(json.loads(self._last_line()))

    def found(self) -> Found:
        """What a search has found. Raises BenchError."""
        return Found.from_json(json.loads(self._last_line()))

    def _last_line(self) -> str:
        told, _ = self._process.communicate()
        if self._process.returncode:
            raise BenchError("the load ended before its time")
        return told


class Caller:
    """Puts loads on one server, by the function that `name` names and its arguments; see `load.Spec`."""

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        self._name, self._arguments = name, arguments

    @classmethod
    def unary(
        cls, target: str, method: str, messages: Sequence[bytes], folder: Path, *, versions: bool = False
    ) -> Self:
        """Of one gRPC method, with messages that are sent round and round.

        `folder` is for the messages, and has to outlive the loads.
        """
        path = folder / f"messages-{len(list(folder.iterdir()))}.json"
        write_messages(messages, path)
        return cls(UNARY, {"target": target, "method": method, "messages": str(path), "versions": versions})

    def saturate(self, seconds: float, name: str = f"{CLIENTS} clients") -> Phase:
        """What `CLIENTS` clients without a pause get. Raises BenchError."""
        return Phase.of_load(name, self.measure(Closed(clients=CLIENTS, seconds=seconds)))

    @contextmanager
    def loading(self, loop: Closed | Open | Search, *, keep_calls: bool = False) -> Iterator[Load]:
        """A load under way. Raises BenchError if it does not begin."""
        spec = Spec(loop=loop, caller=self._name, arguments=self._arguments, keep_calls=keep_calls)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "spec.json"
            path.write_text(spec.to_json())
            with _process([sys.executable, "-m", "amnestic_server.bench.load", str(path)], '{"began"') as (
                line,
                process,
            ):
                yield Load(process, json.loads(line)["began"])

    def measure(self, loop: Closed | Open) -> Measured:
        """A load from its beginning to its end."""
        with self.loading(loop) as load:
            return load.result()

    def search(self, search: Search) -> Found:
        with self.loading(search) as load:
            return load.found()


@contextmanager
def amnestic_server(
    bundle: Path, threads: int, store: Path | None = None, corpus: Path | None = None
) -> Iterator[Server]:
    """A server of this bundle, by default on a store that is empty. Raises BenchError if it does not start."""
    with tempfile.TemporaryDirectory() as empty:
        command = [
            *(sys.executable, "-m", "amnestic_server.cli", "serve"),
            *("--bundle", str(bundle), "--store", str(store or empty), "--grpc-port", "0", "--metrics-port", "0"),
            *("--threads", str(threads), "--log-level", "error"),
            *(("--corpus", str(corpus)) if corpus else ()),
        ]
        began = time.monotonic()
        with _process(command, "ready: grpc=") as (line, process):
            seconds = time.monotonic() - began
            target = line.split("grpc=")[1].split()[0]
            yield Server(target, process.pid, seconds, resident_megabytes(process.pid))


@contextmanager
def echo_server() -> Iterator[str]:
    """A bare grpc.aio server that returns what it gets; gives its address."""
    with _process([sys.executable, "-m", "amnestic_server.bench.echo"], "ready: ") as (line, _):
        yield line.removeprefix("ready: ").strip()


def resident_megabytes(pid: int) -> float:
    """Resident memory of a process, from the kernel's own account."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def _process(command: Sequence[str], ready: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith(ready):
            raise BenchError(f"{command[2]} did not start")
        yield line, process
    finally:
        _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        # Reads what it still says: nobody else does, and it would wait for that.
        process.communicate(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

"""The environments and the processes of the servers that are compared."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import grpc
import psutil
from peers import SERVERS, Peer, Place

from amnestic_server.bench.errors import BenchError

START_SECONDS = 180.0
STOP_SECONDS = 20.0


class Running:
    """A peer's processes. `restart` is what one does whose peer can't do better."""

    def __init__(self, peer: Peer, place: Place, probe: str) -> None:
        self._peer, self._place, self._probe = peer, place, probe
        self._process: subprocess.Popen[bytes] | None = None
        self.start_seconds = 0.0

    def start(self) -> None:
        """Raises BenchError, with the end of what it wrote, unless it answers in time."""
        began = time.monotonic()
        place = self._place
        variables = {**os.environ, **self._peer.variables(place)}
        self._log = place.folder / "log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._peer.command(place),
                stdout=log,
                stderr=log,
                env=variables,
                cwd=place.folder,
            )
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() - began > START_SECONDS:
                raise BenchError(f"{self._peer.name} did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)
        self.start_seconds = time.monotonic() - began

    def answers(self) -> list[float]:
        """What it says to the probe; empty while it says nothing."""
        try:
            return self._peer.ask(self._place, self._probe)
        except (OSError, HTTPException, ValueError, KeyError, grpc.RpcError):
            return []

    def stop(self) -> None:
        if self._process is None:
            return
        family = self.family() if self._process.poll() is None else []
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for one in family:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def family(self) -> list[psutil.Process]:
        """The process and all that came of it."""
        assert self._process is not None
        first = psutil.Process(self._process.pid)
        return [first, *first.children(recursive=True)]

    def megabytes(self) -> float:
        """Resident memory of all, what they share counted once (proportional set size)."""
        return sum(one.memory_full_info().pss for one in self.family()) / 1e6


@contextmanager
def running(peer: Peer, place: Place, probe: str) -> Iterator[Running]:
    place.folder.mkdir(parents=True)
    place.choose(0)
    peer.prepare(place)
    server = Running(peer, place, probe)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def make_environment(peer: Peer, folder: Path) -> Path:
    """A virtual environment in the folder with the peer's pinned requirements, unless there is one of them already.

    Raises CalledProcessError.
    """
    name = peer.name.replace(" and ", "_")
    requirements, environment = SERVERS / name / "requirements.txt", folder / name
    stamp = environment / "installed.txt"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(requirements)], check=True)
        stamp.write_text(requirements.read_text())
    return environment

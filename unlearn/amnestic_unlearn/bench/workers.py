"""Runs a plan in several processes and passes on what they tell. It imports nothing heavy itself."""

import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO

from amnestic_unlearn.bench.cells import Plan
from amnestic_unlearn.bench.ledger import Row


class WorkersError(RuntimeError):
    """Processes of the benchmark ended too early. The text tells how many, and with what."""


def run(plan: Plan, jobs: int) -> Generator[Row]:
    """Start `jobs` processes and yield what they tell, as it comes, until all have ended.

    Closing the iterator stops them. Raises WorkersError at the end if one of them failed; the others have then taken
    over what it left.
    """
    out = Path(plan.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".plan-") as folder:
        file = Path(folder) / "plan.json"
        plan.write(file)
        with (out / "workers.log").open("ab") as log:
            processes = [_start(file, log) for _ in range(jobs)]
            try:
                yield from _told(processes)
            except BaseException:
                for process in processes:
                    process.terminate()
                raise
            finally:
                codes = [process.wait() for process in processes]
    if failed := [code for code in codes if code]:
        raise WorkersError(
            f"{len(failed)} of {jobs} processes ended with {', '.join(map(str, failed))}; see {out / 'workers.log'}."
            " What they had measured is kept: run again to go on"
        )


def _start(plan: Path, log: IO[bytes]) -> "subprocess.Popen[bytes]":
    # A group of its own: an interrupt from the keyboard reaches the parent alone, which then stops them in order.
    return subprocess.Popen(
        [sys.executable, "-m", "amnestic_unlearn.bench", str(plan)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
    )


def _told(processes: "list[subprocess.Popen[bytes]]") -> Iterator[Row]:
    told: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def listen(stream: IO[bytes]) -> None:
        for line in stream:
            told.put(line)
        told.put(None)

    for process in processes:
        assert process.stdout is not None
        threading.Thread(target=listen, args=(process.stdout,), daemon=True).start()
    running = len(processes)
    while running:
        line = told.get()
        if line is None:
            running -= 1
        # A process that was killed may leave half a line.
        elif line.endswith(b"\n"):
            yield json.loads(line)

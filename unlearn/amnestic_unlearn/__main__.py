"""The process around one unlearn job: `python -m amnestic_unlearn SPEC OUT`.

Standard output carries messages of `spec` alone, one a line, and standard input must be a pipe that the parent
holds open: at its end the parent is gone, and the worker leaves at once. The process lowers its priority and
limits its threads and memory before anything heavy is imported.

Exit codes: 0 done; 1 failed, after one `Failure`; 2 wrong arguments; 3 the parent is gone; 143 told to stop.
"""

import contextlib
import errno
import os
import resource
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from amnestic_unlearn.errors import OutOfMemoryError, WorkerError
from amnestic_unlearn.spec import Failure, JobSpec, Progress, encode_message

FAILED, USAGE, ORPHANED, STOPPED = 1, 2, 3, 143
NICENESS = 10
SECONDS_BETWEEN_MESSAGES = 0.2
# How torch, its allocator and the C++ library say that memory is short; each is a plain RuntimeError.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "Cannot allocate memory")


@dataclass(slots=True)
class Channel:
    """The way to the server. Drops progress that follows too soon, except where a stage begins."""

    descriptor: int
    stage: str = ""
    sent: float = 0.0

    def progress(self, message: Progress) -> None:
        now = time.monotonic()
        if message.stage != self.stage or now - self.sent >= SECONDS_BETWEEN_MESSAGES:
            self.stage, self.sent = message.stage, now
            self.send(message)

    def send(self, message: Progress | Failure) -> None:
        line = memoryview(f"{encode_message(message)}\n".encode())
        try:
            while line:
                line = line[os.write(self.descriptor, line) :]
        except BrokenPipeError:
            os._exit(ORPHANED)


def main(arguments: list[str]) -> int:
    """Run the job; returns the exit code."""
    if len(arguments) != 2:
        print("usage: python -m amnestic_unlearn SPEC OUT", file=sys.stderr)
        return USAGE
    spec_file, out = map(Path, arguments)
    channel = Channel(take_stdout())
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, _stop)
    threading.Thread(target=leave_with_parent, daemon=True).start()
    try:
        spec = JobSpec.read(spec_file)
        restrain(spec)
        _run(spec, out, channel)
    except Exception as error:
        channel.send(Failure(reason_of(error)))
        return FAILED
    return 0


def _run(spec: JobSpec, out: Path, channel: Channel) -> None:
    # Imported only now, so that the limits of the process hold for these libraries too.
    import torch

    from amnestic_unlearn.worker import work

    torch.set_num_threads(spec.threads)
    torch.use_deterministic_algorithms(True)
    out.mkdir(parents=True, exist_ok=True)
    work(spec, out, channel.progress)


def take_stdout() -> int:
    """Keep standard output for messages: whatever else prints there goes to standard error from now on."""
    descriptor = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return descriptor


def restrain(spec: JobSpec) -> None:
    """A low call on the processor, the threads of the specification, and its limit of memory if it has one."""
    os.nice(NICENESS)
    if os.getsid(0) == os.getpid():
        # Linux may weigh whole sessions against each other: then niceness counts for nothing against the server's.
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(NICENESS), encoding="utf-8")
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(spec.threads)
    if spec.memory_bytes > 0:
        resource.setrlimit(resource.RLIMIT_DATA, (spec.memory_bytes, spec.memory_bytes))


def leave_with_parent() -> NoReturn:
    """Wait for the end of standard input, then leave without another word."""
    while os.read(0, 4096):
        pass
    os._exit(ORPHANED)


def reason_of(error: Exception) -> str:
    """What the server may be told. An unforeseen error gives its type and place, for its text could hold data."""
    if _is_out_of_memory(error):
        return str(OutOfMemoryError())
    if isinstance(error, WorkerError):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"internal error: {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"


def _is_out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if isinstance(error, RuntimeError | ImportError) and any(text in str(error) for text in OUT_OF_MEMORY):
            return True
        error = error.__cause__
    return False


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(STOPPED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

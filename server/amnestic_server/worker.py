"""Runs one unlearning worker as a process of its own, and listens to it.

The worker is always a fresh interpreter, never a fork of this process with its gRPC and CUDA threads. It gets a
pipe on standard input only so that it notices if this process dies. Whatever it does, the server survives it.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

from amnestic_server.failpoints import failpoint
from amnestic_unlearn.spec import Failure, JobSpec, Progress, decode_message


class WorkerError(Exception):
    """The worker did not do its job. The text says why and is safe to show."""


async def run_worker(spec: JobSpec, folder: Path, seconds: float, on_progress: Callable[[Progress], None]) -> None:
    """Run `python -m amnestic_unlearn` on `spec` with `folder` for its files, until it is done.

    Raises WorkerError if it fails, is killed, prints garbage, or takes longer than `seconds`. The process
    is gone when this returns, however it returns.
    """
    spec_path = folder / "spec.json"
    spec.write(spec_path)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "amnestic_unlearn",
        str(spec_path),
        str(folder),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=_environment(spec.threads),
        start_new_session=True,
    )
    try:
        failpoint("worker-started")
        async with asyncio.timeout(seconds):
            failure = await _listen(process, on_progress)
            code = await process.wait()
    except TimeoutError:
        raise WorkerError(f"the worker took longer than {seconds:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            # Not `wait`: it ends once the pipe has, and the end of one that nobody reads on is never seen.
            await process.communicate()
    if failure is not None:
        raise WorkerError(failure.reason)
    if code < 0:
        raise WorkerError(f"the worker was killed by signal {-code}")
    if code > 0:
        raise WorkerError(f"the worker exited with code {code}")


async def _listen(process: asyncio.subprocess.Process, on_progress: Callable[[Progress], None]) -> Failure | None:
    """Follow the worker's messages to the end of its output; the failure it reports, if it does."""
    assert process.stdout is not None
    failure = None
    try:
        while line := await process.stdout.readline():
            message = decode_message(line)
            if isinstance(message, Failure):
                failure = message
            else:
                on_progress(message)
    except ValueError:
        # A line too long for the reader, or not a message.
        raise WorkerError("the worker printed what is not a message") from None
    return failure


def _environment(threads: int) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **offline, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}

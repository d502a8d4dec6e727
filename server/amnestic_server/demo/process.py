"""Subcommands of `amnestic` as processes of their own, gone when the block that started them ends."""

import asyncio
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

from amnestic_server.demo.settings import DemoError, DemoSettings

AMNESTIC = (sys.executable, "-m", "amnestic_server.cli")
READY = re.compile(r"ready: grpc=(?P<target>\S+) .*provider=(?P<provider>\S+)")
START_SECONDS = 120.0
# Longer than a server with nothing to drain needs.
STOP_SECONDS = 20.0
LOG_LINES = 10


@asynccontextmanager
async def started(*arguments: str, stdout: int | IO[bytes], stderr: int | IO[bytes] | None) -> AsyncIterator[Process]:
    """Start `amnestic ARGUMENTS`; the process is gone when the block ends, however it ends.

    It has a session of its own, so that Ctrl-C reaches the demo alone, which then stops it in good order.
    """
    process = await asyncio.create_subprocess_exec(
        *AMNESTIC, *arguments, stdin=DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
    )
    try:
        yield process
    finally:
        await _stop(process)


async def output_of(*arguments: str, quiet: bool) -> str:
    """Standard output of `amnestic ARGUMENTS` run to its end; raises DemoError if it fails.

    Its standard error, with its progress unless `quiet`, is the demo's own.
    """
    async with started(*arguments, *(["--quiet"] if quiet else []), stdout=PIPE, stderr=None) as process:
        stdout, _ = await process.communicate()
    if process.returncode:
        raise DemoError(f"`amnestic {arguments[0]}` failed with exit code {process.returncode}")
    return stdout.decode()


@asynccontextmanager
async def serving(settings: DemoSettings) -> AsyncIterator[tuple[str, str]]:
    """A server of the demo's bundle on free ports: its gRPC address and its execution provider, once it is ready."""
    arguments: list[Any] = ["--bundle", settings.bundle, "--store", settings.store, "--corpus", settings.corpus]
    ports = ["--grpc-port", "0", "--metrics-port", "0"]
    with settings.server_log.open("wb") as log:
        async with started("serve", *map(str, arguments), *ports, stdout=PIPE, stderr=log) as process:
            yield await _ready(process, settings.server_log)


async def _ready(process: Process, log: Path) -> tuple[str, str]:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            async for line in process.stdout:
                if match := READY.match(line.decode()):
                    return match["target"], match["provider"]
    except TimeoutError:
        raise DemoError(f"the server was not ready within {START_SECONDS:g} s; its log is {log}") from None
    said = await asyncio.to_thread(log.read_text, errors="replace")
    raise DemoError(f"the server did not start; its log, {log}, ends with:\n{_tail(said)}")


async def _stop(process: Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-LOG_LINES:])

"""How to call the peers that speak HTTP, for `amnestic_server.bench.load`."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from amnestic_server.bench.callers import Call, CallError


@asynccontextmanager
async def http(url: str, bodies: str, timeout_seconds: float = 60.0) -> AsyncIterator[Call]:
    """POSTs to one address over as many connections as it takes; `bodies` is a file of JSON texts, sent in turn."""
    sent = json.loads(Path(bodies).read_text())  # noqa: ASYNC240  (before the load begins)
    headers = {"Content-Type": "application/json"}
    limits = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=timeout_seconds)
    async with aiohttp.ClientSession(connector=limits, timeout=timeout, headers=headers) as session:

        async def call(index: int) -> None:
            async with session.post(url, data=sent[index % len(sent)]) as answer:
                await answer.read()
                if answer.status != 200:
                    raise CallError(f"HTTP {answer.status}")

        yield call

"""Ways to call a server, for `load`: each is given its arguments by name and opens a connection for one load.

A caller for another kind of server is a function of the same form in any module; a load names it as `module:function`.
"""

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from amnestic.v1 import prediction_pb2 as prediction

# Send the call of this number and wait for its answer; a number that it returns is kept with the call.
Call = Callable[[int], Awaitable[int | None]]


class CallError(Exception):
    """A call that got no good answer, for callers of other protocols than gRPC; `code` is what it is counted under."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def write_messages(messages: Sequence[bytes], path: Path) -> None:
    """Write serialised requests to a file of JSON."""
    path.write_text(json.dumps([base64.b64encode(message).decode() for message in messages]))


def read_messages(path: Path) -> list[bytes]:
    """The inverse of `write_messages`."""
    return [base64.b64decode(message) for message in json.loads(path.read_text())]


@asynccontextmanager
async def unary(
    target: str, method: str, messages: str, timeout_seconds: float = 60.0, versions: bool = False
) -> AsyncIterator[Call]:
    """A unary gRPC method on one channel of its own, without retries; `messages` is a file, sent round and round.

    With `versions`, answers are read as Amnestic's, and the version that gave each is kept with the call.
    """
    sent = read_messages(Path(messages))
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        stub: Any = channel.unary_unary(method)

        async def call(index: int) -> int | None:
            answer = await stub(sent[index % len(sent)], timeout=timeout_seconds)
            return int(prediction.PredictResponse.FromString(answer).version) if versions else None

        yield call

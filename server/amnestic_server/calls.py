"""What every gRPC method shares: it is counted and timed, and its errors become status codes in one place."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, NoReturn, Self, TypeVar

import grpc
import grpc.aio

from amnestic_server.errors import AmnesticError
from amnestic_server.metrics import Metrics

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Q = TypeVar("Q")
A = TypeVar("A")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Failure:
    """What a caller is told of an error: its status code by name and its fixed text."""

    status: str
    text: str

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Anything unforeseen says nothing of itself."""
        if isinstance(error, AmnesticError):
            return cls(error.status, str(error))
        log.error("unforeseen %s", type(error).__name__, exc_info=error.with_traceback(error.__traceback__))
        return cls("INTERNAL", "internal error")


async def _abort(context: Context, error: Exception) -> NoReturn:
    failure = Failure.of(error)
    await context.abort(grpc.StatusCode[failure.status], failure.text)


class _Measured:
    """Counts and times one call, whichever way it ends."""

    def __init__(self, metrics: Metrics, method: str) -> None:
        self._metrics = metrics
        self._method = method
        self._started = time.perf_counter()

    def end(self, error: BaseException | None = None) -> None:
        match error:
            case None:
                code = "OK"
            case AmnesticError():
                code = error.status
            case asyncio.CancelledError():
                code = "CANCELLED"
            case _:
                code = "INTERNAL"
        self._metrics.requests.labels(self._method, code).inc()
        self._metrics.request_seconds.labels(self._method, code).observe(time.perf_counter() - self._started)


def unary(
    method: Callable[[S, Q, Context], Awaitable[A]],
) -> Callable[[S, Q, Context], Awaitable[A]]:
    """Measure a unary method, and turn its errors into status codes."""

    @wraps(method)
    async def call(self: Any, request: Q, context: Context) -> A:
        measured = _Measured(self.metrics, method.__name__)
        try:
            answer = await method(self, request, context)
        except BaseException as error:
            measured.end(error)
            if isinstance(error, Exception):
                await _abort(context, error)
            raise
        measured.end()
        return answer

    return call


def streaming(
    method: Callable[[S, Q, Context], AsyncIterator[A]],
) -> Callable[[S, Q, Context], AsyncIterator[A]]:
    """The same for a method that answers with a stream."""

    @wraps(method)
    async def call(self: Any, request: Q, context: Context) -> AsyncIterator[A]:
        measured = _Measured(self.metrics, method.__name__)
        try:
            async for answer in method(self, request, context):
                yield answer
        except BaseException as error:
            measured.end(error)
            if isinstance(error, Exception):
                await _abort(context, error)
            raise
        measured.end()

    return call


async def within_stream(metrics: Metrics, method: str, answer: Awaitable[A]) -> A | Failure:
    """The same for one request of a stream: its error is returned, for the stream goes on."""
    measured = _Measured(metrics, method)
    try:
        answered = await answer
    except BaseException as error:
        measured.end(error)
        if isinstance(error, Exception):
            return Failure.of(error)
        raise
    measured.end()
    return answered

"""What every gRPC method shares: it is counted, timed and logged, and its errors become status codes in one place.

An error travels as its code and its fixed text, and for programs as a `google.rpc.Status` in the trailing metadata:
the name of the cause, the field at fault, and when to try again.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import wraps
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

from amnestic.v1 import unlearning_pb2
from amnestic_server import caller, logs, trace
from amnestic_server.errors import AmnesticError, NotFoundError, UndecodableError
from amnestic_server.metrics import Metrics
from amnestic_server.trace import Headers, Trace

log = logging.getLogger(__name__)

ERROR_DOMAIN = "amnestic"
# Who leaves an answer unread for so long loses it, or its stream: until then it holds its version, and a swap waits.
WRITE_SECONDS = 30.0
# A call cancelled so shortly before its deadline counts as late: gRPC rounds a timeout up by a hundredth at most.
EARLY_SECONDS, EARLY_SHARE = 0.01, 0.01
COMPRESSION_WISH = ("amnestic-compression", "gzip")

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Method: TypeAlias = Callable[[Any, Context], Any]
Q = TypeVar("Q")
A = TypeVar("A")
S = TypeVar("S")

_KINDS = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


def rewrapped(
    handler: "grpc.RpcMethodHandler[Any, Any]",
    wrap: Callable[[Method], Method],
    request_deserializer: Callable[[bytes], Any] | None,
) -> Handler:
    """The same handler around another method, and with another deserializer; without one requests stay bytes."""
    kind, make = _KINDS[bool(handler.request_streaming), bool(handler.response_streaming)]
    return make(
        wrap(getattr(handler, kind)),
        request_deserializer=request_deserializer,
        response_serializer=handler.response_serializer,
    )


def client(context: Context) -> str:
    """Whom a call is charged to: the caller by name, or else the connection."""
    return caller.current().name or context.peer()


def _told(error: Exception) -> AmnesticError:
    """What a caller is told of an error; anything unforeseen says nothing of itself."""
    if isinstance(error, AmnesticError):
        return error
    # Where, but not what it says: its text may hold a document.
    log.error("unforeseen %s\n%s", type(error).__name__, logs.where(error))
    return AmnesticError("internal error")


async def abort(context: Context, error: Exception) -> NoReturn:
    told = _told(error)
    await context.abort(grpc.StatusCode[told.status], str(told), _trailing_metadata(told))


def _trailing_metadata(error: AmnesticError) -> tuple[tuple[str, str | bytes], ...]:
    """The error for programs, and the wait that gRPC's own retries keep to."""
    status = Status(code=grpc.StatusCode[error.status].value[0], message=str(error))
    for detail in _details(error):
        status.details.add().Pack(detail)
    metadata: tuple[tuple[str, str | bytes], ...] = (
        ("grpc-status-details-bin", status.SerializeToString()),
        *_trace_response(),
    )
    if error.retry_after is not None:
        metadata += (("grpc-retry-pushback-ms", str(round(error.retry_after * 1000))),)
    return metadata


def _details(error: AmnesticError) -> Iterator[Message]:
    yield ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)
    if error.field:
        yield BadRequest(field_violations=[BadRequest.FieldViolation(field=error.field, description=str(error))])
    if isinstance(error, NotFoundError) and error.resource:
        # Without its name, which would repeat what was sent.
        yield ResourceInfo(resource_type=error.resource)
    if error.retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        yield RetryInfo(retry_delay=delay)


class TraceInterceptor(grpc.aio.ServerInterceptor):
    """Gives each call the trace that `trace_of` makes of its path and its headers; gRPC's own services have none."""

    def __init__(self, trace_of: Callable[[str, Headers], Trace | None]) -> None:
        self._trace_of = trace_of

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        path = handler_call_details.method
        if not path.startswith("/grpc."):
            trace.enter(self._trace_of(path, tuple(handler_call_details.invocation_metadata)))
        return await continuation(handler_call_details)


def _trace_response() -> tuple[tuple[str, str], ...]:
    """Where the call stands in its trace, for the caller: with the last word, where it costs no message of its own."""
    current = trace.current()
    return (("traceresponse", current.response),) if current and current.response else ()


async def _compress_if_asked(context: Context) -> None:
    """Python's gRPC does not tell how a request was compressed, so the wish for an answer is said in metadata.

    To be called last: the headers that tell of it end the client's retries.
    """
    if COMPRESSION_WISH in (context.invocation_metadata() or ()):
        context.set_compression(grpc.Compression.Gzip)
        await context.send_initial_metadata(())


def _give_up_unread(context: Context) -> None:
    """End the call if its answer has not left after `WRITE_SECONDS`; gRPC would let it wait for ever."""
    call = asyncio.current_task()
    assert call is not None
    giving_up = asyncio.get_running_loop().call_later(WRITE_SECONDS, call.cancel)
    context.add_done_callback(lambda _: giving_up.cancel())  # type: ignore[arg-type]  # the stubs want a class


class _Measured:
    """Counts and times one call, logs and traces it, whichever way it ends; `context` tells whether it was late."""

    def __init__(self, metrics: Metrics, method: str, context: Context | None = None) -> None:
        self._metrics = metrics
        self._method = method
        self._context = context
        self._started = time.perf_counter()
        self._trace = trace.current() or trace.enter(Trace())
        self._trace.begin()

    def end(self, error: BaseException | None = None, answer: object = None) -> None:
        match error:
            case None:
                code = "OK"
            case AmnesticError():
                code = error.status
            case asyncio.CancelledError() | GeneratorExit():
                code = "DEADLINE_EXCEEDED" if self._is_late() else "CANCELLED"
            case _:
                code = "INTERNAL"
        ended = time.perf_counter()
        seconds = ended - self._started
        self._metrics.call_ended(self._method, code, ended, seconds)
        if log.isEnabledFor(logging.DEBUG):
            self._log(code, seconds, error, answer)
        self._trace.end(code)

    def _is_late(self) -> bool:
        """Whether gRPC cancelled the call for its deadline, which it does without a word.

        The client may come first: its clock began before this one, and its timeout was rounded on its way.
        """
        left = self._context.time_remaining() if self._context is not None else None
        return left is not None and left <= EARLY_SECONDS + EARLY_SHARE * (time.perf_counter() - self._started)

    def _log(self, code: str, seconds: float, error: BaseException | None, answer: object) -> None:
        """One line: figures and ids of our own making, never what was sent."""
        fields: dict[str, int | float | str] = {"seconds": round(seconds, 6), **self._trace.figures}
        for stage, taken in self._trace.stages.items():
            fields[f"{stage}_seconds"] = round(taken, 6)
        if isinstance(error, AmnesticError):
            fields["reason"] = error.reason
        if isinstance(job := getattr(answer, "job", None), unlearning_pb2.Job):
            fields["job"] = job.job_id
        if name := caller.current().name:
            fields["caller"] = name
        log.debug("%s %s", self._method, code, extra={"fields": fields})


class Decoder(grpc.aio.ServerInterceptor):
    """Decodes requests in gRPC's place, which would answer bytes that are no message with INTERNAL and its own words.

    To be the last interceptor: whoever may not call is told that, whatever they sent.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        path, decode = handler_call_details.method, handler.request_deserializer
        read = _each_decoded if handler.request_streaming else self._decoded(path)
        return rewrapped(handler, lambda method: _decoding(method, lambda request: read(request, decode)), None)

    def _decoded(self, path: str) -> Callable[[bytes, Callable[[bytes], Any]], Any]:
        def read(request: bytes, decode: Callable[[bytes], Any]) -> Any:
            try:
                return _decode(request, decode)
            except UndecodableError as error:
                # gRPC's own services are not measured.
                if not path.startswith("/grpc."):
                    _Measured(self._metrics, path.rpartition("/")[2]).end(error)
                raise

        return read


def _decoding(method: Method, read: Callable[[Any], Any]) -> Method:
    """A method of bytes around one of messages; a stream of them may turn out undecodable anywhere."""

    async def unary(request: Any, context: Context) -> Any:
        try:
            return await method(read(request), context)
        except UndecodableError as error:
            await abort(context, error)

    async def streaming(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for answer in method(read(request), context):
                yield answer
        except UndecodableError as error:
            await abort(context, error)

    return streaming if inspect.isasyncgenfunction(method) else unary


def _decode(request: bytes, decode: Callable[[bytes], Any]) -> Any:
    try:
        return decode(request)
    except DecodeError:
        raise UndecodableError from None


async def _each_decoded(requests: AsyncIterator[bytes], decode: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _decode(request, decode)


def unary(
    method: Callable[[S, Q, Context], Awaitable[A]],
) -> Callable[[S, Q, Context], Awaitable[A]]:
    """Measure a unary method, and turn its errors into status codes."""

    @wraps(method)
    async def call(self: Any, request: Q, context: Context) -> A:
        measured = _Measured(self.metrics, method.__name__, context)
        try:
            answer = await method(self, request, context)
        except BaseException as error:
            measured.end(error)
            if isinstance(error, Exception):
                await abort(context, error)
            raise
        measured.end(answer=answer)
        context.set_trailing_metadata(_trace_response())
        # Without an answer it is a stream of the method's own, whose headers left with its first message.
        if answer is not None:
            _give_up_unread(context)
            await _compress_if_asked(context)
        return answer

    return call


def streaming(
    method: Callable[[S, Q, Context], AsyncIterator[A]],
) -> Callable[[S, Q, Context], AsyncIterator[A]]:
    """The same for a method that answers with a stream."""

    @wraps(method)
    async def call(self: Any, request: Q, context: Context) -> AsyncIterator[A]:
        measured = _Measured(self.metrics, method.__name__, context)
        try:
            async for answer in method(self, request, context):
                yield answer
        except BaseException as error:
            measured.end(error)
            if isinstance(error, Exception):
                await abort(context, error)
            raise
        measured.end()
        context.set_trailing_metadata(_trace_response())

    return call


async def within_stream(metrics: Metrics, method: str, context: Context, answer: Awaitable[A]) -> A | AmnesticError:
    """The same for one request of a stream, in a task of its own: its error is returned, for the stream goes on."""
    stream = trace.current()
    # The span is the stream's.
    trace.enter(Trace(stream.trace_id if stream else ""))
    measured = _Measured(metrics, method, context)
    try:
        answered = await answer
    except BaseException as error:
        measured.end(error)
        if isinstance(error, Exception):
            return _told(error)
        raise
    measured.end()
    return answered

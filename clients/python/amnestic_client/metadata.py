"""What a call says of itself beside its request: who makes it, its trace, and how it may be answered."""

import sys
from collections.abc import Callable
from typing import TypeAlias

import grpc

Metadata = tuple[tuple[str, str], ...]
# A bearer token, or what gives the one that holds now: it is asked for each call.
Token: TypeAlias = str | Callable[[], str]

COMPRESSIONS = {None: grpc.Compression.NoCompression, "gzip": grpc.Compression.Gzip}


def compression_of(name: str | None) -> grpc.Compression:
    """Raises ValueError unless it is None or gzip."""
    if name not in COMPRESSIONS:
        raise ValueError("compression must be None or gzip")
    return COMPRESSIONS[name]


def outgoing(compression: grpc.Compression, token: Token | None) -> Metadata:
    """The metadata of a call that is made now."""
    # gRPC compresses requests by itself; this asks the server to do the same with its answer.
    wish = (("amnestic-compression", "gzip"),) if compression is grpc.Compression.Gzip else ()
    return _authorization(token) + _trace_context() + wish


def _authorization(token: Token | None) -> Metadata:
    if token is None:
        return ()
    return (("authorization", f"Bearer {token if isinstance(token, str) else token()}"),)


def _trace_context() -> Metadata:
    """`traceparent` and `tracestate` of OpenTelemetry's current span; nothing without one.

    Who has a span has imported OpenTelemetry: the client needs neither to import nor to require it.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or not trace.get_current_span().get_span_context().is_valid:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return tuple(headers.items())

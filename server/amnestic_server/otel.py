"""Spans of calls by OpenTelemetry, exported by OTLP over gRPC; needs the extra `otel`.

A call is one span with a child for each stage of a prediction. No text, no label and no id that a caller chose is in
them. Endpoint, sampling, headers and the like are set by OpenTelemetry's own variables.
"""

import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import grpc

import amnestic
from amnestic_server.errors import StartError
from amnestic_server.trace import Headers, Trace, received

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# A collector that does not answer must not hold up the end of the process.
CLOSE_SECONDS = 2.0
# The server's fault, as OpenTelemetry's conventions for gRPC have it.
FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")


class Spans:
    """Makes the spans of one serving process, and exports them in the background."""

    def __init__(self) -> None:
        """Raises StartError if the extra is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise StartError("--otel needs OpenTelemetry: install amnestic[otel]") from error
        resource = Resource.create({"service.version": amnestic.__version__})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "amnestic"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("amnestic", amnestic.__version__)

    def of(self, path: str, headers: Headers) -> Trace:
        """The trace of a call of /SERVICE/METHOD: the caller's if the headers name one, else a new one."""
        return SpanTrace(self._tracer, path, headers)

    def close(self) -> None:
        """Export what is left, if that can be done soon."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


class SpanTrace(Trace):
    """A call that becomes a span."""

    def __init__(self, tracer: "Tracer", path: str, headers: Headers) -> None:
        super().__init__()
        self._tracer = tracer
        self._path = path
        self._carrier: dict[str, list[str]] = {}
        if received(headers) is not None:
            for name in ("traceparent", "tracestate"):
                self._carrier[name] = [str(value) for key, value in headers if key == name]
        self._noted_at = 0

    @property
    def response(self) -> str:
        span = self._span.get_span_context()
        return f"00-{self.trace_id}-{span.span_id:016x}-{span.trace_flags:02x}"

    def begin(self) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        service, _, method = self._path.strip("/").partition("/")
        self._span = self._tracer.start_span(
            self._path.strip("/"),
            TraceContextTextMapPropagator().extract(self._carrier),
            SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        self.trace_id = f"{self._span.get_span_context().trace_id:032x}"

    def note(self, stages: Mapping[str, float], **figures: int | str) -> None:
        super().note(stages, **figures)
        self._noted_at = time.time_ns()
        self._span.set_attributes({f"amnestic.{name}": value for name, value in figures.items()})

    def end(self, code: str) -> None:
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        self._span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[code].value[0])
        if code in FAULTS:
            self._span.set_status(Status(StatusCode.ERROR, code))
        if self._span.is_recording():
            begun = self._noted_at - int(sum(self.stages.values()) * 1e9)
            for stage, seconds in self.stages.items():
                span = self._tracer.start_span(stage, set_span_in_context(self._span), start_time=begun)
                begun += int(seconds * 1e9)
                span.end(begun)
        self._span.end()


def named_by_environment() -> bool:
    """Whether OpenTelemetry's own variables name a collector for traces."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(os.environ.get(name) for name in ENDPOINTS)

"""An OpenTelemetry collector, for spans that a server exports."""

from concurrent import futures
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the requests that it is sent, as they are."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def stop(self) -> None:
        self._server.stop(None).wait(5)

    def spans(self, trace_id: str) -> dict[str, Any]:
        """The spans of one trace by their names."""
        scopes = [scope for request in self.requests for one in request.resource_spans for scope in one.scope_spans]
        spans = [span for scope in scopes for span in scope.spans]
        return {span.name: span for span in spans if span.trace_id.hex() == trace_id}

"""Every call is admitted here or nowhere: by its caller's role, and by the port that it came in through.

What is not in `ROLES` is an administrator's alone once there is access control, so a method that somebody adds stays
closed until it is given a role.
"""

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from cryptography import x509

from amnestic.oip import open_inference_pb2
from amnestic.v1 import prediction_pb2, unlearning_pb2
from amnestic_server import caller
from amnestic_server.access import Access, certificate_holder
from amnestic_server.caller import Caller, Role
from amnestic_server.calls import Context, Handler, Method, abort, rewrapped
from amnestic_server.errors import AmnesticError, OtherPortError, UnauthenticatedError
from amnestic_server.metrics import Metrics

log = logging.getLogger(__name__)

PREDICTION = prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name
UNLEARNING = unlearning_pb2.DESCRIPTOR.services_by_name["UnlearningService"].full_name
INFERENCE = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

# Methods that change something: where there is a port of operations, it alone answers them.
CHANGES = frozenset(
    f"/{UNLEARNING}/{name}" for name in ("Unlearn", "CancelJob", "Rollback", "PromoteVersion", "SetRollout", "Purge")
)
ROLES = {
    **{f"/{PREDICTION}/{name}": Role.PREDICT for name in ("Predict", "GetModel", "GetStatus")},
    **{
        f"/{UNLEARNING}/{name}": Role.OPERATE
        for name in ("WatchJob", "GetJob", "GetReceipt", "ListJobs", "ListVersions", "GetRollout")
    },
    **dict.fromkeys(CHANGES, Role.OPERATE),
    f"/{UNLEARNING}/Purge": Role.ADMIN,
    **{
        f"/{INFERENCE}/{name}": Role.PREDICT
        for name in (
            "ServerLive",
            "ServerReady",
            "ModelReady",
            "ServerMetadata",
            "ModelMetadata",
            "ModelInfer",
            "ModelStreamInfer",
            "ModelConfig",
            "ModelStatistics",
            "RepositoryIndex",
        )
    },
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Role.PREDICT,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.PREDICT,
}
# Probes have no credentials, and hear of nothing but readiness.
OPEN = "/grpc.health.v1.Health/"


class Guard(grpc.aio.ServerInterceptor):
    """Admits the calls of one server's ports.

    Without `access` everybody has every role, and a client certificate only says who calls. Unless `changes`, the
    methods that change something are answered elsewhere.
    """

    def __init__(self, access: Access | None, metrics: Metrics, *, changes: bool) -> None:
        self._access = access
        self._metrics = metrics
        self._closed = frozenset[str]() if changes else CHANGES
        self._certificates: dict[bytes, x509.Certificate] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        path = handler_call_details.method
        handler = await continuation(handler_call_details)
        # Without a handler there is no such method, and gRPC says so.
        if handler is None or path.startswith(OPEN):
            return handler
        return rewrapped(handler, lambda method: self._guarded(method, path), handler.request_deserializer)

    def _guarded(self, method: Method, path: str) -> Method:
        async def unary(request: Any, context: Context) -> Any:
            await self._admit(path, context)
            return await method(request, context)

        async def streaming(request: Any, context: Context) -> AsyncIterator[Any]:
            await self._admit(path, context)
            async for answer in method(request, context):
                yield answer

        return streaming if inspect.isasyncgenfunction(method) else unary

    async def _admit(self, path: str, context: Context) -> None:
        try:
            if path in self._closed:
                raise OtherPortError
            found = self._caller(context)
            caller.enter(found)
            if self._access is not None:
                found.require(ROLES.get(path, Role.ADMIN))
        except AmnesticError as error:
            self._metrics.denied.labels(error.reason).inc()
            log.warning("%s of %s was not admitted: %s", path, caller.current().name or "somebody", error.reason)
            await abort(context, error)

    def _caller(self, context: Context) -> Caller:
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
        if self._access is not None:
            return self._access.caller(_token(context), pem)
        return Caller() if pem is None else certificate_holder(pem, self._certificates, None)


def _token(context: Context) -> str | None:
    """The bearer token; raises UnauthenticatedError if something else stands in its place."""
    values = [value for name, value in context.invocation_metadata() or () if name == "authorization"]
    if not values:
        return None
    kind, _, token = str(values[0]).partition(" ")
    if len(values) > 1 or kind.lower() != "bearer" or not token:
        raise UnauthenticatedError("the call's authorization is not one bearer token", reason="TOKEN_INVALID")
    return token

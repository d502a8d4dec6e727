"""Where the server listens, and the standard services that it has beside its own: health and reflection."""

import asyncio
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION
from grpc_reflection.v1alpha.reflection import aio as reflection

from amnestic_server.errors import DrainingError, StartError
from amnestic_server.settings import Settings

# The same messages under the name that newer tools ask for; the package knows the older one alone.
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
KEEPALIVE_TIMEOUT_MS = 20_000
PROBE_SECONDS = 1.0


def bind(
    settings: Settings, interceptors: Sequence[grpc.aio.ServerInterceptor], stack: AsyncExitStack
) -> tuple[grpc.aio.Server, list[str]]:
    """A server that is not started yet, and its addresses as clients name them, TCP first.

    Taken before anything slow, so that an address in use is told at once, as a StartError.
    """
    server = grpc.aio.server(
        interceptors=interceptors,
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", int(settings.keepalive_secs * 1000)),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            # Else every ping without a call is held against the client.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", int(settings.client_ping_secs * 1000)),
        ],
    )
    targets = []
    if settings.tcp:
        targets.append(_bind_port(server, settings.host, settings.grpc_port))
    if settings.uds is not None:
        targets.append(_bind_socket(server, settings.uds.absolute(), int(settings.uds_mode, 8), stack))
    return server, targets


class Health(health.HealthServicer):  # type: ignore[misc]
    """The standard health service, whose watches can be ended: gRPC leaves them behind when a server stops."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = asyncio.Event()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        watch = asyncio.create_task(super().Watch(request, context))
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait((watch, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            watch.cancel()
            ended.cancel()
        if self._ended.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(DrainingError()))

    def end_watches(self) -> None:
        self._ended.set()


async def add_health(server: grpc.aio.Server, services: Sequence[str]) -> Health:
    """The standard health service; the server as a whole and each of its services are NOT_SERVING yet."""
    servicer = Health()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await set_health(servicer, services, health_pb2.HealthCheckResponse.NOT_SERVING)
    return servicer


async def set_health(
    servicer: Health, services: Sequence[str], status: health_pb2.HealthCheckResponse.ServingStatus
) -> None:
    for name in ("", *services):
        await servicer.set(name, status)


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Server reflection, by which tools such as grpcurl find the services and their messages."""
    servicer = reflection.ReflectionServicer((*services, HEALTH, REFLECTION))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(REFLECTION_V1, {"ServerReflectionInfo": handler})]
    )


def _bind_port(server: grpc.aio.Server, host: str, port: int) -> str:
    try:
        return f"{host}:{server.add_insecure_port(f'{host}:{port}')}"
    except RuntimeError as error:
        raise StartError(f"cannot listen on {host}:{port}: is the port in use?") from error


def _bind_socket(server: grpc.aio.Server, path: Path, mode: int, stack: AsyncExitStack) -> str:
    """The socket has its permissions before anybody can connect, and is gone at exit."""
    _make_way(path)
    target = f"unix:{quote(str(path))}"
    mask = os.umask(0o177)
    try:
        server.add_insecure_port(target)
        path.chmod(mode)
        stack.callback(_remove, path, _identity(path))
    except (RuntimeError, OSError) as error:
        raise StartError(f"cannot listen on {path}: is its directory there, and may it be written to?") from error
    finally:
        os.umask(mask)
    return target


def _make_way(path: Path) -> None:
    """Remove the socket that a killed server left; gRPC would also take that of a running one away."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise StartError(f"cannot listen on {path}: it is there, and not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PROBE_SECONDS)
            probe.connect(str(path))
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StartError(f"cannot listen on {path}: {error.strerror or 'it does not answer'}") from error
    else:
        raise StartError(f"cannot listen on {path}: another server does")


def _identity(path: Path) -> tuple[int, int]:
    """What tells a socket from another at its place: inodes are used again."""
    state = path.stat()
    return state.st_ino, state.st_ctime_ns


def _remove(path: Path, identity: tuple[int, int]) -> None:
    """The socket, unless gRPC removed it when it stopped, or another server has it by now."""
    if path.is_socket() and _identity(path) == identity:
        path.unlink()

"""Where the server listens, and the standard services that it has beside its own: health and reflection."""

import asyncio
import os
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
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

from amnestic_server.certificates import Certificates
from amnestic_server.errors import DrainingError, StartError
from amnestic_server.settings import Settings

# The same messages under the name that newer tools ask for; the package knows the older one alone.
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
KEEPALIVE_TIMEOUT_MS = 20_000
# Who has connected must speak HTTP/2, through TLS if need be, within that.
HANDSHAKE_TIMEOUT_MS = 20_000
PROBE_SECONDS = 1.0
# Calls that wait for Python to take them, and for how long. By default gRPC cancels some beyond a thousand, and all
# after 30 s, without a word of when to come back; the queue refuses instead, and callers have deadlines of their own.
MAX_PENDING_CALLS = 65_536
MAX_PENDING_SECONDS = 3_600
# What is left to do in the methods of calls that have ended is a matter of milliseconds.
LAST_STEPS_SECONDS = 1.0


# Given the port's name, what admits and traces its calls.
Interceptors = Callable[[str], Sequence[grpc.aio.ServerInterceptor]]


@dataclass(slots=True)
class Ports:
    """The servers of one process, not started yet: `services` answer everything, `health` only whether they do.

    `targets` are the addresses as clients name them: `grpc`, `uds`, `operations`, `health`, those that there are.
    """

    services: list[grpc.aio.Server]
    health: list[grpc.aio.Server]
    targets: dict[str, str]
    _before: set["asyncio.Task[Any]"] = field(default_factory=set)

    @property
    def all(self) -> list[grpc.aio.Server]:
        return [*self.services, *self.health]

    async def start(self) -> None:
        self._before = asyncio.all_tasks()
        for server in self.all:
            await server.start()

    async def stop(self, grace: float) -> None:
        """Let calls end for `grace` seconds, and cancel the others."""
        await asyncio.gather(*(server.stop(grace) for server in self.all))
        # gRPC waits for its calls, but not for their methods: ended with the loop, one would be logged as a failure.
        if left := asyncio.all_tasks() - self._before:
            await asyncio.wait(left, timeout=LAST_STEPS_SECONDS)


def bind(
    settings: Settings, certificates: Certificates | None, interceptors: Interceptors, stack: AsyncExitStack
) -> Ports:
    """Take every address before anything slow, so that one in use is told at once, as a StartError.

    With `certificates` the ports speak TLS, but for health's; a Unix domain socket has its permissions instead.
    """
    options = _options(settings, certificates is not None)
    main = grpc.aio.server(interceptors=interceptors("grpc"), options=options)
    ports = Ports([main], [], {})
    if settings.tcp:
        ports.targets["grpc"] = _bind_port(main, settings.host, settings.grpc_port, certificates)
    if settings.uds is not None:
        ports.targets["uds"] = _bind_socket(main, settings.uds.absolute(), int(settings.uds_mode, 8), stack)
    if settings.operations_port is not None:
        server = grpc.aio.server(interceptors=interceptors("operations"), options=options)
        ports.targets["operations"] = _bind_port(server, settings.host, settings.operations_port, certificates)
        ports.services.append(server)
    if settings.health_port is not None:
        server = grpc.aio.server(interceptors=interceptors("health"), options=[("grpc.so_reuseport", 0)])
        host = settings.monitoring_host or settings.host
        ports.targets["health"] = _bind_port(server, host, settings.health_port, None)
        ports.health.append(server)
    return ports


def _options(settings: Settings, secure: bool) -> list[tuple[str, int]]:
    options = [
        ("grpc.so_reuseport", 0),
        ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
        ("grpc.server_max_unrequested_time_in_server", MAX_PENDING_SECONDS),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", int(settings.keepalive_secs * 1000)),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # Else every ping without a call is held against the client.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(settings.client_ping_secs * 1000)),
    ]
    if secure and settings.max_connection_age_secs:
        age = int(settings.max_connection_age_secs * 1000)
        options += [("grpc.max_connection_age_ms", age), ("grpc.max_connection_age_grace_ms", age)]
    return options


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


async def add_health(servers: Sequence[grpc.aio.Server], services: Sequence[str]) -> Health:
    """The standard health service; the server as a whole and each of its services are NOT_SERVING yet."""
    servicer = Health()
    for server in servers:
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


def _bind_port(server: grpc.aio.Server, host: str, port: int, certificates: Certificates | None) -> str:
    address = f"{host}:{port}"
    try:
        if certificates is None:
            return f"{host}:{server.add_insecure_port(address)}"
        return f"{host}:{server.add_secure_port(address, certificates.credentials())}"
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

"""Addresses, health and reflection of a server process: what an operator's platform and tools meet."""

import json
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from amnestic_client import Client
from amnestic_server.cli import group
from amnestic_server.listening import REFLECTION_V1

SERVICES = ("amnestic.v1.PredictionService", "amnestic.v1.UnlearningService", "inference.GRPCInferenceService")
HEALTH = health_pb2.HealthCheckResponse


@pytest.fixture(scope="module")
def running(serve_for_module, tmp_path_factory):
    """A server on a port and on a socket, which lets clients ping often. The tests leave it as it is."""
    path = tmp_path_factory.mktemp("run") / "amnestic 1.sock"
    return serve_for_module("--uds", str(path), "--client-ping-secs", "0.2")


@pytest.fixture(scope="module")
def plain(serve_for_module):
    """One without reflection, otherwise with the defaults."""
    return serve_for_module("--no-reflection", corpus=None)


@pytest.fixture
def refused():
    """Start a server that must not start; returns the reason it gives."""

    def start(server: Any, *flags: str) -> str:
        ended = CliRunner().invoke(group, ["serve", *server.arguments, *flags])
        assert (ended.exit_code, ended.stdout) == (1, "")
        return ended.stderr.splitlines()[-1]

    return start


def path_of(target: str) -> Path:
    return Path(target.removeprefix("unix:").replace("%20", " "))


def test_the_socket_and_the_port_answer_alike(running, texts):
    assert running.uds.endswith("/amnestic%201.sock")
    with Client(running.uds) as client:
        assert client.is_ready()
        assert client.predict(texts) == running.client.predict(texts)
    listed = CliRunner().invoke(group, ["versions", "--json", "--server", running.uds])
    assert [version["version"] for version in json.loads(listed.stdout)] == [1]


def test_the_socket_is_for_the_user_and_the_group(running):
    assert stat.S_IMODE(path_of(running.uds).stat().st_mode) == 0o660


def test_a_socket_in_use_is_not_taken(running, serve, refused):
    path = path_of(running.uds)
    said = refused(serve(start=False), "--uds", str(path))
    assert said == f"Error: cannot listen on {path}: another server does"
    with Client(running.uds) as client:
        assert client.is_ready()


def test_what_is_no_socket_is_left_alone(serve, refused, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("keep me")
    assert refused(serve(start=False), "--uds", str(path)).endswith("it is there, and not a socket")
    assert path.read_text() == "keep me"
    assert "is its directory there" in refused(serve(start=False), "--uds", str(tmp_path / "nowhere" / "a.sock"))


def test_a_start_that_fails_later_leaves_no_socket(serve, refused, tmp_path):
    server = serve(bundle=tmp_path / "nowhere", start=False)
    assert "is this a bundle?" in refused(server, "--uds", str(tmp_path / "a.sock"))
    assert not (tmp_path / "a.sock").exists()


def test_a_socket_alone_survives_a_kill_and_is_gone_at_exit(serve, tmp_path):
    path = tmp_path / "amnestic.sock"
    server = serve("--no-tcp", "--uds", str(path), "--uds-mode", "0600", start=False)
    with socket.socket() as taken:
        # No port is asked for, or this one would be a refusal to start.
        taken.bind(("127.0.0.1", 0))
        server.arguments += ["--grpc-port", str(taken.getsockname()[1])]
        server.start()
    assert server.target == server.uds == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert server.client.predict("fine").version == 1
    server.kill()
    assert path.is_socket()
    server.start()
    assert server.client.predict("fine").version == 1
    assert server.terminate() == 0
    assert not path.exists()


def test_health_by_service(running):
    with grpc.insecure_channel(running.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status == HEALTH.SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            stub.Check(health_pb2.HealthCheckRequest(service="amnestic.v1.None"), timeout=5)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="amnestic.v1.None"), timeout=5)
        assert next(watch).status == HEALTH.SERVICE_UNKNOWN
        watch.cancel()


def test_who_watches_the_health_hears_of_the_stop_before_any_call_is_refused(serve, traffic, texts):
    server = serve()
    clients = traffic(server.target, texts, processes=1, threads=4)
    heard: dict[str, float] = {}
    with grpc.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def watch(service: str) -> None:
            for answer in stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=60):
                if answer.status == HEALTH.NOT_SERVING:
                    heard[service] = time.monotonic()
                    return

        watchers = [threading.Thread(target=watch, args=(service,)) for service in ("", *SERVICES)]
        for watcher in watchers:
            watcher.start()
        time.sleep(0.3)
        assert not heard
        server.send(signal.SIGTERM)
        for watcher in watchers:
            watcher.join(30)
        assert server.wait() == 0
    calls = clients.stop()
    refusals = [call.ended for call in calls if call.code == "UNAVAILABLE"]
    assert refusals
    assert set(heard) == {"", *SERVICES}
    assert max(heard.values()) < min(refusals)
    # The load went on in between, and was answered.
    assert any(call.code == "OK" and call.started > max(heard.values()) for call in calls)


def test_clients_may_ping_as_often_as_they_are_allowed_to(running, plain):
    """gRPC pings once a second at most; a server ends the connection at the third ping that comes too early."""
    options = [
        ("grpc.keepalive_time_ms", 500),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    states: dict[str, list[grpc.ChannelConnectivity]] = {running.target: [], plain.target: []}
    with ExitStack() as stack:
        for target, seen in states.items():
            channel = stack.enter_context(grpc.insecure_channel(target, options))
            channel.subscribe(seen.append, try_to_connect=True)
        time.sleep(4.5)
    assert states[running.target][-1] is grpc.ChannelConnectivity.READY
    assert states[plain.target][-1] is grpc.ChannelConnectivity.IDLE


class Reflected:
    """Calls methods as grpcurl does: knows nothing but names, and asks the server for the rest."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._database = ProtoReflectionDescriptorDatabase(channel)
        self._pool = DescriptorPool(self._database)

    def methods(self) -> dict[str, Any]:
        """Every method of the services that are not gRPC's own, by its path."""
        names = [name for name in self._database.get_services() if not name.startswith("grpc.")]
        services = [self._pool.FindServiceByName(name) for name in names]
        return {f"/{service.full_name}/{method.name}": method for service in services for method in service.methods}

    def call(self, path: str, **request: Any) -> list[dict[str, Any]]:
        method = self.methods()[path]
        kind = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        send = kind(path, type(message := GetMessageClass(method.input_type)()).SerializeToString, None)
        answer = send(json_format.ParseDict(request, message), timeout=30)
        answers: Iterator[bytes] = answer if method.server_streaming else iter([answer])
        of = GetMessageClass(method.output_type)
        return [json_format.MessageToDict(of.FromString(data)) for data in answers]


def test_every_method_can_be_called_by_reflection_alone(running):
    with grpc.insecure_channel(running.target) as channel:
        reflected = Reflected(channel)
        called = set()

        def call(name: str, **request: Any) -> list[dict[str, Any]]:
            (path,) = (path for path in reflected.methods() if path.endswith(f"/{name}"))
            called.add(path)
            return reflected.call(path, **request)

        (model,) = call("GetModel")
        assert [label["name"] for label in model["labels"]] == ["alpha", "beta", "gamma", "delta"]
        (status,) = call("GetStatus")
        assert status["state"] == "SERVER_STATE_SERVING"
        (answer,) = call("Predict", documents=["insulin and ketones"])
        assert len(answer["predictions"][0]["scores"]) == 4
        (asked,) = call("Unlearn", labels=["alpha"], dryRun=True, method={"epochs": 1000})
        job = {"jobId": asked["job"]["jobId"]}
        assert call("CancelJob", **job)[0]["job"]["state"] == "JOB_STATE_CANCELLED"
        assert call("WatchJob", **job) == call("GetJob", **job)
        with pytest.raises(grpc.RpcError, match="a job has a receipt once it succeeded or was rejected"):
            call("GetReceipt", **job)
        assert [one["jobId"] for one in call("ListJobs")[0]["jobs"]] == [job["jobId"]]
        assert [version["active"] for version in call("ListVersions")[0]["versions"]] == [True]
        with pytest.raises(grpc.RpcError, match="that version is active already"):
            call("Rollback", version=1, reason="try")
        with pytest.raises(grpc.RpcError, match="that version is active already"):
            call("PromoteVersion", version=1)
        with pytest.raises(grpc.RpcError, match="nothing that the bundle knows"):
            call("Purge", version=1, reason="try")
        with pytest.raises(grpc.RpcError, match="staged"):
            call("SetRollout", canaryShare=0.5)
        assert call("GetRollout") == [{}]
        assert called == {path for path in reflected.methods() if path.startswith("/amnestic.")}


def test_reflection_answers_by_its_newer_name_too(running):
    with grpc.insecure_channel(running.target) as channel:
        ask = channel.stream_stream(
            f"/{REFLECTION_V1}/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        (answer,) = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5)
    names = {service.name for service in answer.list_services_response.service}
    assert names == {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


def test_reflection_can_be_off(plain):
    with grpc.insecure_channel(plain.target) as channel:
        with pytest.raises(grpc.RpcError) as failure:
            ProtoReflectionDescriptorDatabase(channel).get_services()
        assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED

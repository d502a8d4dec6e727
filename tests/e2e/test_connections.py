"""Clients that misuse the connection are cut off, and the others are answered all the while."""

from contextlib import ExitStack

import grpc
import psutil
import pytest
from e2e import frames
from e2e.harness import CANARY

from amnestic.v1 import prediction_pb2, prediction_pb2_grpc

CONNECTIONS = 200
FRAMES = 20_000
GROWTH_BYTES = 64 * 2**20


@pytest.fixture(scope="module")
def server(serve_for_module):
    return serve_for_module()


@pytest.fixture(autouse=True)
def unharmed(server, texts):
    """Each test leaves a server that answers and has not grown."""
    server.client.predict(texts[:1])
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    yield
    server.client.predict(texts[:1])
    assert process.memory_info().rss - before < GROWTH_BYTES
    assert "Traceback" not in server.log


def test_a_flood_of_pings_ends_the_connection(server):
    with frames.opened(server.target) as connection:
        frames.send(connection, frames.frame(frames.PING, bytes(8)) * FRAMES)
        assert b"too_many_pings" in frames.rest(connection)


def test_streams_opened_and_reset_at_once(server):
    """The attack of CVE-2023-44487: no stream counts against a limit for long."""
    cancel = frames.CANCEL.to_bytes(4)
    with frames.opened(server.target) as connection:
        for stream in range(1, FRAMES // 2, 2):
            reset = frames.frame(frames.RST_STREAM, cancel, stream=stream)
            frames.send(connection, frames.headers(stream) + reset)


def test_headers_that_never_end(server):
    """The CONTINUATION flood of CVE-2024-27316 and its like."""
    field = frames.frame(frames.CONTINUATION, frames.block({"name": "v" * 100}) * 100, stream=1)
    with frames.opened(server.target) as connection:
        frames.send(connection, frames.headers(1, flags=0) + field * (FRAMES // 10))


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n", b"\x16\x03\x01" + bytes(200), bytes(9)])
def test_what_is_no_http2_is_hung_up_on(server, said):
    with frames.connect(server.target) as connection:
        frames.send(connection, said + bytes(64))
        frames.rest(connection)


def test_connections_that_say_nothing_and_calls_that_never_end(server, texts):
    with ExitStack() as stack:
        silent = [stack.enter_context(frames.connect(server.target)) for _ in range(CONNECTIONS)]
        for connection in silent[::2]:
            connection.sendall(frames.PREFACE + frames.frame(frames.SETTINGS) + frames.headers(1))
        assert server.client.predict(texts[:1])


def test_headers_that_are_too_large(server):
    with grpc.insecure_channel(server.target, options=[("grpc.enable_retries", 0)]) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failure:
            stub.Predict(prediction_pb2.PredictRequest(), metadata=[("name", CANARY * 5_000)], timeout=20)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert CANARY.lower() not in server.log.lower()

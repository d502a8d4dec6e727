"""Bytes that are no message get INVALID_ARGUMENT, whatever the method, and are counted like other calls."""

import asyncio

import grpc
import grpc.aio
import pytest
from e2e.harness import CANARY
from e2e.malformed import ALLOWED, METHODS, Malformed
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION

CASES = 4_000
# A field of a length that goes on behind the end, and a string that is not UTF-8, each beside a document.
BROKEN = (b"\x0a\xff" + CANARY.encode(), b"\x0a\x0e" + CANARY.encode()[:-1] + b"\xff")
TEXT = "the request is not a message of this method"
OTHERS = (f"/{HEALTH}/Check", f"/{HEALTH}/Watch", f"/{REFLECTION}/ServerReflectionInfo")


@pytest.fixture(scope="module")
def server(serve_for_module):
    return serve_for_module("--health-port", "0")


@pytest.fixture(scope="module")
def refusal(server):
    """Send bytes to a method, and be refused."""

    def send(path, request, target=""):
        with grpc.insecure_channel(target or server.target) as channel, pytest.raises(grpc.RpcError) as failure:
            list(channel.stream_stream(path)(iter([request]), timeout=20))
        assert CANARY.lower() not in f"{failure.value.details()} {failure.value.trailing_metadata()}".lower()
        return failure.value.code().name, failure.value.details()

    return send


@pytest.mark.parametrize("path", [*METHODS, *OTHERS])
def test_bytes_that_are_no_message_of_the_method(server, refusal, path):
    name = path.rpartition("/")[2]
    counted = server.metric("amnestic_requests_total", method=name, code="INVALID_ARGUMENT") or 0
    assert refusal(path, b"\x0a\xff") == ("INVALID_ARGUMENT", TEXT)
    found = server.metric("amnestic_requests_total", method=name, code="INVALID_ARGUMENT")
    assert found == (None if path in OTHERS else counted + 1)


@pytest.mark.parametrize("request_", BROKEN)
def test_nothing_of_them_is_repeated(server, refusal, request_):
    assert refusal("/amnestic.v1.PredictionService/Predict", request_) == ("INVALID_ARGUMENT", TEXT)
    assert CANARY.lower() not in server.log.lower()


def test_at_the_port_of_health(server, refusal):
    assert refusal(f"/{HEALTH}/Check", b"\x0a\xff", server.health) == ("INVALID_ARGUMENT", TEXT)


def test_a_stream_ends_with_what_was_asked_before(server, texts):
    """The requests before are answered or not, but the stream ends with the right code."""
    with grpc.insecure_channel(server.target) as channel:
        answers = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(iter([b"", b"\xff"]))
        with pytest.raises(grpc.RpcError) as failure:
            list(answers)
    assert (failure.value.code().name, failure.value.details()) == ("INVALID_ARGUMENT", TEXT)


def test_thousands_of_malformed_requests_get_allowed_codes_and_answers_stay_right(server, texts, check_active):
    codes = asyncio.run(Malformed(server.target, server.client.get_model().name, texts, seed=7).send(CASES))
    assert codes.total() == CASES
    assert codes.keys() <= ALLOWED
    assert codes["INVALID_ARGUMENT"] > CASES / 10
    assert check_active(server) == 1
    assert "Traceback" not in server.log

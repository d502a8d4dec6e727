"""Errors, deadlines, retries and readiness, over a real connection, with both clients."""

import json
import os
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from client.commands import hang
from google.rpc import error_details_pb2, status_pb2

import amnestic_client
from amnestic.v1 import prediction_pb2, prediction_pb2_grpc, unlearning_pb2
from amnestic_client import (
    AmnesticError,
    Client,
    DeadlineExceeded,
    FieldViolation,
    ResourceExhausted,
    Unavailable,
    settings,
)

Call = Callable[..., Any]
DRAINING = (grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
# What gRPC itself answers to a call that comes in as it closes.
CLOSING = (grpc.StatusCode.CANCELLED, "Cancelled on the server side")


def abort(code: grpc.StatusCode, detail: str) -> Callable[[Any, grpc.ServicerContext], None]:
    return lambda request, context: context.abort(code, detail)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("INVALID_ARGUMENT", "InvalidArgument"),
        ("NOT_FOUND", "NotFound"),
        ("ALREADY_EXISTS", "AlreadyExists"),
        ("FAILED_PRECONDITION", "FailedPrecondition"),
        ("RESOURCE_EXHAUSTED", "ResourceExhausted"),
        ("DEADLINE_EXCEEDED", "DeadlineExceeded"),
        ("CANCELLED", "Cancelled"),
        ("INTERNAL", "Internal"),
        ("PERMISSION_DENIED", "PermissionDenied"),
        ("UNAUTHENTICATED", "Unauthenticated"),
        ("OUT_OF_RANGE", "AmnesticError"),
    ],
)
def test_a_status_becomes_its_error(call: Call, server: Any, code: str, name: str) -> None:
    server.script("GetModel", abort(grpc.StatusCode[code], "document 1 is empty"))
    with pytest.raises(AmnesticError) as caught:
        call("get_model")
    error = caught.value
    assert type(error) is getattr(amnestic_client, name)
    assert (error.code, error.detail, str(error)) == (grpc.StatusCode[code], "document 1 is empty", error.detail)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.code, copy.detail) == (type(error), error.code, error.detail)
    assert len(server.asked("GetModel")) == (5 if code == "CANCELLED" else 1), (
        "what a server that closes says is retried"
    )


def test_what_an_error_tells_programs(call: Call, server: Any) -> None:
    status = status_pb2.Status(code=8, message="full")
    for detail in (
        error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="amnestic"),
        error_details_pb2.BadRequest(field_violations=[{"field": "documents[1]", "description": "is empty"}]),
        error_details_pb2.RetryInfo(retry_delay={"seconds": 1, "nanos": 500_000_000}),
        error_details_pb2.Help(),
    ):
        status.details.add().Pack(detail)

    def step(request: Any, context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    server.script("GetModel", step)
    with pytest.raises(ResourceExhausted) as caught:
        call("get_model")
    error = caught.value
    for found in (error, pickle.loads(pickle.dumps(error))):
        assert (found.reason, found.retry_after) == ("QUEUE_FULL", 1.5)
        assert found.field_violations == (FieldViolation("documents[1]", "is empty"),)


@pytest.mark.parametrize("data", [b"", b"no status", b"\n\x03abc"])
def test_an_error_that_tells_programs_nothing(call: Call, server: Any, data: bytes) -> None:
    def step(request: Any, context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", data),) if data else ())
        context.abort(grpc.StatusCode.NOT_FOUND, "there is no such job")

    server.script("GetJob", step)
    with pytest.raises(AmnesticError, match="no such job") as caught:
        call("get_job", "a")
    error = caught.value
    assert (error.reason, error.retry_after, error.field_violations) == ("", None, ())


@pytest.mark.parametrize(
    ("method", "rpc", "arguments", "response"),
    [
        ("predict", "Predict", ("text",), prediction_pb2.PredictResponse()),
        ("get_model", "GetModel", (), prediction_pb2.GetModelResponse()),
        ("unlearn", "Unlearn", ("renal",), unlearning_pb2.UnlearnResponse()),
        ("get_job", "GetJob", ("a",), unlearning_pb2.GetJobResponse()),
        ("list_jobs", "ListJobs", (), unlearning_pb2.ListJobsResponse()),
        ("list_versions", "ListVersions", (), unlearning_pb2.ListVersionsResponse()),
        ("rollout", "GetRollout", (), unlearning_pb2.GetRolloutResponse()),
    ],
)
def test_what_is_safe_to_repeat_is_retried(
    call: Call, server: Any, method: str, rpc: str, arguments: tuple[Any, ...], response: Any
) -> None:
    server.script(rpc, abort(*DRAINING), abort(*CLOSING), response)
    call(method, *arguments)
    sent = server.asked(rpc)
    assert len(sent) == 3
    assert sent[0] == sent[1] == sent[2], "a repetition is the same request, its id included"


@pytest.mark.parametrize(
    ("method", "rpc", "arguments"),
    [
        ("cancel_job", "CancelJob", ("a",)),
        ("rollback", "Rollback", (1, "why")),
        ("promote", "PromoteVersion", (2,)),
        ("purge", "Purge", (2, "why")),
        ("set_rollout", "SetRollout", (2,)),
    ],
)
def test_what_is_not_safe_to_repeat_is_not(
    call: Call, server: Any, method: str, rpc: str, arguments: tuple[Any, ...]
) -> None:
    server.script(rpc, abort(*DRAINING))
    with pytest.raises(Unavailable, match="shutting down"):
        call(method, *arguments)
    assert len(server.asked(rpc)) == 1


def test_retries_are_bounded(call: Call, server: Any) -> None:
    server.script("Predict", abort(*DRAINING))
    with pytest.raises(Unavailable):
        call("predict", "text")
    assert len(server.asked("Predict")) == settings.SERVICE_CONFIG["methodConfig"][0]["retryPolicy"]["maxAttempts"]


def refuse(pushback_ms: int) -> Callable[[Any, grpc.ServicerContext], None]:
    """A full server, which tells when to come back."""

    def step(request: Any, context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", str(pushback_ms)),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full; retry later")

    return step


def test_a_full_server_is_asked_again_when_it_says(call: Call, server: Any, prediction: Any) -> None:
    server.script("Predict", refuse(600), prediction)
    started = time.monotonic()
    assert call("predict", ["text"] * 2).version == 3
    # By the policy alone it would be asked again within 0.1 s.
    assert time.monotonic() - started >= 0.6
    assert len(server.asked("Predict")) == 2


def test_only_predictions_are_repeated_when_the_server_is_full(call: Call, server: Any) -> None:
    server.script("Unlearn", refuse(10))
    with pytest.raises(ResourceExhausted):
        call("unlearn", "renal")
    assert len(server.asked("Unlearn")) == 1


def test_a_large_call_is_repeated_too(call: Call, server: Any, prediction: Any) -> None:
    server.script("Predict", refuse(10), prediction)
    call("predict", ["x" * 200_000] * 20)
    assert [len(request.documents) for request in server.asked("Predict")] == [20, 20]


def test_a_server_that_fails_on_and_on_is_asked_once_a_call(server: Any) -> None:
    server.script("Predict", refuse(1))
    with Client(server.target) as client:
        for _ in range(20):
            with pytest.raises(ResourceExhausted):
                client.predict("text")
    # 5 attempts a call until half of the 100 tokens are gone; from then on one.
    assert 50 <= len(server.asked("Predict")) <= 80


def test_balanced_clients_leave_a_server_that_does_not_serve(server: Any, start_server: Any) -> None:
    """What the published file says of health takes effect where a client balances its calls over several servers."""
    other = start_server(0)
    server.script("GetModel", prediction_pb2.GetModelResponse(name="one"))
    other.script("GetModel", prediction_pb2.GetModelResponse(name="two"))
    config = settings.SERVICE_CONFIG | {"loadBalancingConfig": [{"round_robin": {}}]}
    options = [("grpc.service_config", json.dumps(config)), ("grpc.service_config_disable_resolution", 1)]
    with grpc.insecure_channel(f"ipv4:{server.target},{other.target}", options) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)

        def answering() -> set[str]:
            request = prediction_pb2.GetModelRequest()
            return {stub.GetModel(request, timeout=30, wait_for_ready=True).name for _ in range(10)}

        def until(names: set[str]) -> None:
            deadline = time.monotonic() + 30
            while answering() != names:
                assert time.monotonic() < deadline

        until({"one", "two"})
        server.set_ready(False)
        until({"two"})
        server.set_ready(True)
        until({"one", "two"})


def test_a_timeout_may_be_longer_than_the_published_one() -> None:
    assert "timeout" not in dict(settings.channel_options())["grpc.service_config"]


@pytest.mark.parametrize("compression", ["deflate", "GZIP", ""])
def test_compressions_that_there_are_not(compression: str) -> None:
    with pytest.raises(ValueError, match="None or gzip"):
        Client("127.0.0.1:9", compression=compression)


def test_a_timeout_ends_the_call(call: Call, server: Any) -> None:
    server.script("Predict", hang)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        call("predict", "text", timeout=0.2)
    assert time.monotonic() - started < 8, "left out, it is 10 s"


@pytest.mark.parametrize(
    ("method", "rpc", "arguments", "response", "seconds"),
    [
        ("predict", "Predict", ("text",), prediction_pb2.PredictResponse(), 10),
        ("get_model", "GetModel", (), prediction_pb2.GetModelResponse(), 10),
        ("unlearn", "Unlearn", ("renal",), unlearning_pb2.UnlearnResponse(), 10),
        ("get_job", "GetJob", ("a",), unlearning_pb2.GetJobResponse(), 10),
        ("list_jobs", "ListJobs", (), unlearning_pb2.ListJobsResponse(), 10),
        ("cancel_job", "CancelJob", ("a",), unlearning_pb2.CancelJobResponse(), 10),
        ("list_versions", "ListVersions", (), unlearning_pb2.ListVersionsResponse(), 10),
        ("rollback", "Rollback", (1, "why"), unlearning_pb2.RollbackResponse(), 60),
        ("purge", "Purge", (2, "why"), unlearning_pb2.PurgeResponse(), 60),
    ],
)
def test_every_call_has_a_deadline(
    call: Call, server: Any, method: str, rpc: str, arguments: tuple[Any, ...], response: Any, seconds: float
) -> None:
    seen: list[float] = []
    server.script(rpc, lambda request, context: seen.append(context.time_remaining()) or response)
    call(method, *arguments)
    call(method, *arguments, timeout=5.0)
    assert seconds / 2 < seen[0] <= seconds + 0.1
    assert 2 < seen[1] <= 5.1


def test_a_message_of_many_features_comes_through(call: Call, server: Any) -> None:
    row = prediction_pb2.Prediction(features=[0.25] * 500_000)
    server.script("Predict", prediction_pb2.PredictResponse(version=1, predictions=[row] * 4))
    result = call("predict", ["text"] * 4, include_features=True)
    assert sum(len(prediction.features) for prediction in result.predictions) == 2_000_000


def test_no_server_is_unavailable(call: Call, server: Any) -> None:
    server.stop()
    with pytest.raises(Unavailable):
        call("get_model")
    assert call("is_ready") is False


def test_readiness_is_the_health_service(call: Call, server: Any) -> None:
    assert call("is_ready") is True
    server.set_ready(False)
    assert call("is_ready") is False


def test_waiting_until_ready(call: Call, server: Any) -> None:
    server.set_ready(False)
    threading.Timer(0.4, server.set_ready, [True]).start()
    started = time.monotonic()
    call("wait_until_ready", timeout=10)
    assert time.monotonic() - started >= 0.3


def test_waiting_until_ready_ends(call: Call, server: Any) -> None:
    server.set_ready(False)
    with pytest.raises(DeadlineExceeded, match=r"not ready within 0\.5 s"):
        call("wait_until_ready", timeout=0.5)


def test_a_client_outlives_a_restart(server: Any, start_server: Any) -> None:
    server.script("GetModel", prediction_pb2.GetModelResponse(name="before"))
    with Client(server.target) as client:
        assert client.get_model().name == "before"
        server.stop()
        assert not client.is_ready()
        start_server(server.port).script("GetModel", prediction_pb2.GetModelResponse(name="after"))
        client.wait_until_ready(timeout=30)
        assert client.get_model().name == "after"


def test_a_proxy_of_the_environment_is_not_used(server: Any, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    for name in ("http_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    server.script("GetModel", prediction_pb2.GetModelResponse(name="direct"))
    assert call("get_model").name == "direct"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_told(server: Any, prediction: Any) -> None:
    server.script("Predict", prediction)
    with Client(server.target) as client:
        client.predict("text")
        child = os.fork()
        if child == 0:
            try:
                client.predict("text", timeout=5)
            except RuntimeError as error:
                os._exit(0 if "fork" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.predict("text").version == 3, "the parent's client is as it was"


def test_threads_share_a_client(server: Any, prediction: Any) -> None:
    server.script("Predict", prediction)
    answers: list[int] = []
    with Client(server.target) as client:
        threads = [threading.Thread(target=lambda: answers.append(client.predict("text").version)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert answers == [3] * 16

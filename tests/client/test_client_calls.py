"""Errors, deadlines, retries and readiness, over a real connection, with both clients."""

import os
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest

import amnestic_client
from amnestic.v1 import prediction_pb2, unlearning_pb2
from amnestic_client import AmnesticError, Client, DeadlineExceeded, Unavailable, settings

Call = Callable[..., Any]
DRAINING = (grpc.StatusCode.UNAVAILABLE, "the server is shutting down")


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
        ("PERMISSION_DENIED", "AmnesticError"),
    ],
)
def test_a_status_becomes_its_error(call: Call, server: Any, code: str, name: str) -> None:
    server.script("Predict", abort(grpc.StatusCode[code], "document 1 is empty"))
    with pytest.raises(AmnesticError) as caught:
        call("predict", "text")
    error = caught.value
    assert type(error) is getattr(amnestic_client, name)
    assert (error.code, error.detail, str(error)) == (grpc.StatusCode[code], "document 1 is empty", error.detail)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.code, copy.detail) == (type(error), error.code, error.detail)
    assert len(server.asked("Predict")) == 1, "only UNAVAILABLE is retried"


@pytest.mark.parametrize(
    ("method", "rpc", "arguments", "response"),
    [
        ("predict", "Predict", ("text",), prediction_pb2.PredictResponse()),
        ("get_model", "GetModel", (), prediction_pb2.GetModelResponse()),
        ("unlearn", "Unlearn", ("renal",), unlearning_pb2.UnlearnResponse()),
        ("get_job", "GetJob", ("a",), unlearning_pb2.GetJobResponse()),
        ("list_jobs", "ListJobs", (), unlearning_pb2.ListJobsResponse()),
        ("list_versions", "ListVersions", (), unlearning_pb2.ListVersionsResponse()),
    ],
)
def test_what_is_safe_to_repeat_is_retried(
    call: Call, server: Any, method: str, rpc: str, arguments: tuple[Any, ...], response: Any
) -> None:
    server.script(rpc, abort(*DRAINING), abort(*DRAINING), response)
    call(method, *arguments)
    sent = server.asked(rpc)
    assert len(sent) == 3
    assert sent[0] == sent[1] == sent[2], "a repetition is the same request, its id included"


@pytest.mark.parametrize(
    ("method", "rpc", "arguments"), [("cancel_job", "CancelJob", ("a",)), ("rollback", "Rollback", (1, "why"))]
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
    assert len(server.asked("Predict")) == settings.RETRY_POLICY["maxAttempts"]


def test_a_timeout_ends_the_call(call: Call, server: Any) -> None:
    server.script("Predict", lambda request, context: time.sleep(1) or prediction_pb2.PredictResponse())
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        call("predict", "text", timeout=0.2)
    assert time.monotonic() - started < 0.9


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
    ],
)
def test_every_call_has_a_deadline(
    call: Call, server: Any, method: str, rpc: str, arguments: tuple[Any, ...], response: Any, seconds: float
) -> None:
    seen: list[float] = []
    server.script(rpc, lambda request, context: seen.append(context.time_remaining()) or response)
    call(method, *arguments)
    call(method, *arguments, timeout=5.0)
    assert seconds - 2 < seen[0] <= seconds + 0.1
    assert 3 < seen[1] <= 5.1


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
        client.wait_until_ready(timeout=15)
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

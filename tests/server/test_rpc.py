"""The services over real gRPC with scripted parts behind them: status codes, what is told, what is counted."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from e2e import frames
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from scripted import bare_snapshot

from amnestic.v1 import prediction_pb2, prediction_pb2_grpc, unlearning_pb2, unlearning_pb2_grpc
from amnestic_server import errors
from amnestic_server.jobs import JobView
from amnestic_server.metrics import Metrics
from amnestic_server.records import JobRecord, JobState
from amnestic_server.request import UnlearnRequest
from amnestic_server.rpc import PredictionService, UnlearningService
from amnestic_server.snapshot import Pin, Snapshots
from amnestic_unlearn.spec import PRESETS, GateLimits, Method, Progress

SECRET = "Xylqvornik was admitted"


class Predictor:
    """Holds a call until it may go on, then raises what it was told to."""

    def __init__(self) -> None:
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.entered = asyncio.Event()
        self.error: Exception | None = None

    async def predict(self, texts: Any, pin: Pin, seconds_left: float | None, client: str) -> list[Any]:
        self.seconds_left = seconds_left
        self.entered.set()
        await self.may_go_on.wait()
        if self.error is not None:
            raise self.error
        return []


class Jobs:
    """Remembers what was asked for, and answers with it."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked: list[tuple[UnlearnRequest, str | None]] = []

    default_limits = GateLimits()

    async def request(self, request: UnlearnRequest, request_id: str | None) -> JobView:
        if self.error is not None:
            raise self.error
        self.asked.append((request, request_id))
        return JobView(JobRecord("job", request_id, request.to_json(), JobState.QUEUED), request, Progress(""))

    async def watch(self, job_id: str) -> AsyncIterator[JobView]:
        request = UnlearnRequest(("alpha",))
        yield JobView(JobRecord("job", None, {}, JobState.RUNNING), request, Progress("training", seconds_left=2.0))
        if self.error is not None:
            raise self.error
        await asyncio.Event().wait()


@asynccontextmanager
async def serving() -> AsyncIterator[Any]:
    base = bare_snapshot(1)
    parts: Any = SimpleNamespace(
        predictor=Predictor(), jobs=Jobs(), metrics=Metrics(), snapshots=Snapshots(base), bundle=None
    )
    parts.bundle = SimpleNamespace(manifest=SimpleNamespace(labels=(), thresholds=()))
    server = grpc.aio.server()
    prediction_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(parts.predictor, parts.snapshots, parts.bundle, None, None, parts.metrics, None),  # type: ignore[arg-type]
        server,
    )
    unlearning_pb2_grpc.add_UnlearningServiceServicer_to_server(
        UnlearningService(parts.jobs, None, None, parts.metrics),  # type: ignore[arg-type]
        server,
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_retries", 0)]) as channel:
        parts.prediction = prediction_pb2_grpc.PredictionServiceStub(channel)
        parts.unlearning = unlearning_pb2_grpc.UnlearningServiceStub(channel)
        parts.target = f"127.0.0.1:{port}"
        yield parts
    await server.stop(None)


def read_details(error: grpc.aio.AioRpcError) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The `google.rpc.Status` of an error, its details by the names of their types, and the trailing metadata."""
    metadata = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    details: dict[str, Any] = {}
    for packed in status.details:
        name = packed.TypeName().removeprefix("google.rpc.")
        details[name] = getattr(error_details_pb2, name)()
        assert packed.Unpack(details[name])
    return status, details, metadata


def counted(parts: Any, method: str, code: str) -> float | None:
    value: float | None = parts.metrics.registry.get_sample_value(
        "amnestic_requests_total", {"method": method, "code": code}
    )
    return value


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (of another task)
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (errors.InvalidArgumentError("document 1 is empty"), "INVALID_ARGUMENT", "document 1 is empty"),
        (errors.NotFoundError("there is no such version"), "NOT_FOUND", "there is no such version"),
        (errors.PreconditionError("not now"), "FAILED_PRECONDITION", "not now"),
        (errors.AlreadyExistsError("taken"), "ALREADY_EXISTS", "taken"),
        (errors.QueueFullError(), "RESOURCE_EXHAUSTED", "the queue is full; retry later"),
        (errors.DeadlineError(), "DEADLINE_EXCEEDED", "the deadline passed while the request waited"),
        (errors.DrainingError(), "UNAVAILABLE", "the server is shutting down"),
        (errors.EngineError(), "INTERNAL", "the engine failed on this request"),
        (RuntimeError(SECRET), "INTERNAL", "internal error"),
        (KeyError(SECRET), "INTERNAL", "internal error"),
    ],
)
async def test_each_error_has_its_code_and_an_unforeseen_one_says_nothing(error, code, text):
    async with serving() as parts:
        parts.predictor.error = error
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await parts.prediction.Predict(prediction_pb2.PredictRequest(documents=[SECRET]), timeout=30)
        assert (failure.value.code().name, failure.value.details()) == (code, text)
        await until(lambda: counted(parts, "Predict", code) == 1)
        status, details, _ = read_details(failure.value)
        assert (status.code, status.message) == (failure.value.code().value[0], text)
        reason = error.reason if isinstance(error, errors.AmnesticError) else "INTERNAL"
        assert details == {"ErrorInfo": error_details_pb2.ErrorInfo(reason=reason, domain="amnestic")}


@pytest.mark.parametrize(
    ("error", "kind", "found"),
    [
        (
            errors.InvalidArgumentError("document 2 is empty", field="documents[1]"),
            "BadRequest",
            {"fieldViolations": [{"field": "documents[1]", "description": "document 2 is empty"}]},
        ),
        (errors.NotFoundError("no such job", resource="job"), "ResourceInfo", {"resourceType": "job"}),
        (errors.QueueFullError(0.25), "RetryInfo", {"retryDelay": "0.250s"}),
    ],
)
async def test_an_error_tells_programs_the_field_the_resource_and_when_to_try_again(error, kind, found):
    async with serving() as parts:
        parts.predictor.error = error
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await parts.prediction.Predict(prediction_pb2.PredictRequest(documents=[SECRET]), timeout=30)
        _, details, metadata = read_details(failure.value)
        assert set(details) == {"ErrorInfo", kind}
        assert json_format.MessageToDict(details[kind]) == found
        assert metadata.get("grpc-retry-pushback-ms") == ("250" if kind == "RetryInfo" else None)


async def test_a_stream_that_fails_keeps_what_it_said_and_ends_with_the_code():
    async with serving() as parts:
        parts.jobs.error = errors.DrainingError()
        stream = parts.unlearning.WatchJob(unlearning_pb2.WatchJobRequest(job_id="job"), timeout=30)
        assert (await stream.read()).job.progress.seconds_left == 2.0
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stream.read()
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
        assert counted(parts, "WatchJob", "UNAVAILABLE") == 1


async def test_calls_that_the_caller_gives_up_are_counted_as_cancelled_and_let_go_of_their_version():
    async with serving() as parts:
        parts.predictor.may_go_on.clear()
        call = parts.prediction.Predict(prediction_pb2.PredictRequest(documents=["a"]))
        await asyncio.wait_for(parts.predictor.entered.wait(), 30)
        assert parts.snapshots._routed == {1: 1}
        call.cancel()
        await until(lambda: counted(parts, "Predict", "CANCELLED") == 1)
        await until(lambda: not parts.snapshots._routed)
        stream = parts.unlearning.WatchJob(unlearning_pb2.WatchJobRequest(job_id="job"))
        await stream.read()
        stream.cancel()
        await until(lambda: counted(parts, "WatchJob", "CANCELLED") == 1)


async def test_the_deadline_of_the_caller_reaches_the_predictor():
    async with serving() as parts:
        await parts.prediction.Predict(prediction_pb2.PredictRequest(documents=["a"]), timeout=30)
        # gRPC carries a timeout in coarse units, rounded up.
        assert 15 < parts.predictor.seconds_left < 30.5
        await parts.prediction.Predict(prediction_pb2.PredictRequest(documents=["a"]))
        assert parts.predictor.seconds_left is None


@pytest.mark.parametrize("error", [None, errors.QueueFullError(), RuntimeError()])
async def test_a_version_is_let_go_of_when_the_call_has_ended_however_it_ends(error):
    async with serving() as parts:
        parts.predictor.error = error
        parts.predictor.may_go_on.clear()
        call = parts.prediction.Predict(prediction_pb2.PredictRequest(documents=["a"]), timeout=30)
        await asyncio.wait_for(parts.predictor.entered.wait(), 30)
        draining = bare_snapshot(2)
        parts.snapshots.add(draining)
        parts.snapshots.activate(2)
        drained = asyncio.create_task(parts.snapshots.drained())
        await asyncio.sleep(0.05)
        assert not drained.done()
        parts.predictor.may_go_on.set()
        await asyncio.wait_for(drained, 30)
        if error is None:
            assert (await call).version == 1


async def test_a_version_that_is_not_there_is_refused_before_anything_is_pinned():
    async with serving() as parts:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await parts.prediction.Predict(prediction_pb2.PredictRequest(documents=["a"], version=4), timeout=30)
        assert failure.value.code() is grpc.StatusCode.NOT_FOUND
        assert not parts.snapshots._routed


async def test_absent_settings_take_the_defaults_and_a_zero_is_a_value():
    async with serving() as parts:
        answer = await parts.unlearning.Unlearn(unlearning_pb2.UnlearnRequest(labels=["alpha"]), timeout=30)
        assert parts.jobs.asked[-1][0].asked == {"method": {}, "gates": {}}
        default = PRESETS["amnestic"]
        assert parts.jobs.asked.pop() == (UnlearnRequest(("alpha",), method=default, limits=GateLimits()), None)
        # The answer says the settings in force.
        assert answer.job.method.preset == "amnestic"
        assert (answer.job.method.k, answer.job.method.distil_weight) == (default.k, default.distil_weight)
        assert answer.job.method.HasField("distil_weight")
        assert answer.job.gate_limits.retain_f1_drop_max == pytest.approx(0.02)
        assert answer.job.relaxed_gates == []

        request = unlearning_pb2.UnlearnRequest(
            labels=["beta", "alpha"],
            request_id="id",
            dry_run=True,
            reason="why",
            method=unlearning_pb2.Method(preset="paper", k=0, embedding_lr=0.0, utility_weight=0.0, seed=9),
            gates=unlearning_pb2.GateLimits(forget_f1_max=0.0, probe_ratio_max=1.0, retain_label_drop_max=0.5),
        )
        answer = await parts.unlearning.Unlearn(request, timeout=30)
        asked, request_id = parts.jobs.asked.pop()
        assert request_id == "id"
        assert asked == UnlearnRequest(
            ("beta", "alpha"),
            dry_run=True,
            reason="why",
            method=Method(k=0, embedding_lr=0.0, utility_weight=0.0, seed=9),
            limits=GateLimits(forget_f1_max=0.0, probe_ratio_max=1.0, retain_label_drop_max=0.5),
        )
        assert asked.preset == answer.job.method.preset == "paper"
        assert asked.asked == {
            "method": {"preset": "paper", "k": 0, "embedding_lr": 0.0, "utility_weight": 0.0, "seed": 9},
            "gates": {"forget_f1_max": 0.0, "probe_ratio_max": 1.0, "retain_label_drop_max": 0.5},
        }
        # A tightened limit is not a relaxed one.
        assert answer.job.relaxed_gates == ["probe_ratio_max", "retain_label_drop_max"]


async def test_an_unknown_preset_is_refused_without_repeating_it():
    async with serving() as parts:
        method = unlearning_pb2.Method(preset=SECRET, k=3)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await parts.unlearning.Unlearn(unlearning_pb2.UnlearnRequest(labels=["a"], method=method), timeout=30)
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert failure.value.details() == "preset must be one of paper, amnestic, thorough"
        assert parts.jobs.asked == []


@pytest.mark.parametrize(("ours", "wire"), [(Method, unlearning_pb2.Method), (GateLimits, unlearning_pb2.GateLimits)])
def test_every_setting_is_on_the_wire(ours, wire):
    assert {field.name for field in dataclasses.fields(ours)} == set(wire.DESCRIPTOR.fields_by_name) - {"preset"}


@pytest.mark.parametrize("state", list(JobState))
def test_every_state_of_a_job_has_one_on_the_wire(state):
    assert unlearning_pb2.JobState.Value(f"JOB_STATE_{state.value}") > 0


async def test_a_call_that_grpc_ends_at_its_deadline_counts_as_late() -> None:
    async with serving() as parts:
        parts.predictor.may_go_on.clear()
        request = prediction_pb2.PredictRequest(documents=["a"])
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await parts.prediction.Predict(request, timeout=0.2)
        assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: counted(parts, "Predict", "DEADLINE_EXCEEDED") == 1)


async def test_an_answer_that_nobody_reads_lets_go_of_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amnestic_server.calls.WRITE_SECONDS", 0.5)
    async with serving() as parts:
        body = prediction_pb2.PredictRequest(documents=["a"]).SerializeToString()
        message = b"\x00" + len(body).to_bytes(4) + body
        with frames.connect(parts.target) as connection:
            closed_window = frames.INITIAL_WINDOW_SIZE.to_bytes(2) + (0).to_bytes(4)
            frames.send(connection, frames.PREFACE + frames.frame(frames.SETTINGS, closed_window) + frames.headers(1))
            frames.send(connection, frames.frame(frames.DATA, message, flags=frames.END_STREAM, stream=1))
            await parts.predictor.entered.wait()
            parts.snapshots.add(bare_snapshot(2))
            parts.snapshots.activate(2)
            async with asyncio.timeout(30):
                await parts.snapshots.drained()

"""A real gRPC server with programmable answers, and both clients behind one function."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from amnestic.v1 import prediction_pb2, prediction_pb2_grpc, unlearning_pb2, unlearning_pb2_grpc
from amnestic_client import AsyncClient, Client, settings
from amnestic_server.cli import group

SERVICES = (
    prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"],
    unlearning_pb2.DESCRIPTOR.services_by_name["UnlearningService"],
)


@dataclass(frozen=True, slots=True)
class Abort:
    """An answer that is an error."""

    code: grpc.StatusCode
    detail: str


class FakeServer:
    """Answers each method by its script, one step a call; the last step stays.

    A step is a message, an Abort, or a function of (request, context). A step of WatchJob is a list of those.
    """

    def __init__(self, port: int = 0) -> None:
        self.scripts: dict[str, list[Any]] = {}
        self.requests: list[tuple[str, Any]] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        prediction_pb2_grpc.add_PredictionServiceServicer_to_server(self, self._server)
        unlearning_pb2_grpc.add_UnlearningServiceServicer_to_server(self, self._server)
        self.health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.target = f"127.0.0.1:{self.port}"
        self._server.start()

    def __getattr__(self, method: str) -> Callable[[Any, grpc.ServicerContext], Any]:
        if not any(method in service.methods_by_name for service in SERVICES):
            raise AttributeError(method)
        return self._stream if method == "WatchJob" else lambda request, context: self._unary(method, request, context)

    def script(self, method: str, *steps: Any) -> None:
        self.scripts[method] = list(steps)

    def asked(self, method: str) -> list[Any]:
        """Every request of a method so far."""
        return [request for name, request in self.requests if name == method]

    def set_ready(self, ready: bool) -> None:
        status = health_pb2.HealthCheckResponse
        self.health.set("", status.SERVING if ready else status.NOT_SERVING)

    def stop(self, grace: float = 0) -> None:
        self._server.stop(grace).wait(10)

    def _next(self, method: str, request: Any) -> Any:
        self.requests.append((method, request))
        steps = self.scripts[method]
        return steps.pop(0) if len(steps) > 1 else steps[0]

    def _unary(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        return _answer(self._next(method, request), request, context)

    def _stream(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        for step in self._next("WatchJob", request):
            yield _answer(step, request, context)


def _answer(step: Any, request: Any, context: grpc.ServicerContext) -> Any:
    if isinstance(step, Abort):
        context.abort(step.code, step.detail)
    return step(request, context) if callable(step) else step


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.stop()


@pytest.fixture
def start_server() -> Iterator[Callable[[int], FakeServer]]:
    """Starts further servers, at a port given, and stops them in the end."""
    started: list[FakeServer] = []

    def start(port: int) -> FakeServer:
        started.append(FakeServer(port))
        return started[-1]

    yield start
    for fake in started:
        fake.stop()


@pytest.fixture(params=["sync", "asyncio"])
def call(request: pytest.FixtureRequest, server: FakeServer) -> Callable[..., Any]:
    """Calls a client's method by name over a fresh connection; a stream comes back as a list."""

    def run(name: str, /, *args: Any, **kwargs: Any) -> Any:
        return _call(request.param, server.target, name, *args, **kwargs)

    return run


def _call(kind: str, target: str, name: str, /, *args: Any, **kwargs: Any) -> Any:
    if kind == "asyncio":
        return asyncio.run(_call_async(target, name, *args, **kwargs))
    with Client(target) as client:
        result = getattr(client, name)(*args, **kwargs)
        return list(result) if isinstance(result, Iterator) else result


async def _call_async(target: str, name: str, /, *args: Any, **kwargs: Any) -> Any:
    async with AsyncClient(target) as client:
        result = getattr(client, name)(*args, **kwargs)
        if isinstance(result, AsyncIterator):
            return [item async for item in result]
        return await result if inspect.isawaitable(result) else result


@pytest.fixture
def finished_job() -> unlearning_pb2.Job:
    """A job that has succeeded, every field set."""
    job = unlearning_pb2.Job(
        job_id="3f0c2a52-6f2f-4c2e-9a39-0d8a5a1f7d11",
        request_id="request-1",
        state=unlearning_pb2.JOB_STATE_SUCCEEDED,
        labels=["endocrine"],
        forgotten=["endocrine", "renal"],
        reason="consent withdrawn",
        method=unlearning_pb2.Method(preset="paper", k=256, epochs=5, distil_weight=0.0),
        gate_limits=unlearning_pb2.GateLimits(forget_f1_max=0.01),
        progress=unlearning_pb2.Progress(
            stage="training", epoch=5, epochs=5, step=40, steps=40, forget_loss=0.1, utility_loss=0.2
        ),
        gates=[
            unlearning_pb2.Gate(name="forget_f1", label="endocrine", value=0.0, limit=0.01, passed=True),
            unlearning_pb2.Gate(name="encoder_unchanged", value=0.0, limit=0.0, passed=True),
        ],
        change=unlearning_pb2.ChangeReport(
            patch_digest="ab" * 32,
            rows_changed=256,
            parameters_changed=33_542,
            parameters_changed_ratio=0.0375,
            tokens=["insulin", "glucose"],
            forget_documents=120,
            retain_documents=900,
            training_seconds=12.5,
        ),
        version=2,
        attempts=1,
        swap_seconds=0.0031,
        relaxed_gates=["forget_auroc_max", "probe_ratio_max"],
        calls_around_swap=[
            unlearning_pb2.CallsInSecond(
                offset=-1,
                calls=9,
                failed_calls=2,
                cancelled_calls=1,
                p50_seconds=0.25,
                p99_seconds=0.5,
                max_seconds=0.75,
            ),
            unlearning_pb2.CallsInSecond(offset=0, calls=1, failed_calls=1),
        ],
    )
    job.created_at.FromJsonString("2026-03-01T12:00:00Z")
    job.started_at.FromJsonString("2026-03-01T12:00:01Z")
    job.finished_at.FromJsonString("2026-03-01T12:00:20.5Z")
    return job


@pytest.fixture
def prediction() -> prediction_pb2.PredictResponse:
    """Two documents answered by version 3, which has forgotten one of two labels."""
    scores = [
        prediction_pb2.LabelScore(label="renal", probability=0.75, decision=True),
        prediction_pb2.LabelScore(label="endocrine", probability=0.125, forgotten=True),
    ]
    return prediction_pb2.PredictResponse(
        version=3,
        predictions=[
            prediction_pb2.Prediction(scores=scores, tokens=12, features=[0.5, -1.0]),
            prediction_pb2.Prediction(scores=scores, tokens=128, truncated=True),
        ],
    )


@pytest.fixture
def run(server: FakeServer) -> Callable[..., Result]:
    """Runs `amnestic ARGUMENTS` against the fake server."""

    def invoke(*arguments: str, stdin: str | bytes | None = None, **variables: str) -> Result:
        environment = {"AMNESTIC_SERVER": server.target, "TZ": "UTC", **variables}
        return CliRunner().invoke(group, arguments, input=stdin, env=environment)

    return invoke


@pytest.fixture
def status() -> prediction_pb2.GetStatusResponse:
    """A server with every fact set: version 3 has forgotten one label, one job runs, two wait, one has ended."""
    message = prediction_pb2.GetStatusResponse(
        server_version="1.2.3",
        state=prediction_pb2.SERVER_STATE_SERVING,
        uptime_seconds=3_725.0,
        model="icu",
        architecture="bert",
        precision="fp32",
        provider="CPUExecutionProvider",
        active_version=3,
        forgotten=["endocrine"],
        forget_f1={"endocrine": 0.0},
        retain_f1={"renal": 0.75, "cardiac": 0.5},
        load=prediction_pb2.Load(
            open_documents=7,
            max_open_documents=1_024,
            queued_documents=4,
            queued_tokens=512,
            max_queued_tokens=262_144,
            window_seconds=60.0,
            calls=600,
            failed_calls=3,
            documents=1_200,
            p50_seconds=0.0125,
            p99_seconds=0.25,
        ),
        queued_jobs=2,
        running_job=prediction_pb2.JobSummary(
            job_id="b" * 32,
            state=unlearning_pb2.JOB_STATE_RUNNING,
            labels=["renal"],
            progress=unlearning_pb2.Progress(
                stage="training", epoch=2, epochs=5, step=40, steps=100, seconds_left=75.0
            ),
        ),
        last_job=prediction_pb2.JobSummary(
            job_id="a" * 32, state=unlearning_pb2.JOB_STATE_SUCCEEDED, labels=["endocrine"], version=3
        ),
    )
    message.last_job.finished_at.FromJsonString("2026-03-01T12:00:20Z")
    return message


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC's own retries wait less than published, so that a test need not."""
    for method in settings.SERVICE_CONFIG["methodConfig"]:
        if "retryPolicy" in method:
            monkeypatch.setitem(method["retryPolicy"], "maxBackoff", "0.1s")

"""The service over real gRPC with a scripted predictor behind it: pins, streams, draining, what is counted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from scripted import bare_snapshot

from amnestic.oip import open_inference_pb2 as oip
from amnestic.oip import open_inference_pb2_grpc
from amnestic.v1 import prediction_pb2, unlearning_pb2
from amnestic_server import errors
from amnestic_server.inference_stats import InferenceStats
from amnestic_server.metrics import Metrics
from amnestic_server.oip.service import MAX_OPEN_REQUESTS, InferenceService
from amnestic_server.prediction import DocumentScores
from amnestic_server.rollout import Shares, falls_on_candidate
from amnestic_server.snapshot import Pin, Snapshots

SECRET = "Xylqvornik"


class Predictor:
    """Answers once it may go on: a probability that tells the text's length. A text `fail` fails."""

    def __init__(self) -> None:
        self.draining = asyncio.Event()
        self.leaving = False
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.open = self.asked = 0
        self.seconds_left: float | None = None
        self.error: Exception = errors.QueueFullError()

    async def predict(self, texts: Any, pin: Pin, seconds_left: float | None, client: str) -> list[DocumentScores]:
        if self.draining.is_set():
            raise errors.DrainingError
        self.seconds_left = seconds_left
        self.asked += 1
        self.open += 1
        try:
            # The later is done before the earlier.
            await self.may_go_on.wait()
            await asyncio.sleep(0.02 / self.asked)
        finally:
            self.open -= 1
        if "fail" in texts:
            raise self.error
        features = np.zeros(2, np.float32)
        return [DocumentScores([len(text) / 256, 0.0], [True, False], len(text), False, features, 1) for text in texts]


@asynccontextmanager
async def serving() -> AsyncIterator[Any]:
    base = bare_snapshot(1)
    labels = ["a", "b"]
    manifest = SimpleNamespace(name="toy", labels=labels, feature_size=2)
    parts: Any = SimpleNamespace(predictor=Predictor(), metrics=Metrics(), snapshots=Snapshots(base), labels=labels)

    async def records() -> list[Any]:
        return [(SimpleNamespace(version=version, withdrawn=False), {}) for version in (1, 2)]

    service = InferenceService(
        parts.predictor,
        parts.snapshots,
        SimpleNamespace(records=records),  # type: ignore[arg-type]
        InferenceStats(),
        SimpleNamespace(manifest=manifest),  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        SimpleNamespace(documents_a_call=8),  # type: ignore[arg-type]
        parts.metrics,
    )
    server = grpc.aio.server()
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_retries", 0)]) as channel:
        parts.stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        yield parts
    parts.predictor.may_go_on.set()
    await server.stop(None)


def asking(text: str, name: str = "toy", version: str = "", **parameters: int) -> oip.ModelInferRequest:
    contents = oip.InferTensorContents(bytes_contents=[text.encode()])
    return oip.ModelInferRequest(
        model_name=name,
        model_version=version,
        id=text[:40],
        parameters={name: oip.InferParameter(int64_param=value) for name, value in parameters.items()},
        inputs=[oip.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[1], contents=contents)],
    )


def counted(parts: Any, method: str, code: str) -> float | None:
    value: float | None = parts.metrics.registry.get_sample_value(
        "amnestic_requests_total", {"method": method, "code": code}
    )
    return value


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (of another task)
            await asyncio.sleep(0.005)


async def test_a_routing_key_chooses_the_side_in_a_rollout():
    async with serving() as parts:
        parts.snapshots.add(bare_snapshot(2), staged=True)
        parts.snapshots.roll_out(2, Shares(canary=0.5), 0.0)
        sides = {}
        for key in map(str, range(20)):
            request = asking("one")
            request.parameters["routing_key"].string_param = key
            sides[key] = (await parts.stub.ModelInfer(request, timeout=30)).model_version
        assert sides == {key: "2" if falls_on_candidate(key, 2, 0.5) else "1" for key in sides}
        assert set(sides.values()) == {"1", "2"}
        with pytest.raises(grpc.aio.AioRpcError, match="routing_key must be a string"):
            await parts.stub.ModelInfer(asking("one", routing_key=7), timeout=30)


async def test_a_version_is_held_until_its_answer_has_left():
    async with serving() as parts:
        parts.predictor.may_go_on.clear()
        call = parts.stub.ModelInfer(asking("one"), timeout=30)
        stream = parts.stub.ModelStreamInfer(timeout=30)
        await stream.write(asking("two"))
        await until(lambda: parts.predictor.open == 2)
        parts.snapshots.add(bare_snapshot(2))
        parts.snapshots.activate(2)
        drained = asyncio.create_task(parts.snapshots.drained())
        await asyncio.sleep(0.05)
        assert not drained.done()
        parts.predictor.may_go_on.set()
        assert (await call).model_version == "1"
        assert (await stream.read()).infer_response.model_version == "1"
        await asyncio.wait_for(drained, 30)
        await stream.write(asking("three"))
        assert (await stream.read()).infer_response.parameters["version"].int64_param == 2
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK


async def test_a_stream_is_answered_in_order_and_goes_on_after_errors():
    async with serving() as parts:
        requests = [asking(f"document {number}") for number in range(20)]
        requests[3] = asking("fail")
        requests[4] = asking(SECRET, name="another")
        requests[5] = asking(SECRET, version="7")
        requests[6] = asking("")
        answers = [answer async for answer in parts.stub.ModelStreamInfer(iter(requests), timeout=30)]
        assert [answer.infer_response.id for answer in answers] == [request.id for request in requests]
        failed = {3: "RESOURCE_EXHAUSTED", 4: "NOT_FOUND", 5: "NOT_FOUND"}
        for number, answer in enumerate(answers):
            parameters = answer.infer_response.parameters
            assert parameters["triton_final_response"].bool_param
            assert bool(answer.error_message) == (number in failed)
            assert parameters["status"].string_param == failed.get(number, "")
            assert SECRET not in answer.error_message
        assert answers[3].error_message == "the queue is full; retry later"
        assert counted(parts, "ModelStreamInfer", "OK") == 1
        assert counted(parts, "ModelStreamInfer.request", "OK") == 17
        assert counted(parts, "ModelStreamInfer.request", "NOT_FOUND") == 2
        assert counted(parts, "ModelInfer", "OK") is None


async def test_an_unforeseen_error_says_nothing_and_ends_no_stream(caplog):
    async with serving() as parts:
        parts.predictor.error = KeyError(SECRET)
        requests = [asking("fail"), asking("one")]
        answers = [answer async for answer in parts.stub.ModelStreamInfer(iter(requests), timeout=30)]
        assert [answer.error_message for answer in answers] == ["internal error", ""]
    assert "unforeseen KeyError" in caplog.text and SECRET not in caplog.text


async def test_a_stream_reads_no_more_than_it_may_have_open():
    async with serving() as parts:
        parts.predictor.may_go_on.clear()
        total = 2 * MAX_OPEN_REQUESTS
        stream = parts.stub.ModelStreamInfer((asking(str(number)) for number in range(total)), timeout=30)
        await until(lambda: parts.predictor.open == MAX_OPEN_REQUESTS)
        await asyncio.sleep(0.1)
        assert parts.predictor.open == parts.predictor.asked == MAX_OPEN_REQUESTS
        parts.predictor.may_go_on.set()
        answers = [answer.infer_response.id async for answer in stream]
        assert answers == [str(number) for number in range(total)]


async def test_a_stream_that_its_caller_gives_up_leaves_nothing():
    async with serving() as parts:
        parts.predictor.may_go_on.clear()
        stream = parts.stub.ModelStreamInfer(timeout=30)
        for number in range(5):
            await stream.write(asking(str(number)))
        await until(lambda: parts.predictor.open == 5)
        assert parts.snapshots._routed == {1: 5}
        stream.cancel()
        await until(lambda: parts.predictor.open == 0)
        await until(lambda: not parts.snapshots._routed)
        await until(lambda: counted(parts, "ModelStreamInfer", "CANCELLED") == 1)
        assert counted(parts, "ModelStreamInfer.request", "CANCELLED") == 5


async def test_draining_answers_what_a_stream_has_sent_and_then_ends_it():
    async with serving() as parts:
        parts.predictor.may_go_on.clear()
        stream, idle = parts.stub.ModelStreamInfer(timeout=30), parts.stub.ModelStreamInfer(timeout=30)
        await idle.write(asking("idle"))
        for number in range(3):
            await stream.write(asking(str(number)))
        await until(lambda: parts.predictor.open == 4)
        parts.predictor.draining.set()
        parts.predictor.may_go_on.set()
        assert [(await stream.read()).infer_response.id for _ in range(3)] == ["0", "1", "2"]
        assert (await idle.read()).infer_response.id == "idle"
        for ended in (stream, idle):
            assert await ended.code() is grpc.StatusCode.UNAVAILABLE
            assert await ended.details() == "the server is shutting down"


async def test_while_draining_the_server_lives_and_is_not_ready():
    async with serving() as parts:
        ready, model = oip.ServerReadyRequest(), oip.ModelReadyRequest(name="toy")
        index = oip.RepositoryIndexRequest(ready=True)
        assert (await parts.stub.ServerReady(ready)).ready
        assert (await parts.stub.ModelReady(model)).ready
        assert [entry.version for entry in (await parts.stub.RepositoryIndex(index)).models] == ["1"]
        parts.predictor.leaving = True
        assert (await parts.stub.ServerLive(oip.ServerLiveRequest())).live
        assert not (await parts.stub.ServerReady(ready)).ready
        assert not (await parts.stub.ModelReady(model)).ready
        assert not (await parts.stub.RepositoryIndex(index)).models
        every = (await parts.stub.RepositoryIndex(oip.RepositoryIndexRequest())).models
        assert [(entry.version, entry.state, entry.reason) for entry in every] == [
            ("1", "UNAVAILABLE", "the server is shutting down"),
            ("2", "UNAVAILABLE", "its patch cannot be read"),
        ]
        # Until the notice is over, calls are answered.
        await parts.stub.ModelInfer(asking("one"), timeout=30)
        parts.predictor.draining.set()
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await parts.stub.ModelInfer(asking("one"), timeout=30)
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_sooner_of_deadline_and_timeout_reaches_the_predictor():
    async with serving() as parts:
        await parts.stub.ModelInfer(asking("one"))
        assert parts.predictor.seconds_left is None
        await parts.stub.ModelInfer(asking("one", timeout=3_000_000))
        assert parts.predictor.seconds_left == 3.0
        await parts.stub.ModelInfer(asking("one", timeout=3_000_000), timeout=2)
        assert parts.predictor.seconds_left < 2.1
        await parts.stub.ModelInfer(asking("one", timeout=3_000_000), timeout=9)
        assert parts.predictor.seconds_left == 3.0


def test_no_two_services_share_a_method_name():
    """The metrics tell methods by name alone."""
    files = (prediction_pb2, unlearning_pb2, oip)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    methods = [method.name for service in services for method in service.methods]
    assert len(services) == 3 and len(methods) == len(set(methods))


async def test_who_reads_no_answers_holds_no_version(monkeypatch):
    monkeypatch.setattr("amnestic_server.oip.service.WRITE_SECONDS", 0.5)
    async with serving() as parts:
        stream = parts.stub.ModelStreamInfer(timeout=30)
        # Answers of more bytes than flow control lets pass unread.
        parts.labels[:] = ["x" * 200_000, "y"]
        for number in range(40):
            await stream.write(asking(str(number)))
        await until(lambda: parts.predictor.asked == 40)
        parts.snapshots.add(bare_snapshot(2))
        parts.snapshots.activate(2)
        await asyncio.wait_for(parts.snapshots.drained(), 30)
        assert parts.snapshots._routed == {}
        await until(lambda: counted(parts, "ModelStreamInfer", "RESOURCE_EXHAUSTED") == 1)
        stream.cancel()


async def test_a_caller_that_goes_while_answers_wait_is_no_fault_of_the_server(caplog):
    async with serving() as parts:
        parts.labels[:] = ["x" * 200_000, "y"]
        stream = parts.stub.ModelStreamInfer(timeout=30)
        for number in range(40):
            await stream.write(asking(str(number)))
        await until(lambda: parts.predictor.asked == 40)
        await asyncio.sleep(0.1)
        stream.cancel()
        await until(lambda: counted(parts, "ModelStreamInfer", "CANCELLED") == 1)
        assert parts.snapshots._routed == {}
    assert "unforeseen" not in caplog.text

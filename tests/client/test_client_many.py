"""Any number of documents: how they are sent, in which order they come back, what failures do; with both clients."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from client.commands import hang
from google.rpc import error_details_pb2, status_pb2

from amnestic.v1 import prediction_pb2
from amnestic_client import (
    AmnesticError,
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    settings,
)

Call = Callable[..., Any]
MODEL = prediction_pb2.GetModelResponse(max_documents=128, max_document_bytes=1000, active_version=3)


def answer(request: Any, version: int = 3) -> prediction_pb2.PredictResponse:
    """A prediction a document, with the number that the document is as its tokens."""
    predictions = [prediction_pb2.Prediction(tokens=int(text.split()[0])) for text in request.documents]
    return prediction_pb2.PredictResponse(version=request.version or version, predictions=predictions)


def echo(request: Any, context: grpc.ServicerContext) -> prediction_pb2.PredictResponse:
    return answer(request)


def picky(refuse: Callable[[str], bool], code: str, text: str = "document {} is empty") -> Callable[..., Any]:
    """Fails a whole call for the first document refused, as the server does."""

    def predict(request: Any, context: grpc.ServicerContext) -> prediction_pb2.PredictResponse:
        for number, document in enumerate(request.documents, 1):
            if refuse(document):
                context.abort(grpc.StatusCode[code], text.format(number))
        return answer(request)

    return predict


def abort(code: str, detail: str = "why") -> Callable[[Any, grpc.ServicerContext], None]:
    return lambda request, context: context.abort(grpc.StatusCode[code], detail)


def numbers(count: int) -> Iterator[str]:
    return map(str, range(count))


def raised(answers: Any) -> AmnesticError:
    with pytest.raises(AmnesticError) as caught:
        list(answers)
    return caught.value


def tokens(answers: Any) -> list[int]:
    return [one.prediction.tokens for one in answers]


@pytest.fixture(autouse=True)
def model(server: Any, quick_retries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "FULL_FIRST_PAUSE", 0.02)
    server.script("GetModel", MODEL)
    server.script("Predict", echo)


def test_answers_come_in_the_order_of_the_documents(call: Call, server: Any) -> None:
    def slow_first(request: Any, context: Any) -> Any:
        time.sleep(0.3 if request.documents[0] == "0" else 0)
        return answer(request)

    server.script("Predict", slow_first)
    answers = call("predict_many", numbers(25), batch_size=4, concurrency=3)
    assert tokens(answers) == [one.index for one in answers] == list(range(25))
    assert {one.version for one in answers} == {3}
    assert all(one.error is None for one in answers)
    assert sorted(len(request.documents) for request in server.asked("Predict")) == [1, 4, 4, 4, 4, 4, 4]
    assert len(server.asked("GetModel")) == 1


def test_no_documents_have_no_answers(call: Call, server: Any) -> None:
    assert call("predict_many", []) == []
    assert server.asked("Predict") == []


def test_features_are_asked_for(call: Call, server: Any) -> None:
    call("predict_many", ["1"], include_features=True)
    assert server.asked("Predict")[0].include_features


@pytest.mark.parametrize(
    ("limits", "batch_size", "sizes"),
    [
        ({"max_documents": 3}, None, [3, 3, 3, 1]),
        ({"max_documents": 3}, 100, [3, 3, 3, 1]),
        ({"max_documents": 3}, 2, [2, 2, 2, 2, 2]),
        ({}, None, [10]),
    ],
)
def test_calls_keep_to_the_limits_of_the_server(
    call: Call, server: Any, limits: dict[str, int], batch_size: int | None, sizes: list[int]
) -> None:
    server.script("GetModel", prediction_pb2.GetModelResponse(**limits))
    assert tokens(call("predict_many", numbers(10), batch_size=batch_size, concurrency=1)) == list(range(10))
    assert [len(request.documents) for request in server.asked("Predict")] == sizes


def test_calls_are_bounded_in_bytes(call: Call, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "BATCH_BYTES", 250)
    texts = [f"{number} " + "é" * 49 for number in range(5)] + ["5 " + "x" * 900, "6"]
    assert tokens(call("predict_many", texts, concurrency=1)) == list(range(7))
    assert [len(request.documents) for request in server.asked("Predict")] == [2, 2, 1, 1, 1]


def test_a_run_may_be_pinned(call: Call, server: Any) -> None:
    versions = iter(range(4, 100))
    server.script("Predict", lambda request, context: answer(request, next(versions)))
    run = {"batch_size": 1, "concurrency": 1}
    assert [one.version for one in call("predict_many", numbers(3), **run)] == [4, 5, 6]
    assert [one.version for one in call("predict_many", numbers(3), version=2, **run)] == [2, 2, 2]
    assert [one.version for one in call("predict_many", numbers(3), pin=True, **run)] == [3, 3, 3]
    assert [one.version for one in call("predict_many", numbers(3), pin=True, version=2, **run)] == [2, 2, 2]


def test_a_routing_key_goes_with_every_call_and_its_error_is_no_document_s(call: Call, server: Any) -> None:
    def refuse(request: Any, context: grpc.ServicerContext) -> None:
        violation = error_details_pb2.BadRequest.FieldViolation(field="routing_key", description="too long")
        status = status_pb2.Status(code=3, message="too long")
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "too long")

    server.script("GetModel", MODEL)
    server.script("Predict", echo)
    list(call("predict_many", numbers(4), batch_size=2, routing_key="patient 17"))
    assert [request.routing_key for request in server.asked("Predict")] == ["patient 17"] * 2
    server.script("Predict", refuse)
    with pytest.raises(InvalidArgument, match="too long"):
        call("predict_many", numbers(4), on_error="return", routing_key="k")
    assert len(server.asked("Predict")) == 3


@pytest.mark.parametrize("text", ["document {} is empty", "the call was refused"])
@pytest.mark.parametrize("bad", [{5}, {0, 9}, set(range(10)), {3, 4, 5, 8}])
def test_a_bad_document_is_answered_by_its_error_alone(call: Call, server: Any, text: str, bad: set[int]) -> None:
    server.script("Predict", picky(lambda document: int(document) in bad, "INVALID_ARGUMENT", text))
    answers = call("predict_many", numbers(10), batch_size=5, concurrency=2, on_error="return")
    assert [one.index for one in answers] == list(range(10))
    assert {one.index for one in answers if one.error} == bad
    for one in answers:
        if one.error is None:
            assert one.prediction.tokens == one.index
        else:
            assert (type(one.error), one.error.detail) == (InvalidArgument, text.format(one.index + 1))
            assert one.version is None
            with pytest.raises(InvalidArgument):
                _ = one.prediction


def test_a_named_document_costs_one_call_more(call: Call, server: Any) -> None:
    server.script("Predict", picky(lambda document: document in ("7", "20"), "INVALID_ARGUMENT"))
    call("predict_many", numbers(32), on_error="return")
    assert [len(request.documents) for request in server.asked("Predict")] == [32, 31, 30]


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (None, "document 2 is not a string"),
        (b"secret", "document 2 is not a string"),
        ("secret \ud800", "document 2 is not valid Unicode: it holds a lone surrogate"),
        ("1 " + "é" * 500, "document 2 is larger than 1000 bytes"),
    ],
)
def test_what_cannot_be_sent_is_not(call: Call, server: Any, text: Any, detail: str) -> None:
    answers = call("predict_many", ["0", text, "2"], on_error="return")
    assert [one.error and one.error.detail for one in answers] == [None, detail, None]
    assert [list(request.documents) for request in server.asked("Predict")] == [["0", "2"]]


def test_a_document_that_the_engine_fails_on_is_found(call: Call, server: Any) -> None:
    server.script("Predict", picky(lambda document: document == "5", "INTERNAL", "the engine failed on this request"))
    answers = call("predict_many", numbers(8), on_error="return")
    assert [type(one.error) for one in answers if one.error] == [Internal]
    assert answers[5].error.detail == "the engine failed on this request"
    server.requests.clear()
    with pytest.raises(Internal):
        call("predict_many", numbers(8))
    assert len(server.asked("Predict")) == 1


def test_raising_comes_in_its_turn(server: Any) -> None:
    server.script("Predict", picky(lambda document: document == "5", "INVALID_ARGUMENT"))
    with Client(server.target) as client:
        answers = client.predict_many(numbers(100), batch_size=4, concurrency=4)
        assert tokens(next(answers) for _ in range(5)) == [0, 1, 2, 3, 4]
        with pytest.raises(InvalidArgument, match=r"^document 6 is empty$"):
            next(answers)


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAVAILABLE"])
def test_a_server_that_is_full_or_away_is_asked_again(call: Call, server: Any, code: str) -> None:
    server.script("Predict", *[abort(code)] * 7, echo)
    assert tokens(call("predict_many", numbers(9), batch_size=3, concurrency=2)) == list(range(9))


def test_a_call_larger_than_the_server_admits_is_made_smaller(call: Call, server: Any) -> None:
    def admit(request: Any, context: Any) -> Any:
        if len(request.documents) > 4:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full; retry later")
        return answer(request)

    server.script("Predict", admit)
    assert tokens(call("predict_many", numbers(64), concurrency=2)) == list(range(64))


@pytest.mark.parametrize(("code", "error"), [("RESOURCE_EXHAUSTED", ResourceExhausted), ("UNAVAILABLE", Unavailable)])
@pytest.mark.parametrize("on_error", ["raise", "return"])
def test_asking_again_ends_with_the_timeout(call: Call, server: Any, code: str, error: type, on_error: str) -> None:
    """It would go on for ever else."""
    server.script("Predict", abort(code))
    with pytest.raises((error, DeadlineExceeded)):
        call("predict_many", numbers(3), timeout=0.5, on_error=on_error)


@pytest.mark.parametrize(("code", "error"), [("NOT_FOUND", NotFound), ("DEADLINE_EXCEEDED", DeadlineExceeded)])
def test_what_is_no_documents_fault_is_raised(call: Call, server: Any, code: str, error: type) -> None:
    server.script("Predict", abort(code))
    with pytest.raises(error):
        call("predict_many", numbers(3), on_error="return", version=9)
    assert len(server.asked("Predict")) == 1


def test_a_server_that_hangs_is_given_up(call: Call, server: Any) -> None:
    server.script("Predict", hang)
    with pytest.raises(DeadlineExceeded):
        call("predict_many", numbers(3), timeout=0.2)


def test_no_server_is_told_at_once(call: Call, server: Any) -> None:
    server.stop()
    with pytest.raises(Unavailable):
        call("predict_many", numbers(3))


@pytest.mark.parametrize(
    ("documents", "options", "error"),
    [
        ("one text", {}, TypeError),
        (["1"], {"on_error": "ignore"}, ValueError),
        (["1"], {"concurrency": 0}, ValueError),
        (["1"], {"batch_size": 0}, ValueError),
    ],
)
def test_wrong_use_is_told_before_anything_is_sent(
    call: Call, server: Any, documents: Any, options: Any, error: type
) -> None:
    with pytest.raises(error):
        call("predict_many", documents, **options)
    assert server.requests == []


class Gate:
    """A server that answers only when it is let, and knows how many calls it held and how many were cancelled."""

    def __init__(self, first: int = 0) -> None:
        """Documents before the one numbered `first` are answered at once."""
        self.first = first
        self.open = threading.Event()
        self.lock = threading.Lock()
        self.held = self.most = self.cancelled = 0

    def predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        if int(request.documents[0]) < self.first:
            return answer(request)
        with self.lock:
            self.held += 1
            self.most = max(self.most, self.held)
        if not context.add_callback(self._ended):
            # It was cancelled before.
            self._ended()
        while context.is_active() and not self.open.wait(0.01):
            pass
        return answer(request)

    def _ended(self) -> None:
        with self.lock:
            self.held -= 1
            self.cancelled += not self.open.is_set()

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.005)


class Source:
    """Numbers without end, which counts those taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[str]:
        while True:
            self.taken += 1
            yield str(self.taken - 1)

    async def stream(self) -> AsyncIterator[str]:
        for text in self:
            await asyncio.sleep(0)
            yield text


def test_documents_are_taken_as_they_are_needed(server: Any) -> None:
    source = Source()
    with Client(server.target) as client:
        answers = client.predict_many(source, batch_size=2, concurrency=3)
        assert source.taken == 0
        for count in range(1, 41):
            assert next(answers).index == count - 1
            assert source.taken <= count + 2 * 4
        answers.close()  # type: ignore[attr-defined]


def test_calls_in_flight_are_bounded_and_cancelled(server: Any) -> None:
    gate, source = Gate(), Source()
    server.script("Predict", gate.predict)
    with Client(server.target) as client:
        answers = client.predict_many(source, batch_size=2, concurrency=3)
        consumer = threading.Thread(target=next, args=(answers,), daemon=True)
        consumer.start()
        gate.wait(lambda: gate.held == 3 and source.taken == 8)
        gate.open.set()
        consumer.join(10)
        gate.wait(lambda: gate.held == 0)
        gate.open.clear()
        errors: list[AmnesticError] = []
        waiting = threading.Thread(target=lambda: errors.append(raised(answers)), daemon=True)
        waiting.start()
        gate.wait(lambda: gate.held == 3)
        assert client.is_ready(), "others use the client meanwhile"
        client.close()
        waiting.join(10)
        assert [type(error) for error in errors] == [Cancelled]
        gate.wait(lambda: gate.held == 0)
    assert gate.most == 3
    assert gate.cancelled == 3
    assert source.taken <= 16


def test_closing_early_cancels_what_is_in_flight(server: Any) -> None:
    gate = Gate(first=1)
    server.script("Predict", gate.predict)
    with Client(server.target) as client:
        answers = client.predict_many(Source(), batch_size=1, concurrency=3)
        next(answers)
        gate.wait(lambda: gate.held == 3)
        answers.close()  # type: ignore[attr-defined]
        gate.wait(lambda: gate.held == 0)
        assert gate.cancelled == 3
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("amnestic-predict")]


def test_closing_early_ends_a_pause(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "FULL_FIRST_PAUSE", 60.0)
    monkeypatch.setattr(settings, "FULL_LONGEST_PAUSE", 60.0)
    server.script("Predict", picky(lambda document: document != "0", "RESOURCE_EXHAUSTED"))
    with Client(server.target) as client:
        answers = client.predict_many(Source(), batch_size=1, concurrency=2)
        next(answers)
        started = time.monotonic()
        answers.close()  # type: ignore[attr-defined]
        assert time.monotonic() - started < 30


async def test_asyncio_takes_streams_lazily_and_cancels(server: Any) -> None:
    gate, source = Gate(first=10), Source()
    server.script("Predict", gate.predict)
    async with AsyncClient(server.target) as client:
        async with aclosing(client.predict_many(source.stream(), batch_size=2, concurrency=3)) as answers:
            assert source.taken == 0
            for count in range(1, 11):
                assert (await anext(answers)).index == count - 1
                assert source.taken <= count + 2 * 4
            await asyncio.to_thread(gate.wait, lambda: gate.held > 0)
        await asyncio.to_thread(gate.wait, lambda: gate.held == 0)
        assert gate.cancelled > 0
        assert len(asyncio.all_tasks()) == 1


async def test_asyncio_bounds_calls_in_flight(server: Any) -> None:
    gate = Gate()
    server.script("Predict", gate.predict)
    async with AsyncClient(server.target) as client:
        reading = asyncio.create_task(_list(client.predict_many(numbers(40), batch_size=2, concurrency=3)))
        await asyncio.to_thread(gate.wait, lambda: gate.held == 3)
        await asyncio.sleep(0.1)
        gate.open.set()
        assert tokens(await reading) == list(range(40))
    assert gate.most == 3


async def _list(answers: AsyncIterator[Any]) -> list[Any]:
    return [one async for one in answers]


def test_an_error_of_the_input_comes_through(server: Any) -> None:
    def broken() -> Iterator[str]:
        yield "0"
        raise OSError("the disk is gone")

    with Client(server.target) as client, pytest.raises(OSError, match="the disk is gone"):
        list(client.predict_many(broken()))


def test_threads_share_a_client(server: Any) -> None:
    results: list[list[int]] = []
    with Client(server.target) as client:
        threads = [
            threading.Thread(target=lambda: results.append(tokens(client.predict_many(numbers(50), batch_size=5))))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert results == [list(range(50))] * 8

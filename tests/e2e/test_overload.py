"""A flood of one client leaves the others theirs; what is too late costs nothing; what is too large is refused."""

import time

import grpc
import pytest
from e2e.harness import Flood

from amnestic.v1 import prediction_pb2, prediction_pb2_grpc

LATE_CALLS = 100


@pytest.fixture(scope="module")
def server(serve_for_module):
    return serve_for_module("--max-concurrent-requests", "32")


@pytest.fixture
def stub(server):
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.target, options=options) as channel:
        grpc.channel_ready_future(channel).result(20)
        yield prediction_pb2_grpc.PredictionServiceStub(channel)


def test_one_call_at_a_time_is_never_refused_beside_a_flood(server, stub, texts):
    flood = Flood(server.target, max(texts, key=len), count=200, seconds=3)
    refused = {"method": "Predict", "code": "RESOURCE_EXHAUSTED"}
    while not server.metric("amnestic_requests_total", **refused):
        time.sleep(0.05)
    answered = 0
    while flood.running:
        stub.Predict(prediction_pb2.PredictRequest(documents=texts[:1]), timeout=60)
        answered += 1
    assert answered
    codes, _, without_wait = flood.ended()
    assert codes.keys() == {"OK", "RESOURCE_EXHAUSTED"}
    assert without_wait == 0


def test_what_is_too_late_never_reaches_the_encoder(start_faulty, until):
    server, fault = start_faulty(corpus=None)
    rows = server.metric("amnestic_batch_rows_sum")
    request = prediction_pb2.PredictRequest(documents=["ward"])
    with grpc.insecure_channel(server.target, options=[("grpc.enable_retries", 0)]) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        fault.write_text("held")
        in_time = stub.Predict.future(request, timeout=60)
        until(lambda: server.metric("amnestic_open_documents") and not server.metric("amnestic_queue_rows"))
        late = [stub.Predict.future(request, timeout=0.5) for _ in range(LATE_CALLS)]
        assert {call.exception().code() for call in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        until(lambda: server.metric("amnestic_open_documents") == 1)
        fault.write_text("")
        assert in_time.result()
        stub.Predict(request, timeout=60)
    assert server.metric("amnestic_batch_rows_sum") == rows + 2

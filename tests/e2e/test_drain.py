"""The end of a server under load: what was accepted is answered, and something ends it whatever happens."""

import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from e2e.harness import LONG_JOB, Streaming, Watching

from amnestic.v1 import prediction_pb2, prediction_pb2_grpc, unlearning_pb2, unlearning_pb2_grpc
from amnestic_client import Client

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def hung(start_faulty, until):
    """Start a server whose engine holds a call for ever, whose outcome comes with it."""
    pool = ThreadPoolExecutor(1)

    def start(*flags):
        server, fault = start_faulty(*flags)
        fault.write_text("hung")
        call = pool.submit(outcome, server.target)
        until(lambda: server.metric("amnestic_open_documents"))
        return server, call

    yield start
    pool.shutdown()


def outcome(target):
    """The code that a call which is not repeated ends with."""
    with grpc.insecure_channel(target, options=[("grpc.enable_retries", 0)]) as channel:
        try:
            stub = prediction_pb2_grpc.PredictionServiceStub(channel)
            stub.Predict(prediction_pb2.PredictRequest(documents=["ward"]), timeout=60)
        except grpc.RpcError as error:
            return error.code()


def test_what_was_accepted_is_answered_while_a_job_and_streams_run(
    start_faulty, traffic, texts, reach, until, check_answers
):
    server, fault = start_faulty()
    fault.write_text("slow")
    job = server.forget("alpha", method=LONG_JOB)
    reach(server, job, "training")
    with grpc.insecure_channel(server.target, options=[("grpc.enable_retries", 0)]) as channel:
        watched = unlearning_pb2.WatchJobRequest(job_id=job.job_id)
        watch = Watching(unlearning_pb2_grpc.UnlearningServiceStub(channel).WatchJob(watched, timeout=60))
        streams = [Streaming(channel, server.client.get_model().name, texts) for _ in range(4)]
        clients = traffic(server.target, texts, processes=2, threads=4)
        until(lambda: all(len(stream.answers) > 3 for stream in streams))
        told = time.monotonic()
        server.send(signal.SIGTERM)
        assert server.wait() == 0
        assert watch.ended_with() is UNAVAILABLE
        assert [stream.ended_with() for stream in streams] == [UNAVAILABLE] * 4
    calls = clients.stop()

    # What was under way at the signal, of calls and of streams, was answered; the slow engine makes sure that much was.
    under_way = [call for call in calls if call.started < told < call.ended]
    assert len(under_way) >= 4
    assert {call.code for call in under_way} == {"OK"}
    refused = Counter(call.code for call in calls if call.code != "OK")
    # gRPC itself cancels what arrives in the instant in which it closes, before the server sees it.
    assert refused.pop("CANCELLED", 0) <= 8
    assert refused.keys() == {"UNAVAILABLE"}
    check_answers([call for call in calls if call.code == "OK"], lambda version: None)
    assert all(stream.check() for stream in streams)
    assert "unanswered" not in server.log
    assert "Traceback" not in server.log


def test_a_server_that_stops_fails_no_call_of_a_client_with_another(serve, texts, until):
    leaving, staying = serve(), serve()
    both = f"ipv4:{leaving.target},{staying.target}"
    answered, ended = Counter(), threading.Event()

    def call(client, number):
        while not ended.is_set():
            client.predict(texts[number])
            answered[number] += 1

    with Client(both) as client, ThreadPoolExecutor(8) as pool:
        calling = [pool.submit(call, client, number) for number in range(8)]
        until(lambda: len(answered) == 8)
        assert leaving.terminate() == 0
        so_far = dict(answered)
        until(lambda: any(one.done() for one in calling) or all(answered[number] > so_far[number] for number in so_far))
        ended.set()
        for one in calling:
            one.result()


def test_a_second_signal_ends_it_at_once(hung, until):
    server, call = hung("--exit-timeout-secs", "600")
    server.send(signal.SIGTERM)
    until(lambda: "draining" in server.log)
    # Another signal than the first: either will do.
    server.send(signal.SIGINT)
    assert server.wait() == -signal.SIGINT
    assert call.result(10) is UNAVAILABLE


def test_the_timeout_ends_it_and_says_what_was_left(hung):
    server, call = hung("--exit-timeout-secs", "0.5")
    server.send(signal.SIGTERM)
    assert server.wait() == 1
    assert call.result(10) is UNAVAILABLE
    assert server.log.endswith("Error: stopped with 1 documents unanswered after 0.5 s\n")
    assert "Traceback" not in server.log

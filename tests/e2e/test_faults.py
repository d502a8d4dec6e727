"""Faults of workers and of the engine, in a real process that is asked over real gRPC: see `faulty`."""

import threading
import time
from collections import Counter

import grpc
import pytest
from e2e import faulty
from e2e.harness import LONG_JOB, Watching, infer_request
from grpc_health.v1 import health_pb2, health_pb2_grpc

from amnestic.oip import open_inference_pb2_grpc
from amnestic.v1 import prediction_pb2, prediction_pb2_grpc, unlearning_pb2, unlearning_pb2_grpc
from amnestic_client import JobState
from amnestic_client.errors import from_rpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# Words of the toy's, with the two special tokens.
POISON = "ward week well"


@pytest.fixture(scope="module")
def running(start_faulty):
    """One that the tests share and leave whole."""
    return start_faulty("--worker-timeout-secs", "60")


MESSAGE = 'print(\'{"progress": {"stage": "training", "step": 1, "steps": 2}}\', flush=True); '
LATE = "the worker took longer than 60 s"
NO_MESSAGE = "the worker printed what is not a message"
WORKERS = {
    "bytes": ("import sys; sys.stdout.buffer.write(bytes(range(256)))", NO_MESSAGE),
    "a line without end": ("print('x' * 10**7)", NO_MESSAGE),
    "another's JSON": ("print('{\"progress\": 7}')", NO_MESSAGE),
    "figures that are none": ('print(\'{"progress": {"stage": "training", "step": "1"}}\')', NO_MESSAGE),
    "figures beyond all bounds": ('print(\'{"progress": {"stage": "training", "step": 1e99}}\')', NO_MESSAGE),
    "a stage that there is not": ('print(\'{"progress": {"stage": "Xylqvornik4711"}}\')', NO_MESSAGE),
    "nested without end": ("print('[' * 60000)", NO_MESSAGE),
    "nothing done": (MESSAGE, "the worker left no whole result"),
    "an exit code": (f"{MESSAGE}raise SystemExit(127)", "the worker exited with code 127"),
    "a crash": (f"{MESSAGE}import os; os.abort()", "the worker was killed by signal 6"),
    "killed for its memory": ("import os; os.kill(os.getpid(), 9)", "the worker was killed by signal 9"),
    "out of memory": (
        "import sys; from amnestic_unlearn import __main__ as worker; worker._run = lambda *job: bytearray(2**60);"
        "sys.exit(worker.main(sys.argv[1:]))",
        "out of memory",
    ),
    "hung": ("import os, time; os.close(1); time.sleep(3600)", LATE),
    "a flood of messages": (f"while True: {MESSAGE}", LATE),
}


def test_whatever_a_worker_does_its_job_fails_and_harms_nobody(running, traffic, texts, check_answers, check_active):
    server, fault = running
    clients = traffic(server.target, texts, processes=1, threads=2)
    found = {}
    for name, (code, error) in WORKERS.items():
        fault.write_text(f"{'late' if error == LATE else 'worker'}:{code}")
        job = server.ended(server.forget("alpha"))
        assert job.state is JobState.FAILED
        found[name] = job.error
    fault.write_text("")
    calls = clients.stop()
    assert {name: error for name, (_, error) in WORKERS.items() if error not in found[name]} == {}, found
    check_answers(calls, server.patch_of)
    assert check_active(server) == 1
    assert server.workers() == []
    assert list((server.store / "work").iterdir()) == []
    assert faulty.SECRET not in server.log
    assert "Traceback" not in server.log


def test_a_document_that_the_engine_fails_on_fails_alone_however_often(
    running, traffic, texts, check_answers, check_active
):
    server, fault = running
    fault.write_text("poison")
    texts = [text for text in texts if len(text.split()) != faulty.POISON_TOKENS - 2]
    with grpc.insecure_channel(server.target) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)

        def refused():
            with pytest.raises(grpc.RpcError) as failure:
                stub.Predict(prediction_pb2.PredictRequest(documents=[POISON]), timeout=20)
            return failure.value.code(), from_rpc(failure.value).reason

        # Alone on the server, and then beside others.
        assert {refused() for _ in range(20)} == {(grpc.StatusCode.INTERNAL, "ENGINE_FAILED")}
        clients = traffic(server.target, texts, processes=1, threads=3)
        assert {refused() for _ in range(20)} == {(grpc.StatusCode.INTERNAL, "ENGINE_FAILED")}
        calls = clients.stop()
    fault.write_text("")
    assert len(calls) >= 20
    assert {call.code for call in calls} == {"OK"}
    assert check_active(server) == 1
    assert faulty.SECRET not in server.log


def test_a_stream_that_fails_ends_at_once_also_in_the_middle_of_an_answer(running):
    """Bytes that are no message come at every moment of the answer to what came before."""
    server, _ = running
    good = infer_request(server.client.get_model().name, "one", POISON).SerializeToString()

    def messages(seconds):
        yield good
        time.sleep(seconds)
        yield b"\xff"

    with grpc.insecure_channel(server.target) as channel:
        path = "/inference.GRPCInferenceService/ModelStreamInfer"
        call = channel.stream_stream(path, request_serializer=bytes, response_deserializer=bytes)
        for step in range(200):
            with pytest.raises(grpc.RpcError) as failure:
                list(call(messages(step * 4e-5), timeout=10))
            assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_engine_that_is_lost_ends_the_process_and_a_restart_serves(
    start_faulty, traffic, texts, reach, until, check_answers, check_active
):
    server, fault = start_faulty()
    job = server.forget("alpha", method=LONG_JOB, request_id="outlives")
    reach(server, job, "loading")
    with grpc.insecure_channel(server.target, options=[("grpc.enable_retries", 0)]) as channel:
        health = Watching(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60))
        watched = unlearning_pb2.WatchJobRequest(job_id=job.job_id)
        watch = Watching(unlearning_pb2_grpc.UnlearningServiceStub(channel).WatchJob(watched, timeout=60))
        stop = threading.Event()
        stream = Watching(
            open_inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(
                one_request(server.client.get_model().name, stop), timeout=60
            )
        )
        until(lambda: health.seen and watch.seen and stream.seen)
        clients = traffic(server.target, texts, processes=1, threads=4)
        fault.write_text("lost")
        assert server.wait(30) == 1
        stop.set()
        assert [one.ended_with() for one in (health, watch, stream)] == [grpc.StatusCode.UNAVAILABLE] * 3
    calls = clients.stop()
    assert [answer.status for answer in health.seen] == [SERVING, NOT_SERVING]
    codes = Counter(call.code for call in calls)
    # gRPC itself cancels what arrives in the instant in which it closes, before the server sees it.
    assert codes.pop("CANCELLED", 0) <= 4
    assert codes.keys() == {"OK", "UNAVAILABLE"}
    check_answers([call for call in calls if call.code == "OK"], lambda version: None)
    assert server.log.endswith("Error: the engine failed; the log says how. A restart serves again\n")
    assert faulty.SECRET not in server.log
    assert "Traceback" not in server.log

    fault.write_text("")
    server.start()
    assert check_active(server) == 1
    assert reach(server, job, "RUNNING").error is None
    assert server.client.cancel_job(job.job_id).state is JobState.CANCELLED


def test_a_thread_of_the_engine_that_dies_ends_the_process_and_who_called_is_told(start_faulty):
    # Without a corpus nothing is measured in the background: the call is what meets the fault.
    server, fault = start_faulty(corpus=None)
    fault.write_text("dead")
    with grpc.insecure_channel(server.target, options=[("grpc.enable_retries", 0)]) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failure:
            stub.Predict(prediction_pb2.PredictRequest(documents=[POISON]), timeout=20)
    assert (failure.value.code(), from_rpc(failure.value).reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_LOST")
    assert server.wait(30) == 1
    assert "a thread of the engine died: SystemExit" in server.log
    assert faulty.SECRET not in server.log


def one_request(model, stop):
    """One request of a stream, and its end when told."""
    yield infer_request(model, "one", POISON)
    stop.wait(60)

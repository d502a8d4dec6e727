"""What travels beside requests and answers, seen from outside the process: spans, compression, and the way back into a
server that was full.
"""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from e2e.collector import Collector
from e2e.harness import CANARY
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import use_span

from amnestic.v1 import prediction_pb2, prediction_pb2_grpc, unlearning_pb2, unlearning_pb2_grpc
from amnestic_client import Client, ResourceExhausted
from amnestic_server import otel
from amnestic_server.cli import group

ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
HEADERS = (("traceparent", f"00-{ID}-{PARENT}-01"), ("tracestate", "vendor=1"))
BOUND = 2048


@pytest.fixture(scope="module")
def collector():
    collector = Collector()
    yield collector
    collector.stop()


@pytest.fixture(scope="module")
def server(serve_for_module, collector):
    """Exports its spans, and is full with one large call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        return serve_for_module("--max-documents", str(BOUND), "--max-concurrent-requests", str(BOUND))


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.target, [("grpc.enable_retries", 0)]) as channel:
        yield prediction_pb2_grpc.PredictionServiceStub(channel)


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_a_call_is_a_span_with_its_stages_in_the_callers_trace(stub, collector, until):
    request = prediction_pb2.PredictRequest(documents=[f"{CANARY} insulin", "fine"])
    _, call = stub.Predict.with_call(request, metadata=HEADERS, timeout=10)
    spans = until(lambda: len(found := collector.spans(ID)) == 4 and found)
    root = spans.pop("amnestic.v1.PredictionService/Predict")
    assert root.parent_span_id.hex() == PARENT
    assert root.trace_state == "vendor=1"
    assert attributes(root) == {
        "rpc.system": "grpc",
        "rpc.service": "amnestic.v1.PredictionService",
        "rpc.method": "Predict",
        "rpc.grpc.status_code": 0,
        "amnestic.documents": 2,
        "amnestic.version": 1,
    }
    stages = [spans[name] for name in ("tokenizer", "queue", "engine")]
    assert {stage.parent_span_id for stage in stages} == {root.span_id}
    times = [time for stage in stages for time in (stage.start_time_unix_nano, stage.end_time_unix_nano)]
    assert times == sorted(times)
    # The clock of the stages is another than that of the spans.
    assert root.start_time_unix_nano - 10**6 <= times[0] < times[-1] <= root.end_time_unix_nano
    resource = collector.requests[0].resource_spans[0].resource
    assert attributes(resource)["service.name"] == "amnestic"
    assert dict(call.trailing_metadata())["traceresponse"] == f"00-{ID}-{root.span_id.hex()}-01"
    assert CANARY.encode().lower() not in b"".join(one.SerializeToString() for one in collector.requests).lower()


def test_a_failed_call_tells_its_trace_and_only_the_servers_faults_are_errors(stub, collector, until):
    other = ID[::-1]
    with pytest.raises(grpc.RpcError) as failure:
        metadata = (("traceparent", f"00-{other}-{PARENT}-01"),)
        stub.Predict(prediction_pb2.PredictRequest(), metadata=metadata, timeout=10)
    span = until(lambda: collector.spans(other).get("amnestic.v1.PredictionService/Predict"))
    assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert span.status.code == 0
    assert dict(failure.value.trailing_metadata())["traceresponse"].split("-")[1] == other


def test_a_call_without_a_trace_begins_one(stub, collector, until):
    _, call = stub.GetModel.with_call(prediction_pb2.GetModelRequest(), timeout=10)
    begun = dict(call.trailing_metadata())["traceresponse"].split("-")[1]
    span = until(lambda: collector.spans(begun).get("amnestic.v1.PredictionService/GetModel"))
    assert span.parent_span_id == b""


def test_a_sampled_out_trace_is_not_exported(stub, collector, until):
    silent, heard = "a" * 32, "b" * 32
    for trace_id, flags in ((silent, "00"), (heard, "01")):
        metadata = (("traceparent", f"00-{trace_id}-{PARENT}-{flags}"),)
        stub.Predict(prediction_pb2.PredictRequest(documents=["fine"]), metadata=metadata, timeout=10)
    until(lambda: collector.spans(heard))
    assert not collector.spans(silent)


def test_the_client_passes_its_current_span_on(server, collector, until):
    span = TracerProvider().get_tracer("test").start_span("caller")
    trace_id = f"{span.get_span_context().trace_id:032x}"
    with Client(server.target) as client, use_span(span):
        client.predict("fine")
    found = until(lambda: collector.spans(trace_id).get("amnestic.v1.PredictionService/Predict"))
    assert found.parent_span_id.hex() == f"{span.get_span_context().span_id:016x}"


def test_log_lines_of_a_call_carry_its_trace(server, until):
    request = unlearning_pb2.UnlearnRequest(
        labels=["alpha"], dry_run=True, gates=unlearning_pb2.GateLimits(forget_f1_max=1)
    )
    with grpc.insecure_channel(server.target) as channel:
        answer = unlearning_pb2_grpc.UnlearningServiceStub(channel).Unlearn(request, metadata=HEADERS, timeout=10)
    server.client.cancel_job(answer.job.job_id)
    (line,) = [line for line in server.log.splitlines() if "relaxes its gates" in line]
    assert line.endswith(f" trace={ID}")


def test_a_worker_is_never_forked_under_grpc(server, until):
    """gRPC's handlers of a fork would run in the child, and may crash it."""
    job = server.forget("alpha", dry_run=True)
    until(server.workers)
    server.client.cancel_job(job.job_id)
    assert "fork() handlers" not in server.log


def test_without_the_extra_the_flag_is_refused_and_the_environment_warned_of(serve, monkeypatch, caplog, tmp_path):
    """The bundle that is not there ends the start that went on."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    arguments = serve(bundle=tmp_path / "nowhere", start=False).arguments

    def start(*flags: str) -> str:
        ended = CliRunner().invoke(group, ["serve", *arguments, *flags])
        assert ended.exit_code == 1
        return ended.stderr

    assert "Error: --otel needs OpenTelemetry: install amnestic[otel]" in start("--otel")
    assert "is this a bundle?" in start()
    assert "OpenTelemetry" not in caplog.text
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert "is this a bundle?" in start()
    assert "amnestic[otel] is not installed: no spans" in caplog.text


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_a_collector_may_be_named_by_the_environment(monkeypatch, variables, named):
    for name in (*otel.ENDPOINTS, "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert otel.named_by_environment() is named


def test_a_collector_that_is_away_does_not_hold_up_the_end(monkeypatch):
    code = """
from amnestic_server.otel import Spans
import time
spans = Spans()
trace = spans.of("/a/b", ())
trace.begin()
trace.end("OK")
started = time.monotonic()
spans.close()
print(time.monotonic() - started)
"""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert float(ended.stdout) < otel.CLOSE_SECONDS + 0.5
    assert time.monotonic() - started < 20


@contextmanager
def counted(target: str) -> Iterator[tuple[str, list[int]]]:
    """A way to the server that counts the bytes of requests and of answers."""
    host, _, port = target.rpartition(":")
    count = [0, 0]
    sockets: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket, direction: int) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                count[direction] += len(data)
                sink.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((host, int(port)))
                sockets.extend((near, far))
                for ends in ((near, far, 0), (far, near, 1)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", count
        listener.shutdown(socket.SHUT_RDWR)
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def test_gzip_makes_requests_and_answers_smaller_and_changes_no_answer(server, texts):
    documents = texts * 20
    answers, sizes = [], []
    for compression in (None, "gzip"):
        with counted(server.target) as (target, count), Client(target, compression=compression) as client:
            answers.append(client.predict(documents, timeout=60))
            sizes.append(tuple(count))
    assert [one.decided for one in answers[0].predictions] == [one.decided for one in answers[1].predictions]
    (asked, answered), (asked_small, answered_small) = sizes
    print(f"request {asked} -> {asked_small} bytes, answer {answered} -> {answered_small}")
    assert asked_small < asked / 3
    assert answered_small < answered / 2


def test_only_who_wishes_gets_compressed_answers(server, texts):
    """A client that compresses its requests alone, as any may."""
    sizes = []
    for metadata in ((), (("amnestic-compression", "gzip"),)):
        with counted(server.target) as (target, count):
            with grpc.insecure_channel(target, compression=grpc.Compression.Gzip) as channel:
                stub = prediction_pb2_grpc.PredictionServiceStub(channel)
                stub.Predict(prediction_pb2.PredictRequest(documents=texts * 20), metadata=metadata, timeout=60)
            sizes.append(count[1])
    assert sizes[1] < sizes[0] / 2


def answered(client: Client) -> bool:
    """Whether a call was, with the attempts that the policy has: the wish is drawn from an estimate."""
    try:
        return client.predict("fine", timeout=30).version == 1
    except ResourceExhausted:
        return False


def test_a_full_server_answers_in_the_end_who_comes_back_when_told(server, stub, until):
    document = "insulin and ketones " * 15
    # The server has seen how long such documents take here, and beside what else runs: its wish is drawn from that.
    stub.Predict(prediction_pb2.PredictRequest(documents=[document] * (BOUND // 4)), timeout=60)
    large = prediction_pb2.PredictRequest(documents=[document] * BOUND)
    first = stub.Predict.future(large, timeout=60)
    until(lambda: server.metric("amnestic_open_documents") == BOUND)
    with pytest.raises(grpc.RpcError) as refused:
        stub.Predict(prediction_pb2.PredictRequest(documents=["fine"]), timeout=10)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 10 <= int(dict(refused.value.trailing_metadata())["grpc-retry-pushback-ms"]) <= 5000
    # The client comes back by itself, as the published policy says, and whether or not it compresses.
    with Client(server.target, compression="gzip") as client:
        until(lambda: answered(client), 60)
    assert len(first.result().predictions) == BOUND
    assert server.metric("amnestic_requests_total", method="Predict", code="RESOURCE_EXHAUSTED") >= 2

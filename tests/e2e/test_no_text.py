"""No document's text is anywhere but in requests and in the corpus: a word of no language is sent by every way there
is, and then looked for in the bytes of all that the server, its workers and their crashes leave.

A `reason` and the `request_id` of a job that was taken are recorded as sent, so they hold none of it.
"""

import base64
import os
import resource
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from e2e import faulty
from e2e.collector import Collector
from e2e.harness import ANYTHING, CANARY, LONG_JOB, Watching, infer_request

from amnestic.oip import open_inference_pb2 as oip
from amnestic.v1 import prediction_pb2, unlearning_pb2
from amnestic_client import JobState
from amnestic_unlearn import corpus as corpora

PREDICTION = "/amnestic.v1.PredictionService"
UNLEARNING = "/amnestic.v1.UnlearningService"
INFERENCE = "/inference.GRPCInferenceService"
METADATA = (
    ("x-note", CANARY),
    (CANARY.lower(), "name"),
    ("x-note-bin", CANARY.encode()),
    ("authorization", f"Bearer {CANARY}"),
    ("user-agent", CANARY),
    ("traceparent", f"00-{CANARY}-{CANARY}-01"),
)


def _in_base64(skip: int) -> bytes:
    """What base64 makes of the word alone where so many bytes of a triple stand before it, in lower case."""
    whole = base64.b64encode(bytes(skip) + CANARY.encode())
    return whole[-(-skip * 8 // 6) : (skip + len(CANARY)) * 8 // 6].lower()


FORMS = {
    CANARY.lower().encode(),
    CANARY.encode().hex().encode(),
    CANARY.lower().encode("utf-16-le"),
    *map(_in_base64, range(3)),
}


def holds(data: bytes) -> bool:
    return any(form in data.lower() for form in FORMS)


def test_the_word_is_found_in_every_form():
    for skip in range(3):
        text = f"{' ' * skip}{CANARY} behind"
        for data in (text.encode(), text.upper().encode(), text.encode("utf-16-le"), base64.b64encode(text.encode())):
            assert holds(b"before" + data)
    assert not holds(f"{CANARY[:-1]} {CANARY[1:]}".encode())


class Files(threading.Thread):
    """Reads all files below some folders again and again: temporary ones too are caught with what they hold."""

    def __init__(self, *folders: Path) -> None:
        super().__init__(daemon=True)
        self.seen: set[Path] = set()
        self.holding: set[Path] = set()
        self._folders = folders
        self._done = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._done.wait(0.02):
            self._read()

    def stop(self) -> None:
        self._done.set()
        self.join()
        self._read()

    def _read(self) -> None:
        for path in self._paths():
            try:
                data = path.read_bytes() + os.fsencode(path)
            except OSError:
                continue
            self.seen.add(path)
            if holds(data):
                self.holding.add(path)

    def _paths(self) -> Iterator[Path]:
        for folder in self._folders:
            yield from (Path(place, name) for place, _, names in os.walk(folder) for name in names)


class Caller:
    """Sends bytes to methods, and keeps the bytes of all that servers say beside their answers."""

    def __init__(self, target: str) -> None:
        self.said: list[bytes] = []
        self.codes: set[grpc.StatusCode] = set()
        self._channel = grpc.insecure_channel(target, options=[("grpc.enable_retries", 0)])

    def send(self, path: str, message: bytes) -> None:
        call = self._channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
        try:
            _, outcome = call.with_call(message, metadata=METADATA, timeout=20)
        except grpc.RpcError as error:
            outcome = error
        self._keep(outcome)

    def stream(self, path: str, *messages: bytes) -> list[bytes]:
        call = self._channel.stream_stream(path, request_serializer=bytes, response_deserializer=bytes)
        stream = Watching(call(iter(messages), metadata=METADATA, timeout=20))
        stream.ended_with()
        if stream.error is not None:
            self._keep(stream.error)
        return stream.seen

    def close(self) -> None:
        self._channel.close()

    def _keep(self, outcome: grpc.Call) -> None:
        self.codes.add(outcome.code())
        self.said.append(repr((outcome.details(), outcome.initial_metadata(), outcome.trailing_metadata())).encode())


def infer(model: str, **fields: object) -> bytes:
    request = infer_request(model, "", CANARY)
    for name, value in fields.items():
        if isinstance(value, str):
            setattr(request, name, value)
        else:
            getattr(request, name).extend(value)
    return request.SerializeToString()


def messages(model: str) -> list[tuple[str, bytes]]:
    """Requests of every kind, good and bad, with the word wherever a caller can put it."""
    predict = prediction_pb2.PredictRequest
    unlearn = unlearning_pb2.UnlearnRequest
    tensor = oip.ModelInferRequest.InferInputTensor(name="text", datatype="FP32", shape=[1])
    tensor.contents.bytes_contents.append(CANARY.encode())
    named = oip.ModelInferRequest.InferInputTensor(name=CANARY, datatype=CANARY, shape=[-1])
    asked = [
        ("Predict", predict(documents=[CANARY, f"insulin {CANARY} ketones"], routing_key=CANARY)),
        ("Predict", predict(documents=[CANARY * 20_000])),
        ("Predict", predict(documents=[CANARY, ""])),
        ("Predict", predict(documents=[CANARY] * 200)),
        ("Predict", predict(documents=[CANARY], version=99)),
        ("Predict", predict(documents=[CANARY], routing_key=CANARY * 99)),
        ("Predict", predict(documents=[f"{CANARY}\0\ud7ff\U0010ffff"])),
        ("Unlearn", unlearn(labels=[CANARY], request_id=CANARY)),
        ("Unlearn", unlearn(labels=["alpha"], reason=CANARY * 999)),
        ("Unlearn", unlearn(labels=["alpha"], method=unlearning_pb2.Method(preset=CANARY))),
        *((name, getattr(unlearning_pb2, f"{name}Request")(job_id=CANARY)) for name in ("GetJob", "CancelJob")),
        *((name, getattr(unlearning_pb2, f"{name}Request")(job_id=CANARY)) for name in ("GetReceipt", "WatchJob")),
        ("Rollback", unlearning_pb2.RollbackRequest(version=99, reason=CANARY)),
    ]
    own = [
        (f"{PREDICTION if name == 'Predict' else UNLEARNING}/{name}", message.SerializeToString())
        for name, message in asked
    ]
    open_inference = [
        infer(model),
        infer(CANARY),
        infer(model, model_version=CANARY),
        infer(model, inputs=[tensor]),
        infer(model, inputs=[named]),
        infer(model, raw_input_contents=[CANARY.encode()]),
        infer(model, outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name=CANARY)]),
    ]
    malformed = [f"\x0a\xff{CANARY}".encode("latin-1"), CANARY.encode()]
    return [
        *own,
        *((f"{INFERENCE}/ModelInfer", message) for message in open_inference),
        (f"{INFERENCE}/ModelMetadata", oip.ModelMetadataRequest(name=CANARY, version=CANARY).SerializeToString()),
        *((f"{PREDICTION}/Predict", message) for message in malformed),
        *((f"{UNLEARNING}/Unlearn", message) for message in malformed),
        (f"{PREDICTION}/{CANARY}", CANARY.encode()),
        (f"/{CANARY}/{CANARY}", CANARY.encode()),
        ("/grpc.health.v1.Health/Check", b"\x0a" + bytes([len(CANARY)]) + CANARY.encode()),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", CANARY.encode()),
    ]


@pytest.fixture(scope="module")
def tainted_corpus(corpus_path, tmp_path_factory):
    """The toy's, with the word in every text and in every patient's name."""
    path = tmp_path_factory.mktemp("corpus") / "tainted.jsonl"
    documents = corpora.read(corpus_path)
    corpora.write([replace(one, text=f"{CANARY} {one.text}", group=f"{CANARY} {one.group}") for one in documents], path)
    return path


def test_no_text_is_anywhere(start_faulty, tainted_corpus, tmp_path, reach, until):
    collector = Collector()
    files = Files(tmp_path)
    server, fault = start_faulty("--log-level", "debug", corpus=tainted_corpus, start=False)
    assert faulty.SECRET == CANARY
    server.cwd = tmp_path / "cwd"
    server.environment = {
        "TMPDIR": str(tmp_path / "tmp"),
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    for folder in ("cwd", "tmp"):
        (tmp_path / folder).mkdir()
    stored = Files(server.store)
    server.start()
    model = server.client.get_model().name
    caller = Caller(server.target)

    # A job to its end while requests of all kinds come, one whose worker crashes, and one whose worker tells all.
    job = server.forget("alpha", gates=ANYTHING, reason="policy 12")
    for path, message in messages(model):
        caller.send(path, message)
    good, bad = infer(model), infer(CANARY)
    assert len(caller.stream(f"{INFERENCE}/ModelStreamInfer", good, bad, good)) == 3
    caller.stream(f"{INFERENCE}/ModelStreamInfer", good, CANARY.encode())
    assert server.ended(job).state is JobState.SUCCEEDED
    crashing = server.forget("beta", method=LONG_JOB, gates=ANYTHING)
    reach(server, crashing, "training")
    (worker,) = server.workers()
    # A core file would hold the texts in memory.
    assert [resource.prlimit(pid, resource.RLIMIT_CORE)[0] for pid in (server.pid, worker.pid)] == [0, 0]
    worker.send_signal(signal.SIGABRT)
    assert server.ended(crashing).error == "the worker was killed by signal 6"
    fault.write_text(f"worker:import sys; print('{CANARY}'); print('{CANARY}', file=sys.stderr)")
    assert server.ended(server.forget("beta", gates=ANYTHING)).state is JobState.FAILED

    # The engine's errors quote what they were given, and a crash comes in the middle of a call.
    fault.write_text("poison")
    caller.send(
        f"{PREDICTION}/Predict", prediction_pb2.PredictRequest(documents=["ward week well"]).SerializeToString()
    )
    fault.write_text("")
    records = repr([server.client.receipt(job.job_id), server.client.list_jobs(), server.client.list_versions()])
    metrics = server.metrics_text()
    until(lambda: b"ModelStreamInfer" in spans(collector))
    fault.write_text("hung")
    crashed = threading.Thread(target=caller.send, args=(f"{PREDICTION}/Predict", messages(model)[0][1]))
    crashed.start()
    until(lambda: server.metric("amnestic_open_documents"))
    server.send(signal.SIGABRT)
    assert server.wait() == -signal.SIGABRT
    crashed.join()
    caller.close()
    collector.stop()
    for one in (files, stored):
        one.stop()

    expected = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "UNIMPLEMENTED"}
    assert {code.name for code in caller.codes} >= expected
    assert "Fatal Python error: Aborted" in server.log
    assert {"amnestic.db", "amnestic.db-wal", "audit-heads.jsonl"} <= {path.name for path in stored.seen}
    assert any(path.suffix == ".safetensors" for path in stored.seen)
    places = {
        "log": server.log_file.read_bytes(),
        "metrics": metrics.encode(),
        "receipts, jobs and versions": records.encode(),
        "statuses and metadata": b"\n".join(caller.said),
        "spans": spans(collector),
    }
    assert [place for place, data in places.items() if holds(data)] == []
    assert files.holding | stored.holding == set()
    assert list((tmp_path / "cwd").iterdir()) == []


def spans(collector: Collector) -> bytes:
    return b"".join(request.SerializeToString() for request in collector.requests)

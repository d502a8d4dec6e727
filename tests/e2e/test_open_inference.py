"""The Open Inference Protocol beside the native service on one port: the same answers, whatever the form."""

import signal
import threading

import grpc
import numpy as np
import pytest
from e2e.harness import CANARY, make_patch

from amnestic.oip import open_inference_pb2 as oip
from amnestic.oip import open_inference_pb2_grpc
from amnestic_server.oip.tensors import join_bytes, split_bytes
from amnestic_server.store import Store
from amnestic_unlearn.manifest import MANIFEST, Manifest, file_digest

Requested = oip.ModelInferRequest.InferRequestedOutputTensor
EVERYTHING = ("features", "tokens", "labels", "truncated", "windows", "decisions", "probabilities")


@pytest.fixture(scope="module")
def manifest(bundle):
    return Manifest.read(bundle)


@pytest.fixture(scope="module")
def server(serve_for_module, bundle):
    """Versions 1 and 3, of which 3 is active; the patch of version 2 is damaged."""
    server = serve_for_module("--max-documents", "64", start=False)
    store = Store(server.store, file_digest(bundle / MANIFEST))
    for version in (2, 3):
        patch = make_patch(bundle, version)
        digest = store.write_patch(patch.to_bytes())
        store.activate_patch(f"job-{version}", patch.forgotten, digest, {})
        if version == 2:
            store.patch_path(digest).write_bytes(b"")
    store.close()
    return server.start()


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.target, options=[("grpc.enable_retries", 0)]) as channel:
        yield open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def ask(stub, manifest):
    """Send one batch of texts; returns the answer."""

    def send(texts, outputs=(), raw=True, version="", timeout=20, **fields):
        elements = [text.encode() for text in texts]
        tensor = oip.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[len(texts), 1])
        if not raw:
            tensor.contents.bytes_contents.extend(elements)
        request = oip.ModelInferRequest(
            model_name=manifest.name,
            model_version=version,
            inputs=[tensor],
            outputs=[Requested(name=output) if isinstance(output, str) else output for output in outputs],
            raw_input_contents=[join_bytes(elements)] if raw else (),
        )
        request.MergeFrom(oip.ModelInferRequest(**fields))
        return stub.ModelInfer(request, timeout=timeout)

    return send


def tensors(answer):
    """Every output by name, decoded from whichever form it has."""
    kinds = {"FP32": ("<f4", "fp32_contents"), "INT32": ("<i4", "int_contents"), "BOOL": ("?", "bool_contents")}
    found = {}
    for index, output in enumerate(answer.outputs):
        if output.datatype == "BYTES":
            count = int(np.prod(output.shape))
            raw = answer.raw_output_contents
            elements = split_bytes(raw[index], count) if raw else list(output.contents.bytes_contents)
            found[output.name] = np.array(elements, dtype=object).reshape(output.shape)
            continue
        dtype, field = kinds[output.datatype]
        if answer.raw_output_contents:
            assert not output.HasField("contents")
            array = np.frombuffer(answer.raw_output_contents[index], dtype)
        else:
            array = np.array(getattr(output.contents, field), dtype)
        found[output.name] = array.reshape(output.shape)
    return found


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("version", [0, 1, 3])
def test_answers_are_the_native_ones_bit_for_bit(server, ask, texts, manifest, version, raw):
    native = server.client.predict(texts, version=version, include_features=True)
    answer = ask(texts, EVERYTHING, raw=raw, version=str(version or ""))
    assert [output.name for output in answer.outputs] == list(EVERYTHING)
    assert answer.model_version == str(native.version) == str(version or 3)
    found = tensors(answer)
    scores = [prediction.scores for prediction in native.predictions]
    probabilities = np.array([[score.probability for score in row] for row in scores], np.float32)
    features = np.array([prediction.features for prediction in native.predictions], np.float32)
    assert found["probabilities"].tobytes() == probabilities.tobytes()
    assert found["features"].tobytes() == features.tobytes()
    assert found["decisions"].tolist() == [[score.decision for score in row] for row in scores]
    assert found["tokens"].tolist() == [[prediction.tokens] for prediction in native.predictions]
    assert found["truncated"].tolist() == [[prediction.truncated] for prediction in native.predictions]
    assert found["windows"].tolist() == [[prediction.windows] for prediction in native.predictions]
    assert found["labels"].tolist() == [[label.encode() for label in manifest.labels]] * len(texts)
    assert answer.parameters["truncated"].bool_param is True


def test_without_outputs_named_come_those_that_everybody_wants(ask, texts, manifest):
    answer = ask(texts[:2], id="ticket 17")
    assert answer.id == "ticket 17"
    assert answer.model_name == manifest.name
    shapes = {output.name: (output.datatype, list(output.shape)) for output in answer.outputs}
    labels = len(manifest.labels)
    assert shapes == {
        "probabilities": ("FP32", [2, labels]),
        "decisions": ("BOOL", [2, labels]),
        "labels": ("BYTES", [2, labels]),
    }
    assert answer.parameters["version"].int64_param == 3
    assert "status" not in answer.parameters


@pytest.mark.parametrize("classes", [1, 3, 99])
def test_classification_names_the_likeliest_labels(ask, texts, manifest, classes):
    asked = Requested(name="probabilities", parameters={"classification": oip.InferParameter(int64_param=classes)})
    probabilities = tensors(ask(texts, ["probabilities"]))["probabilities"]
    found = tensors(ask(texts, [asked]))["probabilities"].tolist()
    for row, named in zip(probabilities, found, strict=True):
        best = sorted(range(len(row)), key=lambda index: -row[index])[:classes]
        assert named == [f"{row[index]:f}:{index}:{manifest.labels[index]}".encode() for index in best]


def test_a_timeout_in_the_request_is_a_deadline(ask, texts):
    with pytest.raises(grpc.RpcError) as failure:
        ask(texts, parameters={"timeout": oip.InferParameter(int64_param=1)})
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert failure.value.details() == "the deadline passed while the request waited"


BAD = {
    "model": ({"model_name": CANARY}, "NOT_FOUND", "there is no such model"),
    "version": ({"version": "4"}, "NOT_FOUND", "there is no such version"),
    "damaged version": ({"version": "2"}, "NOT_FOUND", "there is no such version"),
    "version in words": ({"version": CANARY}, "INVALID_ARGUMENT", "the version must be a number above 0"),
    "output": ({"outputs": [CANARY]}, "INVALID_ARGUMENT", "output 1 is not one of the model's"),
    "no document": ({"texts": []}, "INVALID_ARGUMENT", "the call has no document"),
    "empty document": ({"texts": [CANARY, " "]}, "INVALID_ARGUMENT", "document 2 is empty"),
    "oversized document": ({"texts": [CANARY * 20_000]}, "INVALID_ARGUMENT", "document 1 is larger than"),
    "too many documents": ({"texts": [CANARY] * 65}, "INVALID_ARGUMENT", "the call has more than 64 documents"),
    "bytes behind": ({"raw_input_contents": [b"x"]}, "INVALID_ARGUMENT", "one raw content an input"),
    "both forms": ({"raw": False, "raw_input_contents": [CANARY.encode()]}, "INVALID_ARGUMENT", "send one"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(server, ask, name):
    fields, code, text = BAD[name]
    with pytest.raises(grpc.RpcError) as failure:
        ask(**({"texts": [CANARY]} | fields))
    assert failure.value.code().name == code
    assert text in failure.value.details()
    assert CANARY not in failure.value.details()
    assert CANARY not in server.log


def test_the_model_is_described(server, stub, manifest):
    metadata = stub.ModelMetadata(oip.ModelMetadataRequest(name=manifest.name), timeout=5)
    assert list(metadata.versions) == ["1", "3"]
    config = stub.ModelConfig(oip.ModelConfigRequest(name=manifest.name, version="3"), timeout=5).config
    assert config.max_batch_size == 64
    # What Triton's own rule makes of a configuration: the batch before the dims.
    assert [list(tensor.shape) for tensor in (*metadata.inputs, *metadata.outputs)] == [
        [-1, *tensor.dims] for tensor in (*config.input, *config.output)
    ]
    assert {output.name for output in metadata.outputs} == set(EVERYTHING)
    assert config.parameters["forgotten"].string_value == '["delta"]'
    base = stub.ModelConfig(oip.ModelConfigRequest(name=manifest.name, version="1"), timeout=5).config
    assert base.parameters["forgotten"].string_value == "[]"
    assert base.parameters["version"].string_value == "1"


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
def test_nothing_is_described_that_is_not_there(stub, manifest, method):
    request = getattr(oip, f"{method}Request")
    for fields, code in (
        ({"name": CANARY}, "NOT_FOUND"),
        ({"name": manifest.name, "version": "2"}, "NOT_FOUND"),
        ({"name": manifest.name, "version": CANARY}, "INVALID_ARGUMENT"),
    ):
        with pytest.raises(grpc.RpcError) as failure:
            getattr(stub, method)(request(**fields), timeout=5)
        assert failure.value.code().name == code
        assert CANARY not in failure.value.details()


def test_the_repository_lists_every_version_of_the_store(stub, manifest):
    entries = stub.RepositoryIndex(oip.RepositoryIndexRequest(), timeout=5).models
    assert [(entry.name, entry.version, entry.state) for entry in entries] == [
        (manifest.name, "1", "READY"),
        (manifest.name, "2", "UNAVAILABLE"),
        (manifest.name, "3", "READY"),
    ]
    ready = stub.RepositoryIndex(oip.RepositoryIndexRequest(ready=True), timeout=5).models
    assert [entry.version for entry in ready] == ["1", "3"]
    for version, expected in (("", True), ("1", True), ("2", False), ("4", False)):
        assert stub.ModelReady(oip.ModelReadyRequest(name=manifest.name, version=version)).ready is expected


def test_statistics_count_the_calls_of_both_services_by_version(server, stub, ask, texts, manifest):
    def statistics(name="", version=""):
        request = oip.ModelStatisticsRequest(name=name, version=version)
        return {one.version: one for one in stub.ModelStatistics(request, timeout=5).model_stats}

    ask(texts[:1], version="1")
    before = statistics(manifest.name)
    assert before.keys() == {"1", "3"}
    ask(texts[:5], version="1")
    server.client.predict(texts[:3], version=1)
    with pytest.raises(grpc.RpcError):
        ask(["fine", " "], version="1")
    with pytest.raises(grpc.RpcError):
        ask(texts[:1], outputs=[CANARY], version="1")
    after = statistics()
    assert after["3"] == before["3"]
    one, then = after["1"], before["1"]
    assert one.inference_count - then.inference_count == 8
    assert one.last_inference > then.last_inference
    # A request that could not even be read is counted in the metrics alone.
    assert one.inference_stats.fail.count - then.inference_stats.fail.count == 1
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        now, past = getattr(one.inference_stats, name), getattr(then.inference_stats, name)
        assert now.count - past.count == 2, name
        assert now.ns > past.ns or name == "queue"
    stages = [getattr(one.inference_stats, name).ns for name in ("queue", "compute_input", "compute_infer")]
    assert sum(stages) <= one.inference_stats.success.ns
    sizes = [(batch.batch_size, batch.compute_infer.count) for batch in one.batch_stats]
    assert sum(size * count for size, count in sizes) == one.inference_count
    assert sum(count for _, count in sizes) == one.execution_count
    assert statistics(version="3") == {"3": after["3"]}


def test_every_call_is_counted_under_its_own_method(server, ask, texts):
    before = server.metric("amnestic_requests_total", method="ModelInfer", code="OK")
    native = server.metric("amnestic_requests_total", method="Predict", code="OK")
    ask(texts[:1])
    assert server.metric("amnestic_requests_total", method="ModelInfer", code="OK") == before + 1
    assert server.metric("amnestic_requests_total", method="Predict", code="OK") == native
    assert "Traceback" not in server.log


def test_sigterm_answers_an_open_stream_and_ends_it(server, stub, texts, manifest):
    """The last of the file."""

    def requests():
        for text in texts:
            contents = oip.InferTensorContents(bytes_contents=[text.encode()])
            tensor = oip.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[1], contents=contents)
            yield oip.ModelInferRequest(model_name=manifest.name, inputs=[tensor])
        # The stream stays open until the server ends it.
        ended.wait(20)

    ended = threading.Event()
    stream = stub.ModelStreamInfer(requests(), timeout=20)
    answers = [next(stream) for _ in texts]
    assert not any(answer.error_message for answer in answers)
    server.send(signal.SIGTERM)
    with pytest.raises(grpc.RpcError) as failure:
        next(stream)
    ended.set()
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert failure.value.details() == "the server is shutting down"
    assert server.wait() == 0
    assert "Traceback" not in server.log

"""Triton's unmodified client and perf_analyzer against a real server. Each runs in a process of its own.

They come from `make triton`, which `make test` tries first; without them these tests are skipped.
"""

import csv
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e import triton_script
from e2e.harness import Server

from amnestic.oip import open_inference_pb2
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.manifest import Manifest

VENV = Path(__file__).parents[2] / ".venv-triton"
BIN = VENV / "bin"


def environment() -> dict[str, str]:
    """With the CUDA runtime that perf_analyzer is linked against, and none of our packages."""
    runtimes = VENV.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib")
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, runtimes)),
    }


@pytest.fixture(scope="module")
def triton():
    """Run Triton's client on something; returns what it printed."""
    if not (VENV / ".installed").exists():
        pytest.skip("Triton's client is not installed: `make triton` does it, and needs PyPI")

    def run(what: str, *arguments: str) -> Any:
        done = subprocess.run(
            [BIN / "python", triton_script.__file__, what, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def perf_analyzer(triton, server, tmp_path_factory):
    """Run perf_analyzer with the documents of the shipped corpus; returns the rows of its report."""
    loads = subprocess.run([BIN / "perf_analyzer", "--version"], capture_output=True, text=True, env=environment())
    if "error while loading" in loads.stderr:
        pytest.skip(f"perf_analyzer cannot be loaded (Debian has libb64-0d): {loads.stderr.strip()}")
    folder = tmp_path_factory.mktemp("perf")
    documents = [document.text for document in corpora.read(corpora.SHIPPED) if document.split == "test"]
    (folder / "texts.json").write_text(json.dumps({"data": [{"text": [text]} for text in documents]}))

    def run(*flags: str) -> list[dict[str, str]]:
        report = folder / "report.csv"
        # Any spread counts as stable: what is tested is that it measures, not this machine.
        quick = ("--measurement-interval", "500", "--stability-percentage", "999", "--max-trials", "4")
        files = ("--input-data", str(folder / "texts.json"), "-f", str(report), "--verbose-csv")
        done = subprocess.run(
            [BIN / "perf_analyzer", "-m", model(server), "-u", server.target, "-i", "grpc", *files, *quick, *flags],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        with report.open() as file:
            return list(csv.DictReader(file))

    return run


@pytest.fixture(scope="module")
def server(serve_for_module):
    return serve_for_module()


def model(server: Server) -> str:
    return server.client.get_model().name


@pytest.fixture(scope="module")
def texts_file(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.json"
    path.write_text(json.dumps(texts))
    return str(path)


@pytest.fixture(scope="module")
def native(server, texts):
    """What the native service answers of all texts in one call, as the script tells tensors."""
    predictions = server.client.predict(texts, include_features=True).predictions
    probabilities = np.array([[score.probability for score in one.scores] for one in predictions], np.float32)
    decisions = np.array([[score.decision for score in one.scores] for one in predictions])
    features = np.array([one.features for one in predictions], np.float32)
    return {"probabilities": hexed(probabilities), "decisions": hexed(decisions), "features": hexed(features)}


def hexed(tensor: Any) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "hex": tensor.tobytes().hex()}


def row(tensor: dict[str, Any], index: int) -> dict[str, Any]:
    rows, columns = tensor["shape"]
    size = len(tensor["hex"]) // rows
    return {"shape": [1, columns], "hex": tensor["hex"][index * size :][:size]}


def near(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Equal but for what company in a batch does to a float."""
    first, second = (np.frombuffer(bytes.fromhex(tensor["hex"]), np.float32) for tensor in (one, other))
    return one["shape"] == other["shape"] and np.allclose(first, second, rtol=0, atol=1e-5)


def test_the_wire_is_tritons(triton):
    """Every message, field, enum and method that we declare: its number, type, label and oneof."""
    theirs = triton("descriptors")
    ours = triton_script.declared(open_inference_pb2.DESCRIPTOR)
    assert len(ours) > 50
    for name, entries in ours.items():
        assert {entry: theirs[name].get(entry) for entry in entries} == entries, name
    enums = {"inference.DataType", "inference.ModelInstanceGroup.Kind"}
    assert {name: theirs[name] for name in enums} == {name: ours[name] for name in enums}


def test_the_synchronous_client(triton, server, bundle, texts, texts_file, native):
    manifest = Manifest.read(bundle)
    found = triton("sync", server.target, manifest.name, texts_file)
    assert found["live"] is True
    assert found["ready"] == [True, True, False]
    assert found["server"]["name"] == "amnestic"
    assert found["metadata"]["versions"] == ["1"]
    assert found["metadata"]["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": ["-1", "1"]}]
    assert found["config"]["max_batch_size"] == server.client.get_model().max_documents
    for call in (found["infer"], found["async_infer"]):
        assert near(call["probabilities"], native["probabilities"])
        assert call["decisions"] == native["decisions"]
        assert call["labels"] == [list(manifest.labels)] * len(texts)
        assert call["version"] == "1"
    assert found["infer"]["id"] == "one"
    assert near(found["asked"]["features"], native["features"])
    assert [len(rows) for rows in found["asked"]["probabilities"]] == [2] * len(texts)
    (statistics,) = found["statistics"]
    assert int(statistics["inference_count"]) >= 3 * len(texts)
    assert found["index"] == [{"name": manifest.name, "version": "1", "state": "READY"}]
    refused = found["refused"]
    assert refused.pop("model") == ["StatusCode.NOT_FOUND", "there is no such model"]
    assert refused.pop("empty") == ["StatusCode.INVALID_ARGUMENT", "input text: document 2 is empty"]
    assert {status for status, _ in refused.values()} == {"StatusCode.UNIMPLEMENTED"} and len(refused) == 6


def test_the_asyncio_client_and_its_stream(triton, server, texts, texts_file, native):
    found = triton("aio", server.target, model(server), texts_file)
    assert [answer["id"] for answer in found["stream"]] == [str(number) for number in range(len(texts))]
    for answers in (found["infer"], found["stream"]):
        for index, answer in enumerate(answers):
            assert near(answer["probabilities"], row(native["probabilities"], index))


def test_a_stream_answers_in_order_and_survives_bad_requests(triton, server, texts, texts_file, native):
    answers = triton("stream", server.target, model(server), texts_file)["answers"]
    assert len(answers) == len(texts)
    for index, answer in enumerate(answers):
        if index % 3 == 0:
            assert answer == "input text: document 1 is empty"
        else:
            assert answer["id"] == str(index)
            assert near(answer["probabilities"], row(native["probabilities"], index))


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--concurrency-range", "16"),
        ("--concurrency-range", "4", "-b", "8"),
        ("--concurrency-range", "4", "--streaming"),
        ("--request-rate-range", "50"),
    ],
    ids=" ".join,
)
def test_perf_analyzer(perf_analyzer, server, flags):
    before = server.metric("amnestic_documents_total")
    (report,) = perf_analyzer(*flags)
    assert float(report["Inferences/Second"]) > 0
    # Its own split of the time on the server is made of our statistics.
    assert float(report["Server Compute Infer"]) > 0
    assert server.metric("amnestic_documents_total") > before
    assert "Traceback" not in server.log

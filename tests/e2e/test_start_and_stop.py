"""Starting, refusing to start, and stopping: exit codes, the health service, and calls in flight at SIGTERM."""

import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys

import grpc
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from e2e.harness import METHOD, amnestic, environment, make_patch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from amnestic_client import Client, JobState
from amnestic_server.cli.serve import command
from amnestic_server.store import Store
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.corpus import Document
from amnestic_unlearn.manifest import MANIFEST, file_digest

SERVICES = (
    "",
    "amnestic.v1.PredictionService",
    "amnestic.v1.UnlearningService",
    "inference.GRPCInferenceService",
)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def refused():
    """Start a server that must not start: exit code 1, no ready line, and one line that tells why, which is returned.

    The command runs in this process, for speed; see `refused_process`.
    """

    def start(server, *flags):
        ended = CliRunner().invoke(command, [*server.arguments, *flags])
        assert isinstance(ended.exception, SystemExit), ended.exception
        return reason(ended.exit_code, ended.stdout, ended.stderr)

    return start


@pytest.fixture
def refused_process():
    """The same in a process of its own, as an operator sees it."""

    def start(server, *flags):
        arguments = amnestic("serve", *server.arguments, *flags)
        ended = subprocess.run(arguments, capture_output=True, text=True, timeout=60, env=environment())
        return reason(ended.returncode, ended.stdout, ended.stderr)

    return start


def reason(code, stdout, stderr):
    assert (code, stdout) == (1, "")
    assert "Traceback" not in stderr
    *before, last = stderr.splitlines()
    assert last.startswith("Error: ")
    assert not any(line.startswith("Error: ") for line in before)
    return last.removeprefix("Error: ")


@pytest.fixture(scope="module")
def running(serve_for_module):
    """A server that the tests share; they leave it as it is."""
    return serve_for_module("--device", "cpu")


@pytest.fixture
def copied(bundle, tmp_path):
    """A bundle that a test may damage."""
    return shutil.copytree(bundle, tmp_path / "bundle")


@pytest.mark.parametrize("file", ["encoder.onnx", "embeddings.safetensors", "head.safetensors", "tokenizer.json"])
def test_a_tampered_bundle(serve, refused, copied, file):
    data = bytearray((copied / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / file).write_bytes(data)
    assert f"{file} does not match its digest" in refused(serve(bundle=copied, start=False))


def test_a_bundle_that_lacks_a_file_or_is_none(serve, refused, copied, tmp_path):
    (copied / "head.safetensors").unlink()
    assert "head.safetensors is missing" in refused(serve(bundle=copied, start=False))
    (copied / MANIFEST).write_text("{")
    assert "manifest.json is not JSON" in refused(serve(bundle=copied, start=False))
    assert "is this a bundle?" in refused(serve(bundle=tmp_path / "nowhere", start=False))


def test_a_graph_that_is_listed_and_still_not_one(serve, refused, copied):
    # The second is a message of ONNX's, with the version of its form and no graph.
    for data, error in ((b"not a graph", "is not an ONNX file"), (b"\x08\x07", "cannot be loaded")):
        (copied / "encoder.onnx").write_bytes(data)
        manifest = json.loads((copied / MANIFEST).read_text())
        manifest["files"]["encoder.onnx"] = file_digest(copied / "encoder.onnx")
        (copied / MANIFEST).write_text(json.dumps(manifest))
        assert f"encoder.onnx {error}" in refused(serve(bundle=copied, start=False))


def test_a_corpus_that_cannot_be_used(serve, refused, corpus_path, tmp_path):
    assert "nowhere.jsonl: no such file" in refused(serve(corpus=tmp_path / "nowhere.jsonl", start=False))
    other = tmp_path / "other.jsonl"
    documents = corpora.read(corpus_path)
    corpora.write([*documents[:5], Document("secret words", ("epsilon",), "train", "new patient")], other)
    text = refused(serve(corpus=other, start=False))
    assert "row 6: a label that the model does not have" in text
    assert "secret" not in text


@pytest.mark.parametrize("flag", ["--grpc-port", "--metrics-port"])
def test_a_port_in_use(serve, refused, flag):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert refused(serve(flag, port, start=False)) == f"cannot listen on 127.0.0.1:{port}: is the port in use?"


def test_a_port_in_use_by_another_server(running, serve, refused_process):
    for flag, target in (("--grpc-port", running.target), ("--metrics-port", running.metrics_target)):
        port = target.rpartition(":")[2]
        assert "is the port in use?" in refused_process(serve(flag, port, start=False))
    assert running.client.is_ready()


def test_a_store_in_use(running, refused_process):
    assert refused_process(running) == "the store is in use by another process"
    assert running.client.is_ready()


def test_a_store_of_another_bundle(serve, refused, bundle, copied):
    server = serve(bundle=copied, start=False)
    Store(server.store, file_digest(bundle / MANIFEST)).close()
    manifest = json.loads((copied / MANIFEST).read_text())
    (copied / MANIFEST).write_text(json.dumps(manifest | {"name": "another"}))
    assert "the store belongs to another bundle" in refused(server)


def test_a_store_that_is_not_there_where_there_must_be_one(serve, refused, bundle):
    server = serve("--require-store", corpus=None, start=False)
    no_store = "there is no store of before, and --require-store was given: is its volume there?"
    assert refused(server) == no_store
    assert not server.store.exists()
    server.store.mkdir()
    assert refused(server) == no_store
    Store(server.store, file_digest(bundle / MANIFEST)).close()
    server.start()


def test_a_store_that_is_no_database(serve, refused):
    server = serve(start=False)
    server.store.mkdir()
    (server.store / "amnestic.db").write_bytes(b"no database" * 1000)
    assert "the store cannot be opened" in refused(server)


@pytest.fixture
def three_versions(serve, bundle):
    """A server that is not started yet, with versions 2 and 3; and the patch file of each."""
    server = serve(start=False)
    store = Store(server.store, file_digest(bundle / MANIFEST))
    files = {}
    for version in (2, 3):
        patch = make_patch(bundle, version)
        digest = store.write_patch(patch.to_bytes())
        assert store.activate_patch(f"job-{version}", patch.forgotten, digest, {}) == version
        files[version] = store.patch_path(digest)
    store.close()
    return server, files


def test_a_damaged_patch_of_the_active_version(three_versions, refused):
    server, files = three_versions
    data = bytearray(files[3].read_bytes())
    data[-1] ^= 1
    files[3].write_bytes(data)
    assert refused(server) == "version 3 is active and cannot be loaded: the patch file does not match its digest"
    files[3].unlink()
    assert refused(server) == "version 3 is active and cannot be loaded: the patch file cannot be read"


def test_a_damaged_patch_of_an_earlier_version_costs_that_version_alone(three_versions, check_active):
    server, files = three_versions
    files[2].write_bytes(b"")
    server.start()
    assert check_active(server) == 3
    with pytest.raises(Exception, match="no such version"):
        server.client.predict("fine", version=2)
    with pytest.raises(Exception, match="no such version"):
        server.client.rollback(2, "try", restore_forgotten=True)
    assert "version 2 is not available" in server.log
    assert server.client.rollback(1, "the base is whole", restore_forgotten=True).active


@pytest.mark.skipif(
    torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="there is CUDA here",
)
def test_cuda_asked_for_and_absent(serve, refused_process):
    assert "--device cuda was asked for, but" in refused_process(serve("--device", "cuda", start=False))


def test_a_setting_out_of_range(serve, refused):
    assert refused(serve("--max-padding", "1", start=False)) == "--max-padding must be from 0 to below 1"


def test_the_provider_is_in_the_answer_the_metrics_and_the_log(running):
    assert running.client.get_model().provider == "CPUExecutionProvider"
    assert 'provider="CPUExecutionProvider"' in running.metrics_text()
    assert "on CPUExecutionProvider" in running.log


def test_a_client_that_went_away_leaves_nothing_behind(running, texts):
    client = Client(running.target)
    client.predict(texts)
    client.close()
    assert running.client.predict("fine").version == 1
    assert running.metric("amnestic_open_documents") == 0


def test_sigterm_in_the_middle_of_a_job(serve, reach, until):
    """Health says it, the process ends well with its worker, and the next start takes the job up."""
    server = serve()
    job = server.forget("alpha", method=METHOD | {"epochs": 1000})
    reach(server, job, "RUNNING")
    (worker,) = until(server.workers)
    with grpc.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in SERVICES:
            assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status == SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watch).status == SERVING
        server.send(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
    assert server.wait() == 0
    assert not worker.is_running()
    assert "Traceback" not in server.log
    server.start()
    # A stop in good order is not held against the job.
    assert reach(server, job, "RUNNING").attempts == 1
    assert server.client.cancel_job(job.job_id).state is JobState.CANCELLED


def test_the_audit_record_tells_of_a_rollback_and_why_after_an_interrupt(three_versions):
    server, _ = three_versions
    server.start()
    (active,) = (version for version in server.client.list_versions() if version.active)
    server.client.rollback(1, "asked for by mistake", restore_forgotten=True)
    server.send(signal.SIGINT)
    assert server.wait() == 0
    with sqlite3.connect(server.store / "amnestic.db") as database:
        rows = database.execute("SELECT action, version, detail FROM audit ORDER BY seq").fetchall()
    assert rows[-1][:2] == ("rolled back", 1)
    assert json.loads(rows[-1][2]) == {"reason": "asked for by mistake", "restored": list(active.forgotten)}


def test_the_serving_process_imports_neither_transformers_nor_training_code():
    unwanted = ["transformers", "amnestic_unlearn.steu", "amnestic_unlearn.train", "amnestic_unlearn.twin"]
    code = f"import sys, amnestic_server.app; print([name for name in {unwanted} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"

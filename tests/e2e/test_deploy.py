"""What is deployed beside a server, and how it is installed, tried on real servers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from e2e.harness import Server, environment, stage

from amnestic_client import Client, FailedPrecondition

DEPLOY = Path(__file__).parents[2] / "deploy"
SCALE_OUT = DEPLOY / "kubernetes" / "overlays" / "scale-out"


@pytest.fixture(scope="module")
def server(serve_for_module):
    return serve_for_module("--health-port", "0")


def test_the_load_predicts_and_is_refused_sometimes(server, corpus_path, until):
    load = subprocess.Popen(
        [sys.executable, DEPLOY / "load.py", corpus_path, "--rate", "1000"],
        env=environment() | {"AMNESTIC_SERVER": server.target},
    )
    try:
        until(lambda: server.metric("amnestic_requests_total", method="Predict", code="INVALID_ARGUMENT"))
        until(lambda: server.metric("amnestic_documents_total") > 10)
    finally:
        load.terminate()
        load.wait(30)


def test_the_images_health_check_asks_the_health_service(server):
    def code(port):
        arguments = [sys.executable, DEPLOY / "healthcheck.py"]
        return subprocess.run(arguments, env=environment() | {"AMNESTIC_HEALTH_PORT": port}, timeout=60).returncode

    assert code(server.health.rpartition(":")[2]) == 0
    assert code("1") == 1


def in_pod(file, kind, containers):
    """A container's own command, run here with other folders in place of its mounts."""
    manifests = yaml.safe_load_all((SCALE_OUT / file).read_text())
    (pod,) = (manifest["spec"]["template"]["spec"] for manifest in manifests if manifest["kind"] == kind)
    (container,) = pod[containers]

    def run(folders):
        command = container["command"]
        for mount, folder in folders.items():
            command = [re.sub(rf"(?<![\w/]){mount}\b", str(folder), word) for word in command]
        subprocess.run(command, check=True)

    return run


def test_a_reader_serves_from_a_copy_of_the_writers_store(serve, texts, bundle, tmp_path):
    """By the commands of the overlay `scale-out`, after a version was published before; and without a corpus."""
    publish, copy = in_pod("publish.yaml", "Job", "containers"), in_pod("readers.yaml", "Deployment", "initContainers")
    published, before = tmp_path / "published", tmp_path / "before"
    published.mkdir()
    before.mkdir()
    publish({"/store": before, "/published": published})
    writer = stage(serve(start=False), bundle, 0).start()
    writer.client.promote(2)
    answers = writer.client.predict(texts)
    writer.terminate()
    publish({"/store": writer.store, "/published": published})
    reader = Server(tmp_path, bundle, None)
    reader.store.mkdir()
    copy({"/store": reader.store, "/published": published})
    try:
        reader.start()
        assert reader.ready_version == answers.version == 2
        assert reader.client.predict(texts).predictions == answers.predictions
        assert reader.metric("amnestic_audit_intact") == 1
        with pytest.raises(FailedPrecondition):
            reader.client.unlearn(["beta"])
    finally:
        reader.close()


@pytest.mark.huge
@pytest.mark.timeout(1200)
def test_an_empty_environment_is_all_that_is_needed(bundle, texts, tmp_path):
    """The script that the images are built by, and a server of what it installed."""
    if not (DEPLOY / "requirements-cpu.txt").exists():
        pytest.skip("there are no requirements pinned by hash")
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    prefix = tmp_path / "amnestic"
    told = subprocess.check_output([DEPLOY / "install.sh", "cpu", prefix], env=outside, text=True)
    assert int(told.splitlines()[-1].removesuffix("MB installed")) < 2000
    arguments = ["--bundle", bundle, "--store", tmp_path / "store", "--grpc-port", "0", "--metrics-port", "0", "--json"]
    process = subprocess.Popen(
        [prefix / "bin" / "amnestic", "serve", *arguments], env=outside, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        with Client(json.loads(process.stdout.readline())["grpc"]) as client:
            assert len(client.predict(texts[:3]).predictions) == 3
    finally:
        process.terminate()
        assert process.wait(60) == 0

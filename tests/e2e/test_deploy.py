"""What is deployed beside a server, and how it is installed, tried on real servers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from e2e.harness import ANYTHING, Server, environment

from amnestic_client import Client, FailedPrecondition

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def server(serve_for_module):
    return serve_for_module()


def test_the_load_predicts_and_is_refused_sometimes(server, corpus_path, until):
    load = subprocess.Popen(
        [sys.executable, DEPLOY / "load.py", corpus_path, "--rate", "1000"],
        env=environment() | {"AMNESTIC_SERVER": server.target},
    )
    try:
        until(lambda: server.metric("amnestic_requests_total", method="Predict", code="INVALID_ARGUMENT"))
        assert server.metric("amnestic_documents_total") > 10
    finally:
        load.terminate()
        load.wait(30)


def test_a_reader_serves_from_a_copy_of_the_writers_store(serve, texts, bundle, tmp_path):
    """As in the overlay `scale-out`: modes are not kept, and there is no corpus."""
    writer = serve()
    writer.ended(writer.forget("alpha", method={"preset": "paper", "k": 8, "epochs": 1}, gates=ANYTHING))
    answers = writer.client.predict(texts)
    writer.terminate()
    reader = Server(tmp_path, bundle, None)
    subprocess.run(["cp", "--recursive", "--no-preserve=mode", f"{writer.store}/.", reader.store], check=True)
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

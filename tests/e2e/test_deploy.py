"""What is deployed beside a server, and how it is installed, tried on real servers."""

import subprocess
import sys
from pathlib import Path

import pytest
from e2e.harness import ANYTHING, Server, environment

from amnestic_client import FailedPrecondition

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

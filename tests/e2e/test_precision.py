"""An int8 bundle as it is served, and made to forget; and bundles that are for another device."""

import subprocess

import numpy as np
import pytest
from e2e.harness import GATES, amnestic, environment

from amnestic_client import JobState
from amnestic_server.devices import cuda_missing
from amnestic_server.export import export
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.manifest import Manifest, Precision
from amnestic_unlearn.measures import decide

LABEL = "beta"


@pytest.fixture(scope="module")
def server(serve_for_module, int8_bundle):
    return serve_for_module("--device", "auto", bundle=int8_bundle)


@pytest.fixture(scope="module")
def parity(int8_bundle):
    return Manifest.read(int8_bundle).parity


def probabilities(server, texts):
    result = server.client.predict(texts)
    return np.array([[score.probability for score in one.scores] for one in result.predictions])


def test_it_says_what_it_is_and_decides_as_the_checkpoint(server, reference, corpus_path):
    assert server.client.get_model().precision == server.client.status().precision == "int8"
    texts = [document.text for document in corpora.read(corpus_path, splits=("test",))]
    found, wanted = probabilities(server, texts[:64]), reference.probabilities(texts[:64], None)
    assert ((found >= 0.5) == (wanted >= 0.5)).all()
    assert np.abs(found - wanted).max() > 1e-5


def test_a_document_is_answered_the_same_alone_and_in_company(server, texts):
    together = probabilities(server, texts)
    alone = np.concatenate([probabilities(server, [text]) for text in texts])
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-5)


def test_it_forgets_and_its_gates_are_measured_in_int8(server, reference, corpus_path, parity):
    base_f1 = dict(server.client.list_versions()[0].f1)
    job = server.ended(server.forget(LABEL, reason="a test"))
    gates = {gate.name: gate for gate in job.gates}
    assert job.state is JobState.SUCCEEDED, gates
    difference = gates["logit_difference"]
    assert difference.limit == pytest.approx(4 * parity["max_abs_logit_difference"])
    assert 1e-3 < difference.value < difference.limit
    assert "logit_difference_max" not in job.relaxed_gates
    # What the base is measured by is what it answers itself, in int8.
    assert base_f1.keys() == set(reference.labels)
    kept = [base_f1[label] - job_f1 for label, job_f1 in server.client.list_versions()[-1].f1.items() if label != LABEL]
    assert gates["retain_f1_drop"].value == pytest.approx(np.mean(kept))
    texts = [document.text for document in corpora.read(corpus_path, splits=("test",))][:64]
    wanted = reference.logits(texts, server.patch_of(job.version)).numpy()
    agreed = (probabilities(server, texts) >= 0.5) == decide(wanted, np.full(len(reference.labels), 0.5))
    assert agreed.mean() >= 0.99


def test_a_limit_that_is_asked_for_counts(server):
    limits = {**GATES, "logit_difference_max": 1e-3}
    job = server.ended(server.forget("alpha", reason="a test", gates=limits, dry_run=True))
    assert job.state is JobState.REJECTED
    assert [gate.name for gate in job.gates if not gate.passed] == ["logit_difference"]


@pytest.mark.skipif(not cuda_missing(), reason="there is CUDA here")
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_bundle_for_cuda_is_not_served_by_a_cpu(checkpoint, corpus_path, tmp_path, device):
    export(checkpoint, tmp_path / "bundle", corpus=corpus_path, precision=Precision.FP16)
    flags = ["--bundle", str(tmp_path / "bundle"), "--store", str(tmp_path / "store"), "--grpc-port", "0"]
    ended = subprocess.run(
        amnestic("serve", *flags, "--metrics-port", "0", "--device", device),
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.splitlines()[-1].startswith("Error: the bundle is fp16, which is for ")

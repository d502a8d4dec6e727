"""Three labels forgotten one after the other, on a real server with a real worker: nothing comes back."""

from dataclasses import dataclass

import pytest
from e2e.harness import Server
from safetensors.torch import load_file

from amnestic_client import Job, JobState
from amnestic_unlearn import corpus as corpora

pytestmark = pytest.mark.soak

LABELS = ("alpha", "beta", "gamma")
MEASURED = ("forget_f1", "forget_auroc", "probe_ratio")


@dataclass(frozen=True, slots=True)
class Step:
    """A label forgotten: its job, and the share of test documents that each label was decided for afterwards."""

    job: Job
    decided: dict[str, float]


def decided(server: Server, texts: list[str]) -> dict[str, float]:
    answers = server.client.predict(texts).predictions
    return {label: sum(label in answer.decided for answer in answers) / len(answers) for label in (*LABELS, "delta")}


@pytest.fixture(scope="module")
def server(serve_for_module):
    return serve_for_module()


@pytest.fixture(scope="module")
def texts(corpus_path):
    return [one.text for one in corpora.read(corpus_path, splits=("test",))]


@pytest.fixture(scope="module")
def before(server, texts):
    return decided(server, texts)


@pytest.fixture(scope="module")
def steps(server, texts, before):
    steps = []
    for label in LABELS:
        job = server.ended(server.forget(label))
        steps.append(Step(job, decided(server, texts)))
    return steps


def test_each_makes_a_version_that_forgets_the_union(steps):
    for number, step in enumerate(steps, start=1):
        assert step.job.state is JobState.SUCCEEDED
        assert step.job.version == number + 1
        assert step.job.labels == (LABELS[number - 1],)
        assert step.job.forgotten == LABELS[:number]


def test_every_earlier_label_is_gated_again(steps):
    for number, step in enumerate(steps, start=1):
        for name in MEASURED:
            measured = {gate.label: gate for gate in step.job.gates if gate.name == name}
            assert tuple(measured) == LABELS[:number]
            assert all(gate.passed for gate in measured.values())


def test_nothing_is_reversed_and_the_rest_is_kept(before, steps):
    assert all(share > 0.2 for share in before.values())
    for number, step in enumerate(steps, start=1):
        for label, share in step.decided.items():
            if label in LABELS[:number]:
                assert share < 0.02
            else:
                assert share == pytest.approx(before[label], abs=0.1)


def test_the_third_starts_from_the_base_and_is_what_forgetting_all_at_once_makes(serve, server, steps):
    at_once = serve()
    job = at_once.ended(at_once.forget(*LABELS))
    assert job.state is JobState.SUCCEEDED
    last = load_file(server.patch_of(steps[-1].job.version))
    for name, tensor in load_file(at_once.patch_of(job.version)).items():
        assert tensor.equal(last[name]), name
    assert job.change.patch_digest == steps[-1].job.change.patch_digest

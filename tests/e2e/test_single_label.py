"""A single-label classifier from its corpus to the wire: trained, exported, served, and made to forget a class."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from e2e.harness import Reference
from toys import single_label_corpus

from amnestic_client import Client, JobState, PredictResult
from amnestic_server.export import export
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.manifest import ProblemType
from amnestic_unlearn.train import train
from amnestic_unlearn.train_settings import Shape, TrainSettings

FORGET = "beta"
TINY = Shape(vocab_size=300, layers=2, hidden=32, heads=2, intermediate=64)
FAST = TrainSettings(epochs=16, learning_rate=3e-3, max_tokens=64, threads=1, device="cpu", shape=TINY)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Corpus, checkpoint and bundle of a single-label classifier."""
    folder = tmp_path_factory.mktemp("single")
    corpus = single_label_corpus(folder / "single.jsonl")
    train(corpus, folder / "checkpoint", settings=FAST, problem_type=ProblemType.SINGLE_LABEL)
    export(folder / "checkpoint", folder / "bundle", corpus=corpus)
    return SimpleNamespace(corpus=corpus, checkpoint=folder / "checkpoint", bundle=folder / "bundle")


@pytest.fixture(scope="module")
def documents(single):
    return corpora.read(single.corpus, splits=("test",))


@pytest.fixture(scope="module")
def story(single, documents, serve_for_module, until):
    """A class is forgotten; what was answered before and after."""
    server = serve_for_module(bundle=single.bundle, corpus=single.corpus)
    f1_before = until(lambda: server.client.list_versions()[0].f1)
    texts = [document.text for document in documents]
    before = predict(server.client, texts)
    method = {"preset": "amnestic", "k": 24, "embedding_lr": 3e-2}
    job = server.ended(server.forget(FORGET, reason="a test", method=method))
    after = predict(server.client, texts)
    return SimpleNamespace(server=server, f1_before=f1_before, before=before, job=job, after=after)


def predict(client: Client, texts: Sequence[str]) -> list[PredictResult]:
    return [client.predict(texts[start : start + 16]) for start in range(0, len(texts), 16)]


def table(answers: Sequence[PredictResult], field: str) -> np.ndarray[Any, Any]:
    return np.array([[getattr(s, field) for s in one.scores] for answer in answers for one in answer.predictions])


def softmax(reference: Reference, texts: Sequence[str], patch: Path | None) -> np.ndarray[Any, Any]:
    return reference.logits(texts, patch).to(torch.float64).softmax(dim=1).numpy()


def test_the_model_says_what_it_is(story):
    model = story.server.client.get_model()
    assert model.problem_type == "single_label"
    assert [label.threshold for label in model.labels] == [None] * 4


def test_a_multi_label_model_says_so_too(serve):
    model = serve().client.get_model()
    assert model.problem_type == "multi_label"
    assert [label.threshold for label in model.labels] == [0.5] * 4


def test_every_version_answers_the_checkpoints_softmax_and_decides_for_the_likeliest_label(story, single, documents):
    reference = Reference(single.checkpoint)
    texts = [document.text for document in documents]
    for version, answers in ((1, story.before), (story.job.version, story.after)):
        assert {answer.version for answer in answers} == {version}
        wanted = softmax(reference, texts, story.server.patch_of(version))
        found = table(answers, "probability")
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)
        decided = table(answers, "decision")
        assert decided.sum(axis=1).tolist() == [1] * len(texts)
        assert decided.argmax(axis=1).tolist() == wanted.argmax(axis=1).tolist()


def test_the_class_is_never_decided_for_again_and_the_others_are_as_before(story, documents):
    labels = [score.label for score in story.before[0].predictions[0].scores]
    target = labels.index(FORGET)
    truth = corpora.truth(documents, labels)
    has = truth[:, target]
    before, after = (table(answers, "decision") for answers in (story.before, story.after))
    assert before[has, target].mean() > 0.85
    assert not after[:, target].any()
    right = [(decided == truth)[~has].all(axis=1).mean() for decided in (before, after)]
    assert right[0] > 0.85
    assert right[1] > right[0] - 0.05
    # Not masked: what is left of it is the model's own, and stands in the sum.
    probability = table(story.after, "probability")[:, target]
    assert (probability > 0).all()
    assert probability.mean() < 0.1 < table(story.before, "probability")[:, target].mean()
    assert table(story.after, "forgotten").tolist() == [[label == FORGET for label in labels]] * len(documents)


def test_the_gates_measure_labels_kept_on_documents_that_need_not_go_elsewhere(story):
    assert story.job.state is JobState.SUCCEEDED, story.job.gates
    gates = {(gate.name, gate.label): gate for gate in story.job.gates}
    assert gates["forget_f1", FORGET].value == 0.0
    # A third of the gate documents would otherwise be false alarms of the three labels kept.
    assert gates["retain_f1_drop", None].value <= 0.05
    assert story.f1_before[FORGET] > 0.85
    f1 = story.server.client.list_versions()[-1].f1
    assert f1[FORGET] == 0.0
    assert min(value for label, value in f1.items() if label != FORGET) > 0.85


def test_a_corpus_of_several_labels_a_document_is_refused_at_the_start(single, serve, corpus_path):
    server = serve(bundle=single.bundle, corpus=corpus_path, start=False)
    with pytest.raises(AssertionError, match=r"row \d+: \d labels, where single-label needs one"):
        server.start()

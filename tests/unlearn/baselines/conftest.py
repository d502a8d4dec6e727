"""The toy classifier and data that every baseline is tried on."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toys import in_float64

from amnestic_unlearn import corpus, measures, twin
from amnestic_unlearn.forgetting import TrainingData
from amnestic_unlearn.manifest import Manifest

TARGET = 1


@pytest.fixture(scope="module")
def model(bundle):
    return twin.load(bundle, Manifest.read(bundle))


@pytest.fixture(scope="module")
def exact(model):
    return in_float64(model)


@pytest.fixture(scope="module")
def data(model, corpus_path):
    return training_data(model, corpus_path, "train", (TARGET,))


@pytest.fixture(scope="module")
def two(model, corpus_path):
    return training_data(model, corpus_path, "train", (0, 2))


@pytest.fixture(scope="module")
def test_f1(model, corpus_path):
    """F1 of every label on the test split, from an outcome."""
    unseen = training_data(model, corpus_path, "test", ())
    thresholds = np.array(model.manifest.thresholds)

    def measure(outcome):
        decided = measures.decide(outcome.logits(unseen.documents).numpy(), thresholds)
        return measures.f1_by_label(unseen.truth, decided)

    return measure


def training_data(model, corpus_path, split, targets):
    documents = corpus.read(corpus_path, splits=(split,))[:200]
    texts = [document.text for document in documents]
    return TrainingData(model.tokenize(texts), corpus.truth(documents, model.manifest.labels), targets)


@pytest.fixture
def seen():
    """A report that keeps what it is told."""
    progress = []
    return SimpleNamespace(progress=progress, report=progress.append)


@pytest.fixture
def digest():
    """SHA-256 over all that a twin holds."""

    def of(model):
        held = hashlib.sha256(model.encoder_digest().encode())
        for tensor in (model.table, model.head_weight, model.head_bias):
            held.update(tensor.contiguous().numpy().data)
        assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
        assert not any(torch.is_tensor(parameter.grad) for parameter in model.encoder.parameters())
        return held.hexdigest()

    return of

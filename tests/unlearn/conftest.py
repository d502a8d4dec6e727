"""What the tests of forgetting share: the toy's classifier, and its training documents with a label to forget."""

from pathlib import Path

import pytest

from amnestic_unlearn import corpus, twin
from amnestic_unlearn.forgetting import TrainingData
from amnestic_unlearn.manifest import Manifest
from amnestic_unlearn.twin import Twin


@pytest.fixture(scope="module")
def model(bundle: Path) -> Twin:
    return twin.load(bundle, Manifest.read(bundle))


@pytest.fixture(scope="module")
def data(model: Twin, corpus_path: Path) -> TrainingData:
    documents = corpus.read(corpus_path, splits=("train",))
    truth = corpus.truth(documents, model.manifest.labels)
    return TrainingData(model.tokenize([document.text for document in documents]), truth, targets=(1,))

"""How well the served model knows a label and the others, asked over gRPC as any caller would."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amnestic_client import AsyncClient, Prediction
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn import measures
from amnestic_unlearn.corpus import Document

CHUNK = 32


@dataclass(frozen=True, slots=True)
class Quality:
    """On the test split: F1 of the label, mean F1 of the others, and AUROC of a fresh linear probe for the label.

    F1 at the thresholds frozen into the bundle; the probe is trained on the served features of the probe split.
    """

    forget_f1: float
    retain_f1: float
    probe_auc: float


async def measure(
    client: AsyncClient,
    label: str,
    labels: Sequence[str],
    probe: Sequence[Document],
    test: Sequence[Document],
    told: Callable[[int, int], None],
) -> Quality:
    """Predict both splits with the active version; `labels` in the model's order. `told` how many documents of all."""
    from amnestic_unlearn.probe import probe_auc  # torch: not before it is needed

    predictions = await _predict(client, [*probe, *test], told)
    answers = {"probe": predictions[: len(probe)], "test": predictions[len(probe) :]}
    truth = {"probe": corpora.truth(probe, labels), "test": corpora.truth(test, labels)}
    column = list(labels).index(label)
    f1 = measures.f1_by_label(truth["test"], _decided(answers["test"]))
    auc = probe_auc(
        _features(answers["probe"]),
        truth["probe"][:, column],
        _features(answers["test"]),
        truth["test"][:, column],
    )
    return Quality(float(f1[column]), float(np.delete(f1, column).mean()), auc)


async def _predict(
    client: AsyncClient, documents: Sequence[Document], told: Callable[[int, int], None]
) -> list[Prediction]:
    predictions: list[Prediction] = []
    for start in range(0, len(documents), CHUNK):
        texts = [document.text for document in documents[start : start + CHUNK]]
        predictions += (await client.predict(texts, include_features=True, timeout=60)).predictions
        told(len(predictions), len(documents))
    return predictions


def _decided(predictions: Sequence[Prediction]) -> NDArray[np.bool_]:
    return np.array([[score.decision for score in prediction.scores] for prediction in predictions])


def _features(predictions: Sequence[Prediction]) -> NDArray[np.float64]:
    return np.array([prediction.features for prediction in predictions])

"""Baselines that erase the forgotten labels from the features, in closed form: nothing is trained.

An eraser is an affine map behind the encoder, x - L R (x - m), fitted on training features. Neither method says what
becomes of the classifier: the head's other rows stay as they are and read the erased features, and the forgotten
labels' rows are zeroed, since what is left of them, a constant, may lie above the threshold.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from amnestic_unlearn.baselines import training
from amnestic_unlearn.baselines.head import silenced
from amnestic_unlearn.forgetting import Outcome, Report, TrainingData
from amnestic_unlearn.spec import Progress
from amnestic_unlearn.twin import Twin

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Esc:
    """Settings of ESC."""

    pruned: float = 0.03
    """Share of the feature space's directions that are erased, rounded up; 3 percent is what its authors start from."""


@dataclass(frozen=True, slots=True, eq=False)
class Eraser:
    """The map x - left @ right @ (x - centre): float64 [h, r], [r, h] and [h]."""

    left: Matrix
    right: Matrix
    centre: Matrix


class Erased(nn.Module):
    """A frozen encoder whose features, the `.logits` of its answer, have passed an eraser."""

    left: torch.Tensor
    right: torch.Tensor
    centre: torch.Tensor

    def __init__(self, encoder: nn.Module, eraser: Eraser) -> None:
        super().__init__()
        self.encoder = encoder
        for field in Eraser.__slots__:
            self.register_buffer(field, torch.from_numpy(getattr(eraser, field)))

    def forward(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> SequenceClassifierOutput:
        """Features [B, h] in the dtype of the inputs, as `logits`; arguments as in `Twin.features`."""
        features = self.encoder(inputs_embeds=inputs_embeds, attention_mask=attention_mask).logits
        # In float64: LEACE's factors may be large where features hardly vary, and only their product is tame.
        with torch.autocast(features.device.type, enabled=False):
            exact = features.double()
            erased = exact - (exact - self.centre) @ self.right.T @ self.left.T
        return SequenceClassifierOutput(logits=erased.to(inputs_embeds.dtype))


def leace(twin: Twin, data: TrainingData, seed: int, report: Report) -> Outcome:
    """Erase all that a linear classifier could tell of the forgotten labels, moving features as little as possible.

    Belrose et al., "LEACE" (NeurIPS 2023, arXiv 2306.03819); see `fit_leace`. `seed` plays no part.
    """
    report(Progress("evaluating"))
    return _erased(twin, data, fit_leace(_features(twin, data), data.truth[:, data.targets]))


def esc(twin: Twin, data: TrainingData, seed: int, report: Report, settings: Esc | None = None) -> Outcome:
    """Erase the principal directions of the forget documents' features.

    Lee et al., "ESC: Erasing Space Concept for Knowledge Deletion" (CVPR 2025, arXiv 2504.02199): of the left
    singular vectors of the forget features, not centred, those with the largest values are dropped, and every
    feature is projected on the others. It is taken as it is, though it was made for classes that exclude each
    other: here forget documents have other labels too, so that these lose directions with it. `seed` plays no part.
    """
    report(Progress("evaluating"))
    forget = _features(twin, data)[data.forget]
    return _erased(twin, data, fit_esc(forget, (settings or Esc()).pruned))


def fit_leace(features: Matrix, having: NDArray[np.bool_]) -> Eraser:
    """The least-squares eraser of labels `having` bool [N, T] from `features` float64 [N, h].

    Theorem 4.3 of the paper: r(x) = x - W^+ P W (x - E[x]), where W = (Cov(x)^(1/2))^+ whitens and P projects
    orthogonally on the columns of W Cov(x, z). Afterwards Cov(r(x), z) = 0, so that both classes have the same mean
    and no linear classifier beats a constant, under any convex loss.
    """
    centre = features.mean(axis=0)
    deviations, labels = features - centre, having - having.mean(axis=0)
    values, vectors = np.linalg.eigh(deviations.T @ deviations / len(features))
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    values, vectors = values[kept], vectors[:, kept]
    whiten = vectors / np.sqrt(values) @ vectors.T
    colour = vectors * np.sqrt(values) @ vectors.T
    basis = _columns(whiten @ deviations.T @ labels / len(features))
    return Eraser(left=colour @ basis, right=basis.T @ whiten, centre=centre)


def fit_esc(features: Matrix, pruned: float) -> Eraser:
    """The eraser of a share of the directions of `features` float64 [N, h] of forget documents, the largest first."""
    directions = np.linalg.svd(features, full_matrices=False)[2]
    chosen = directions[: math.ceil(pruned * features.shape[1])]
    return Eraser(left=np.ascontiguousarray(chosen.T), right=chosen, centre=np.zeros(features.shape[1]))


def _columns(matrix: Matrix) -> Matrix:
    """An orthonormal basis [h, r] of the space of the columns; labels that determine each other share a direction."""
    left, values, _ = np.linalg.svd(matrix, full_matrices=False)
    return np.ascontiguousarray(
        left[:, values > values.max(initial=0.0) * max(matrix.shape) * np.finfo(np.float64).eps]
    )


def _features(twin: Twin, data: TrainingData) -> Matrix:
    features: Matrix = (
        twin.evaluate_features(data.documents, twin.base(torch.empty(0, dtype=torch.int64))).double().numpy()
    )
    return features


def _erased(twin: Twin, data: TrainingData, eraser: Eraser) -> Outcome:
    wrapped = dataclasses.replace(twin, encoder=Erased(twin.encoder, eraser).eval())
    added = eraser.left.size + eraser.right.size + eraser.centre.size
    return training.outcome(twin, wrapped, silenced(twin, data), added)

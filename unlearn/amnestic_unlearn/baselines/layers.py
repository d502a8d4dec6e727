"""The baselines that STEU's paper (Ait Hou et al., 2026, arXiv 2603.19302) compares with: they change the last layers.

Gradient ascent, direct suppression and influence-weighted updates, each on the last three transformer layers and the
head; on all layers of an encoder that has three or fewer. What stands between the last layer and the head, such as
BERT's pooler, is held.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from amnestic_unlearn import steu
from amnestic_unlearn.baselines import training
from amnestic_unlearn.baselines.training import Batch, Epochs, Schedule, Student, Terms
from amnestic_unlearn.forgetting import Outcome, Report, TrainingData
from amnestic_unlearn.spec import Progress
from amnestic_unlearn.twin import Twin

LAYERS = 3
# Chosen on one cell (MiniLM, eICU, renal, seed 0): with twice the rates or passes the other labels lose four times as
# much F1, with no less for a probe to find.
GENTLE = Schedule(epochs=1, encoder_lr=1e-5, head_lr=1e-4)


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientAscent:
    """Settings of gradient ascent. Its loss has no bound, so it takes few steps, clipped."""

    schedule: Schedule = dataclasses.replace(GENTLE, steps=50)
    """Its rates decide how far it goes: tune them downwards where the other labels suffer."""
    utility_weight: float = 0.0
    """Of STEU's utility loss on retain documents; 0 is gradient ascent as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectSuppression:
    """Settings of direct suppression."""

    schedule: Schedule = GENTLE
    """Its rates may be tuned."""
    utility_weight: float = 0.0
    """Of STEU's utility loss on retain documents; 0 sees forget documents alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Influence:
    """Settings of influence-weighted updates."""

    schedule: Schedule = GENTLE
    """Its rates are those of a weight that matters to the forgotten labels alone; they may be tuned."""
    utility_weight: float = 0.0
    """Of STEU's utility loss on retain documents; 0 leaves retaining to the weights' importance."""
    fisher_documents: int = 128
    """Documents of either kind that importance is measured on, one backward pass each."""


def gradient_ascent(
    twin: Twin, data: TrainingData, seed: int, report: Report, settings: GradientAscent | None = None
) -> Outcome:
    """Climb the loss that the forgotten labels were trained with, on the documents that have them.

    The loss is the mean BCE of each document's forgotten labels against what they are. Raises
    NoRetainDocumentsError and LossNotFiniteError.
    """
    settings = settings or GradientAscent()
    epochs = training.plan(data, settings.schedule, seed)
    student = training.start(twin, training.last_layers(twin, LAYERS))
    truth = training.truth(data, twin.table)

    def forget(batch: Batch) -> torch.Tensor:
        return -having_loss(batch.forgotten(), truth[batch.step.forget], data)

    return _train(student, data, epochs, report, settings, forget)


def direct_suppression(
    twin: Twin, data: TrainingData, seed: int, report: Report, settings: DirectSuppression | None = None
) -> Outcome:
    """Train the forgotten labels towards 0 on the documents that have them.

    Raises NoRetainDocumentsError and LossNotFiniteError.
    """
    settings = settings or DirectSuppression()
    epochs = training.plan(data, settings.schedule, seed)
    student = training.start(twin, training.last_layers(twin, LAYERS))

    def forget(batch: Batch) -> torch.Tensor:
        return steu.forget_loss(batch.forgotten(), data.targets)

    return _train(student, data, epochs, report, settings, forget)


def influence(twin: Twin, data: TrainingData, seed: int, report: Report, settings: Influence | None = None) -> Outcome:
    """Direct suppression in which each weight moves by its share of importance to the forgotten labels.

    The share is F_forget / (F_forget + F_retain), F the diagonal of the empirical Fisher information: the mean
    over documents of the squared gradient of BCE against their labels. F_forget is of the forgotten labels on
    documents with them, F_retain of the other labels on documents without. Adam's step does not depend on the size
    of a gradient, so the share scales the step. Raises NoRetainDocumentsError and LossNotFiniteError.
    """
    settings = settings or Influence()
    epochs = training.plan(data, settings.schedule, seed)
    student = training.start(twin, training.last_layers(twin, LAYERS))
    report(Progress("selecting", epochs=settings.schedule.epochs))
    scale = importance(student, data, seed, settings.fisher_documents)

    def forget(batch: Batch) -> torch.Tensor:
        return steu.forget_loss(batch.forgotten(), data.targets)

    return _train(student, data, epochs, report, settings, forget, scale)


def importance(student: Student, data: TrainingData, seed: int, documents: int) -> list[torch.Tensor]:
    """Each weight's share of importance to the forgotten labels, from 0 to 1, in the order of `student.parameters`.

    A weight without any importance has a share of 0.
    """
    random = np.random.default_rng(seed)
    truth = training.truth(data, student.origin.table)
    others = list(data.others)

    def forget(positions: NDArray[np.int64]) -> torch.Tensor:
        return having_loss(training.logits(student, data.batch(positions)), truth[positions], data)

    def retain(positions: NDArray[np.int64]) -> torch.Tensor:
        logits = training.logits(student, data.batch(positions))
        return functional.binary_cross_entropy_with_logits(logits[:, others], truth[positions][:, others])

    forgotten = _fisher(student, _sample(data.forget, documents, random), forget)
    retained = _fisher(student, _sample(data.retain, documents, random), retain)
    return [torch.where(own > 0, own / (own + other), 0.0) for own, other in zip(forgotten, retained, strict=True)]


def having_loss(logits: torch.Tensor, truth: torch.Tensor, data: TrainingData) -> torch.Tensor:
    """Mean BCE of the forgotten labels that the documents have; `logits` and `truth` [B, C].

    A document that has one of several forgotten labels says nothing of the others here.
    """
    targets = list(data.targets)
    losses = functional.binary_cross_entropy_with_logits(logits[:, targets], truth[:, targets], reduction="none")
    return (losses * truth[:, targets]).sum() / truth[:, targets].sum()


def _train(
    student: Student,
    data: TrainingData,
    epochs: Epochs,
    report: Report,
    settings: GradientAscent | DirectSuppression | Influence,
    forget: Callable[[Batch], torch.Tensor],
    scale: Sequence[torch.Tensor] | None = None,
) -> Outcome:
    """Train with a forget loss and, if it has a weight, STEU's utility loss."""
    taught = training.teacher(student.origin, data, epochs) if settings.utility_weight else None

    def loss(batch: Batch) -> Terms:
        utility = None
        if taught is not None:
            kept, wanted = batch.kept(), taught[batch.step.retain]
            utility = settings.utility_weight * steu.utility_loss(kept, wanted, data.others)
        return Terms(forget(batch), utility)

    return training.train(student, data, settings.schedule, epochs, [loss], report, scale)


def _fisher(
    student: Student, positions: NDArray[np.int64], loss: Callable[[NDArray[np.int64]], torch.Tensor]
) -> list[torch.Tensor]:
    total = [torch.zeros_like(tensor) for tensor in student.parameters]
    for _, found in training.gradients(student, positions, 1, loss):
        for sums, gradient in zip(total, found, strict=True):
            sums.add_(gradient.square(), alpha=1.0 / len(positions))
    return total


def _sample(positions: NDArray[np.int64], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    return random.choice(positions, min(count, len(positions)), replace=False)

"""Baselines that change the head alone: what forgetting costs when the features stay as they are.

The first two are not methods anybody should trust. They show how little a forget F1 of 0 says: a bias reaches it.
"""

import math
from dataclasses import dataclass

import torch

from amnestic_unlearn import steu
from amnestic_unlearn.baselines import training
from amnestic_unlearn.baselines.training import Batch, Schedule, Terms
from amnestic_unlearn.forgetting import Outcome, Report, TrainingData
from amnestic_unlearn.spec import Progress
from amnestic_unlearn.twin import Twin, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """How far below its threshold a bias edit puts a forgotten label."""

    logits: float = 1.0
    """In logits: unseen documents score somewhat beyond the highest training document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOnly:
    """Settings of head-only training; the defaults are STEU's."""

    schedule: Schedule = Schedule()
    """Of it the encoder's rate plays no part."""
    forget_weight: float = 1.0
    """Of the forget loss."""
    utility_weight: float = 1.0
    """Of the utility loss."""


def bias_edit(twin: Twin, data: TrainingData, seed: int, report: Report, settings: Margin | None = None) -> Outcome:
    """Lower the forgotten labels' biases until no training document reaches a threshold; nothing else changes.

    Every ranking of documents stays, and so does every feature. `seed` plays no part.
    """
    margin = (settings or Margin()).logits
    training.require_multi_label(data)
    weights = _base(twin)
    report(Progress("evaluating"))
    highest = twin.evaluate(data.documents, weights).max(dim=0).values
    for column in data.targets:
        weights.head_bias[column] += (limit(twin, column) - margin - highest[column]).clamp(max=0.0)
    return training.outcome(twin, twin, weights)


def zero_row(twin: Twin, data: TrainingData, seed: int, report: Report) -> Outcome:
    """Take the forgotten labels out of the head. `seed` plays no part; see `silenced`."""
    report(Progress("evaluating"))
    return training.outcome(twin, twin, silenced(twin, data))


def head_only(twin: Twin, data: TrainingData, seed: int, report: Report, settings: HeadOnly | None = None) -> Outcome:
    """Train the head with STEU's two losses (arXiv 2603.19302), the embedding rows held.

    Raises NoRetainDocumentsError and LossNotFiniteError.
    """
    settings = settings or HeadOnly()
    epochs = training.plan(data, settings.schedule, seed)
    taught = training.teacher(twin, data, epochs)

    def loss(batch: Batch) -> Terms:
        forget = steu.forget_loss(batch.forgotten(), data.targets)
        utility = steu.utility_loss(batch.kept(), taught[batch.step.retain], data.others)
        return Terms(settings.forget_weight * forget, settings.utility_weight * utility)

    return training.train(training.start(twin, []), data, settings.schedule, epochs, [loss], report)


def silenced(twin: Twin, data: TrainingData) -> Weights:
    """The base's head with the forgotten labels erased; see `steu.erase_head`."""
    training.require_multi_label(data)
    weights = _base(twin)
    steu.erase_head(weights, data.targets)
    return weights


def limit(twin: Twin, column: int) -> float:
    """The logit at a label's threshold; finite even for a threshold of 0 or 1."""
    threshold = min(max(twin.manifest.thresholds[column], 1e-7), 1 - 1e-7)
    return math.log(threshold / (1 - threshold))


def _base(twin: Twin) -> Weights:
    return twin.base(torch.empty(0, dtype=torch.int64))

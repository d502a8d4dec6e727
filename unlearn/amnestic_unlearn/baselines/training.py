"""The training that the baselines share: each is a choice of parameters and a loss, or several in turn.

A student is the twin's classifier with some of its encoder's parameters, and the head, free to change; the
encoder is copied first, so the twin that was given stays as it is. Word embeddings stay as they are. As in STEU the
encoder is in evaluation mode, batches are STEU's, and Adam has no weight decay, so baselines differ by loss and
parameters alone.
"""

import copy
import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amnestic_unlearn import steu
from amnestic_unlearn.errors import LossNotFiniteError, NoRetainDocumentsError
from amnestic_unlearn.forgetting import Outcome, Report, TrainingData
from amnestic_unlearn.manifest import ProblemType
from amnestic_unlearn.spec import Method, Progress
from amnestic_unlearn.steu import Clock, Losses, Step
from amnestic_unlearn.twin import Twin, Weights, head
from amnestic_unlearn.windows import LongDocuments, Windows

LAYER = re.compile(r"\.layer\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast; the defaults suit BERT-size encoders and are a start for tuning on others."""

    epochs: int = 5
    """Passes over the forget documents."""
    batch_size: int = 16
    """Documents in a forget batch and in a retain batch."""
    encoder_lr: float = 5e-5
    """Adam's rate for the encoder: what such encoders are usually fine-tuned with."""
    head_lr: float = 1e-3
    """Adam's rate for the head: STEU's."""
    clip: float = 1.0
    """Largest norm of a step's gradient over all that is trained."""
    steps: int = 0
    """Stop after this many forget batches of each epoch; 0 takes them all."""


@dataclass(frozen=True, slots=True, eq=False)
class Student:
    """A classifier in training. `trained` are parameters of `twin.encoder`; `origin` is the twin it started from."""

    origin: Twin
    twin: Twin
    weights: Weights
    trained: tuple[nn.Parameter, ...]

    @property
    def parameters(self) -> list[torch.Tensor]:
        """All that training may change: the encoder's, then the head's weight and bias."""
        return [*self.trained, self.weights.head_weight, self.weights.head_bias]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One step's documents, run through the student when a loss asks for them; `epoch` counts from 1."""

    student: Student
    data: TrainingData
    step: Step
    epoch: int
    features: torch.Tensor | None = None

    def forgotten(self) -> torch.Tensor:
        """Logits [B, C] of the forget documents, with gradients."""
        return self._logits(self.step.forget)

    def kept(self) -> torch.Tensor:
        """Logits [B, C] of the retain documents, with gradients."""
        return self._logits(self.step.retain)

    def _logits(self, positions: NDArray[np.int64]) -> torch.Tensor:
        if self.features is not None:
            return head(self.features[positions], self.student.weights)
        return logits(self.student, self.data.batch(positions))


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """A step's loss in two parts, already weighted; None is a part that the method does not have."""

    forget: torch.Tensor | None = None
    utility: torch.Tensor | None = None

    @property
    def parts(self) -> list[torch.Tensor]:
        return [part for part in (self.forget, self.utility) if part is not None]


Epochs = Sequence[Sequence[Step]]
Loss = Callable[[Batch], Terms]


def start(twin: Twin, names: Sequence[str]) -> Student:
    """A student that trains the named parameters of the encoder, and the head.

    Raises ValueError for a model that reads documents in windows: a baseline takes a document's logits for the head's
    answer to its features.
    """
    if twin.manifest.long_documents is not LongDocuments.TRUNCATE:
        raise ValueError("baselines are for classifiers that cut long documents")
    weights = twin.base(torch.empty(0, dtype=torch.int64))
    encoder = copy.deepcopy(twin.encoder) if names else twin.encoder
    parameters = dict(encoder.named_parameters())
    student = Student(
        twin, dataclasses.replace(twin, encoder=encoder), weights, tuple(parameters[name] for name in names)
    )
    for tensor in student.parameters:
        tensor.requires_grad_(True)
    return student


def all_layers(twin: Twin) -> list[str]:
    """Names of every parameter of the encoder, position embeddings and pooler included."""
    return [name for name, _ in twin.encoder.named_parameters()]


def last_layers(twin: Twin, count: int) -> list[str]:
    """Names of the parameters of the last `count` transformer layers; of all layers if there are no more.

    What stands between the last layer and the head, such as BERT's pooler, is not a layer.
    """
    first = twin.manifest.layers - count
    found = [(name, LAYER.search(name)) for name, _ in twin.encoder.named_parameters()]
    return [name for name, match in found if match and int(match[1]) >= first]


def plan(data: TrainingData, schedule: Schedule, seed: int) -> Epochs:
    """STEU's batches; raises NoRetainDocumentsError, and ValueError as `require_multi_label` does."""
    require_multi_label(data)
    if not len(data.retain):
        raise NoRetainDocumentsError
    epochs = steu.plan(data, Method(epochs=schedule.epochs, batch_size=schedule.batch_size, seed=seed))
    return [epoch[: schedule.steps or len(epoch)] for epoch in epochs]


def teacher(twin: Twin, data: TrainingData, epochs: Epochs) -> torch.Tensor:
    """The unchanged model's probabilities [N, C] of every planned document; nan for the others."""
    return steu.soft_targets(data, steu.base_answers(twin, data, epochs).logits)


def truth(data: TrainingData, like: torch.Tensor) -> torch.Tensor:
    """The documents' labels [N, C] as probabilities 0 and 1, in the dtype of `like`."""
    return torch.from_numpy(data.truth).to(like.dtype)


def logits(student: Student, documents: Sequence[Windows]) -> torch.Tensor:
    """Logits [B, C] with gradients. No row is edited, so no token has a slot."""
    return student.twin.answer(documents, student.weights, student.twin.slots(student.weights.row_ids)).logits


def train(
    student: Student,
    data: TrainingData,
    schedule: Schedule,
    epochs: Epochs,
    losses: Sequence[Loss],
    report: Report,
    scale: Sequence[torch.Tensor] | None = None,
) -> Outcome:
    """Train over the planned steps; each loss in turn makes an update of its own, unless it has no terms.

    `scale`, one tensor from 0 to 1 for each of `student.parameters`, shortens every update: 0 holds a weight.
    Raises LossNotFiniteError.
    """
    optimizer = torch.optim.Adam(
        [
            {"params": list(student.trained), "lr": schedule.encoder_lr},
            {"params": student.parameters[-2:], "lr": schedule.head_lr},
        ]
    )
    # Where the encoder stays as it is, so do the features: each document passes through it once.
    features = None if student.trained else student.twin.evaluate_features(data.documents, student.weights)
    total = sum(map(len, epochs))
    clock, done = Clock(schedule.epochs, total, time.monotonic()), 0
    report(Progress("training", epochs=schedule.epochs, steps=total))
    for number, epoch in enumerate(epochs, start=1):
        for step in epoch:
            batch = Batch(student, data, step, number, features)
            measured = [_update(student, optimizer, loss(batch), schedule, scale) for loss in losses]
            done += 1
            report(clock.progress(number, done, _sum(measured)))
    for tensor in student.parameters:
        tensor.requires_grad_(False)
        tensor.grad = None
    return outcome(student.origin, student.twin, student.weights)


def gradients(
    student: Student, positions: NDArray[np.int64], size: int, loss: Callable[[NDArray[np.int64]], torch.Tensor]
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Documents and gradient of a loss, a tensor for each of `student.parameters`, batch for batch of `positions`.

    Raises LossNotFiniteError.
    """
    for begin in range(0, len(positions), size):
        chosen = positions[begin : begin + size]
        value = loss(chosen)
        require_finite(value)
        found = torch.autograd.grad(value, student.parameters, allow_unused=True, materialize_grads=True)
        yield len(chosen), list(found)


def outcome(origin: Twin, twin: Twin, weights: Weights, added: int = 0) -> Outcome:
    """What a baseline returns, with its changed weights counted; `added` are weights that the original lacks."""
    changed = added + int((weights.rows != origin.table[weights.row_ids]).sum())
    changed += int((weights.head_weight != origin.head_weight).sum())
    changed += int((weights.head_bias != origin.head_bias).sum())
    if twin.encoder is not origin.encoder and not added:
        before, after = origin.encoder.state_dict(), twin.encoder.state_dict()
        changed += sum(int((after[name] != tensor).sum()) for name, tensor in before.items())
    return Outcome(twin, weights, changed)


def _update(
    student: Student,
    optimizer: torch.optim.Optimizer,
    terms: Terms,
    schedule: Schedule,
    scale: Sequence[torch.Tensor] | None,
) -> Losses:
    """One update, and the parts of its loss."""
    if not terms.parts:
        return Losses(0.0, 0.0, 0.0)
    loss = torch.stack(terms.parts).sum()
    require_finite(loss)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    require_finite(nn.utils.clip_grad_norm_(student.parameters, schedule.clip))
    before = [tensor.detach().clone() for tensor in student.parameters] if scale is not None else []
    optimizer.step()
    if scale is not None:
        with torch.no_grad():
            for tensor, old, share in zip(student.parameters, before, scale, strict=True):
                tensor.copy_(torch.lerp(old, tensor, share))
    forget, utility = (0.0 if part is None else part.item() for part in (terms.forget, terms.utility))
    return Losses(forget, utility, 0.0)


def require_multi_label(data: TrainingData) -> None:
    """Raise ValueError for classes that exclude each other: the baselines' losses are those of sigmoids."""
    if data.problem_type is not ProblemType.MULTI_LABEL:
        raise ValueError("baselines are for multi-label classifiers")


def require_finite(loss: torch.Tensor) -> None:
    """Raise LossNotFiniteError unless it is."""
    if not math.isfinite(loss.item()):
        raise LossNotFiniteError


def _sum(losses: Sequence[Losses]) -> Losses:
    return Losses(sum(loss.forget for loss in losses), sum(loss.utility for loss in losses), 0.0)

"""Sparse token-embedding unlearning: STEU as published (arXiv 2603.19302), and what is added to it here.

It changes the embedding rows of the tokens that speak most for the forgotten labels, and the head, so that the
model no longer predicts those labels and predicts the others as it did. The encoder stays as it is. It does
not erase what the encoder knows: a fresh probe on the features may still find a label, and must be measured.

An epoch is one pass over the forget documents. Each step takes one batch of them and one of the retain
documents, which are drawn in shuffled order and start again when they run out. Adam without weight decay, one
learning rate for the rows and one for the head.

The paper pushes the forgotten labels' logits down. That leaves the head to do most of the work, and the features
still tell the label. The additions, each a setting of `Method`: the head's rows for these labels are zeroed at once,
so that nothing is left for the head to do; the embedding rows are trained so that a linear probe finds nothing
either (`alignment`); the other labels are held on the forget documents too; in the end the other labels' rows of the
head are fitted to the features that came of it (`refit`).
"""

import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from amnestic_unlearn.alignment import Bank
from amnestic_unlearn.errors import LossNotFiniteError, NoRetainDocumentsError
from amnestic_unlearn.forgetting import Report, TrainingData
from amnestic_unlearn.manifest import ProblemType
from amnestic_unlearn.refit import refit
from amnestic_unlearn.selection import Selection, select
from amnestic_unlearn.spec import Method, Progress
from amnestic_unlearn.twin import Answers, Twin, Weights
from amnestic_unlearn.windows import Pooling, token_counts

# Batches among which documents are sorted by length: enough to save most padding, few enough to stay random.
BUCKET_BATCHES = 16
# The logit of a label whose row in the head is erased: below every threshold that a label could be given.
ERASED_BIAS = -20.0
# Last steps whose documents the head is fitted to in the end: a quarter of them with a label to forget.
REFIT_FORGET, REFIT_RETAIN = 8, 24


@dataclass(frozen=True, slots=True)
class Losses:
    """Means over an epoch's steps. `distil` is the utility loss on forget documents, 0 where it has no weight.

    `separation` is what alignment lowers, a sum over the labels to forget: the squared distance of the two classes'
    means in within-class standard deviations; 0 where it has no weight.
    """

    forget: float
    utility: float
    distil: float
    separation: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class SteuResult:
    """The trained weights, the tokens chosen for them and the mean losses of each epoch."""

    weights: Weights
    selection: Selection
    epochs: tuple[Losses, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Positions of one forget batch and one retain batch."""

    forget: NDArray[np.int64]
    retain: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Clock:
    """Turns a step into a `Progress`, with the time left at the pace so far."""

    epochs: int
    steps: int
    started: float

    def progress(self, epoch: int, step: int, losses: Losses) -> Progress:
        left = (time.monotonic() - self.started) / step * (self.steps - step)
        return Progress("training", epoch, self.epochs, step, self.steps, losses.forget, losses.utility, left)


def run(twin: Twin, data: TrainingData, method: Method, report: Report) -> SteuResult:
    """Forget `data.targets`. The same arguments give the same weights on the same machine.

    Raises NoRetainDocumentsError and LossNotFiniteError.
    """
    report(Progress("selecting"))
    special, vocab_size = twin.manifest.special_token_ids, twin.manifest.vocab_size
    selection = select(data.documents, data.truth[:, data.targets], special, vocab_size, method.k)
    weights, epochs = edit(twin, data, method, np.sort(selection.token_ids), report)
    return SteuResult(weights, selection, epochs)


def edit(
    twin: Twin, data: TrainingData, method: Method, token_ids: NDArray[np.int64], report: Report
) -> tuple[Weights, tuple[Losses, ...]]:
    """Forget by the rows of given tokens, ids ascending, and the head: the weights and the mean losses of each epoch.

    Raises NoRetainDocumentsError and LossNotFiniteError.
    """
    if not len(data.retain):
        raise NoRetainDocumentsError
    weights = twin.base(torch.from_numpy(token_ids))
    # 1. Every batch in advance, so that the base model answers only for the documents that are drawn.
    data = _cut(data, method.max_tokens)
    epochs = plan(data, method)
    report(Progress("training", epochs=len(epochs), steps=sum(map(len, epochs))))
    base = base_answers(twin, data, epochs)
    # 2. Nothing of the forgotten labels is left in the head.
    if method.erase_head:
        erase_head(weights, data.targets)
    # 3. Train.
    losses = train(twin, data, method, weights, epochs, base, report)
    # 4. What the rows cost the other labels, the head makes good.
    if method.refit_head:
        refit_head(twin, data, weights, epochs, base)
    return weights, losses


def train(
    twin: Twin,
    data: TrainingData,
    method: Method,
    weights: Weights,
    epochs: Sequence[Sequence[Step]],
    base: Answers,
    report: Report,
) -> tuple[Losses, ...]:
    """Optimise `weights` in place over the planned steps; `base` from `base_answers`."""
    trained = (weights.rows, weights.head_weight, weights.head_bias)
    for tensor in trained:
        tensor.requires_grad_(True)
    optimizer = torch.optim.Adam(
        [{"params": trained[:1], "lr": method.embedding_lr}, {"params": trained[1:], "lr": method.head_lr}]
    )
    steps = sum(map(len, epochs))
    fall = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps if method.lr_decay else 1)
    objective = Objective.of(data, method, base)
    slots = twin.slots(weights.row_ids)
    clock = Clock(len(epochs), steps, time.monotonic())
    history: list[Losses] = []
    for number, epoch in enumerate(epochs, start=1):
        measured = []
        for step in epoch:
            kept = twin.answer(data.batch(step.retain), weights, slots)
            forgotten = twin.answer(data.batch(step.forget), weights, slots)
            loss, losses = objective(forgotten, kept, step)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if method.erase_head:
                _hold(weights, data.targets)
            optimizer.step()
            fall.step()
            measured.append(losses)
            report(clock.progress(number, sum(map(len, epochs[: number - 1])) + len(measured), losses))
        history.append(_mean(measured))
    for tensor in trained:
        tensor.requires_grad_(False)
    return tuple(history)


def refit_head(
    twin: Twin, data: TrainingData, weights: Weights, epochs: Sequence[Sequence[Step]], base: Answers
) -> None:
    """Fit the other labels' rows of the head in place, by documents of the last steps."""
    steps = [step for epoch in epochs for step in epoch]
    drawn = [step.forget for step in steps[-REFIT_FORGET:]] + [step.retain for step in steps[-REFIT_RETAIN:]]
    positions = np.unique(np.concatenate(drawn))
    if twin.manifest.pooling is Pooling.MAX:
        # The largest of several windows' logits is not linear in their features.
        positions = positions[[len(data.documents[position]) == 1 for position in positions]]
    if len(positions):
        features = twin.ask(data.batch(positions), weights).features
        refit(weights, twin.base(weights.row_ids), features, base.logits[positions], data.others)


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """The loss of a step. `targets` [N, C] from `soft_targets`; `bank` where alignment has a weight."""

    data: TrainingData
    method: Method
    targets: torch.Tensor
    bank: Bank | None

    @classmethod
    def of(cls, data: TrainingData, method: Method, base: Answers) -> Self:
        bank = None
        if method.align_weight:
            having = torch.from_numpy(data.truth[:, list(data.targets)])
            bank = Bank(base.features, ~base.features.isnan().any(dim=1), having)
        return cls(data, method, soft_targets(data, base.logits), bank)

    def __call__(self, forgotten: Answers, kept: Answers, step: Step) -> tuple[torch.Tensor, Losses]:
        """The weighted sum of the losses, and each by itself, from what a step's two batches are answered."""
        data, method = self.data, self.method
        forget_of, utility_of = LOSSES[data.problem_type]
        forget = forget_of(forgotten.logits, data.targets)
        utility = utility_of(kept.logits, self.targets[step.retain], data.others)
        distil = align = torch.zeros(())
        separation = 0.0
        if method.distil_weight:
            distil = utility_of(forgotten.logits, self.targets[step.forget], data.others)
        if self.bank is not None:
            positions = np.concatenate([step.forget, step.retain])
            align, separation = self.bank.loss(torch.cat([forgotten.features, kept.features]), positions)
        loss = (
            method.forget_weight * forget
            + method.utility_weight * utility
            + method.distil_weight * distil
            + method.align_weight * align
        )
        if not math.isfinite(loss.item()):
            raise LossNotFiniteError
        return loss, Losses(forget.item(), utility.item(), distil.item(), separation)


def forget_loss(logits: torch.Tensor, targets: Sequence[int]) -> torch.Tensor:
    """BCE of the forgotten labels' probabilities against 0, a mean over documents and labels."""
    chosen = logits[:, list(targets)]
    return functional.binary_cross_entropy_with_logits(chosen, torch.zeros_like(chosen))


def utility_loss(logits: torch.Tensor, targets: torch.Tensor, others: Sequence[int]) -> torch.Tensor:
    """BCE of the other labels' probabilities against the base model's, a mean over documents and labels.

    `logits` and `targets` [B, C]; targets are probabilities. Its smallest value is the base model's entropy.
    """
    return functional.binary_cross_entropy_with_logits(logits[:, list(others)], targets[:, list(others)])


def softmax_forget_loss(logits: torch.Tensor, targets: Sequence[int]) -> torch.Tensor:
    """-log(1 - p), p the softmax's share of all the forgotten labels together; a mean over documents.

    Derived as `forget_loss`: that is BCE of a sigmoid to 0, which is -log(1 - p). With T the forgotten labels and O
    the others, p = sum_T exp(z) / (sum_T exp(z) + sum_O exp(z)) = sigmoid(m), where m = logsumexp_T z - logsumexp_O z
    is the log-odds of T. So the loss is BCE of m to 0, which is stable where p is near 1.
    """
    chosen = torch.zeros(logits.shape[1], dtype=torch.bool)
    chosen[list(targets)] = True
    margin = logits[:, chosen].logsumexp(dim=1) - logits[:, ~chosen].logsumexp(dim=1)
    return functional.binary_cross_entropy_with_logits(margin, torch.zeros_like(margin))


def softmax_utility_loss(logits: torch.Tensor, targets: torch.Tensor, others: Sequence[int]) -> torch.Tensor:
    """Cross-entropy of the softmax to the base model's without the forgotten labels; a mean over documents.

    `logits` and `targets` [B, C]; the `others` columns of targets are a distribution q0, the softmax of the base's
    other logits. With q the same of these logits, p_o = q_o (1 - p_forgotten), so the loss is H(q0, q) - log(1 -
    p_forgotten). The first part keeps the ratios of the other labels, all that a softmax can keep when a label loses
    its share. The second has no counterpart in `utility_loss`, where labels do not compete: here a forgotten label
    that rises on a document of another takes that document's answer. Its smallest value is the entropy of q0.

    On forget documents, as `distil`, the second part is the forget loss once more.
    """
    columns = list(others)
    return -(targets[:, columns] * logits.log_softmax(dim=1)[:, columns]).sum(dim=1).mean()


# Forget and utility loss of each kind of classifier.
LOSSES = {
    ProblemType.MULTI_LABEL: (forget_loss, utility_loss),
    ProblemType.SINGLE_LABEL: (softmax_forget_loss, softmax_utility_loss),
}


def plan(data: TrainingData, method: Method) -> list[list[Step]]:
    """The batches of every epoch, decided by the seed alone; the last epoch may be cut short by `max_steps`."""
    generator = torch.Generator().manual_seed(method.seed)
    lengths = token_counts(data.documents)
    retain = _cycle(data.retain, lengths, method.batch_size, generator)
    left = method.max_steps * len(data.targets) if method.max_steps else sys.maxsize
    epochs = []
    for _ in range(method.epochs):
        forget = _shuffle(data.forget, lengths, method.batch_size, generator)[:left]
        left -= len(forget)
        if forget:
            epochs.append([Step(batch, next(retain)) for batch in forget])
    return epochs


def base_answers(twin: Twin, data: TrainingData, epochs: Sequence[Sequence[Step]]) -> Answers:
    """What the base model answers for each document that is drawn; nan for the others."""
    drawn = np.unique(
        np.concatenate([part for epoch in epochs for step in epoch for part in (step.forget, step.retain)])
    )
    some = twin.ask(data.batch(drawn), twin.base(torch.empty(0, dtype=torch.int64)))
    tables = []
    for part in (some.features, some.logits):
        table = torch.full((len(data.documents), part.shape[1]), torch.nan, dtype=part.dtype)
        table[drawn] = part
        tables.append(table)
    return Answers(*tables)


def soft_targets(data: TrainingData, logits: torch.Tensor) -> torch.Tensor:
    """The base model's probabilities [N, C] of the documents whose logits are given.

    Single-label: those of the softmax over the labels to keep, 0 for the labels to forget.
    """
    if data.problem_type is ProblemType.SINGLE_LABEL:
        return logits.index_fill(1, torch.tensor(data.targets), -math.inf).softmax(dim=1)
    return logits.sigmoid()


def erase_head(weights: Weights, targets: Sequence[int]) -> None:
    """Zero the labels' rows of the head in place, and lower their biases, which would answer for every document."""
    weights.head_weight[list(targets)] = 0
    weights.head_bias[list(targets)] = ERASED_BIAS


def _hold(weights: Weights, targets: Sequence[int]) -> None:
    """Keep the erased rows of the head: a softmax has a gradient for them, and Adam enlarges any."""
    for tensor in (weights.head_weight, weights.head_bias):
        assert tensor.grad is not None
        tensor.grad[list(targets)] = 0


def _cut(data: TrainingData, tokens: int) -> TrainingData:
    """Every window to its first tokens. Of a document's alone, training would not see what speaks in later windows."""
    if not tokens:
        return data
    cut = [tuple(window[:tokens] for window in document) for document in data.documents]
    return dataclasses.replace(data, documents=cut)


def _cycle(
    positions: NDArray[np.int64], lengths: NDArray[np.int64], size: int, generator: torch.Generator
) -> Iterator[NDArray[np.int64]]:
    while True:
        yield from _shuffle(positions, lengths, size, generator)


def _shuffle(
    positions: NDArray[np.int64], lengths: NDArray[np.int64], size: int, generator: torch.Generator
) -> list[NDArray[np.int64]]:
    """Batches in random order, each of documents of similar length."""
    shuffled = positions[torch.randperm(len(positions), generator=generator).numpy()]
    bucket = size * BUCKET_BATCHES
    buckets = [shuffled[start : start + bucket] for start in range(0, len(shuffled), bucket)]
    ordered = [chosen[np.argsort(lengths[chosen], kind="stable")] for chosen in buckets]
    batches = [chosen[start : start + size] for chosen in ordered for start in range(0, len(chosen), size)]
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


def _mean(losses: Sequence[Losses]) -> Losses:
    count = len(losses)
    return Losses(
        sum(loss.forget for loss in losses) / count,
        sum(loss.utility for loss in losses) / count,
        sum(loss.distil for loss in losses) / count,
        sum(loss.separation for loss in losses) / count,
    )

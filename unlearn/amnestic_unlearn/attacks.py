"""What an attacker gets back of a forgotten label: prototypes, relearning, membership, and how each is normalised.

All attacks here see the features of a served model (float32 [N, h]) and labelled documents that the model was not
trained on. They draw and fit the same for every model with the same seed, so that models differ by their features
alone. A fresh probe on all documents is `probe.cross_fitted`. Nothing here is a bound: a stronger attacker finds more.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from amnestic_unlearn.measures import Bools, Floats, auroc, two_sided
from amnestic_unlearn.probe import fit, standard

# Original and retrained closer than this (in AUROC) leave nothing to recover: on a few hundred documents sampling
# alone moves either by more, so a ratio over a span not much larger is still to be read with its interval.
SMALLEST_SPAN = 0.02

SHOTS = 5
PROTOTYPE_DRAWS = 50

# Positive examples, and as many negative ones.
EXAMPLES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
EXAMPLE_DRAWS = 10
# The middle of `probe.PENALTIES`. Fixed, since a handful of examples leaves nothing to choose it by.
EXAMPLE_L2 = 10.0

REGAINED = 0.9

STEP_RATE = 1e-2
STEP_BATCH = 32
STEP_CAP = 200
STEP_DRAWS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """One model's features of the documents an attacker fits on and of those the attack is measured on.

    `seen` float64 [N, h] and `unseen` [M, h], both standardised by mean and deviation of the former, which need no
    labels; `seen_truth` bool [N] and `unseen_truth` bool [M] of the label.
    """

    seen: NDArray[np.float64]
    seen_truth: Bools
    unseen: NDArray[np.float64]
    unseen_truth: Bools

    @property
    def examples(self) -> int:
        """The most examples that can be drawn of both kinds."""
        positives = int(self.seen_truth.sum())
        return min(positives, len(self.seen_truth) - positives)

    def balanced(self, random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions of the positive and of the negative documents seen, shuffled."""
        positive, negative = np.flatnonzero(self.seen_truth), np.flatnonzero(~self.seen_truth)
        return random.permutation(positive), random.permutation(negative)


@dataclass(frozen=True, slots=True)
class Relearned:
    """Mean effort over draws, a draw that never got there counting as one more than the cap; `reached` the share
    of draws that got there. Both nan if the attack is not defined."""

    effort: float
    reached: float


UNDEFINED = Relearned(float("nan"), float("nan"))


def material(seen: Floats, seen_truth: Bools, unseen: Floats, unseen_truth: Bools) -> Material:
    """Standardise features [N, h] and [M, h] for the attacks."""
    mean, scale = standard(seen.astype(np.float64))
    return Material((seen - mean) / scale, seen_truth, (unseen - mean) / scale, unseen_truth)


def recovery(value: float, retrained: float, original: float) -> float:
    """Where a measure of the forgotten label lies between the retrained model (0) and the original (1).

    nan unless the original has at least `SMALLEST_SPAN` more: there is nothing to recover otherwise. Of several models,
    divide the sum of the numerators by that of the denominators: a mean of ratios is ruled by the smallest denominator.
    """
    span = original - retrained
    return (value - retrained) / span if span >= SMALLEST_SPAN else float("nan")


def bar(original: float) -> float:
    """The AUROC that counts as relearned: 90 % of what the original has above chance. nan if it has nothing."""
    return 0.5 + REGAINED * (original - 0.5) if original > 0.5 else float("nan")


def prototype_auroc(given: Material, seed: int = 0) -> float:
    """Mean AUROC over 50 draws of nearest-prototype classification from 5 positive and 5 negative examples.

    A prototype is the mean of a class's examples; a document's score is its squared distance to the negative one
    less that to the positive one (Snell, Swersky and Zemel 2017, arXiv 1703.05175). nan with fewer examples.
    """
    if given.examples < SHOTS:
        return float("nan")
    random = np.random.default_rng(seed)
    draws = [given.balanced(random) for _ in range(PROTOTYPE_DRAWS)]
    positive = np.stack([given.seen[chosen[:SHOTS]].mean(axis=0) for chosen, _ in draws])
    negative = np.stack([given.seen[chosen[:SHOTS]].mean(axis=0) for _, chosen in draws])
    # The difference of squared distances, less a part that is the same for every document.
    scores = 2 * given.unseen @ (positive - negative).T
    return float(np.mean([auroc(given.unseen_truth, score) for score in scores.T]))


def relearn_examples(given: Material, wanted: float, seed: int = 0, draws: int = EXAMPLE_DRAWS) -> Relearned:
    """The fewest positive examples, and as many negative, with which a fresh probe reaches an AUROC of `wanted`.

    Each draw adds documents in an order of its own, at the sizes of `EXAMPLES` that the documents allow; the largest
    of them is the cap. Undefined if there is no such size, if no AUROC is, or if `wanted` is nan.
    """
    sizes = [size for size in EXAMPLES if size <= given.examples]
    if not sizes or not _attackable(given, wanted):
        return UNDEFINED
    random = np.random.default_rng(seed)
    return _relearned([_examples_needed(given, wanted, sizes, random) for _ in range(draws)], sizes[-1])


def relearn_steps(given: Material, wanted: float, seed: int = 0) -> Relearned:
    """The Adam steps that bring a fresh head row to an AUROC of `wanted`, measured on the unseen documents.

    The row starts at zero, the loss is binary cross-entropy on batches of 32 documents in shuffled order, the rate
    is 0.01 (Adam as in arXiv 1412.6980), the cap 200 steps; a mean over 5 orders. Undefined as `relearn_examples`.
    """
    if not given.examples or not _attackable(given, wanted):
        return UNDEFINED
    return _relearned([_steps_needed(given, wanted, seed + draw) for draw in range(STEP_DRAWS)], STEP_CAP)


def membership_auroc(members: Floats, others: Floats) -> float:
    """How well the loss tells documents trained on from others, both with the label; two-sided AUROC.

    `members` and `others` are logits of the label [N] and [M]. A document counts as trained on by a small loss, the
    threshold attack of Yeom et al. 2018 (arXiv 1709.01604) at every threshold. One figure for a population: it says
    nothing of the document that is told best. nan if either is empty.
    """
    logits = np.concatenate([members, others]).astype(np.float64)
    loss = np.logaddexp(0.0, -logits)
    return two_sided(auroc(np.arange(len(logits)) < len(members), -loss))


def _attackable(given: Material, wanted: float) -> bool:
    return not np.isnan(wanted) and 0 < int(given.unseen_truth.sum()) < len(given.unseen_truth)


def _examples_needed(given: Material, wanted: float, sizes: list[int], random: np.random.Generator) -> int | None:
    positive, negative = given.balanced(random)
    for size in sizes:
        chosen = np.concatenate([positive[:size], negative[:size]])
        weights = fit(given.seen[chosen], given.seen_truth[chosen], EXAMPLE_L2)
        if auroc(given.unseen_truth, given.unseen @ weights) >= wanted:
            return size
    return None


def _steps_needed(given: Material, wanted: float, seed: int) -> int | None:
    for step, weights in enumerate(_head_rows(given, seed), start=1):
        if auroc(given.unseen_truth, given.unseen @ weights) >= wanted:
            return step
    return None


def _head_rows(given: Material, seed: int) -> Iterator[NDArray[np.float64]]:
    """The weights [h] of the head row after each step."""
    inputs, truth = torch.from_numpy(given.seen), torch.from_numpy(given.seen_truth.astype(np.float64))
    weight = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=STEP_RATE)
    generator = torch.Generator().manual_seed(seed)
    batches: list[torch.Tensor] = []
    for _ in range(STEP_CAP):
        # Another pass over the documents when the last is done.
        batches = batches or list(torch.split(torch.randperm(len(truth), generator=generator), STEP_BATCH))
        batch = batches.pop(0)
        loss = functional.binary_cross_entropy_with_logits(inputs[batch] @ weight + bias, truth[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield weight.detach().numpy()


def _relearned(efforts: list[int | None], cap: int) -> Relearned:
    counted = [cap + 1 if effort is None else effort for effort in efforts]
    return Relearned(float(np.mean(counted)), sum(effort is not None for effort in efforts) / len(efforts))

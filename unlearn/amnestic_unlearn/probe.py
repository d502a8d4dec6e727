"""What an auditor can still recover: a fresh linear probe on the features of a served model.

Logistic regression with L2 on standardised features, both classes weighing the same. Fitted to the minimum by
Newton's method in float64 from zero, so that the same features always give the same probe. It searches where the loss
is nearly round (see `fit`): as they are, the features of an encoder go together so much that few steps do not arrive.

Served calls wait for nothing here. So `torch.optim` is not used: its first optimizer in a process imports the compiler,
which holds every other thread for a tenth of a second.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from amnestic_unlearn.measures import auroc

ITERATIONS = 50
# The largest derivative at which the minimum counts as found, of a loss whose curvature is about 1.
TOLERANCE = 1e-5
# Of a step: the share of the fall that its slope promises which is asked for, and how short it may become.
SUFFICIENT, SHORTEST = 1e-4, 1e-10
FOLDS = 5
# What an auditor would try; the best of them counts.
PENALTIES = (1.0, 10.0, 100.0)
# Of the documents' own spread. Rounding, which depends on who shares a batch, moves features by less than 1e-4 of it.
MOVED = 0.01


def probe_auc(
    train_features: NDArray[np.floating],
    train_truth: NDArray[np.bool_],
    test_features: NDArray[np.floating],
    test_truth: NDArray[np.bool_],
    l2: float = 1.0,
) -> float:
    """AUROC on the test documents of a probe fitted on the training documents; features [N, h], truth [N].

    `l2` weighs half the squared norm of the weights against the sum of the documents' losses. nan if either
    part lacks positive or negative documents.
    """
    if train_truth.all() or not train_truth.any():
        return float("nan")
    mean, scale = standard(train_features)
    weights = fit((train_features - mean) / scale, train_truth, l2)
    return auroc(test_truth, (test_features - mean) / scale @ weights)


def cross_fitted(
    features: NDArray[np.floating], truth: NDArray[np.bool_], folds: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Scores float64 [N] of probes that never saw the document they score; features [N, h], truth [N].

    `folds` int64 [N] from `assign_folds`. The L2 penalty is the one of `PENALTIES` whose scores have the largest
    AUROC, which favours the auditor. A fold without anything to fit on scores 0.
    """
    found = [_out_of_fold(features, truth, folds, l2) for l2 in PENALTIES]
    return max(found, key=lambda scores: np.nan_to_num(auroc(truth, scores)))


def cross_fitted_auc(features: NDArray[np.floating], truth: NDArray[np.bool_], folds: NDArray[np.int64]) -> float:
    """AUROC of `cross_fitted`; nan without positive or negative documents, or if a feature is not finite."""
    if not np.isfinite(features).all():
        return float("nan")
    return auroc(truth, cross_fitted(features, truth, folds))


def excess_ratio(candidate: float, base: float, chance: float, moved: bool) -> float:
    """What a candidate's features keep of the base's: the ratio of two probes' AUROC above 0.5.

    1 if they tell as much as before, 0 if nothing, below 0 if the probe does worse than chance. nan if any figure is.

    Where the base's own excess is not above `chance`, what a score that knows nothing reaches
    (`measures.chance_excess`), the probe can't tell what was lost: the ratio of one chance figure to another is
    anything. There the candidate's excess is a share of `chance`, so that a label that the base never knew is held
    against no candidate for what noise finds, and features that have not `moved` count as 1, whatever was found.
    """
    ratio = float((candidate - 0.5) / np.maximum(base - 0.5, chance))
    if moved or base - 0.5 > chance or math.isnan(ratio):
        return ratio
    return 1.0


def has_moved(features: NDArray[np.floating], base: NDArray[np.floating]) -> bool:
    """Whether the features [N, h] of any document are other than the base's by more than rounding.

    A document's distance is measured against the root of the summed variances of the base's features, which no
    feature that is nearly constant can blow up. What is not finite counts as moved.
    """
    spread = np.sqrt(base.var(axis=0, dtype=np.float64).sum())
    distance = np.linalg.norm(features - base, axis=1)
    # Written so that a NaN counts.
    return not bool((distance <= MOVED * spread).all())


def assign_folds(groups: Sequence[str], folds: int = FOLDS) -> NDArray[np.int64]:
    """The fold of each document, int64 [N] from 0, from its group alone: no patient is in two."""
    return np.array([int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) % folds for group in groups])


def standard(features: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Mean and standard deviation [h] of features [N, h]; 1 for the deviation of a constant one."""
    scale = features.std(axis=0)
    return features.mean(axis=0), np.where(scale > 0, scale, 1.0)


def _out_of_fold(
    features: NDArray[np.floating], truth: NDArray[np.bool_], folds: NDArray[np.int64], l2: float
) -> NDArray[np.float64]:
    scores = np.zeros(len(truth))
    for fold in np.unique(folds):
        held_out, seen = folds == fold, folds != fold
        if truth[seen].any() and not truth[seen].all():
            mean, scale = standard(features[seen])
            weights = fit((features[seen] - mean) / scale, truth[seen], l2)
            scores[held_out] = (features[held_out] - mean) / scale @ weights
    return scores


def fit(features: NDArray[np.floating], truth: NDArray[np.bool_], l2: float) -> NDArray[np.float64]:
    """Weights float64 [h] of the class-balanced logistic regression; its intercept is not part of the penalty.

    `l2` must be above 0.
    """
    known = torch.from_numpy(features).double()
    if len(known) < known.shape[1]:
        # The minimum is a sum of the documents' features: look for it among those, where there are fewer unknowns.
        basis, coordinates = torch.linalg.qr(known.T)
        inside: NDArray[np.float64] = basis.numpy() @ fit(coordinates.T.numpy(), truth, l2)
        return inside
    inputs = torch.column_stack([known, torch.ones(len(known), dtype=torch.float64)])
    wanted = torch.from_numpy(truth).double()
    share = float(truth.mean())
    balance = torch.where(wanted > 0, 0.5 / share, 0.5 / (1.0 - share)).double()
    penalty = torch.full((inputs.shape[1],), l2, dtype=torch.float64)
    penalty[-1] = 0.0
    # In units of this root, the curvature at zero (that of the logistic loss is 1/4 there) is the unit matrix.
    curvature = (inputs.T * (balance / 4)) @ inputs + torch.diag(penalty)
    root = torch.linalg.inv(torch.linalg.cholesky(curvature)).T
    found: NDArray[np.float64] = (root @ _minimum(inputs @ root, wanted, balance, root, penalty)).numpy()[:-1]
    return found


def _minimum(
    inputs: torch.Tensor, wanted: torch.Tensor, balance: torch.Tensor, root: torch.Tensor, penalty: torch.Tensor
) -> torch.Tensor:
    """The point [d] of the least penalised loss, all of it in units of `root`; inputs [N, d], wanted and balance [N].

    Newton's method, each step found by conjugate gradients and halved until the loss falls as it should.
    """

    def loss(point: torch.Tensor) -> torch.Tensor:
        logits = inputs @ point
        losses = functional.softplus(logits) - wanted * logits
        return balance @ losses + penalty @ (root @ point).square() / 2

    def penalised(direction: torch.Tensor) -> torch.Tensor:
        return root.T @ (penalty * (root @ direction))

    def curved(weights: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        return inputs.T @ (weights * (inputs @ direction)) + penalised(direction)

    point = torch.zeros(inputs.shape[1], dtype=torch.float64)
    for _ in range(ITERATIONS):
        positive = torch.sigmoid(inputs @ point)
        gradient = inputs.T @ (balance * (positive - wanted)) + penalised(point)
        if gradient.abs().max() <= TOLERANCE:
            break
        weights = balance * positive * (1 - positive)
        step = -_solve(partial(curved, weights), gradient)
        here, slope, length = loss(point), gradient @ step, 1.0
        while length > SHORTEST and loss(point + length * step) > here + SUFFICIENT * length * slope:
            length /= 2
        point = point + length * step
    return point


def _solve(curvature: Callable[[torch.Tensor], torch.Tensor], gradient: torch.Tensor) -> torch.Tensor:
    """About the x [d] of which `curvature` makes this gradient, the nearer the smaller that is; conjugate gradients."""
    found, rest = torch.zeros_like(gradient), gradient
    direction, size = rest, gradient @ gradient
    enough = size * min(0.01, float(size))
    for _ in range(len(gradient)):
        if size <= enough:
            break
        bent = curvature(direction)
        length = size / (direction @ bent)
        found, rest = found + length * direction, rest - length * bent
        size, before = rest @ rest, size
        direction = rest + size / before * direction
    return found

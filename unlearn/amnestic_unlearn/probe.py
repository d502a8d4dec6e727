"""What an auditor can still recover: a fresh linear probe on the features of a served model.

Logistic regression with L2 on standardised features, both classes weighing the same. Fitted to the minimum by
LBFGS in float64 from zero, so that the same features always give the same probe.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from amnestic_unlearn.measures import auroc

ITERATIONS = 200


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
    mean, scale = train_features.mean(axis=0), train_features.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    weights = fit((train_features - mean) / scale, train_truth, l2)
    return auroc(test_truth, (test_features - mean) / scale @ weights)


def fit(features: NDArray[np.floating], truth: NDArray[np.bool_], l2: float) -> NDArray[np.float64]:
    """Weights float64 [h] of the class-balanced logistic regression; its intercept is not part of the penalty."""
    inputs = torch.from_numpy(np.asarray(features, dtype=np.float64))
    wanted = torch.from_numpy(truth.astype(np.float64))
    share = float(truth.mean())
    balance = torch.where(wanted > 0, 0.5 / share, 0.5 / (1.0 - share))
    weights = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    intercept = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, intercept], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        losses = functional.binary_cross_entropy_with_logits(inputs @ weights + intercept, wanted, weight=balance)
        total = losses + l2 / 2 * weights.square().sum() / len(wanted)
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    found: NDArray[np.float64] = weights.detach().numpy()
    return found

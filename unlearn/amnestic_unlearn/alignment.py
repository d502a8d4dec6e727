"""Takes from the features what a linear probe could tell a label by: alignment of the two classes' means.

No linear classifier does better than a constant one exactly when the features' mean is the same with the label as
without (Belrose et al. 2023, LEACE, arXiv 2306.03819, theorem 3.1). LEACE projects finished features; here the rows
are trained until the encoder gives such features by itself. For a label, with D the difference of the two means and S
the covariance within the two classes, D' S^-1 D is how far Fisher's discriminant separates them, and S^-1 D is its
direction. Means and covariance are those of a bank, the last known features of all documents drawn: a batch is too
small for either. The loss moves the batch's own means together along that direction, which is the gradient of the
separation with S held.
"""

import numpy as np
import torch
from numpy.typing import NDArray

# Added to the covariance, as a share of its mean variance: what few documents don't determine should not decide.
SHRINKAGE = 0.02


class Bank:
    """The last known features of the documents that training draws.

    `features` [N, h], those of the base to begin with; `drawn` bool [N]; `having` bool [N, T], the labels to forget.
    """

    def __init__(self, features: torch.Tensor, drawn: torch.Tensor, having: torch.Tensor) -> None:
        self._features = features.clone()
        self._drawn = drawn
        self._having = having
        ridge = SHRINKAGE * features[drawn].var(dim=0).mean()
        self._ridge = ridge * torch.eye(features.shape[1], dtype=features.dtype)

    def loss(self, features: torch.Tensor, positions: NDArray[np.int64]) -> tuple[torch.Tensor, float]:
        """The alignment loss of a batch's features [B, h], and the separation in the bank; sums over labels.

        `positions` int64 [B] are the documents' places in the bank, which takes in their features.
        """
        self._features[positions] = features.detach()
        loss, separation = features.new_zeros(()), 0.0
        for label in range(self._having.shape[1]):
            has = self._having[positions, label]
            difference, direction = self._discriminant(label)
            separation += float(difference @ direction)
            if has.any() and not has.all():
                loss = loss + 2 * direction @ (features[has].mean(dim=0) - features[~has].mean(dim=0))
        return loss, separation

    def _discriminant(self, label: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Difference of the means [h], and Fisher's direction [h]; both 0 where there is but one class."""
        with_label = self._features[self._drawn & self._having[:, label]]
        without = self._features[self._drawn & ~self._having[:, label]]
        if len(with_label) < 2 or len(without) < 2:
            nothing = self._features.new_zeros(self._features.shape[1])
            return nothing, nothing
        difference = with_label.mean(dim=0) - without.mean(dim=0)
        scatter = sum(len(part) * torch.cov(part.T) for part in (with_label, without))
        within = scatter / (len(with_label) + len(without)) + self._ridge
        return difference, torch.linalg.solve(within, difference)

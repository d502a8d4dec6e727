"""Fits the head anew to the features that edited rows give, in closed form.

Rows that no longer tell the forgotten labels change a little of what the encoder says of the others too. So the head's
rows of the others become those of a ridge regression: with features X [N, h + 1], a column of ones among them, the base
model's logits Z [N, C] and its head W [h + 1, C], they are W + (X'X / N + r I)^-1 X'(Z - X W) / N. The ridge holds them
to the base's where the documents decide nothing. The logits of a softmax are fitted like any others: what keeps them
keeps their ratios.
"""

from collections.abc import Sequence

import torch

from amnestic_unlearn.twin import Weights

# As a share of the features' mean square.
RIDGE = 0.02


def refit(
    weights: Weights, base: Weights, features: torch.Tensor, logits: torch.Tensor, columns: Sequence[int]
) -> None:
    """Change the head's rows of some labels in place: from those of `base` to what gives the base's answers.

    `features` [N, h] are those of the edited rows, `logits` [N, C] the base's for the same documents.
    """
    labels = list(columns)
    inputs = torch.column_stack([features, features.new_ones(len(features))]).double()
    before = torch.column_stack([base.head_weight, base.head_bias])[labels].double().T
    ridge = RIDGE * features.square().mean() * torch.eye(inputs.shape[1], dtype=torch.float64)
    error = logits[:, labels].double() - inputs @ before
    fitted = before + torch.linalg.solve(inputs.T @ inputs / len(inputs) + ridge, inputs.T @ error / len(inputs))
    weights.head_weight[labels] = fitted[:-1].T.to(weights.head_weight.dtype)
    weights.head_bias[labels] = fitted[-1].to(weights.head_bias.dtype)

"""Whether a candidate version may serve. Every gate is a number, a limit, and whether it holds; nothing is decided
from what the worker claims that the server can measure itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amnestic_unlearn.spec import GateLimits


@dataclass(frozen=True, slots=True)
class Gate:
    """One measured condition; `label` is empty unless it is measured by label. It holds if value <= limit."""

    name: str
    value: float
    limit: float
    label: str = ""

    @property
    def passed(self) -> bool:
        # Written so that a NaN fails.
        return bool(self.value <= self.limit)


def behaviour(
    base_f1: Mapping[str, float], candidate_f1: Mapping[str, float], forgotten: Sequence[str], limits: GateLimits
) -> list[Gate]:
    """Gates on F1 of the decisions: each forgotten label's, and the fall of the others' mean below the base."""
    kept = [label for label in base_f1 if label not in set(forgotten)]
    drop = np.mean([base_f1[label] for label in kept]) - np.mean([candidate_f1[label] for label in kept])
    return [
        *(Gate("forget_f1", candidate_f1[label], limits.forget_f1_max, label) for label in forgotten),
        Gate("retain_f1_drop", float(drop), limits.retain_f1_drop_max),
    ]


def encoder_unchanged(changed_digests: int) -> Gate:
    """The number of digests of the frozen encoder, in torch and in ONNX, that are not what they were: none may be."""
    return Gate("encoder_unchanged", float(changed_digests), 0.0)


def only_declared_changed(rows: int) -> Gate:
    """The number of embedding rows, as served, that changed undeclared or are declared and did not: none may be."""
    return Gate("only_declared_changed", float(rows), 0.0)


def logit_difference(torch_logits: NDArray[np.float32], served: NDArray[np.float32], limits: GateLimits) -> Gate:
    """Largest difference of any logit between the worker's torch and the served path; both [N, C]."""
    if torch_logits.shape != served.shape:
        return Gate("logit_difference", float("nan"), limits.logit_difference_max)
    return Gate("logit_difference", float(np.abs(torch_logits - served).max()), limits.logit_difference_max)

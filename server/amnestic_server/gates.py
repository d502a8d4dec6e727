"""Whether a candidate version may serve. Every gate is a number, a limit, and whether it holds; nothing is decided
from what the worker claims that the server can measure itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amnestic_server.evaluation import Figures
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


def forgetting(figures: Figures, chance: Mapping[str, float], limits: GateLimits) -> list[Gate]:
    """For each forgotten label: F1, AUROC of its score, and what a fresh probe still finds, in this order.

    What was purged from the base has no such share of the base's: there it is kept as it is by the other two.

    F1 alone proves little: lowering the label's bias makes it 0 and leaves the score's order, so AUROC shows it; an
    edit of the head alone leaves the features, and the probe shows it.

    `chance` is what `measures.chance_excess` says of each label. Where it is more than the limit of the AUROC allows,
    it takes its place: a score that knows nothing would fail otherwise, more often than once in 20 times.
    """
    found = []
    for label, auroc in figures.forget_auroc.items():
        found.append(Gate("forget_f1", figures.f1[label], limits.forget_f1_max, label))
        found.append(Gate("forget_auroc", auroc, max(limits.forget_auroc_max, 0.5 + chance[label]), label))
        if label in figures.probe_ratio:
            found.append(Gate("probe_ratio", figures.probe_ratio[label], limits.probe_ratio_max, label))
    return found


def retention(
    base_f1: Mapping[str, float], candidate_f1: Mapping[str, float], forgotten: Sequence[str], limits: GateLimits
) -> list[Gate]:
    """Gates on the F1 of the other labels: the fall of their mean below the base, and the largest fall of any of them,
    which names the label that it is.
    """
    kept = [label for label in base_f1 if label not in set(forgotten)]
    falls = np.array([base_f1[label] - candidate_f1[label] for label in kept])
    worst = int(falls.argmax())  # of a NaN, if there is one
    return [
        Gate("retain_f1_drop", float(falls.mean()), limits.retain_f1_drop_max),
        Gate("retain_label_drop", float(falls[worst]), limits.retain_label_drop_max, kept[worst]),
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

"""What every way of forgetting takes and gives, so that they can be run and measured side by side.

A way of forgetting is a function from a trained classifier and its training documents to an `Outcome`, another
classifier. STEU's changes embedding rows and head; a baseline may change the encoder too. Nothing here decides how.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from amnestic_unlearn.manifest import ProblemType
from amnestic_unlearn.spec import Progress
from amnestic_unlearn.twin import Twin, Weights
from amnestic_unlearn.windows import Windows

Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Documents as token ids, window by window; `truth` bool [N, C]; `targets` the columns of the labels to forget.

    `problem_type` is that of the twin's manifest.
    """

    documents: Sequence[Windows]
    truth: NDArray[np.bool_]
    targets: tuple[int, ...]
    problem_type: ProblemType = ProblemType.MULTI_LABEL

    @property
    def forget(self) -> NDArray[np.int64]:
        """Positions of the documents with a label to forget."""
        return np.flatnonzero(self.truth[:, self.targets].any(axis=1))

    @property
    def retain(self) -> NDArray[np.int64]:
        """Positions of the documents without one."""
        return np.flatnonzero(~self.truth[:, self.targets].any(axis=1))

    @property
    def others(self) -> tuple[int, ...]:
        """Columns of the labels to keep."""
        return tuple(column for column in range(self.truth.shape[1]) if column not in self.targets)

    def batch(self, positions: NDArray[np.int64]) -> list[Windows]:
        """The documents at some positions."""
        return [self.documents[position] for position in positions]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A classifier after forgetting: `twin` differs from the one given only if the encoder was changed.

    `parameters_changed` counts weights whose value differs from before, the encoder's included.
    """

    twin: Twin
    weights: Weights
    parameters_changed: int

    def features(self, documents: Sequence[Windows]) -> torch.Tensor:
        """The head's input float32 [N, h]."""
        return self.twin.evaluate_features(documents, self.weights)

    def logits(self, documents: Sequence[Windows]) -> torch.Tensor:
        """Float32 [N, C]."""
        return self.twin.evaluate(documents, self.weights)


class Forget(Protocol):
    """Forgets `data.targets`; the same arguments give the same outcome on the same machine."""

    def __call__(self, twin: Twin, data: TrainingData, seed: int, report: Report) -> Outcome: ...

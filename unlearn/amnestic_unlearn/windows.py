"""How a document longer than the model's maximum is read, and how its windows' answers become the document's.

Either it is cut, or it is read in windows: stretches of at most the model's maximum, special tokens included, each
beginning with the last `window_overlap` tokens of the one before. They end at tokens, not at sentences. A label's
logit is the largest of the windows', or their mean, and everything else follows from the pooled logits: the sigmoid
and its threshold, or the softmax of a single-label model. A document's features are the mean over its windows.

Training, export, serving, gates and unlearning read documents by these functions alone, so that a threshold means the
same to all. Torch is imported only where tensors are pooled: the command line and the manifest need the settings.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

DEFAULT_MAX_WINDOWS = 16
MOST_WINDOWS = 256

Tokens = NDArray[np.int32]
# A document as it is read: the token ids of each of its windows, in order. One that is cut, or fits, has one.
Windows = tuple[Tokens, ...]


class LongDocuments(StrEnum):
    """What becomes of a document that is longer than the model's maximum."""

    TRUNCATE = "truncate"
    WINDOW = "window"


class Pooling(StrEnum):
    """How a label's logits of several windows become the document's."""

    MAX = "max"
    MEAN = "mean"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model reads documents, `max_tokens` at a time. `window_overlap` tokens are shared by neighbours.

    Raises ValueError, naming the setting, for one that is out of range.
    """

    max_tokens: int
    long_documents: LongDocuments = LongDocuments.TRUNCATE
    window_overlap: int = 0
    max_windows: int = 1
    pooling: Pooling = Pooling.MAX

    def __post_init__(self) -> None:
        if self.long_documents is LongDocuments.TRUNCATE:
            _require((self.window_overlap, self.max_windows) == (0, 1), "windows are for long_documents window")
            return
        most = self.max_tokens // 2
        _require(0 <= self.window_overlap <= most, f"window_overlap must be from 0 to {most}, half of max_tokens")
        _require(2 <= self.max_windows <= MOST_WINDOWS, f"max_windows must be from 2 to {MOST_WINDOWS}")

    @classmethod
    def of(
        cls,
        max_tokens: int,
        long_documents: str | None = None,
        window_overlap: int | None = None,
        max_windows: int | None = None,
        pooling: str | None = None,
    ) -> Self:
        """With a default for what is None: an overlap of a quarter, 16 windows and the largest logit."""
        windowed = long_documents == LongDocuments.WINDOW
        defaults = (max_tokens // 4, DEFAULT_MAX_WINDOWS) if windowed else (0, 1)
        return cls(
            max_tokens,
            LongDocuments(long_documents or LongDocuments.TRUNCATE),
            defaults[0] if window_overlap is None else window_overlap,
            defaults[1] if max_windows is None else max_windows,
            Pooling(pooling or Pooling.MAX),
        )

    @classmethod
    def in_config(cls, config: Any) -> dict[str, Any]:
        """What the configuration of a checkpoint says of it, by field."""
        found = ((name, getattr(config, f"amnestic_{name}", None)) for name in cls.__slots__)
        return {name: value for name, value in found if value is not None}

    def write_to(self, config: Any) -> None:
        """Write it into the configuration of a checkpoint, in place of what stands there."""
        for name, value in asdict(self).items():
            setattr(config, f"amnestic_{name}", value)

    def set_up(self, tokenizer: Any) -> Any:
        """Make a `tokenizers.Tokenizer` cut texts accordingly and pad none; raises ValueError if it can't."""
        between = self.max_tokens - tokenizer.num_special_tokens_to_add(False)
        _require(self.window_overlap < between, "window_overlap leaves no new token for a window")
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_tokens, stride=self.window_overlap)
        return tokenizer

    def windows(self, encoding: Any) -> tuple[list[list[int]], bool]:
        """Token ids of a text's windows, from an encoding of a tokenizer set up so; true if there would be more."""
        further = encoding.overflowing
        ids = [encoding.ids, *(window.ids for window in further[: self.max_windows - 1])]
        return ids, len(further) >= self.max_windows


def pool(rows: NDArray[np.float32], pooling: Pooling) -> NDArray[np.float32]:
    """One document's [d] of its windows' [W, d]."""
    pooled: NDArray[np.float32] = rows.max(axis=0) if pooling is Pooling.MAX else rows.mean(axis=0)
    return pooled


def pool_each(rows: "torch.Tensor", counts: Sequence[int], pooling: Pooling) -> "torch.Tensor":
    """The same of several documents, with gradients: [N, d] of all their windows' [W, d], `counts` windows each."""
    if len(counts) == len(rows):
        return rows
    import torch

    documents = torch.split(rows, list(counts))
    pooled = [one.amax(dim=0) if pooling is Pooling.MAX else one.mean(dim=0) for one in documents]
    return torch.stack(pooled)


def token_counts(documents: Sequence[Windows]) -> NDArray[np.int64]:
    """Tokens of each document in all its windows, int64 [N]."""
    return np.array([sum(map(len, document)) for document in documents], dtype=np.int64)


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)

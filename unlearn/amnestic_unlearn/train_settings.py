"""How to train: every setting with its default, its range and a sentence of documentation.

Nothing here imports torch, so that the command line can show the settings at once.
"""

from dataclasses import dataclass
from typing import Any

from amnestic_unlearn.windows import LongDocuments, Reading

SCRATCH_RATE = 1e-3
CHECKPOINT_RATE = 5e-5


class TrainError(ValueError):
    """The corpus, checkpoint or settings cannot be trained with. The text names which, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Size of a BERT trained from scratch."""

    vocab_size: int = 3_250
    """Most word pieces that are learned."""
    layers: int = 2
    hidden: int = 128
    heads: int = 2
    intermediate: int = 512

    def validate(self) -> None:
        """Raise TrainError, naming the field, unless every one is in range."""
        _check(
            self,
            vocab_size=(100, 1_000_000),
            layers=(1, 128),
            hidden=(8, 16_384),
            heads=(1, 256),
            intermediate=(8, 65_536),
        )
        if self.hidden % self.heads:
            raise TrainError("hidden must be a multiple of heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """The defaults suit a small BERT from scratch on a few thousand short documents."""

    epochs: int = 5
    """Passes over the train split."""
    batch_size: int = 16
    """Documents in a step."""
    learning_rate: float | None = None
    """Highest rate of AdamW; None takes `SCRATCH_RATE` or `CHECKPOINT_RATE`."""
    weight_decay: float = 0.01
    warmup: float = 0.1
    """Share of all steps in which the rate rises linearly; it falls linearly to 0 in the others."""
    max_tokens: int = 256
    """Longest input in tokens, special tokens included."""
    long_documents: str = LongDocuments.TRUNCATE.value
    """truncate: longer documents are cut. window: they are read in overlapping windows."""
    window_overlap: int | None = None
    """Tokens that a window shares with the one before; None takes a quarter of `max_tokens`."""
    max_windows: int | None = None
    """Most windows of a document; None takes `DEFAULT_MAX_WINDOWS`. What goes on behind them is cut."""
    pooling: str | None = None
    """max or mean: how a label's logits of several windows become the document's; None takes max."""
    seed: int = 0
    """Of weights, batch order and dropout."""
    threads: int = 0
    """Threads of torch; 0 leaves them as they are."""
    device: str = "auto"
    """auto (CUDA if there is one), cpu or cuda."""
    precision: str = "fp32"
    """fp32, or bf16 for mixed precision: matrix products in bfloat16, weights and updates in float32."""
    shape: Shape = Shape()
    """Of a model trained from scratch."""

    @property
    def reading(self) -> Reading:
        """How documents are read. Raises TrainError, naming the field, for what does not fit."""
        try:
            return Reading.of(self.max_tokens, self.long_documents, self.window_overlap, self.max_windows, self.pooling)
        except ValueError as error:
            raise TrainError(str(error)) from None

    def validate(self) -> None:
        """Raise TrainError, naming the field, unless every one is in range."""
        self.shape.validate()
        _check(
            self,
            epochs=(1, 10_000),
            batch_size=(1, 4_096),
            weight_decay=(0, 1),
            warmup=(0, 1),
            max_tokens=(8, 65_536),
            seed=(0, 2**63 - 1),
            threads=(0, 1_024),
        )
        _ = self.reading
        if self.learning_rate is not None and not 0 < self.learning_rate <= 1:
            raise TrainError("learning_rate must be above 0 and at most 1")
        if self.device not in ("auto", "cpu", "cuda"):
            raise TrainError("device must be auto, cpu or cuda")
        if self.precision not in ("fp32", "bf16"):
            raise TrainError("precision must be fp32 or bf16")


def _check(settings: Any, **ranges: tuple[float, float]) -> None:
    for name, (least, most) in ranges.items():
        if not least <= getattr(settings, name) <= most:
            raise TrainError(f"{name} must be from {least} to {most}")

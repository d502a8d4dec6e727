"""What one unlearn job is asked to do, and what its worker says while it does it.

The server writes a `JobSpec` as JSON and starts the worker on it; the worker writes one JSON object a line
to standard output, each a `Progress` or a `Failure`. Nothing here imports torch.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

PATCH_FILE = "patch.safetensors"
EVIDENCE_FILE = "evidence.safetensors"
REPORT_FILE = "report.json"


@dataclass(frozen=True, slots=True)
class Method:
    """Settings of sparse token-embedding unlearning; the defaults are those of the paper (STEU, arXiv 2603.19302).

    Every field from `distil_weight` on is ours and does nothing as it stands here; `PRESETS` says how they are used.
    """

    k: int = 256
    """Embedding rows to edit for each label to forget."""
    epochs: int = 5
    """Most passes over the forget documents."""
    embedding_lr: float = 1e-3
    """Rate of Adam for the rows."""
    head_lr: float = 1e-3
    """Rate of Adam for the head."""
    forget_weight: float = 1.0
    """Of the forget loss: the forgotten labels' probability on forget documents."""
    utility_weight: float = 1.0
    """Of the utility loss: the other labels' change on retain documents."""
    distil_weight: float = 0.0
    """Of the same loss on forget documents."""
    align_weight: float = 0.0
    """Of the alignment loss: what a linear probe could tell the forget documents by."""
    erase_head: bool = False
    """Set the forgotten labels' head rows to zero and their bias far below any threshold, in place of training them."""
    lr_decay: bool = False
    """Let both rates fall linearly to zero."""
    max_steps: int = 0
    """Most training steps for each label to forget; 0 for no limit but `epochs`."""
    max_tokens: int = 0
    """Tokens of a document that are trained on, from its beginning; 0 for all that the model reads."""
    batch_size: int = 16
    """Documents in each of a step's two batches."""
    seed: int = 0
    """Of the order of the documents."""

    def validate(self) -> None:
        """Raise ValueError, naming the field, unless every setting is in range."""
        _require(1 <= self.k <= 65_536, "k", "from 1 to 65536")
        _require(1 <= self.epochs <= 1_000, "epochs", "from 1 to 1000")
        _require(1 <= self.batch_size <= 1_024, "batch_size", "from 1 to 1024")
        _require(0 <= self.seed < 2**63, "seed", "from 0 to 2^63 - 1")
        _require(0 <= self.max_steps <= 1_000_000, "max_steps", "from 0 to 1000000")
        _require(self.max_tokens == 0 or 8 <= self.max_tokens <= 65_536, "max_tokens", "0, or from 8 to 65536")
        for name in ("embedding_lr", "head_lr"):
            _require(0 <= getattr(self, name) <= 1, name, "from 0 to 1")
        for name in ("forget_weight", "utility_weight", "distil_weight", "align_weight"):
            _require(0 <= getattr(self, name) <= 1e6, name, "from 0 to 1e6")


PRESETS = {
    "paper": Method(),
    "amnestic": Method(
        epochs=32,
        embedding_lr=5e-3,
        head_lr=5e-3,
        forget_weight=0.0,
        distil_weight=1.0,
        align_weight=1.0,
        erase_head=True,
        lr_decay=True,
        max_steps=32,
        max_tokens=80,
    ),
}


@dataclass(frozen=True, slots=True)
class GateLimits:
    """Conditions that a candidate version must meet on the gate split before it may serve."""

    forget_f1_max: float = 0.01
    retain_f1_drop_max: float = 0.02
    logit_difference_max: float = 1e-3

    def validate(self) -> None:
        """Raise ValueError, naming the field, unless every limit is in range."""
        _require(0 <= self.forget_f1_max <= 1, "forget_f1_max", "from 0 to 1")
        _require(-1 <= self.retain_f1_drop_max <= 1, "retain_f1_drop_max", "from -1 to 1")
        _require(0 < self.logit_difference_max < math.inf, "logit_difference_max", "above 0")


@dataclass(frozen=True, slots=True)
class JobSpec:
    """All that a worker needs: where the bundle and the corpus are, and which labels to forget.

    `forget` is the union of every label that the resulting version forgets, in model order.
    """

    job_id: str
    bundle: str
    corpus: str
    forget: tuple[str, ...]
    method: Method = field(default_factory=Method)
    threads: int = 1
    memory_bytes: int = 0

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True))

    @classmethod
    def read(cls, path: Path) -> Self:
        fields: dict[str, Any] = json.loads(path.read_text())
        fields["forget"] = tuple(fields["forget"])
        fields["method"] = Method(**fields["method"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the worker is. Stages: loading, selecting, training, evaluating. `seconds_left` < 0: unknown."""

    stage: str
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    forget_loss: float = 0.0
    utility_loss: float = 0.0
    seconds_left: float = -1.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the worker gave up. The text is fixed per cause and never holds document text."""

    reason: str


def read_report(folder: Path) -> dict[str, Any]:
    """The worker's report; raises OSError or ValueError unless it is a JSON object."""
    report = json.loads((folder / REPORT_FILE).read_text())
    if not isinstance(report, dict):
        raise ValueError("the report is not an object")
    return report


def encode_message(message: Progress | Failure) -> str:
    """One line of JSON for the pipe from worker to server."""
    return json.dumps({type(message).__name__.lower(): dataclasses.asdict(message)})


def decode_message(line: str | bytes) -> Progress | Failure:
    """Inverse of `encode_message`; raises ValueError on anything else."""
    try:
        payload = json.loads(line)
        match payload:
            case {"progress": dict(fields)}:
                return Progress(**fields)
            case {"failure": {"reason": str(reason)}}:
                return Failure(reason[:500])
    except (TypeError, ValueError):
        pass
    raise ValueError("not a message of the worker")


def _require(condition: bool, name: str, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name} must be {allowed}")

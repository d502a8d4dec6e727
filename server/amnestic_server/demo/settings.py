"""Every setting of the demo, with its default and the reason for it."""

from dataclasses import dataclass, field
from pathlib import Path

from amnestic_client import Method
from amnestic_unlearn.corpus import SHIPPED
from amnestic_unlearn.train_settings import TrainSettings

OUT = Path("out") / "demo"
LABEL = "endocrine"

# On one thread of the CPU wherever it runs: sums then round alike, the same model comes of it, and the method below
# suits it. A second thread would save a quarter of a minute where it is idle, and lose minutes where it is not.
TRAINING = TrainSettings(threads=1, device="cpu")

# The paper's five epochs, but not its rates of 1e-3 for rows and head, nor its lack of distillation: on this model
# those still find one of the gate split's 58 stays, cost the other labels 0.03 of macro F1 there, and are rejected.
# Here the head learns faster than the rows, so that these need to move less, and the other labels are held on the
# stays to forget too. Both gates are met from the third epoch on. The price is seen in the probe, which recovers all
# that it did before: rows that move further hide more, and harm more. A model trained from another seed may want other
# settings: of two tried with these, one passed, and one was rejected for one stay of 58 that it still found.
METHOD = Method(epochs=5, embedding_lr=3e-4, head_lr=1e-2, distil_weight=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """Settings of one run. Times are in seconds."""

    out: Path = OUT
    """Directory for the checkpoint, the bundle, the store and the server's log."""
    corpus: Path = SHIPPED
    label: str = LABEL
    training: TrainSettings = TRAINING
    method: Method = field(default=METHOD)
    window: float = 8.0
    """How long the stream of predictions runs before the request to forget, and again after the job has succeeded."""
    clients: int = 3
    """Clients that the stream consists of. Each sends a document, waits for the answer, and pauses."""
    pause: float = 0.02
    """Mean pause of a client, drawn from an exponential distribution: with three clients, about half of what a
    server on two cores can answer."""
    shown: int = 4
    """Held-out documents that are shown."""

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint"

    @property
    def bundle(self) -> Path:
        return self.out / "bundle"

    @property
    def store(self) -> Path:
        return self.out / "store"

    @property
    def server_log(self) -> Path:
        return self.out / "server.log"


class DemoError(Exception):
    """The demo cannot go on. The text says why, and what to do."""

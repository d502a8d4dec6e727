"""Every setting of the demo, with its default and the reason for it."""

from dataclasses import dataclass
from pathlib import Path

from amnestic_client import GateLimits, Method
from amnestic_unlearn.corpus import SHIPPED
from amnestic_unlearn.train_settings import TrainSettings

OUT = Path("out") / "demo"
LABEL = "endocrine"

# On one thread of the CPU wherever it runs: sums then round alike, the same model comes of it, and the method below
# suits it. A second thread would save a quarter of a minute where it is idle, and lose minutes where it is not.
TRAINING = TrainSettings(threads=1, device="cpu")

# What every request gets that names no settings of its own.
METHOD = Method(preset="amnestic")

GATES = GateLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """Settings of one run. Times are in seconds."""

    out: Path = OUT
    """Directory for the checkpoint, the bundle, the store, the server's log, the receipt and the report."""
    corpus: Path = SHIPPED
    label: str = LABEL
    training: TrainSettings = TRAINING
    method: Method = METHOD
    gates: GateLimits = GATES
    window: float = 12.0
    """How long the stream of predictions runs before the request to forget, and again after the job has succeeded: a
    little longer than the seconds around the swap that the report shows."""
    clients: int = 3
    """Clients that the stream consists of. Each sends a document, waits for the answer, and pauses."""
    pause: float = 0.02
    """Mean pause of a client, drawn from an exponential distribution: with three clients, about half of what a
    server on two cores can answer."""
    shown: int = 4
    """Held-out documents that are shown."""
    quiet: bool = False
    """Show no bars."""

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
    def receipt(self) -> Path:
        return self.out / "receipt.json"

    @property
    def report(self) -> Path:
        return self.out / "report.html"

    @property
    def server_log(self) -> Path:
        return self.out / "server.log"


class DemoError(Exception):
    """The demo cannot go on. The text says why, and what to do."""

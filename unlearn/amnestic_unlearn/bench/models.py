"""The classifiers that the benchmark forgets from, and the gold standards: trained once, and kept.

Each lies in a folder of its own under the benchmark's, named after corpus, encoder, seed and the label left out.
A checkpoint appears whole or not at all, so a run that was killed goes on with those that were done; of several
processes that want the same one, the first trains it and the others wait.
"""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.bench.cells import Source
from amnestic_unlearn.bench.ledger import alone
from amnestic_unlearn.bench.matrix import BenchEncoder, weights_digest
from amnestic_unlearn.corpus import Document
from amnestic_unlearn.train import train
from amnestic_unlearn.train_settings import TrainSettings
from amnestic_unlearn.twin import Twin, from_checkpoint

RECIPE = "recipe.json"
CHECKPOINT = "checkpoint"
# A logit: the probability is 2e-9.
ABSENT = -20.0

Recipe = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A checkpoint, and the processor seconds that training it took: a busy machine does not stretch them."""

    checkpoint: Path
    seconds: float


def trained(folder: Path, source: Source, encoder: BenchEncoder, seed: int, without: str = "") -> TrainedModel:
    """Train on a corpus, or find what was trained before from the same corpus and settings.

    `without` is a label to leave out: its documents stay, their other labels too. Raises TrainError and CorpusError.
    """
    name = f"without-{_short(without)}" if without else "original"
    corpus, place = Path(source.path), folder / source.name / encoder.name / f"seed{seed}" / name
    settings = dataclasses.replace(encoder.training, seed=seed)
    recipe = {
        "corpus": corpora.digest(corpus),
        "without": without,
        "package": encoder.package,
        # Not how many threads it took: with another count sums round otherwise, no more.
        "training": {key: value for key, value in dataclasses.asdict(settings).items() if key != "threads"},
    }
    if encoder.path:
        recipe["checkpoint"] = weights_digest(Path(encoder.path))
    with alone(place):
        return _found(place, recipe) or _train(place, corpus, without, encoder, settings, recipe)


def load_retrained(checkpoint: Path, labels: Sequence[str], mixed: bool = False) -> Twin:
    """The gold standard with a column for each of the original's `labels`, in their order, and with its thresholds.

    A label that it was not trained on gets a row of zeros and a bias of `ABSENT`: it is never said, whatever the text.
    Raises OSError or ValueError if there is no such checkpoint.
    """
    twin = from_checkpoint(checkpoint, mixed)
    weight = torch.zeros(len(labels), twin.head_weight.shape[1])
    bias = torch.full((len(labels),), ABSENT)
    thresholds = [0.5] * len(labels)
    for column, label in enumerate(twin.manifest.labels):
        place = labels.index(label)
        weight[place], bias[place] = twin.head_weight[column], twin.head_bias[column]
        thresholds[place] = twin.manifest.thresholds[column]
    manifest = dataclasses.replace(twin.manifest, labels=tuple(labels), thresholds=tuple(thresholds))
    return dataclasses.replace(twin, manifest=manifest, head_weight=weight, head_bias=bias)


def _found(place: Path, recipe: Recipe) -> TrainedModel | None:
    try:
        kept = json.loads((place / RECIPE).read_text())
    except (OSError, ValueError):
        return None
    if kept["recipe"] != recipe or not (place / CHECKPOINT).is_dir():
        return None
    return TrainedModel(place / CHECKPOINT, kept["seconds"])


def _train(
    place: Path, corpus: Path, without: str, encoder: BenchEncoder, settings: TrainSettings, recipe: Recipe
) -> TrainedModel:
    for leftover in (place / CHECKPOINT, *place.glob(".train-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    source = _leave_out(corpus, without, place) if without else corpus
    begin = time.process_time()
    train(source, place / CHECKPOINT, checkpoint=encoder.checkpoint(), settings=settings)
    seconds = time.process_time() - begin
    record = json.dumps({"recipe": recipe, "seconds": seconds}, indent=1, sort_keys=True) + "\n"
    partial = place / f".{RECIPE}.partial"
    partial.write_text(record)
    partial.replace(place / RECIPE)
    return TrainedModel(place / CHECKPOINT, seconds)


def _leave_out(corpus: Path, label: str, place: Path) -> Path:
    def documents() -> list[Document]:
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

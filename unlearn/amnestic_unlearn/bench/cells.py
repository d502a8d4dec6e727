"""Which cells the benchmark has, and in what order they are run.

A case is one label to forget from one trained classifier; a cell is a case with a way of forgetting. Cases come seed
by seed, so that a run which is cut short has whole seeds rather than a few labels in all of them.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from amnestic_unlearn.bench.matrix import BenchEncoder
from amnestic_unlearn.train_settings import Shape, TrainSettings

RESULTS = "results.jsonl"
SEQUENCE = "sequence.jsonl"
ORIGINAL = "original"
# No function of the trained classifier: a checkpoint of its own, which never saw the label.
RETRAINED = "retrained"

Request = tuple[str, str, int, str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Source:
    """A corpus file, and the labels that are forgotten from it."""

    name: str
    path: str
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One label to forget from one trained classifier."""

    source: Source
    encoder: BenchEncoder
    seed: int
    target: str

    @property
    def key(self) -> tuple[str, str, int, str]:
        """Corpus, encoder, seed and label: what its rows are found by."""
        return self.source.name, self.encoder.name, self.seed, self.target


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run covers. `out` holds models and rows; `threads` caps those of forgetting and evaluation, 0 does not.

    With `sequence`, the labels of a corpus are forgotten in turn, not one at a time.
    """

    out: str
    sources: tuple[Source, ...]
    encoders: tuple[BenchEncoder, ...]
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    sequence: bool = False
    threads: int = 0

    @property
    def results(self) -> Path:
        """The file of rows that the run adds to."""
        return Path(self.out) / (SEQUENCE if self.sequence else RESULTS)

    @property
    def models(self) -> Path:
        return Path(self.out) / "models"

    @property
    def claims(self) -> Path:
        return Path(self.out) / "claims"

    def cases(self) -> Iterator[Case]:
        """Every case in the order of a run; of a sequence one a classifier, without a label."""
        for seed in self.seeds:
            for encoder in self.encoders:
                for source in self.sources:
                    for target in ("",) if self.sequence else source.targets:
                        yield Case(source, encoder, seed, target)

    def cells(self) -> list[tuple[str, str, int, str, str]]:
        """The key of every cell: its case's, then the way of forgetting."""
        return [(*case.key, method) for case in self.cases() for method in self.methods]

    def requests(self) -> list[Request]:
        """The key of every request of a sequence: corpus, encoder, seed, way of forgetting, labels asked so far."""
        turns = dataclasses.replace(self, sequence=True)
        return [
            (*case.key[:3], method, case.source.targets[:step])
            for case in turns.cases()
            for method in self.methods
            if method not in (ORIGINAL, RETRAINED)
            for step in range(1, len(case.source.targets) + 1)
        ]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Inverse of `write`."""
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        fields["sources"] = tuple(
            Source(source["name"], source["path"], tuple(source["targets"])) for source in fields["sources"]
        )
        fields["encoders"] = tuple(map(_encoder, fields["encoders"]))
        return cls(**{**fields, "seeds": tuple(fields["seeds"]), "methods": tuple(fields["methods"])})


def _encoder(fields: dict[str, Any]) -> BenchEncoder:
    training = {**fields["training"], "shape": Shape(**fields["training"]["shape"])}
    return BenchEncoder(**{**fields, "training": TrainSettings(**training)})

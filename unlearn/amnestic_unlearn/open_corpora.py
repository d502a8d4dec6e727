"""Open clinical collections as benchmark corpora: MTSamples (medical specialties) and CodiEsp (ICD-10 chapters).

Neither is shipped. Each is read from JSON Lines with the fields `id`, `text` and `labels`, gzipped or not, as derived
from the published files: one line a distinct text. Neither names patients, so documents are split one by one.
"""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from amnestic_unlearn.corpus import CorpusError, Document, assign_split, write


@dataclass(frozen=True, slots=True)
class Collection:
    """`least`: labels with fewer documents are dropped, so that each can be learned and measured."""

    name: str
    file: str
    least: int
    source: str


MTSAMPLES = Collection(
    "mtsamples",
    "mtsamples_multilabel.jsonl.gz",
    50,
    "mtsamples.com as collected on Kaggle, tboyle10/medicaltranscriptions (CC0 by its uploader)",
)
CODIESP = Collection(
    "codiesp",
    "codiesp.jsonl.gz",
    100,
    "CodiEsp, CLEF eHealth 2020, machine-translated English, ICD-10-CM chapters (Miranda-Escalada et al. 2020)",
)


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written: documents, and the labels kept in alphabetical order."""

    documents: int
    labels: tuple[str, ...]


def convert(collection: Collection, src: Path, out: Path) -> Converted:
    """Write the corpus of a collection's file to `out`, in the format of its suffix.

    Same file, same bytes. Raises CorpusError, naming file and line, for what is not of the form, and if no label has
    documents enough.
    """
    rows = list(_rows(src))
    counts = Counter(label for _, _, labels in rows for label in labels)
    kept = {label for label, count in counts.items() if count >= collection.least}
    if not kept:
        raise CorpusError(f"{src.name}: no label has {collection.least} documents")
    documents = (
        Document(text, tuple(sorted(kept.intersection(labels))), assign_split(name), name)
        for name, text, labels in rows
    )
    return Converted(write(documents, out), tuple(sorted(kept)))


def _rows(src: Path) -> Iterator[tuple[str, str, set[str]]]:
    try:
        with gzip.open(src, "rt", encoding="utf-8") if src.suffix == ".gz" else src.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line)
                    yield str(row["id"]), str(row["text"]), set(map(str, row["labels"]))
                except (ValueError, KeyError, TypeError):
                    raise CorpusError(f"{src.name}, line {number}: not an object with id, text and labels") from None
    except (OSError, EOFError, UnicodeDecodeError):
        raise CorpusError(f"{src.name}: cannot be read") from None

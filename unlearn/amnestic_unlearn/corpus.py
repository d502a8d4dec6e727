"""Labelled documents in Parquet, CSV or JSON Lines, split by patient: read, checked, described, written.

A corpus has four columns: `text`; `labels`, a list of strings (in CSV one string, separated by semicolons);
`split`, one of `SPLITS`; `group`, the patient. Rows stream through DuckDB, so a file may be larger than memory;
what `read` returns is not. No error text ever repeats a document. Making a corpus from a database's own tables
is left to the importers.
"""

import csv
import glob
import gzip
import hashlib
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from amnestic_unlearn.manifest import ProblemType, file_digest

SPLITS = ("train", "gate", "probe", "test")
SHIPPED = Path(__file__).parent / "data" / "eicu_demo.parquet"

_COLUMNS = ("text", "labels", "split", "group")
_SHARES = (0.55, 0.15, 0.15, 0.15)
_BATCH = 2_000
# DuckDB holds a row group until it is whole: this many discharge summaries are about 100 MB.
_ROW_GROUP = 8_192
_WRITE_MEMORY = "400MB"
_SUFFIXES = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
}
_PERCENTILES = (5, 25, 50, 75, 95, 100)
_JSON_COLUMNS = {"text": "VARCHAR", "labels": "VARCHAR[]", "split": "VARCHAR", "group": "VARCHAR"}


class CorpusError(ValueError):
    """The corpus, or a table it is made from, cannot be used. The text names the file, row and column."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document; `group` is the patient it belongs to. A document may have no label."""

    text: str
    labels: tuple[str, ...]
    split: str
    group: str


@dataclass(frozen=True, slots=True)
class Description:
    """What a corpus holds: counts of documents, of patients and, by label and split, of positive documents.

    `words` maps a percentile (100: the longest) to the length of a document in words split at white space.
    """

    path: str
    digest: str
    documents: int
    unlabelled: int
    splits: dict[str, int]
    groups: dict[str, int]
    labels: dict[str, dict[str, int]]
    words: dict[int, int]


def read(
    path: Path,
    labels: Sequence[str] | None = None,
    splits: Sequence[str] = SPLITS,
    problem_type: ProblemType = ProblemType.MULTI_LABEL,
) -> list[Document]:
    """Documents of the given splits, in the order of the file.

    The whole file is checked whatever the splits. Raises CorpusError, naming the row (the first document is
    row 1), for a missing column, an unknown split, an empty text or group, a group that lies in two splits,
    if `labels` is given, for a label that is not among them, and, for a single-label classifier, for a document
    that has not exactly one label.
    """
    if unknown := set(splits) - set(SPLITS):
        raise CorpusError(f"unknown split {min(unknown)!r}: the splits are {', '.join(SPLITS)}")
    return [document for document in stream(path, labels, problem_type) if document.split in splits]


def stream(
    path: Path, labels: Sequence[str] | None = None, problem_type: ProblemType = ProblemType.MULTI_LABEL
) -> Iterator[Document]:
    """Every document in the order of the file, checked as by `read` while it passes."""
    known = None if labels is None else frozenset(labels)
    split_of: dict[str, str] = {}
    for row, values in enumerate(_rows(path), start=1):
        document = _document(*values, where=f"{path.name}, row {row}")
        if known is not None and not known.issuperset(document.labels):
            raise CorpusError(f"{path.name}, row {row}: a label that the model does not have")
        if problem_type is ProblemType.SINGLE_LABEL and len(document.labels) != 1:
            raise CorpusError(f"{path.name}, row {row}: {len(document.labels)} labels, where single-label needs one")
        first = split_of.setdefault(document.group, document.split)
        if first != document.split:
            raise CorpusError(
                f"{path.name}, row {row}: its group is in split {first} already, and here in {document.split}"
            )
        yield document


def truth(documents: Sequence[Document], labels: Sequence[str]) -> NDArray[np.bool_]:
    """Which label applies to which document: bool [documents, labels]. Other labels are passed over."""
    column = {label: index for index, label in enumerate(labels)}
    table = np.zeros((len(documents), len(labels)), dtype=np.bool_)
    for row, document in enumerate(documents):
        table[row, [column[label] for label in document.labels if label in column]] = True
    return table


def digest(path: Path) -> str:
    """SHA-256 of the corpus file, lower-case hexadecimal."""
    return file_digest(path)


def assign_split(group: str, seed: int = 0) -> str:
    """Split of a patient, from the SHA-256 of its name alone: 55 % train, 15 % each gate, probe and test.

    So a corpus can be split while it streams, and a patient stays where it is when others are added.
    """
    hashed = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    position = int.from_bytes(hashed[:8], "big") / 2**64
    for split, share in zip(SPLITS, _SHARES, strict=True):
        if position < share:
            return split
        position -= share
    return SPLITS[-1]


def describe(path: Path) -> Description:
    """Count documents, patients, labels and words; raises CorpusError as `read` does."""
    documents: Counter[str] = Counter()
    positives: dict[str, Counter[str]] = {}
    groups: dict[str, set[str]] = {split: set() for split in SPLITS}
    words: list[int] = []
    unlabelled = 0
    for document in stream(path):
        documents[document.split] += 1
        groups[document.split].add(document.group)
        words.append(len(document.text.split()))
        unlabelled += not document.labels
        for label in document.labels:
            positives.setdefault(label, Counter())[document.split] += 1
    by_frequency = sorted(positives, key=lambda label: (-positives[label].total(), label))
    lengths = np.percentile(words or [0], _PERCENTILES, method="nearest")
    return Description(
        path=str(path),
        digest=digest(path),
        documents=len(words),
        unlabelled=unlabelled,
        splits={split: documents[split] for split in SPLITS},
        groups={split: len(groups[split]) for split in SPLITS},
        labels={label: {split: positives[label][split] for split in SPLITS} for label in by_frequency},
        words={percentile: int(length) for percentile, length in zip(_PERCENTILES, lengths, strict=True)},
    )


def write(documents: Iterable[Document], path: Path) -> int:
    """Stream documents to a file in the format of its suffix, and return how many there were.

    The file appears whole or not at all, and the same documents always give the same bytes. Raises CorpusError
    for an unknown suffix and, in CSV, for a label that holds a semicolon.
    """
    form = form_of(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".corpus-") as folder:
        # Of the same suffixes as the result, so that the writers compress it or not.
        partial = Path(folder) / f"partial{''.join(path.suffixes[-2:])}"
        count = _WRITERS[form](documents, partial)
        partial.replace(path)
    return count


def connect(spill: Path | None = None, memory: str = "1GB") -> Any:
    """A private DuckDB connection that keeps row order and holds `memory`; beyond it, it spills to `spill`.

    Without `spill` it writes nothing: unless told so, DuckDB would leave rows in the working directory.
    """
    spilled = "" if spill is None else str(spill)
    settings: dict[str, str | int] = {"threads": 1, "memory_limit": memory, "temp_directory": spilled}
    connection = duckdb.connect(config=settings)
    # It would go to standard output, where results go.
    connection.execute("SET enable_progress_bar = false")
    return connection


def open_csv(connection: Any, path: Path) -> Any:
    """A CSV file, gzipped or not, as a DuckDB relation of strings; an empty field is null."""
    return connection.read_csv(
        glob.escape(str(path)),
        header=True,
        all_varchar=True,
        delimiter=",",
        quotechar='"',
        escapechar='"',
        hive_partitioning=False,
    )


def malformed(path: Path, error: Exception, form: str) -> CorpusError:
    """What may be told of an error of DuckDB: it quotes the offending row, which is a patient's, so only its line."""
    line = re.search(r"\bline:? (\d+)", str(error), re.IGNORECASE)
    place = f", line {line[1]}" if line else ""
    return CorpusError(f"{path.name}{place}: malformed, cannot be read as {form}")


def form_of(path: Path) -> str:
    """The format of a corpus by its suffix: parquet, csv or jsonl; raises CorpusError for any other."""
    name = path.name.lower()
    for suffix, form in _SUFFIXES.items():
        if name.endswith(suffix):
            return form
    raise CorpusError(f"{path.name}: a corpus ends in {', '.join(_SUFFIXES)}")


def _rows(path: Path) -> Iterator[tuple[Any, Any, Any, Any]]:
    form = form_of(path)
    if not path.is_file():
        raise CorpusError(f"{path.name}: no such file")
    try:
        with connect() as connection:
            _open(connection, path, form).create_view("corpus")
            rows = connection.execute('SELECT text, labels, split, "group" FROM corpus')
            while batch := rows.fetchmany(_BATCH):
                yield from batch
    except duckdb.Error as error:
        raise malformed(path, error, form) from None


def _open(connection: Any, path: Path, form: str) -> Any:
    if form == "csv":
        relation = open_csv(connection, path)
    elif form == "parquet":
        relation = connection.read_parquet(glob.escape(str(path)), hive_partitioning=False)
    else:
        relation = _open_json(connection, path)
    types = dict(zip(map(str.lower, relation.columns), map(str, relation.types), strict=True))
    for column in _COLUMNS:
        if column not in types:
            raise CorpusError(f"{path.name}: the column {column} is missing")
    if form == "parquet" and types["labels"] != "VARCHAR[]":
        raise CorpusError(f"{path.name}: the column labels is not a list of strings")
    # Types guessed from the first rows could turn a patient's number or a date into something else.
    return _open_json(connection, path, columns=_JSON_COLUMNS) if form == "jsonl" else relation


def _open_json(connection: Any, path: Path, **options: Any) -> Any:
    pattern = glob.escape(str(path))
    return connection.read_json(pattern, format="newline_delimited", hive_partitioning=False, **options)


def _document(text: Any, labels: Any, split: Any, group: Any, where: str) -> Document:
    if not text or not str(text).strip():
        raise CorpusError(f"{where}: the text is empty")
    if split not in SPLITS:
        raise CorpusError(f"{where}: unknown split; the splits are {', '.join(SPLITS)}")
    if group is None or not str(group).strip():
        raise CorpusError(f"{where}: the group is empty")
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(";") if label.strip()]
    if not all(labels or ()):
        raise CorpusError(f"{where}: an empty label")
    return Document(str(text), tuple(dict.fromkeys(labels or ())), split, str(group))


@contextmanager
def _text_file(path: Path) -> Iterator[IO[str]]:
    with path.open("wb") as raw:
        # Neither name nor time in the gzip header: the same documents give the same bytes.
        file: Any = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.suffix.lower() == ".gz" else raw
        with io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
            yield text


def _write_jsonl(documents: Iterable[Document], path: Path) -> int:
    count = 0
    with _text_file(path) as file:
        for document in documents:
            file.write(json.dumps(asdict(document), ensure_ascii=False) + "\n")
            count += 1
    return count


def _write_csv(documents: Iterable[Document], path: Path) -> int:
    count = 0
    with _text_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for document in documents:
            if any(";" in label for label in document.labels):
                raise CorpusError("a label holds a semicolon, which separates labels in CSV")
            writer.writerow((document.text, ";".join(document.labels), document.split, document.group))
            count += 1
    return count


def _write_parquet(documents: Iterable[Document], path: Path) -> int:
    rows = path.with_suffix(".jsonl")
    count = _write_jsonl(documents, rows)
    with connect(path.parent, _WRITE_MEMORY) as connection:
        relation = _open_json(connection, rows, columns=_JSON_COLUMNS)
        relation.write_parquet(str(path), compression="zstd", row_group_size=_ROW_GROUP)
    return count


_WRITERS: dict[str, Callable[[Iterable[Document], Path], int]] = {
    "parquet": _write_parquet,
    "csv": _write_csv,
    "jsonl": _write_jsonl,
}

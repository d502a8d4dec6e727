"""A corpus of any table: its columns are mapped, labels chosen, and documents split unless the table says how.

Rows of one id are one document, with the labels of all. Left out and counted: rows without a text, texts met before
(the same but for blanks), rows of a split that is dropped, and, if asked for, documents without a label. A group in two
splits is refused, as `corpus.read` would.

The source passes once through Python, whose texts lie in a file beside the result. Only their keys are compared and
sorted, by DuckDB, so memory does not depend on the size of the texts.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import duckdb

from amnestic_unlearn import corpus, shares, table_rows
from amnestic_unlearn.corpus import SPLITS, CorpusError, Document
from amnestic_unlearn.errors import MIN_FORGET_DOCUMENTS, MIN_GATE_DOCUMENTS
from amnestic_unlearn.sources import Source
from amnestic_unlearn.table_rows import DIVIDE, DROP, Columns, TableRow
from amnestic_unlearn.tables import MEMORY, insert

# Stage, what is done of it, and what there is, or 0 if that is not known.
Progress = Callable[[str, int, int], None]

_BATCH = 1_000
# More are not labels of a classifier: another column was meant, or the rare ones should go.
_MOST_LABELS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is made of a table.

    `rename` maps labels to others, before `labels`, those to keep, and `least`, the fewest documents of a label that is
    kept. `split_names` maps names of splits to splits, `DIVIDE` or `DROP`; a table without splits is all to be divided,
    by `shares` and `seed`.
    """

    rename: Mapping[str, str] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    least: int = 1
    drop_unlabelled: bool = False
    split_names: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=lambda: shares.SHARES)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ImportedTable:
    """What an import wrote, and what it left out.

    `labels` counts the documents of each kept label by split, the most frequent first; `too_few` are those with too few
    to be forgotten. `grouped`: whether a column said who a document's patient is. Of the `rows` read, `merged` ones
    have the id of an earlier one; left out are `empty` ones, those of a `dropped` split, `duplicates` (of these
    `across_splits` lay in another split than the first, `otherwise_labelled` had other labels), and documents
    `without_label`, if asked for.
    """

    documents: int
    splits: dict[str, int]
    labels: dict[str, dict[str, int]]
    unlabelled: int
    too_few: tuple[str, ...]
    grouped: bool
    rows: int
    merged: int
    empty: int
    dropped: int
    duplicates: int
    across_splits: int
    otherwise_labelled: int
    without_label: int


_COUNTED = (
    "rows",
    "merged",
    "empty",
    "dropped",
    "duplicates",
    "across_splits",
    "otherwise_labelled",
    "without_label",
)


def import_table(
    source: Source, columns: Columns, choice: Choice, out: Path, progress: Progress | None = None
) -> ImportedTable:
    """Write the corpus of a source to `out`, in the format of its suffix, whole or not at all.

    Same rows, columns and choice, same bytes. Raises CorpusError, naming column or row, for what is missing or not of
    its kind, a group in two splits, an id with two texts, and a corpus of which no label could be forgotten.
    """
    corpus.form_of(out)  # before the rows are read, rather than after
    _check(choice)
    columns = table_rows.complete(columns, source)
    told = progress or (lambda stage, done, total: None)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".import-") as folder:
        texts = Path(folder) / "texts"
        rows = table_rows.read(
            source,
            columns,
            choice.split_names,
            choice.rename,
            counts,
            lambda done, total: told("reading rows", done, total),
        )
        try:
            with corpus.connect(Path(folder), MEMORY) as connection:
                if not _collect(connection, rows, texts):
                    raise CorpusError(f"{source.name}: no row has a text")
                _require_met(choice, counts)
                _merge(connection, columns.id is not None, counts)
                _leave_out_duplicates(connection, counts)
                kept = _choose_labels(connection, choice, counts)
                _refuse_leaks(connection)
                _divide(connection, choice)
                result = _result(connection, kept, columns.group is not None, counts)
                with texts.open("rb") as file:
                    corpus.write(_documents(connection, file, result.documents, told), out)
        except (duckdb.OutOfMemoryException, duckdb.IOException):
            raise CorpusError(f"{MEMORY} of memory and the disk of {out.name} do not suffice") from None
    return result


def _check(choice: Choice) -> None:
    shares.check(choice.shares)
    for split in choice.split_names.values():
        if split not in (*SPLITS, DIVIDE, DROP):
            raise CorpusError(f"unknown split {split!r}: it is one of {', '.join((*SPLITS, DIVIDE, DROP))}")


def _collect(connection: Any, rows: Iterable[TableRow], texts: Path) -> int:
    """Write the texts one after another, and fill the table `entry` with their keys and places; how many bytes."""
    connection.execute(
        """
        CREATE TABLE entry (number BIGINT, id VARCHAR, patient VARCHAR, split VARCHAR, labels VARCHAR[],
            digest VARCHAR, start BIGINT, size BIGINT)
        """
    )
    waiting: list[tuple[Any, ...]] = []
    last, start = b"", 0
    with texts.open("wb") as file:
        for row in rows:
            # Half a surrogate pair, which JSON can hold, is no character.
            data = row.text.encode(errors="replace")
            digest = hashlib.blake2b(b" ".join(data.split()), digest_size=16).hexdigest()
            # The rows of one id often follow one another.
            if data != last:
                last, start = data, file.tell()
                file.write(data)
            waiting.append((row.number, row.id, row.group, row.split, list(row.labels), digest, start, len(data)))
            if len(waiting) == _BATCH:
                insert(connection, "entry", waiting)
                waiting.clear()
        written = file.tell()
    insert(connection, "entry", waiting)
    return written


def _require_met(choice: Choice, counts: Counter[str]) -> None:
    """What was asked for by a name that is not there is a slip of the pen."""
    for name in choice.rename:
        if not counts[f"label {name}"]:
            raise CorpusError(f"no document has the label {name!r}, which is to be renamed")
    for name in choice.split_names:
        if not counts[f"split {name}"]:
            raise CorpusError(f"no row with a text is of the split {name!r}")


def _merge(connection: Any, with_ids: bool, counts: Counter[str]) -> None:
    """Make the table `document`: a row an id or, without ids, a row each. Without a group, each is its own."""
    if not with_ids:
        connection.execute(
            """
            CREATE TABLE document AS
            SELECT number, coalesce(patient, digest) AS patient, split, list_sort(labels) AS labels, digest, start, size
            FROM entry
            """
        )
        return
    torn = connection.execute(
        """
        SELECT min(number), count(DISTINCT digest) > 1, count(DISTINCT patient) > 1 FROM entry GROUP BY id
        HAVING count(DISTINCT digest) > 1 OR count(DISTINCT patient) > 1 OR count(DISTINCT split) > 1 ORDER BY 1 LIMIT 1
        """
    ).fetchone()
    if torn:
        what = "texts" if torn[1] else "groups" if torn[2] else "splits"
        raise CorpusError(f"row {torn[0]}: its id is that of other rows too, with different {what}")
    connection.execute(
        """
        CREATE TABLE document AS
        SELECT min(number) AS number, coalesce(min(patient), id) AS patient, min(split) AS split,
            list_sort(list_distinct(flatten(list(labels)))) AS labels, min(digest) AS digest,
            arg_min(start, number) AS start, arg_min(size, number) AS size
        FROM entry GROUP BY id
        """
    )
    counts["merged"] = _one(connection, "SELECT (SELECT count(*) FROM entry) - (SELECT count(*) FROM document)")


def _leave_out_duplicates(connection: Any, counts: Counter[str]) -> None:
    """Of documents with one text, the first stays."""
    connection.execute(
        """
        CREATE TABLE first AS
        SELECT digest, min(number) AS number, arg_min(split, number) AS split, arg_min(labels, number) AS labels
        FROM document GROUP BY digest
        """
    )
    found = connection.execute(
        """
        SELECT count(*), count(*) FILTER (document.split <> first.split),
            count(*) FILTER (document.labels <> first.labels)
        FROM document JOIN first USING (digest) WHERE document.number <> first.number
        """
    ).fetchone()
    counts["duplicates"], counts["across_splits"], counts["otherwise_labelled"] = found
    if counts["duplicates"]:
        connection.execute("DELETE FROM document WHERE number NOT IN (SELECT number FROM first)")


def _choose_labels(connection: Any, choice: Choice, counts: Counter[str]) -> list[str]:
    """The labels kept, the most frequent first; every other is taken from the documents."""
    present = dict(
        connection.execute(
            """
            SELECT name, count(*) FROM (SELECT unnest(labels) AS name FROM document)
            GROUP BY name ORDER BY count(*) DESC, name
            """
        ).fetchall()
    )
    for label in choice.labels or ():
        if label not in present:
            raise CorpusError(f"no document has the label {label!r}")
    wanted = present if choice.labels is None else choice.labels
    kept = [label for label in present if label in wanted and present[label] >= choice.least]
    if not kept:
        raise CorpusError(f"no label has {choice.least} {'document' if choice.least == 1 else 'documents'}")
    if len(kept) > _MOST_LABELS:
        raise CorpusError(f"{len(kept):,} labels are too many: choose by --labels, or raise --min-documents")
    connection.execute("UPDATE document SET labels = list_sort(list_intersect(labels, ?::VARCHAR[]))", [kept])
    if choice.drop_unlabelled:
        counts["without_label"] = _one(connection, "SELECT count(*) FROM document WHERE len(labels) = 0")
        connection.execute("DELETE FROM document WHERE len(labels) = 0")
    return kept


def _refuse_leaks(connection: Any) -> None:
    leak = connection.execute(
        """
        SELECT number, early.split, document.split FROM document JOIN
            (SELECT patient, arg_min(split, number) AS split FROM document GROUP BY patient) AS early USING (patient)
        WHERE document.split <> early.split ORDER BY number LIMIT 1
        """
    ).fetchone()
    if leak:
        number, early, late = leak
        raise CorpusError(f"row {number}: its group is in split {early} already, and here in {late}")


def _divide(connection: Any, choice: Choice) -> None:
    """Give a split to the documents that have none; see `shares` for how."""
    connection.execute("CREATE TABLE assigned (patient VARCHAR, split VARCHAR)")
    groups = connection.cursor().execute(
        """
        WITH undivided AS (SELECT patient, labels FROM document WHERE split = $divide),
        labelled AS (SELECT patient, unnest(labels) AS name FROM undivided),
        ranked AS (SELECT name, row_number() OVER (ORDER BY count(*), name) AS rank FROM labelled GROUP BY name),
        rarest AS (SELECT patient, min(rank) AS stratum FROM labelled JOIN ranked USING (name) GROUP BY patient)
        SELECT patient, count(*) FROM undivided LEFT JOIN rarest USING (patient) GROUP BY patient, stratum
        ORDER BY stratum NULLS LAST, md5(concat($seed, ':', patient)), patient
        """,
        {"divide": DIVIDE, "seed": str(choice.seed)},
    )
    for batch in _batches(shares.divide(_fetched(groups), choice.shares)):
        insert(connection, "assigned", batch)
    connection.execute(
        """
        UPDATE document SET split = assigned.split FROM assigned
        WHERE document.split = ? AND document.patient = assigned.patient
        """,
        [DIVIDE],
    )


def _result(connection: Any, kept: Sequence[str], grouped: bool, counts: Counter[str]) -> ImportedTable:
    """What is about to be written; raises CorpusError if no label of it could be forgotten."""
    splits = Counter(dict(connection.execute("SELECT split, count(*) FROM document GROUP BY split").fetchall()))
    labels = {label: dict.fromkeys(SPLITS, 0) for label in kept}
    for label, split, count in connection.execute(
        "SELECT name, split, count(*) FROM (SELECT unnest(labels) AS name, split FROM document) GROUP BY ALL"
    ).fetchall():
        labels[label][split] = count
    too_few = tuple(
        label
        for label, by_split in labels.items()
        if by_split["train"] < MIN_FORGET_DOCUMENTS or by_split["gate"] < MIN_GATE_DOCUMENTS
    )
    if len(too_few) == len(kept):
        raise CorpusError(
            f"no label could be forgotten: none has {MIN_FORGET_DOCUMENTS} documents in train and {MIN_GATE_DOCUMENTS}"
            f" in gate, of {splits['train']:,} and {splits['gate']:,} documents there; see --split-name and --shares"
        )
    return ImportedTable(
        documents=splits.total(),
        splits={split: splits[split] for split in SPLITS},
        labels=labels,
        unlabelled=_one(connection, "SELECT count(*) FROM document WHERE len(labels) = 0"),
        too_few=too_few,
        grouped=grouped,
        **{reason: counts[reason] for reason in _COUNTED},
    )


def _documents(connection: Any, texts: IO[bytes], total: int, told: Progress) -> Iterator[Document]:
    rows = connection.execute("SELECT labels, split, patient, start, size FROM document ORDER BY number")
    for done, (labels, split, patient, start, size) in enumerate(_fetched(rows), start=1):
        if done % 100 == 0 or done == total:
            told("writing documents", done, total)
        texts.seek(start)
        yield Document(texts.read(size).decode(), tuple(labels), split, patient)


def _fetched(rows: Any) -> Iterator[Any]:
    while batch := rows.fetchmany(_BATCH):
        yield from batch


def _batches(rows: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    while batch := list(islice(rows, _BATCH)):
        yield batch


def _one(connection: Any, sql: str) -> Any:
    return connection.execute(sql).fetchone()[0]

"""The corpora of MIMIC-III and MIMIC-IV: discharge summaries, labelled with the diseases the admission was coded with.

One document an admission: its last discharge summary, by chart time, and behind it every addendum of the admission in
the same order. An earlier summary is left out, for the last one restates it. Labels are the categories of the
admission's ICD codes; an admission with none of those chosen stays in, unlabelled, and one without any code is left
out, since nothing is known of it. `group` is the patient.

Left out and counted: notes of no admission, notes marked as errors, admissions with addenda alone, empty texts, and
texts met before, on an admission of a lower id, so that no text stands in two splits. Sections that list the
diagnoses are left out unless asked for: they all but state the labels, and a model that copies them learns nothing
else of the note. The course of the stay, which tells the same in other words, is evidence, and stays.

The notes pass once through Python, whose cleaned texts lie in a file beside the result; only their keys are sorted, by
DuckDB. So memory does not depend on the size of the texts.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from amnestic_unlearn import corpus, icd, notes, tables
from amnestic_unlearn.corpus import CorpusError, Document
from amnestic_unlearn.icd import Category
from amnestic_unlearn.tables import Table

Progress = Callable[[str, int, int], None]

_BATCH = 1_000
_SUMMARY, _ADDENDUM, _ERROR = "summary", "addendum", "error"


@dataclass(frozen=True, slots=True)
class Database:
    """Where a database keeps its notes and codes.

    Columns are in the order note, patient, admission, time, sequence, text, then those that `kind` is told. `code`
    and `revision` are expressions over the columns of `diagnoses`.
    """

    notes: str
    columns: tuple[str, ...]
    kind: Callable[[list[str]], str]
    diagnoses: Table
    code: str
    revision: str


def _kind_iv(told: list[str]) -> str:
    return {"DS": _SUMMARY, "AD": _ADDENDUM}.get(told[0].strip().upper(), "")


def _kind_iii(told: list[str]) -> str:
    category, description, is_error = (value.strip().lower() for value in told)
    if category != "discharge summary":
        return ""
    if is_error == "1":
        return _ERROR
    return _ADDENDUM if description.startswith("addendum") else _SUMMARY


MIMIC_IV = Database(
    notes="discharge",
    columns=("note_id", "subject_id", "hadm_id", "charttime", "note_seq", "text", "note_type"),
    kind=_kind_iv,
    diagnoses=Table("diagnoses_icd", ids=("subject_id", "hadm_id"), whole=("icd_version",), text=("icd_code",)),
    code="icd_code",
    revision="icd_version",
)
MIMIC_III = Database(
    notes="NOTEEVENTS",
    columns=("row_id", "subject_id", "hadm_id", "chartdate", "row_id", "text", "category", "description", "iserror"),
    kind=_kind_iii,
    diagnoses=Table("DIAGNOSES_ICD", ids=("subject_id", "hadm_id"), text=("icd9_code",)),
    code="icd9_code",
    revision=str(icd.ICD9),
)


@dataclass(frozen=True, slots=True)
class ImportedNotes:
    """What an import wrote, and what it left out.

    `labels` counts the documents of each; `notes` the discharge summaries and addenda that were read. Of these,
    `in_error` and `without_admission` were left out, and `superseded` summaries and repeated addenda with a later
    or equal one in their admission. Left out admissions: `without_diagnosis`, `without_summary`, `empty`, and
    `duplicates` whose summary is that of another.
    """

    documents: int
    labels: dict[str, int]
    unlabelled: int
    notes: int
    in_error: int
    without_admission: int
    superseded: int
    without_diagnosis: int
    without_summary: int
    empty: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class _Note:
    """The key of a note, the place of its text in bytes, and what its admission was coded with, if it was."""

    admission: int
    patient: int
    addendum: bool
    digest: str
    start: int
    size: int
    owner: int | None
    torn: bool | None
    labels: list[str] | None


def import_mimic(
    database: Database,
    src: Path,
    out: Path,
    *,
    note_folder: Path | None = None,
    categories: tuple[Category, ...] | None = None,
    keep_diagnoses: bool = False,
    progress: Progress | None = None,
) -> ImportedNotes:
    """Write the corpus of `MIMIC_III` or `MIMIC_IV` to `out`, in the format of its suffix.

    The table of diagnoses is looked for in `src` and the notes in `note_folder`, by default in `src` too, each in
    the folder or below it. `categories` are the labels, by default those of `icd.DEFAULT`. `progress` is told the
    stage, what is done of it and what there is: bytes of notes, then admissions. Same tables and options, same
    bytes, whatever the order of rows. Raises CorpusError, naming file and column or line, for a table or column
    that is missing or malformed, and for an admission with two patients.
    """
    corpus.form_of(out)  # before the notes are read, rather than after
    chosen = icd.choose(icd.CATEGORIES, icd.DEFAULT) if categories is None else categories
    diagnoses = tables.find(src, database.diagnoses.name)
    file = tables.find(note_folder or src, database.notes)
    counts: Counter[str] = Counter()
    told = progress or (lambda stage, done, total: None)
    with tables.connected({database.diagnoses: diagnoses}, out) as (connection, spill):
        _label_admissions(connection, database, chosen, diagnoses)
        texts = spill / "texts"
        _collect(connection, _kept(database, file, counts, told), texts, keep_diagnoses)
        with texts.open("rb") as spilled:
            documents = _documents(connection, spilled, counts, told, f"{diagnoses.name} and {file.name}")
            counts["documents"] = corpus.write(_counted(documents, counts), out)
    fields = [field.name for field in dataclasses.fields(ImportedNotes) if field.name != "labels"]
    labels = {category.name: counts[f"label {category.name}"] for category in chosen}
    return ImportedNotes(labels=labels, **{field: counts[field] for field in fields})


def _label_admissions(connection: Any, database: Database, chosen: tuple[Category, ...], path: Path) -> None:
    """Make the table `coded`: admission, patient, whether it has another patient too, its labels."""
    connection.execute(
        f"""
        CREATE TEMP TABLE code AS
        SELECT hadm_id AS admission, subject_id AS patient, {database.code} AS code, {database.revision} AS revision
        FROM {database.diagnoses.name} WHERE {database.code} IS NOT NULL
        """  # noqa: S608 - made of constants alone
    )
    distinct = connection.execute("SELECT DISTINCT code, revision FROM code").fetchall()
    labelled: list[tuple[str, int, str]] = []
    for code, revision in distinct:
        if revision not in (icd.ICD9, icd.ICD10):
            raise CorpusError(f"{path.name}: the column icd_version holds what is neither 9 nor 10")
        plain = icd.normal(code, revision)
        if plain is not None:
            labelled += [(code, revision, group.name) for group in chosen if group.holds(plain, revision)]
    connection.execute("CREATE TEMP TABLE label (code VARCHAR, revision BIGINT, name VARCHAR)")
    tables.insert(connection, "label", labelled)
    connection.execute(
        """
        CREATE TEMP TABLE coded AS
        SELECT admission, min(patient) AS patient, min(patient) <> max(patient) AS torn,
            coalesce(list(DISTINCT name) FILTER (name IS NOT NULL), []) AS labels
        FROM code LEFT JOIN label USING (code, revision) GROUP BY admission
        """
    )


def _kept(
    database: Database, path: Path, counts: Counter[str], told: Progress
) -> Iterator[tuple[int, int, bool, str, int, str, str]]:
    """Admission, patient, whether an addendum, time, sequence, note and text of every discharge note to consider."""
    _, patient_column, admission_column, _, sequence_column, *_ = database.columns
    rows = notes.read(path, database.columns, lambda done, total: told("reading notes", done, total))
    for note, patient, admission, time, sequence, text, *rest in rows:
        kind = database.kind(rest)
        if not kind:
            continue
        counts["notes"] += 1
        if kind == _ERROR:
            counts["in_error"] += 1
        elif not admission.strip():
            counts["without_admission"] += 1
        else:
            yield (
                notes.whole(admission, path, admission_column),
                notes.whole(patient, path, patient_column),
                kind == _ADDENDUM,
                time.strip(),
                notes.whole(sequence, path, sequence_column),
                note.strip(),
                text,
            )


def _collect(connection: Any, kept: Iterable[tuple[Any, ...]], texts: Path, keep_diagnoses: bool) -> None:
    """Write the cleaned texts one after another to `texts`, and fill the table `note` with their keys and places."""
    connection.execute(
        """
        CREATE TEMP TABLE note (admission BIGINT, patient BIGINT, addendum BOOLEAN, time VARCHAR, sequence BIGINT,
            note VARCHAR, digest VARCHAR, start BIGINT, size BIGINT)
        """
    )
    rows: list[tuple[Any, ...]] = []
    with texts.open("wb") as file:
        for *key, text in kept:
            data = notes.clean(text, keep_diagnoses).encode()
            digest = hashlib.blake2b(b" ".join(data.split()), digest_size=16).hexdigest()
            rows.append((*key, digest, file.tell(), len(data)))
            file.write(data)
            if len(rows) == _BATCH:
                tables.insert(connection, "note", rows)
                rows.clear()
    tables.insert(connection, "note", rows)


def _documents(
    connection: Any, texts: IO[bytes], counts: Counter[str], told: Progress, files: str
) -> Iterator[Document]:
    """By admission in ascending order; `texts` is the file that the places of the table `note` lie in."""
    (total,) = connection.execute("SELECT count(DISTINCT admission) FROM note").fetchone()
    seen: set[str] = set()
    for done, (_, group) in enumerate(groupby(_sorted_notes(connection), lambda note: note.admission), start=1):
        found = list(group)
        if found[0].torn or len({note.patient for note in found} | ({found[0].owner} - {None})) > 1:
            raise CorpusError(f"{files}: an admission has two patients")
        document = _document(found, texts, seen, counts)
        if done % 100 == 0 or done == total:
            told("writing admissions", done, total)
        if document is not None:
            yield document


def _sorted_notes(connection: Any) -> Iterator[_Note]:
    rows = connection.execute(
        """
        SELECT admission, note.patient, addendum, digest, start, size, coded.patient, torn, labels
        FROM note LEFT JOIN coded USING (admission)
        ORDER BY admission, addendum, time, sequence, note
        """
    )
    while batch := rows.fetchmany(_BATCH):
        yield from (_Note(*row) for row in batch)


def _document(found: list[_Note], texts: IO[bytes], seen: set[str], counts: Counter[str]) -> Document | None:
    """The document of an admission's notes in order; None, and counted why, if there is none."""
    labels = found[0].labels
    summaries = [note for note in found if not note.addendum]
    written = [note for note in summaries if note.size]
    if labels is None:
        reason = "without_diagnosis"
    elif not summaries:
        reason = "without_summary"
    elif not written:
        reason = "empty"
    elif written[-1].digest in seen:
        reason = "duplicates"
    else:
        reason = ""
    if reason:
        counts[reason] += 1
        return None
    seen.add(written[-1].digest)
    addenda = [note for note in found if note.addendum and note.size]
    # The first of equal ones, in their order.
    distinct = {note.digest: note for note in reversed(addenda)}
    chosen = [written[-1], *(note for note in addenda if distinct[note.digest] is note)]
    counts["superseded"] += len(summaries) + len(addenda) - len(chosen)
    group = str(found[0].patient)
    return Document(
        text="\n".join(_text(texts, note) for note in chosen),
        labels=tuple(sorted(labels or ())),
        split=corpus.assign_split(group),
        group=group,
    )


def _text(texts: IO[bytes], note: _Note) -> str:
    texts.seek(note.start)
    return texts.read(note.size).decode()


def _counted(documents: Iterable[Document], counts: Counter[str]) -> Iterator[Document]:
    for document in documents:
        counts["unlabelled"] += not document.labels
        counts.update(f"label {label}" for label in document.labels)
        yield document

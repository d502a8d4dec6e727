"""The multi-label corpus of the eICU Collaborative Research Database: which organ systems a stay is diagnosed in.

Reads the tables `patient`, `diagnosis`, `pastHistory`, `note` and `treatment`, as CSV or gzipped CSV, of the
demo or of the full database, which have one schema. One document a unit stay that has a diagnosis. Its labels
are the first parts of its diagnosis strings, so no other part of them, and no first part of a treatment string
(the same organ systems), enters its text. DuckDB sorts the tables in bounded memory; the stays stream through.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from amnestic_unlearn import corpus, tables
from amnestic_unlearn.corpus import CorpusError, Document
from amnestic_unlearn.tables import Table

TABLES = (
    Table(
        "patient",
        whole=("patientunitstayid",),
        text=("uniquepid", "unittype", "unitstaytype", "unitadmitsource", "gender", "age", "apacheadmissiondx"),
    ),
    Table("diagnosis", whole=("patientunitstayid",), text=("diagnosisstring",)),
    Table(
        "pastHistory",
        whole=("patientunitstayid", "pasthistoryoffset", "pasthistoryid"),
        text=("pasthistorypath", "pasthistoryvalue"),
    ),
    Table("note", whole=("patientunitstayid", "noteoffset", "noteid"), text=("notepath", "notevalue")),
    Table(
        "treatment",
        whole=("patientunitstayid", "treatmentoffset", "treatmentid"),
        text=("treatmentstring",),
    ),
)

# Paths of notes that say how a form was filled in and saved, nothing of the patient.
_NAVIGATION = (
    "notes/Shared/",
    "notes/Progress Notes/Assessment and Plan/View Options/",
    "notes/Progress Notes/Assessment and Plan/Include Rx/",
    "notes/Progress Notes/Admission Page One/Skip Screen Options",
)

_STAYS = """
CREATE TEMP TABLE stay AS
SELECT DISTINCT patientunitstayid AS id, trim(split_part(diagnosisstring, '|', 1)) AS system
FROM diagnosis
WHERE trim(split_part(diagnosisstring, '|', 1)) <> ''
  AND patientunitstayid IN (SELECT patientunitstayid FROM patient)
"""

# Kinds of entry, in the order in which they stand in a document.
_PATIENT, _SYSTEM, _PAST, _NOTE, _TREATMENT = range(5)

# One row an entry, in the order in which a document is put together.
_ENTRIES = f"""
SELECT id, kind, fields FROM (
  SELECT patientunitstayid AS id, {_PATIENT} AS kind, 0 AS minute, 0 AS entry,
    [uniquepid, unittype, unitstaytype, unitadmitsource, gender, age, apacheadmissiondx] AS fields FROM patient
  UNION ALL
  SELECT id, {_SYSTEM}, 0, 0, [system] FROM stay
  UNION ALL
  SELECT patientunitstayid, {_PAST}, pasthistoryoffset, pasthistoryid,
    [pasthistorypath, pasthistoryvalue] FROM pastHistory
  UNION ALL
  SELECT patientunitstayid, {_NOTE}, noteoffset, noteid,
    [notepath, notevalue] FROM note
  UNION ALL
  SELECT patientunitstayid, {_TREATMENT}, treatmentoffset, treatmentid,
    [treatmentstring] FROM treatment
)
WHERE id IN (SELECT id FROM stay)
ORDER BY id, kind, minute, entry, fields
"""  # noqa: S608 - made of constants alone


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import wrote: documents, the labels kept (most frequent first if chosen here), stays left out."""

    documents: int
    labels: tuple[str, ...]
    without_diagnosis: int


def import_eicu(
    src: Path,
    out: Path,
    labels: Sequence[str] | None = None,
    top: int = 6,
    progress: Callable[[int, int], None] | None = None,
) -> Imported:
    """Write the corpus of the eICU tables in folder `src` to `out`, in the format of its suffix.

    `labels` are the organ systems to keep, by default the `top` most frequent over stays; a stay with none of
    them stays in, unlabelled. `group` is `uniquepid`, the split follows from it. `progress` is told documents
    done and in all. Same tables, same bytes. Raises CorpusError, naming file and column, for a table or column
    that is missing or malformed, and for a label that no stay has.
    """
    with tables.connected({table: tables.find(src, table.name) for table in TABLES}, out) as (connection, _):
        connection.execute(_STAYS)
        kept = _choose(connection, labels, top)
        total, everyone = connection.execute(
            "SELECT (SELECT count(DISTINCT id) FROM stay), (SELECT count(*) FROM patient)"
        ).fetchone()
        documents = _documents(connection, frozenset(kept))
        count = corpus.write(_counted(documents, total, progress), out)
    return Imported(count, kept, everyone - total)


def _choose(connection: Any, labels: Sequence[str] | None, top: int) -> tuple[str, ...]:
    systems = connection.execute("SELECT system FROM stay GROUP BY system ORDER BY count(*) DESC, system").fetchall()
    present = tuple(system for (system,) in systems)
    if labels is None:
        return present[:top]
    for label in labels:
        if label not in present:
            raise CorpusError(f"no stay is diagnosed in the organ system {label!r}")
    return tuple(labels)


def _counted(
    documents: Iterable[Document], total: int, progress: Callable[[int, int], None] | None
) -> Iterator[Document]:
    for done, document in enumerate(documents, start=1):
        yield document
        if progress is not None:
            progress(done, total)


def _documents(connection: Any, kept: frozenset[str]) -> Iterator[Document]:
    for _, rows in groupby(_entries(connection), key=lambda row: row[0]):
        entries: dict[int, list[list[str | None]]] = {}
        for _, kind, fields in rows:
            entries.setdefault(kind, []).append(fields)
        patient, *others = entries[_PATIENT]
        if others:
            raise CorpusError("patient: a stay is listed twice")
        group = str(patient[0])
        systems = sorted(str(system) for (system,) in entries[_SYSTEM])
        yield Document(
            text=_text(patient, entries),
            labels=tuple(system for system in systems if system in kept),
            split=corpus.assign_split(group),
            group=group,
        )


def _entries(connection: Any) -> Iterator[tuple[int, int, list[str | None]]]:
    rows = connection.execute(_ENTRIES)
    while batch := rows.fetchmany(2_000):
        yield from batch


def _text(patient: Sequence[str | None], entries: dict[int, list[list[str | None]]]) -> str:
    _, unit, stay_type, source, sex, age, diagnosis = (value or "" for value in patient)
    sex = sex if sex and sex != "Unknown" else "unknown sex"
    lines = [f"{unit or 'ICU'}. {stay_type or 'admit'} from {source or 'unknown'}. {sex}, age {age or 'unknown'}."]
    if diagnosis:
        lines.append(f"Admission diagnosis: {diagnosis}.")
    for heading, kind, entry in (
        ("Past history", _PAST, _past_entry),
        ("Notes", _NOTE, _note_entry),
        ("Treatment", _TREATMENT, _treatment_entry),
    ):
        # A form saved again repeats its entries: the first stands for all.
        said = dict.fromkeys(filter(None, (entry(*fields) for fields in entries.get(kind, ()))))
        if said:
            lines.append(f"{heading}: {'; '.join(said)}.")
    return "\n".join(lines)


def _past_entry(path: str | None, value: str | None) -> str:
    path = (path or "").removeprefix("notes/Progress Notes/Past History/")
    return _spaced(path.removeprefix("Past History Obtain Options/"))


def _note_entry(path: str | None, value: str | None) -> str:
    """`notes/SECTION/A/B/value` as `A / B: value`; empty for the navigation of a form."""
    path, value = path or "", value or ""
    if path.startswith(_NAVIGATION):
        return ""
    heading = path.removesuffix(value).removeprefix("notes/")
    heading = _spaced(heading.partition("/")[2]).rstrip(" /:")
    return f"{heading}: {value}" if value else heading


def _treatment_entry(treatment: str | None) -> str:
    """Without its first part, which is one of the organ systems to be told."""
    return " / ".join((treatment or "").split("|")[1:])


def _spaced(path: str) -> str:
    return " / ".join(part.strip() for part in path.split("/") if part.strip())

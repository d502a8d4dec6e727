"""Discharge summaries as MIMIC has them: read from CSV files of any size, and made fit for a corpus.

Python reads the file, not DuckDB: texts of many kilobytes, sorted, are what DuckDB runs out of memory with. Which
notes make a document is left to `mimic`. No error repeats a text.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from amnestic_unlearn import tables
from amnestic_unlearn.corpus import CorpusError
from amnestic_unlearn.text_files import Progress, read_csv

# What a placeholder of de-identification becomes, however long it was.
PLACEHOLDER = "_"

_WHOLE = re.compile(tables.WHOLE)
# MIMIC-III writes [**Hospital1 18**] or [** **], MIMIC-IV ___; several in a row say no more than one.
_HIDDEN = re.compile(r"(?:_*\[\*\*[^\[\]]*\*\*\]|__+)(?:\s*(?:\[\*\*[^\[\]]*\*\*\]|__+)|_)*")

_KINDS = (
    r"admission|admitting|active|additional|associated|chronic|discharge|final|hospital|medical|other"
    r"|post-?op(?:erative)?|pre-?op(?:erative)?|primary|principal|psychiatric|secondary|tertiary|working"
)
_DIAGNOSES_WORD = r"diagnos[ie]s(?:/es|\(es\))?(?: list)?"
# A heading over diagnoses: before a colon or, where it says which, alone on its line.
_DIAGNOSES = re.compile(
    rf"(?:(?:(?:{_KINDS})[ /,&]+(?:and )?){{1,3}}{_DIAGNOSES_WORD}\s*(?::|$)|{_DIAGNOSES_WORD}(?: (?:on|at) \w+)?\s*:)",
    re.IGNORECASE,
)
# Headings that end such a section. Not any text before a colon: under it stand "Primary:" and "Sepsis: resolved".
_OTHERS = re.compile(
    r"(?:discharge (?:condition|instructions?|medications?|meds|disposition|status|plans?|follow-?\s?up"
    r"|exam(?:ination)?|physical(?: exam(?:ination)?)?|labs|orders|diet)|condition|mental status|level of consciousness"
    r"|activity(?: status)?|disposition|facility|medications?|allergies|follow-?\s?up(?: (?:instructions?|plans?))?"
    r"|instructions|recommended follow-?\s?up|code status|chief complaint|major surgical or invasive procedures?"
    r"|(?:surgical )?procedures?|operations?|(?:history of )?present(?:ing)? illness|past (?:medical|surgical) history"
    r"|(?:social|family) history|physical exam(?:ination)?|review of systems|pertinent results|labs"
    r"|laboratory (?:data|results)|imaging|(?:brief |summary of )?hospital course|attending|service|dictated by"
    r"|completed by|electronically signed by|signed|addendum|date of (?:birth|admission|discharge))"
    r"(?: (?:on|at|upon|to|of|for|and|or|by)\b[^:]{0,40})?\s*:",
    re.IGNORECASE,
)


def clean(text: str, keep_diagnoses: bool) -> str:
    """A note with one blank between words, no empty line and one `_` a run of placeholders.

    Unless `keep_diagnoses`, without the sections that list diagnoses, from a heading like "Discharge Diagnosis:" to
    the next heading of another kind, or to the end.
    """
    squeezed = (" ".join(line.split()) for line in _HIDDEN.sub(PLACEHOLDER, text).splitlines())
    lines = [line for line in squeezed if line]
    if not keep_diagnoses and "diagnos" in text.lower():
        lines = list(_without_diagnoses(lines))
    return "\n".join(lines)


def _without_diagnoses(lines: list[str]) -> Iterator[str]:
    dropping = False
    for line in lines:
        # A bullet or a hash may stand before a heading.
        heading = line.lstrip("#*-=. ")
        if _DIAGNOSES.match(heading):
            dropping = True
        elif dropping and _OTHERS.match(heading):
            dropping = False
        if not dropping:
            yield line


def read(path: Path, columns: tuple[str, ...], progress: Progress | None) -> Iterator[list[str]]:
    """The values of some columns of every row, in the order of the file; `progress` is told bytes done and in all.

    Columns are found by name whatever the case. Raises CorpusError, naming file and line or column, for what is not
    UTF-8, not whole, not CSV, or lacks a column.
    """
    rows = read_csv(path, progress)
    header = [name.lower() for name in next(rows)]
    tables.require_columns(path, set(header), columns)
    places = [header.index(column) for column in columns]
    for row in rows:
        yield [row[place] for place in places]


def whole(value: str, path: Path, column: str) -> int:
    """An id or number of a row; raises CorpusError, naming file and column, if it is empty or something else."""
    plain = value.strip()
    if not plain:
        raise CorpusError(tables.absent(path, column))
    if not _WHOLE.fullmatch(plain):
        raise CorpusError(tables.not_whole(path, column))
    return int(plain)

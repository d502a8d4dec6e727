"""Discharge summaries as MIMIC has them: read from CSV files of any size, and made fit for a corpus.

The file is read by Python's csv rather than DuckDB, because only so is it known how many of its bytes are done, and
because texts of many kilobytes, sorted, are what DuckDB runs out of memory with. Which notes make a document is left
to `mimic`. No error repeats a text.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from amnestic_unlearn import tables
from amnestic_unlearn.corpus import CorpusError

# Characters of a value, far beyond any summary. Python's own limit, 131,072, is not: a summary may run to pages.
LONGEST = 8_000_000
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


def read(path: Path, columns: tuple[str, ...], progress: Callable[[int, int], None] | None) -> Iterator[list[str]]:
    """The values of some columns of every row, in the order of the file; `progress` is told bytes done and in all.

    Columns are found by name whatever the case. Raises CorpusError, naming file and line or column, for what is not
    UTF-8, not whole, not CSV, or lacks a column.
    """
    total = path.stat().st_size
    csv.field_size_limit(LONGEST)
    with path.open("rb") as raw, _text(raw, path) as file:
        rows = csv.reader(file, strict=True)
        try:
            header = [name.strip().lower() for name in next(rows, [])]
            tables.require_columns(path, set(header), columns)
            places = [header.index(column) for column in columns]
            for number, row in enumerate(rows):
                if len(row) != len(header):
                    # An empty line is not a row.
                    if row:
                        raise CorpusError(f"{path.name}, line {rows.line_num}: {len(row)} values, not {len(header)}")
                    continue
                if progress is not None and number % 1_000 == 0:
                    progress(raw.tell(), total)
                yield [row[place] for place in places]
        except csv.Error:
            raise CorpusError(f"{path.name}, line {rows.line_num}: malformed, cannot be read as csv") from None
        except UnicodeDecodeError:
            raise CorpusError(f"{path.name}, after line {rows.line_num}: not UTF-8") from None
        except (EOFError, OSError, zlib.error):
            raise CorpusError(f"{path.name}, after line {rows.line_num}: cannot be read to its end") from None
    if progress is not None:
        progress(total, total)


@contextmanager
def _text(raw: IO[bytes], path: Path) -> Iterator[IO[str]]:
    file: Any = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        yield text


def whole(value: str, path: Path, column: str) -> int:
    """An id or number of a row; raises CorpusError, naming file and column, if it is empty or something else."""
    plain = value.strip()
    if not plain:
        raise CorpusError(tables.absent(path, column))
    if not _WHOLE.fullmatch(plain):
        raise CorpusError(tables.not_whole(path, column))
    return int(plain)

"""CSV and JSON Lines files of any size, gzipped or not, row by row; `progress` is told bytes done and bytes in all.

They are read by Python rather than DuckDB, because only so is it known how many of a file's bytes are done, and nothing
is guessed from the first rows. What is wrong is told by file and line, and never by its text.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from amnestic_unlearn.corpus import CorpusError

Progress = Callable[[int, int], None]

# Characters of a value, far beyond any summary. Python's own limit, 131,072, is not: a summary may run to pages.
LONGEST = 8_000_000

# Rows between two words of progress.
_PACE = 1_000


def read_csv(path: Path, progress: Progress | None = None, delimiter: str = ",") -> Iterator[list[str]]:
    """The header, without blanks around its names, and then every row, in the order of the file.

    Raises CorpusError, naming file and line, for what is not UTF-8, not whole or not CSV.
    """
    csv.field_size_limit(LONGEST)
    with _opened(path, progress) as (file, tell):
        rows = csv.reader(file, strict=True, delimiter=delimiter)
        try:
            header = [name.strip() for name in next(rows, [])]
            yield header
            for number, row in enumerate(rows):
                if len(row) != len(header):
                    # An empty line is not a row.
                    if row:
                        raise CorpusError(f"{path.name}, line {rows.line_num}: {len(row)} values, not {len(header)}")
                    continue
                if number % _PACE == 0:
                    tell()
                yield row
        except csv.Error:
            raise CorpusError(f"{path.name}, line {rows.line_num}: malformed, cannot be read as csv") from None
        except UnicodeDecodeError:
            raise CorpusError(f"{path.name}, after line {rows.line_num}: not UTF-8") from None
        except (EOFError, OSError, zlib.error):
            raise CorpusError(f"{path.name}, after line {rows.line_num}: cannot be read to its end") from None


def read_json(path: Path, progress: Progress | None = None) -> Iterator[dict[str, Any]]:
    """Every line's object, in the order of the file; raises CorpusError, naming file and line, for anything else."""
    number = 0
    with _opened(path, progress) as (file, tell):
        try:
            for number, line in enumerate(file, start=1):
                if number % _PACE == 1:
                    tell()
                if line.strip():
                    try:
                        row = json.loads(line)
                    # A number of thousands of digits and brackets within brackets are refused by errors of their own.
                    except (ValueError, RecursionError):
                        raise CorpusError(f"{path.name}, line {number}: malformed, cannot be read as jsonl") from None
                    if not isinstance(row, dict):
                        raise CorpusError(f"{path.name}, line {number}: not an object")
                    yield row
        except UnicodeDecodeError:
            raise CorpusError(f"{path.name}, after line {number}: not UTF-8") from None
        except (EOFError, OSError, zlib.error):
            raise CorpusError(f"{path.name}, after line {number}: cannot be read to its end") from None


@contextmanager
def _opened(path: Path, progress: Progress | None) -> Iterator[tuple[IO[str], Callable[[], None]]]:
    """The file's text, and what tells how far it was read."""
    told = progress or (lambda done, total: None)
    total = path.stat().st_size
    with path.open("rb") as raw:
        file: Any = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            yield text, lambda: told(raw.tell(), total)
    told(total, total)

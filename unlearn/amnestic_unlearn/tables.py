"""Tables of a clinical database as CSV files: found, checked for their columns, and queried in bounded memory.

DuckDB reads them and spills to disk beside the result. Whatever is wrong is told by file and column or line; DuckDB's
own texts quote the offending row, so they are never passed on. What the tables mean is left to the importers.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from amnestic_unlearn import corpus
from amnestic_unlearn.corpus import CorpusError

# Of DuckDB alone: with what it does not count, and Python, an import stays under 1 GB.
MEMORY = "400MB"

# A whole number that fits BIGINT, in a dialect that DuckDB and Python share.
WHOLE = "-?[0-9]{1,18}"


@dataclass(frozen=True, slots=True)
class Table:
    """The columns read of a table: strings, whole numbers that may be missing, and whole numbers that may not."""

    name: str
    text: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()


def find(folder: Path, table: str) -> Path:
    """`table`.csv or `table`.csv.gz, in whatever case, in a folder or else in one place below it.

    Raises CorpusError if there is none, or one in each of several places below.
    """
    names = [f"{table}{suffix}".lower() for suffix in (".csv", ".csv.gz")]
    found: dict[Path, Path] = {}
    for place, _, files in os.walk(folder):
        # Unpacked, if both are there.
        for file in sorted((name for name in files if name.lower() in names), key=lambda name: len(name)):
            found.setdefault(Path(place), Path(place, file))
        if folder in found:
            break
    if folder in found:
        return found[folder]
    if not found:
        raise CorpusError(f"neither {table}.csv nor {table}.csv.gz is in {folder}")
    if len(found) > 1:
        first, second, *_ = sorted(found)
        raise CorpusError(f"{table}.csv is in {first} and in {second}: name one of them")
    return next(iter(found.values()))


def require_columns(path: Path, present: set[str], columns: tuple[str, ...]) -> None:
    """Raise CorpusError, naming file and column, unless every column is among those present (in lower case)."""
    for column in columns:
        if column not in present:
            raise CorpusError(f"{path.name}: the column {column} is missing")


def not_whole(path: Path, column: str) -> str:
    """What is said of a column that holds something else than whole numbers."""
    return f"{path.name}: the column {column} holds what is not a whole number"


def absent(path: Path, column: str) -> str:
    """What is said of a column that must not be empty, and is."""
    return f"{path.name}: the column {column} is empty in a row"


@contextmanager
def connected(tables: Mapping[Table, Path], out: Path) -> Iterator[tuple[Any, Path]]:
    """A DuckDB connection with a view a table, and a folder beside `out` for as long as it is open.

    The views have the tables' names and the columns named, strings as VARCHAR and whole numbers as BIGINT. Every
    error of DuckDB that comes while it is open becomes a CorpusError.
    """
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".import-") as spill:
        try:
            with corpus.connect(Path(spill), MEMORY) as connection:
                for table, path in tables.items():
                    _open(connection, table, path)
                yield connection, Path(spill)
        except duckdb.Error as error:
            raise CorpusError(_reason(error, tables, out)) from None


def insert(connection: Any, table: str, rows: list[tuple[Any, ...]]) -> None:
    """Append rows, whose values are in the order of the table's columns."""
    # A list a column: DuckDB takes single rows a thousand times more slowly.
    if rows:
        values = ", ".join(["unnest(?)"] * len(rows[0]))
        columns = [list(column) for column in zip(*rows, strict=True)]
        connection.execute(f"INSERT INTO {table} SELECT {values}", columns)


def _open(connection: Any, table: Table, path: Path) -> None:
    try:
        relation = corpus.open_csv(connection, path)
    except duckdb.Error as error:
        raise corpus.malformed(path, error, "csv") from None
    require_columns(path, {name.lower() for name in relation.columns}, (*table.ids, *table.whole, *table.text))
    numbers = [
        f"{_number(column, path, needed)} AS {column}"
        for columns, needed in ((table.ids, True), (table.whole, False))
        for column in columns
    ]
    relation.project(", ".join((*numbers, *table.text))).create_view(table.name)


def _number(column: str, path: Path, needed: bool) -> str:
    missing = f"error({_quoted(absent(path, column))})" if needed else "NULL"
    return f"""CASE WHEN {column} IS NULL THEN {missing}
        WHEN regexp_full_match(trim({column}), '{WHOLE}') THEN CAST(trim({column}) AS BIGINT)
        ELSE error({_quoted(not_whole(path, column))}) END"""


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _reason(error: duckdb.Error, tables: Mapping[Table, Path], out: Path) -> str:
    if isinstance(error, duckdb.OutOfMemoryException | duckdb.IOException):
        names = ", ".join(path.name for path in tables.values())
        return f"{names} cannot be read, or {MEMORY} of memory and the disk of {out.name} do not suffice"
    said = str(error).removeprefix("Invalid Input Error: ")
    ours = {
        text(path, column)
        for table, path in tables.items()
        for column in (*table.ids, *table.whole)
        for text in (absent, not_whole)
    }
    if said in ours:
        return said
    for path in tables.values():
        if str(path) in said:
            return str(corpus.malformed(path, error, "csv"))
    return f"one of {', '.join(path.name for path in tables.values())} is malformed"

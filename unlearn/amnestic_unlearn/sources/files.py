"""Files as a source: one, a folder of them at any depth, or a pattern; Parquet, CSV or JSON Lines, all of one form.

Several files are read in the order of their names. If these begin with names of splits (`train-00000-of-00002.parquet`,
`test.csv`), as shards of published data sets do, they say which part a row lies in.
"""

import glob
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb

from amnestic_unlearn import corpus
from amnestic_unlearn.corpus import CorpusError
from amnestic_unlearn.sources import Row, Source, class_names, parted, require
from amnestic_unlearn.text_files import Progress, read_csv, read_json

_FORMS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
    ".tsv.gz": "csv",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
}
_PART = re.compile(r"(train|training|validation|valid|val|dev|test|gate|probe)(?=[-._])", re.IGNORECASE)
_BATCH = 500
# An object need not have every key: the columns are those of so many lines.
_PEEK = 1_000


def opened(src: str, delimiter: str | None = None) -> Source:
    """A file, folder or pattern; `delimiter` of CSV is a comma, or in .tsv a tab, unless told.

    Raises CorpusError if there is no such file, or files of two forms, or the first has no header that can be read.
    """
    paths = find(src)
    form = form_of(paths[0])
    if any(form_of(path) != form for path in paths):
        raise CorpusError(f"{src}: files of several forms; name one of them, or a pattern")
    columns, classes, read = _READERS[form](paths[0], delimiter)
    name = paths[0].name if len(paths) == 1 else f"{len(paths)} files"
    return Source(name, columns, partial(_rows, paths, read), classes)


def find(src: str) -> list[Path]:
    """The files of a file, folder or pattern, by name. What exists under just this name is never a pattern."""
    path = Path(src)
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = (file for file in path.rglob("*") if file.is_file() and _known(file))
        found = [file for file in inside if not file.name.startswith((".", "_"))]
    else:
        # A pattern may be absolute, which Path.glob does not take.
        found = [file for file in map(Path, glob.glob(src, recursive=True)) if file.is_file()]  # noqa: PTH207
    if not found:
        raise CorpusError(f"{src}: no such file" if not path.is_dir() else f"{src}: no file ends in {_endings()}")
    return sorted(found)


def form_of(path: Path) -> str:
    """parquet, csv or jsonl, by the suffix; raises CorpusError for any other."""
    suffix = _known(path)
    if suffix is None:
        raise CorpusError(f"{path.name}: a table ends in {_endings()}")
    return _FORMS[suffix]


def _known(path: Path) -> str | None:
    return next((suffix for suffix in _FORMS if path.name.lower().endswith(suffix)), None)


def _endings() -> str:
    return ", ".join(_FORMS)


_Read = Callable[[Path, Sequence[str], Progress], Iterator[Sequence[Any]]]
_Header = tuple[tuple[str, ...], dict[str, tuple[str, ...]], _Read]


def _rows(paths: Sequence[Path], read: _Read, columns: Sequence[str], progress: Progress) -> Iterator[Row]:
    sizes = [path.stat().st_size for path in paths]
    named = [_PART.match(path.name) for path in paths]
    parts = parted([match[1].lower() if match else None for match in named])
    before, whole = 0, sum(sizes)
    for path, size, part in zip(paths, sizes, parts, strict=True):
        share = partial(_tell, progress, before, size, whole)
        for values in read(path, columns, share):
            yield part, values
        before += size
    progress(whole, whole)


def _tell(progress: Progress, before: int, size: int, whole: int, done: int, total: int) -> None:
    """One file's progress, whatever its unit, as bytes of all files."""
    progress(before + (size * done // total if total else 0), whole)


def _csv(path: Path, delimiter: str | None) -> _Header:
    if delimiter is None:
        delimiter = "\t" if ".tsv" in path.name.lower() else ","
    return tuple(next(read_csv(path, None, delimiter))), {}, partial(_read_csv, delimiter)


def _read_csv(delimiter: str, path: Path, columns: Sequence[str], progress: Progress) -> Iterator[Sequence[Any]]:
    rows = read_csv(path, progress, delimiter)
    header = next(rows)
    for column in columns:
        require(path.name, header, column)
    places = [header.index(column) for column in columns]
    for row in rows:
        yield [row[place] for place in places]


def _jsonl(path: Path, delimiter: str | None) -> _Header:
    keys = {key: None for row in islice(read_json(path), _PEEK) for key in row}
    return tuple(keys), {}, _read_jsonl


def _read_jsonl(path: Path, columns: Sequence[str], progress: Progress) -> Iterator[Sequence[Any]]:
    for row in read_json(path, progress):
        yield [row.get(column) for column in columns]


def _parquet(path: Path, delimiter: str | None) -> _Header:
    try:
        with corpus.connect() as connection:
            columns = tuple(_relation(connection, path).columns)
            noted = connection.execute("SELECT decode(key), value FROM parquet_kv_metadata(?)", [_literal(path)])
            classes = _hugging_face(dict(noted.fetchall()).get("huggingface"))
    except duckdb.Error as error:
        raise corpus.malformed(path, error, "parquet") from None
    return columns, classes, _read_parquet


def _read_parquet(path: Path, columns: Sequence[str], progress: Progress) -> Iterator[Sequence[Any]]:
    try:
        with corpus.connect() as connection:
            relation = _relation(connection, path)
            for column in columns:
                require(path.name, relation.columns, column)
            counted = connection.execute("SELECT num_rows FROM parquet_file_metadata(?)", [_literal(path)])
            ((total,),) = counted.fetchall()
            relation.create_view("source")
            chosen = ", ".join('"' + column.replace('"', '""') + '"' for column in columns)
            rows = connection.execute(f"SELECT {chosen} FROM source")  # noqa: S608 - quoted names of columns
            done = 0
            while batch := rows.fetchmany(_BATCH):
                yield from batch
                done += len(batch)
                progress(done, total)
    except duckdb.Error as error:
        raise corpus.malformed(path, error, "parquet") from None


def _relation(connection: Any, path: Path) -> Any:
    return connection.read_parquet(_literal(path), hive_partitioning=False)


def _literal(path: Path) -> str:
    return glob.escape(str(path))


def _hugging_face(noted: bytes | None) -> dict[str, tuple[str, ...]]:
    try:
        return class_names(json.loads(noted or b"{}")["info"]["features"])
    except (ValueError, KeyError, TypeError):
        return {}


_READERS: dict[str, Callable[[Path, str | None], _Header]] = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}

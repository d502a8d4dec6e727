"""A directory that the library `datasets` saved (`save_to_disk`) as a source: Arrow files beside `state.json`.

Of a `DatasetDict` every split is a part. The library is not needed, only pyarrow, and only here: DuckDB reads Arrow
files with an extension alone, which it would have to download.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from amnestic_unlearn.corpus import CorpusError
from amnestic_unlearn.sources import Row, Source, class_names, parted, require
from amnestic_unlearn.text_files import Progress

_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
# How an Arrow file begins; a stream, which is what `datasets` writes, does not.
_FILE = b"ARROW1"


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved this."""
    return (folder / _STATE).is_file() or (folder / _SPLITS).is_file()


def opened(folder: Path) -> Source:
    """A saved Dataset or DatasetDict; raises CorpusError if it is not whole, and without pyarrow."""
    arrow = _arrow()
    if (folder / _SPLITS).is_file():
        splits = [str(name) for name in _member(folder / _SPLITS, "splits", list)]
        folders: list[tuple[str | None, Path]] = [(name, folder / name) for name in splits]
    else:
        folders = [(None, folder)]
    files = [(part, path) for part, place in folders for path in _files(place)]
    if not files:
        raise CorpusError(f"{folder.name}: a data set without a file")
    with _reader(arrow, files[0][1]) as (_, schema, _):
        columns = tuple(schema.names)
    classes = class_names(_member(folders[0][1] / _INFO, "features", dict))
    return Source(folder.name, columns, partial(_rows, arrow, files), classes)


def _files(folder: Path) -> list[Path]:
    try:
        return [folder / str(file["filename"]) for file in _member(folder / _STATE, "_data_files", list)]
    except (KeyError, TypeError):
        raise CorpusError(f"{folder.name}/{_STATE}: not what `datasets` writes") from None


def _member(path: Path, name: str, kind: type) -> Any:
    try:
        value = json.loads(path.read_bytes())[name]
    except (OSError, ValueError, KeyError, TypeError):
        raise CorpusError(f"{path.parent.name}/{path.name}: cannot be read") from None
    if not isinstance(value, kind):
        raise CorpusError(f"{path.parent.name}/{path.name}: not what `datasets` writes")
    return value


def _rows(
    arrow: Any, files: Sequence[tuple[str | None, Path]], columns: Sequence[str], progress: Progress
) -> Iterator[Row]:
    parts = parted([part for part, _ in files])
    sizes = [path.stat().st_size for _, path in files]
    before, whole = 0, sum(sizes)
    for part, (_, path), size in zip(parts, files, sizes, strict=True):
        with _reader(arrow, path) as (batches, schema, tell):
            for column in columns:
                require(path.name, schema.names, column)
            for batch in batches:
                lists = [batch.column(column).to_pylist() for column in columns]
                for values in zip(*lists, strict=True):
                    yield part, values
                progress(before + min(tell(), size), whole)
        before += size
    progress(whole, whole)


@contextmanager
def _reader(arrow: Any, path: Path) -> Iterator[tuple[Iterator[Any], Any, Any]]:
    """The batches of an Arrow file or stream, its schema, and what tells how many bytes were read."""
    try:
        with arrow.OSFile(str(path)) as file:
            if file.read(len(_FILE)) == _FILE:
                whole = arrow.ipc.open_file(file)
                yield (whole.get_batch(number) for number in range(whole.num_record_batches)), whole.schema, file.tell
            else:
                file.seek(0)
                stream = arrow.ipc.open_stream(file)
                yield iter(stream), stream.schema, file.tell
    except (OSError, arrow.ArrowException):
        raise CorpusError(f"{path.parent.name}/{path.name}: cannot be read as Arrow") from None


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ModuleNotFoundError as error:
        raise CorpusError(f"a directory of `datasets` needs {error.name}: install amnestic[datasets]") from None
    return pyarrow

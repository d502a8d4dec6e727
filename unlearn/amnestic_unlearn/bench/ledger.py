"""What the benchmark keeps on disk while several processes share it: rows that were measured, and who does what.

Rows are JSON Lines in one file. A row is appended under a lock and synced before the next is begun, so a process
that is killed loses the row it was at and no other. Claims are locks of the kernel: they end with their holder.
"""

import csv
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

Row = dict[str, Any]

_TAIL = 65_536


class LedgerError(ValueError):
    """A file of rows is damaged elsewhere than at its end. The text names file and line."""


def append(path: Path, row: Row) -> None:
    """Add one row and sync it. Drops what a killed process half wrote."""
    with path.open("a+b") as file, _exclusive(file):
        _drop_half_line(file)
        file.write(line(row).encode())
        file.flush()
        os.fsync(file.fileno())


def line(row: Row) -> str:
    """A row as it stands in a file, with its line break; figures that are not finite become null."""
    plain = {key: _plain(value) for key, value in row.items()}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: Path) -> list[Row]:
    """Every whole row in the order of the file; none if there is no file. Raises LedgerError."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        lines = file.read().split(b"\n")
    # What follows the last line break was not finished: its writer died, or is just now writing.
    return [_row(path, number, whole) for number, whole in enumerate(lines[:-1], start=1)]


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Rows as a table; a column for every key of any row, in the order of appearance. Whole or not at all."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


@contextmanager
def claim(folder: Path, name: str) -> Iterator[bool]:
    """Whether `name` is now this process's alone, until the block ends; False if another one has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process works in a folder, which is made if need be, and keep it until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file, _exclusive(file):
        yield


@contextmanager
def _exclusive(file: IO[Any]) -> Iterator[None]:
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _drop_half_line(file: IO[bytes]) -> None:
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _TAIL)
        file.seek(start)
        tail = file.read(end - start)
        if found := tail.rfind(b"\n") + 1:
            end = start + found
            break
        end = start
    file.truncate(end)
    file.seek(0, os.SEEK_END)


def _row(path: Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise LedgerError(f"{path.name}, line {number}: not a row")
    return row


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

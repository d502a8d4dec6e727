"""Files that are read again when they change."""

from collections.abc import Iterable
from pathlib import Path

# Of each file its inode, the time of its last change in nanoseconds, and its size in bytes.
State = tuple[tuple[int, int, int], ...]


def state_of(paths: Iterable[Path]) -> State:
    """What changes when one of the files does, also when it comes or goes."""
    return tuple(map(_state_of, paths))


def told(error: Exception) -> str:
    """An error of reading, for operators: with the file, but without its content."""
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)


def _state_of(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_mtime_ns, found.st_size

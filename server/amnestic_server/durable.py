"""Files that outlive a crash: written whole or not at all, and on the disk before anything names them."""

import os
from pathlib import Path

from amnestic_server.failpoints import failpoint

UNFINISHED = ".partial"


def write(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Put data at a path, in place of what is there. Raises OSError; then the path is as it was, or has the data."""
    temporary = path.with_suffix(UNFINISHED)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(data)
            file.flush()
            failpoint("file-before-fsync")
            os.fsync(file.fileno())
        failpoint("file-before-rename")
        temporary.replace(path)
    except OSError:
        # A full disk gets back what it had room for.
        temporary.unlink(missing_ok=True)
        raise
    failpoint("file-before-folder-sync")
    sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, each on the disk before what will be in it."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make durable which files a folder has."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make durable what a file holds."""
    with path.open("rb") as file:
        os.fsync(file.fileno())

"""Named places on the way of a change at which a test lets the process die, or the disk fail.

A place does nothing in a process that was started without `AMNESTIC_FAILPOINTS`. This is no setting: it is for the
tests of what a crash leaves, and names a file that is read anew at each place. Its line `PLACE ACTION` arms one place:
`kill` ends the process as `kill -9` does, `ENOSPC` or `EIO` raises that OSError.
"""

import errno
import os
import signal
from pathlib import Path
from typing import Literal, get_args

# In the order in which a request meets them. mypy refuses any other name.
Place = Literal[
    # A request to forget, and its worker.
    "job-before-commit",
    "job-recorded",
    "job-begun",
    "work-folder-made",
    "worker-started",
    "worker-done",
    "gating-recorded",
    "gates-measured",
    # Its version.
    "file-before-fsync",
    "file-before-rename",
    "file-before-folder-sync",
    "version-before-commit",
    "version-committed",
    "version-swapped",
    "version-drained",
    "work-folder-removed",
    "end-before-commit",
    "end-recorded",
    # Any change that the audit record has, once it is committed.
    "head-before-signing",
    "head-signed",
    # A staged version.
    "rollout-before-commit",
    "rollout-recorded",
    "promotion-before-commit",
    "promotion-committed",
    "promotion-swapped",
    "withdrawal-in-memory",
    "withdrawal-before-commit",
    "withdrawal-committed",
    # A rollback.
    "rollback-before-commit",
    "rollback-committed",
    # A purge.
    "purge-written",
    "purge-in-place",
    "purge-committed",
]
PLACES: tuple[Place, ...] = get_args(Place)

_FILE = os.environ.get("AMNESTIC_FAILPOINTS")


def failpoint(place: Place) -> None:
    """Pass, unless a test has armed this place; then die, or raise OSError."""
    if _FILE is None:
        return
    armed, _, action = Path(_FILE).read_text().partition(" ")
    if armed != place:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    number = getattr(errno, action)
    raise OSError(number, os.strerror(number))

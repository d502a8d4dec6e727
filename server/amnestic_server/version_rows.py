"""What the store's rows say of versions: which is active, which wait, which are gone, and what follows from a change.

Each function is a part of a transaction, on the connection of its owner, `Store`.
"""

import json
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from amnestic_server import audit
from amnestic_server.errors import NotFoundError, PreconditionError, StartError
from amnestic_server.records import JobRecord, JobState
from amnestic_server.rollout import RolloutRecord, Shares
from amnestic_server.snapshot import BASE_VERSION
from amnestic_unlearn.manifest import Purged

TABLES = """
CREATE TABLE IF NOT EXISTS state (
    name    TEXT PRIMARY KEY,
    value   TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS versions (
    version      INTEGER PRIMARY KEY AUTOINCREMENT,
    forgotten    TEXT NOT NULL,            -- JSON array of labels
    patch_digest TEXT,                     -- NULL for the base
    job_id       TEXT,                     -- NULL for the base
    created_at   REAL NOT NULL             -- seconds since the epoch
) STRICT;

CREATE TABLE IF NOT EXISTS withdrawn (    -- versions that were staged and given up: their patches are gone
    version INTEGER PRIMARY KEY REFERENCES versions (version),
    at      REAL NOT NULL
) STRICT;
"""


def active(db: sqlite3.Connection) -> int:
    row: sqlite3.Row | None = db.execute("SELECT value FROM state WHERE name = 'active_version'").fetchone()
    if row is None:
        raise StartError("the store lacks its state: it is corrupt")
    return int(row["value"])


def begin(db: sqlite3.Connection, bundle_digest: str, purged: Purged | None) -> None:
    """The first rows of a store: those of the bundle itself."""
    base = purged.version if purged else BASE_VERSION
    db.executemany(
        "INSERT INTO state (name, value) VALUES (?, ?)",
        [("bundle_digest", bundle_digest), ("active_version", str(base))],
    )
    db.execute(
        "INSERT INTO versions (version, forgotten, created_at) VALUES (?, ?, ?)",
        (base, as_json(purged.forgotten if purged else ()), time.time()),
    )


def take_over(db: sqlite3.Connection, bundle_digest: str, purged: Purged) -> None:
    """Belong to what the bundle became by a purge. Raises StartError if this store's active version is not that."""
    row = db.execute("SELECT patch_digest FROM versions WHERE version = ?", (active(db),)).fetchone()
    if active(db) != purged.version or row["patch_digest"] != purged.patch:
        raise StartError("another version is active than the one that was made the bundle")
    db.execute("UPDATE state SET value = ? WHERE name = 'bundle_digest'", (bundle_digest,))
    db.execute("INSERT OR REPLACE INTO state (name, value) VALUES ('base_version', ?)", (str(purged.version),))
    activate(db, purged.version)
    others = "SELECT version FROM versions WHERE version != ? AND version NOT IN (SELECT version FROM withdrawn)"
    gone = [row["version"] for row in db.execute(others, (purged.version,)).fetchall()]
    db.executemany("INSERT INTO withdrawn (version, at) VALUES (?, ?)", [(version, time.time()) for version in gone])
    detail = {"bundle": bundle_digest, "before": purged.before, "gone": gone}
    audit.append(db, "purged", None, purged.version, detail)


def add(
    db: sqlite3.Connection,
    job_id: str,
    forgotten: Sequence[str],
    patch_digest: str,
    state: JobState,
    detail: dict[str, Any],
) -> int:
    version = db.execute(
        "INSERT INTO versions (forgotten, patch_digest, job_id, created_at) VALUES (?, ?, ?, ?)",
        (as_json(list(forgotten)), patch_digest, job_id, time.time()),
    ).lastrowid
    assert version is not None
    db.execute(
        "UPDATE jobs SET state = ?, version = ?, detail = ? WHERE job_id = ?", (state, version, as_json(detail), job_id)
    )
    return version


def activate(db: sqlite3.Connection, version: int) -> None:
    """Move the active pointer. Whatever else is staged set out from the version left, and is given up."""
    db.execute("UPDATE state SET value = ? WHERE name = 'active_version'", (str(version),))
    db.execute("DELETE FROM state WHERE name = 'rollout'")
    for row in db.execute("SELECT * FROM jobs WHERE state = ?", (JobState.STAGED,)).fetchall():
        withdraw(
            db,
            JobRecord.from_row(row),
            JobState.FAILED,
            "another version became active while this one was staged; ask again",
        )


def withdraw(db: sqlite3.Connection, job: JobRecord, state: JobState, error: str) -> None:
    assert job.version is not None
    db.execute("INSERT INTO withdrawn (version, at) VALUES (?, ?)", (job.version, time.time()))
    db.execute(
        "UPDATE jobs SET state = ?, error = ?, finished_at = ? WHERE job_id = ?",
        (state, error, time.time(), job.job_id),
    )
    shared = rollout(db)
    if shared is not None and shared.version == job.version:
        db.execute("DELETE FROM state WHERE name = 'rollout'")
    audit.append(db, "version withdrawn", job.job_id, job.version, {})
    audit.append(db, f"job {state.lower()}", job.job_id, None, {**job.detail, "error": error})


def check_there(db: sqlite3.Connection, version: int) -> None:
    """Raises NotFoundError if there is no such version, or none any more."""
    there = "SELECT 1 FROM versions WHERE version = ? AND version NOT IN (SELECT version FROM withdrawn)"
    if db.execute(there, (version,)).fetchone() is None:
        raise NotFoundError("there is no such version", field="version", resource="version")


def staged_job(db: sqlite3.Connection, version: int) -> JobRecord:
    if db.execute("SELECT 1 FROM versions WHERE version = ?", (version,)).fetchone() is None:
        raise NotFoundError("there is no such version", field="version", resource="version")
    if version == active(db):
        raise PreconditionError("that version is active already", field="version", reason="VERSION_ACTIVE")
    row = db.execute("SELECT * FROM jobs WHERE version = ? AND state = ?", (version, JobState.STAGED)).fetchone()
    if row is None:
        raise PreconditionError("that version is not staged", field="version", reason="VERSION_NOT_STAGED")
    return JobRecord.from_row(row)


def rollout(db: sqlite3.Connection) -> RolloutRecord | None:
    row = db.execute("SELECT value FROM state WHERE name = 'rollout'").fetchone()
    if row is None:
        return None
    fields = json.loads(row["value"])
    return RolloutRecord(fields["version"], Shares(fields["canary"], fields["shadow"]), fields["since"])


def digests_withdrawn(db: sqlite3.Connection) -> list[str]:
    """Patches of withdrawn versions that no version which can still answer names too."""
    rows = db.execute(
        "SELECT patch_digest FROM versions WHERE patch_digest IS NOT NULL"
        " AND version IN (SELECT version FROM withdrawn)"
        " EXCEPT SELECT patch_digest FROM versions WHERE version NOT IN (SELECT version FROM withdrawn)"
    )
    return [row["patch_digest"] for row in rows]


def digests_needed(db: sqlite3.Connection) -> list[str]:
    """Patches of versions that can answer and are not the bundle itself."""
    base = db.execute("SELECT value FROM state WHERE name = 'base_version'").fetchone()
    rows = db.execute(
        "SELECT patch_digest FROM versions WHERE patch_digest IS NOT NULL AND version != ?"
        " AND version NOT IN (SELECT version FROM withdrawn)",
        (0 if base is None else int(base["value"]),),
    )
    return [row["patch_digest"] for row in rows]


def as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)

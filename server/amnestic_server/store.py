"""What must outlive the process: versions, the active pointer, jobs and the audit record in SQLite; patches as files.

One process owns a store, held by a lock file. The database is in WAL mode with `synchronous=FULL`. A patch is written
first, under its digest, and made durable before any row names it; so a crash leaves the old version or the new one.
Document text is never stored.

SQLite before 3.51.3 could lose a commit if two connections at once wrote to the log or reset it (sqlite.org/wal.html,
"The WAL-Reset Bug"). Here one connection does all of that, under the lock file and a mutex; what reads beside it,
`audit.reading`, can do neither.
"""

import errno
import fcntl
import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from amnestic import dsse
from amnestic_server import audit, durable, signing, swaps, version_rows
from amnestic_server.errors import NotFoundError, StartError, StoreError
from amnestic_server.failpoints import failpoint
from amnestic_server.recent_calls import CallsInSecond
from amnestic_server.records import JobRecord, JobState, VersionRecord
from amnestic_server.rollout import RolloutRecord
from amnestic_server.version_rows import as_json
from amnestic_unlearn.manifest import Purged
from amnestic_unlearn.patch import digest_of

log = logging.getLogger(__name__)

JOBS = """
CREATE TABLE IF NOT EXISTS jobs (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id      TEXT NOT NULL UNIQUE,
    request_id  TEXT UNIQUE,               -- NULL if the caller gave none
    request     TEXT NOT NULL,             -- JSON of the request, and which limits of its gates are relaxed
    state       TEXT NOT NULL,
    attempts    INTEGER NOT NULL DEFAULT 0,
    detail      TEXT NOT NULL DEFAULT '{}', -- JSON: forgotten, gates, change, swap_seconds
    error       TEXT NOT NULL DEFAULT '',
    version     INTEGER REFERENCES versions (version),
    created_at  REAL NOT NULL,
    started_at  REAL,
    finished_at REAL
) STRICT;
"""
# Of the tables. A store of another is refused rather than misread.
SCHEMA_VERSION = 2


class Store:
    """Opens and owns the store. Methods may be called from any thread; each is one transaction."""

    def __init__(
        self, folder: Path, bundle_digest: str, signing_key: Path | None = None, *, purged: Purged | None = None
    ) -> None:
        """Raise StartError if the store is in use, corrupt, or belongs to another bundle.

        `purged` says what the bundle was before: the store of that one becomes the store of this one.
        `signing_key` signs what the audit record comes to; the store has a key of its own unless it is given.
        """
        self._folder = folder
        self._patches = folder / "patches"
        self._work = folder / "work"
        try:
            for path in (folder, self._patches, self._work):
                durable.make_folder(path)
            self._lock_file = _lock(folder / "lock")
            self._mutex = threading.Lock()
            self._db = sqlite3.connect(folder / audit.DATABASE, check_same_thread=False, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._set_up_database()
            self._create_tables()
            self._remove_leftovers()
            self.key = signing.load_key(signing_key, folder)
            self._heads = audit.Heads(folder, self.key)
            durable.sync_folder(folder)
            self._bind_to(bundle_digest, purged)
            self._note_key()
        except (OSError, sqlite3.Error, StoreError) as error:
            raise StartError(f"the store cannot be opened: {type(error).__name__}") from error

    def close(self) -> None:
        self._db.close()
        self._lock_file.close()

    def work_folder(self, job_id: str) -> Path:
        """Where a job's worker may write."""
        return self._work / job_id

    def write_patch(self, data: bytes) -> str:
        """Make a patch durable under its digest, and return the digest. Raises StoreError."""
        digest = digest_of(data)
        try:
            durable.write(self.patch_path(digest), data)
        except OSError as error:
            raise _failed(error) from error
        return digest

    def patch_path(self, digest: str) -> Path:
        return self._patches / f"{digest}.safetensors"

    def active_version(self) -> int:
        with self._transaction() as db:
            return version_rows.active(db)

    def versions(self) -> list[VersionRecord]:
        """Every version, oldest first."""
        with self._transaction() as db:
            return [
                VersionRecord.from_row(row)
                for row in db.execute(
                    "SELECT versions.*, request, state, withdrawn.at AS withdrawn_at FROM versions"
                    " LEFT JOIN jobs USING (job_id) LEFT JOIN withdrawn ON withdrawn.version = versions.version"
                    " ORDER BY versions.version"
                )
            ]

    def job_of_request(self, request_id: str) -> JobRecord | None:
        """The job that this request id made, if it did."""
        with self._transaction() as db:
            row = db.execute("SELECT * FROM jobs WHERE request_id = ?", (request_id,)).fetchone()
        return None if row is None else JobRecord.from_row(row)

    def add_job(self, job: JobRecord) -> None:
        with self._transaction() as db:
            db.execute(
                "INSERT INTO jobs (job_id, request_id, request, state, created_at) VALUES (?, ?, ?, ?, ?)",
                (job.job_id, job.request_id, as_json(job.request), job.state, job.created_at),
            )
            audit.append(db, "job requested", job.job_id, None, job.request)
            failpoint("job-before-commit")

    def job(self, job_id: str) -> JobRecord:
        """Raises NotFoundError."""
        with self._transaction() as db:
            row = db.execute("SELECT * FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
        if row is None:
            raise NotFoundError("there is no such job", field="job_id", resource="job")
        return JobRecord.from_row(row)

    def jobs(self, limit: int) -> list[JobRecord]:
        """The newest first."""
        with self._transaction() as db:
            return [
                JobRecord.from_row(row) for row in db.execute("SELECT * FROM jobs ORDER BY seq DESC LIMIT ?", (limit,))
            ]

    def verify_audit(self) -> audit.Verified:
        """Raises audit.AuditError, dsse.SignatureError or OSError."""
        heads = audit.read_heads(self._folder / audit.HEADS_FILE)
        keys = signing.published_keys(self._folder)
        with self._transaction() as db:
            return audit.verify(db, heads, keys)

    def audit_of(self, job_id: str) -> list[audit.Record]:
        """What the audit record says of a job, oldest first."""
        with self._transaction() as db:
            return audit.records(db, job_id)

    def record_swap(self, version: int, job_id: str | None, at: float, seconds: Sequence[CallsInSecond]) -> None:
        with self._transaction() as db:
            swaps.add(db, version, job_id, at, seconds)

    def calls_around_swap(self, job_id: str) -> tuple[CallsInSecond, ...]:
        """Of the swap to the job's version; empty if none was recorded."""
        with self._transaction() as db:
            return swaps.of_job(db, job_id)

    def last_ended_job(self) -> JobRecord | None:
        with self._transaction() as db:
            row = db.execute(
                "SELECT * FROM jobs WHERE finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT 1"
            ).fetchone()
        return None if row is None else JobRecord.from_row(row)

    def unfinished_jobs(self) -> list[JobRecord]:
        """The oldest first."""
        ended = [state for state in JobState if state.ended]
        marks = ",".join("?" * len(ended))
        with self._transaction() as db:
            rows = db.execute(f"SELECT * FROM jobs WHERE state NOT IN ({marks}) ORDER BY seq", ended)  # noqa: S608
            return [JobRecord.from_row(row) for row in rows]

    def job_counts(self) -> dict[JobState, int]:
        with self._transaction() as db:
            rows = db.execute("SELECT state, count(*) AS count FROM jobs GROUP BY state").fetchall()
        return {JobState(row["state"]): row["count"] for row in rows}

    def start_job(self, job_id: str, detail: dict[str, Any]) -> None:
        """RUNNING, one more attempt; a job that has ended stays as it is."""
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET state = ?, attempts = attempts + 1, detail = ?, started_at = ?"
                " WHERE job_id = ? AND finished_at IS NULL",
                (JobState.RUNNING, as_json(detail), time.time(), job_id),
            )

    def release_job(self, job_id: str) -> None:
        """Back to the queue, as if this attempt had not been: the server stops of its own will."""
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET state = ?, attempts = attempts - 1 WHERE job_id = ? AND finished_at IS NULL",
                (JobState.QUEUED, job_id),
            )

    def update_job(self, job_id: str, state: JobState, detail: dict[str, Any], error: str = "") -> None:
        """Record a job's state; the end gets its time and an audit record, and nothing changes the job after it."""
        with self._transaction() as db:
            updated = db.execute(
                "UPDATE jobs SET state = ?, detail = ?, error = ?, finished_at = ?"
                " WHERE job_id = ? AND finished_at IS NULL",
                (state, as_json(detail), error, time.time() if state.ended else None, job_id),
            ).rowcount
            if updated and state.ended:
                audit.append(db, f"job {state.lower()}", job_id, None, {**detail, "error": error})
                failpoint("end-before-commit")

    def activate_patch(self, job_id: str, forgotten: Sequence[str], patch_digest: str, detail: dict[str, Any]) -> int:
        """In one transaction: the version, the active pointer, the job's state and the audit record.

        Returns the new version. The patch must be durable before. What is staged is given up, as by all that changes
        the active version.
        """
        with self._transaction() as db:
            version = version_rows.add(db, job_id, forgotten, patch_digest, JobState.ACTIVATING, detail)
            version_rows.activate(db, version)
            audit.append(db, "version activated", job_id, version, audit.made(forgotten, patch_digest))
            failpoint("version-before-commit")
        return version

    def stage_patch(self, job_id: str, forgotten: Sequence[str], patch_digest: str, detail: dict[str, Any]) -> int:
        """The same for a version that is to be kept until it is promoted or withdrawn: the active pointer stays."""
        with self._transaction() as db:
            version = version_rows.add(db, job_id, forgotten, patch_digest, JobState.STAGED, detail)
            audit.append(db, "version staged", job_id, version, audit.made(forgotten, patch_digest))
            failpoint("version-before-commit")
        return version

    def staged_job(self, version: int) -> JobRecord:
        """The job that waits with this version; raises NotFoundError or PreconditionError."""
        with self._transaction() as db:
            return version_rows.staged_job(db, version)

    def promote(self, version: int, evidence: dict[str, Any]) -> None:
        """In one transaction: the active pointer, the state of the version's job, and the audit record.

        `evidence` is what is known of the version's rollout, for the record.
        """
        with self._transaction() as db:
            job_id = version_rows.staged_job(db, version).job_id
            db.execute("UPDATE jobs SET state = ? WHERE job_id = ?", (JobState.ACTIVATING, job_id))
            version_rows.activate(db, version)
            audit.append(db, "version promoted", job_id, version, evidence)
            failpoint("promotion-before-commit")

    def withdraw(self, version: int) -> None:
        """End a staged version and its job, CANCELLED. The rows stay for the record."""
        with self._transaction() as db:
            version_rows.withdraw(db, version_rows.staged_job(db, version), JobState.CANCELLED, "")
            failpoint("withdrawal-before-commit")

    def remove_withdrawn_patches(self) -> None:
        """Delete the patch file of each withdrawn version, unless a version that can still answer names it too.

        What cannot be deleted now is deleted by a later call. Raises StoreError.
        """
        with self._transaction() as db:
            withdrawn = version_rows.digests_withdrawn(db)
        _remove(map(self.patch_path, withdrawn))

    def rollout(self) -> RolloutRecord | None:
        """The staged version that takes part in the traffic, if one does."""
        with self._transaction() as db:
            return version_rows.rollout(db)

    def set_rollout(self, rollout: RolloutRecord) -> None:
        """Raises NotFoundError or PreconditionError if the version is not staged."""
        fields = {"version": rollout.version, "since": rollout.since, **asdict(rollout.shares)}
        with self._transaction() as db:
            job_id = version_rows.staged_job(db, rollout.version).job_id
            db.execute("INSERT OR REPLACE INTO state (name, value) VALUES ('rollout', ?)", (as_json(fields),))
            audit.append(db, "rollout set", job_id, rollout.version, asdict(rollout.shares))
            failpoint("rollout-before-commit")

    def roll_back(self, version: int, reason: str, restored: Sequence[str] = ()) -> None:
        """Move the active pointer to a version that can answer, and record why, and which labels it gives back.

        Raises NotFoundError.
        """
        with self._transaction() as db:
            version_rows.check_there(db, version)
            version_rows.activate(db, version)
            audit.append(db, "rolled back", None, version, {"reason": reason, "restored": list(restored)})
            failpoint("rollback-before-commit")

    def _set_up_database(self) -> None:
        """Raises StartError where the promises of a commit can't be kept."""
        (mode,) = self._db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StartError("the store's database cannot be in WAL mode: give it a local disk")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise StartError("the store's database is corrupt")
        log.info("SQLite %s", sqlite3.sqlite_version)

    def _remove_leftovers(self) -> None:
        """What a process that was killed had not finished: parts of files, and the work of its jobs."""
        for path in self._patches.glob(f"*{durable.UNFINISHED}"):
            path.unlink()
        for path in self._work.iterdir():
            shutil.rmtree(path, ignore_errors=True)

    def _create_tables(self) -> None:
        known = self._db.execute("PRAGMA user_version").fetchone()[0]
        if known != SCHEMA_VERSION and self._db.execute("SELECT 1 FROM sqlite_schema").fetchone():
            raise StartError("the store was made by a version of Amnestic that this one cannot read")
        # All at once: half of the tables, without their version, would be taken for those of another Amnestic.
        tables = f"{version_rows.TABLES}{JOBS}{audit.TABLE}{swaps.TABLE}"
        self._db.executescript(f"BEGIN;{tables}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")

    def _bind_to(self, bundle_digest: str, purged: Purged | None) -> None:
        with self._transaction() as db:
            row = db.execute("SELECT value FROM state WHERE name = 'bundle_digest'").fetchone()
            if row is None:
                if any(self._patches.glob("*.safetensors")):
                    # Taken for a new store, it would serve the base: all that was forgotten would be back.
                    raise StartError("the store has patches but no record of them: its database was lost")
                version_rows.begin(db, bundle_digest, purged)
            elif purged and row["value"] == purged.before:
                version_rows.take_over(db, bundle_digest, purged)
            elif row["value"] != bundle_digest:
                raise StartError("the store belongs to another bundle: give each bundle a store of its own")

    def request_purge(self, version: int, reason: str) -> None:
        """Record that all but this version are about to be purged, and why."""
        with self._transaction() as db:
            audit.append(db, "purge requested", None, version, {"reason": reason})

    def purge(self, bundle_digest: str, purged: Purged) -> None:
        """Belong to what the bundle became, of whose versions one alone is left: the bundle itself."""
        with self._transaction() as db:
            version_rows.take_over(db, bundle_digest, purged)

    def remove_unneeded_patches(self) -> bool:
        """Delete the patches that no version needs, not while jobs run; false if one could not be deleted now.

        Raises StoreError.
        """
        with self._transaction() as db:
            needed = {self.patch_path(digest) for digest in version_rows.digests_needed(db)}
        return _remove(path for path in self._patches.iterdir() if path not in needed)

    def _note_key(self) -> None:
        """Record which key signs from here on, where it is another than before."""
        key = dsse.key_id(self.key.public_key())
        with self._transaction() as db:
            row = db.execute("SELECT value FROM state WHERE name = 'signing_key'").fetchone()
            if row is None or row["value"] != key:
                db.execute("INSERT OR REPLACE INTO state (name, value) VALUES ('signing_key', ?)", (key,))
                audit.append(db, "signing key set", None, None, {"key": key})

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it is committed, or nothing. Raises StoreError where the disk or the database fails."""
        with self._mutex:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                # SQLite may have rolled back by itself, as on a full disk.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if _of_storage(error):
                    raise _failed(error) from error
                raise
            self._heads.advance(self._db)


def _of_storage(error: BaseException) -> bool:
    """Whether it tells of the disk or of a damaged database, and not of a wrong statement or a broken constraint."""
    return isinstance(error, OSError | sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError


def _failed(error: BaseException) -> StoreError:
    cause = errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) else None
    log.error("the store failed: %s", cause or getattr(error, "sqlite_errorname", type(error).__name__))
    return StoreError()


def _remove(patches: Iterable[Path]) -> bool:
    """Delete files, as far as that is possible; false if one is left."""
    all_gone = True
    for path in patches:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.error("a patch that no version needs could not be removed: %s", type(error).__name__)
            all_gone = False
    return all_gone


def _lock(path: Path) -> IO[bytes]:
    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise StartError("the store is in use by another process") from None
    return file

"""The audit record: a line for every change and every request for one, each bound to all before it by its digest.

A record's digest is the SHA-256 of its fields as JSON, with sorted keys and no blanks, the digest of the record before
among them. So none can be edited, taken out, put in or moved without all after it changing. Whoever can write the
store could write them all anew; therefore the last digest is signed after each change, and the signed heads stand in
a file beside the database, to be kept elsewhere too. What that does not find is an owner of the key who rewrites
records, heads and every copy of them.
"""

import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from amnestic import dsse
from amnestic_server import caller
from amnestic_server.failpoints import failpoint

log = logging.getLogger(__name__)

TABLE = """
CREATE TABLE IF NOT EXISTS audit (
    seq     INTEGER PRIMARY KEY,           -- 1, 2, 3 and so on, without a gap
    at      REAL NOT NULL,                 -- seconds since the epoch
    action  TEXT NOT NULL,
    job_id  TEXT,
    version INTEGER,
    caller  TEXT NOT NULL,                 -- who asked for it, as access control knows them; empty if it does not
    detail  TEXT NOT NULL,                 -- JSON
    digest  TEXT NOT NULL                  -- of this record and, through it, of all before
) STRICT;
"""
DATABASE = "amnestic.db"
HEADS_FILE = "audit-heads.jsonl"
HEAD_TYPE = "application/vnd.amnestic.audit-head+json"
# What the first record names as the digest before it.
NOTHING = "0" * 64
# Actions that make a version the active one.
_ACTIVATING = frozenset({"version activated", "version promoted", "rolled back"})
_MAKING = frozenset({"version activated", "version staged"})


class AuditError(ValueError):
    """The record is not as it was written. The text says where, and how that is known."""


@dataclass(frozen=True, slots=True)
class Record:
    """One line. `detail` is JSON as it is stored: the digest is over its text."""

    seq: int
    at: float
    action: str
    job_id: str | None
    version: int | None
    caller: str
    detail: str
    digest: str

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        return cls(*(row[name] for name in cls.__slots__))

    def digest_after(self, previous: str) -> str:
        """What the digest must be behind a record of the digest given."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "digest"}
        text = json.dumps({**fields, "previous": previous}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Head:
    """The record as far as `seq`, whose digest it is; `at` in seconds since the epoch."""

    seq: int
    digest: str
    at: float

    @classmethod
    def from_json(cls, payload: bytes) -> Self:
        return cls(**json.loads(payload))


@dataclass(frozen=True, slots=True)
class Verified:
    """What held: so many records and signed heads. `unsigned` records came after the last head: of a server that was
    killed between the two, which signs them at its next start.
    """

    records: int
    heads: int
    unsigned: int
    last: Head | None


def made(forgotten: Sequence[str], patch_digest: str) -> dict[str, Any]:
    """What is recorded of a new version, and found in the store again."""
    return {"forgotten": list(forgotten), "patch": patch_digest}


def append(db: sqlite3.Connection, action: str, job_id: str | None, version: int | None, detail: Any) -> None:
    """Add a record within a transaction of whoever calls this, in the name of the caller that it works for."""
    before = db.execute("SELECT seq, digest FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
    seq, previous = (1, NOTHING) if before is None else (before["seq"] + 1, before["digest"])
    by = caller.current().name
    record = Record(seq, time.time(), action, job_id, version, by, json.dumps(detail, sort_keys=True), "")
    values = {**asdict(record), "digest": record.digest_after(previous)}
    db.execute("INSERT INTO audit VALUES (:seq, :at, :action, :job_id, :version, :caller, :detail, :digest)", values)


def records(db: sqlite3.Connection, job_id: str | None = None) -> list[Record]:
    """Every record, or those of a job, oldest first."""
    where, values = ("", ()) if job_id is None else ("WHERE job_id = ?", (job_id,))
    return [Record.from_row(row) for row in db.execute(f"SELECT * FROM audit {where} ORDER BY seq", values)]  # noqa: S608


class Heads:
    """Signs the last record's digest after each change, and adds it to a file."""

    def __init__(self, folder: Path, key: Ed25519PrivateKey) -> None:
        self._path = folder / HEADS_FILE
        self._path.touch(0o640)
        self._key = key
        self._signed = 0

    def advance(self, db: sqlite3.Connection) -> None:
        """Sign what was added since the last time. What cannot be written now is signed with what comes next: it is
        committed, so nothing is raised.
        """
        try:
            row = db.execute("SELECT seq, digest FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
            if row is None or row["seq"] == self._signed:
                return
            head = Head(row["seq"], row["digest"], time.time())
            failpoint("head-before-signing")
            self._write(dsse.sign(HEAD_TYPE, json.dumps(asdict(head), sort_keys=True).encode(), self._key))
            failpoint("head-signed")
        except (OSError, sqlite3.Error) as error:
            log.error("the head of the audit record could not be written: %s", type(error).__name__)
            return
        self._signed = head.seq
        # For whoever keeps the log away from the store.
        log.info("audit record %d: %s", head.seq, head.digest)

    def _write(self, line: str) -> None:
        with self._path.open("ab") as file:
            # The end of a line that a crash cut off is closed first.
            file.write((b"" if _ends_whole(self._path) else b"\n") + f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def reading(store: Path) -> Iterator[sqlite3.Connection]:
    """A store's database, read as it is at this moment, beside a server that may be running. Raises sqlite3.Error.

    A second connection, then, but one that can't write: it neither appends to the log of changes nor brings it into the
    database, which is where the fault of SQLite's logs before 3.51.3 lies (see `store`).
    """
    db = sqlite3.connect(f"file:{quote(str((store / DATABASE).absolute()))}?mode=ro", uri=True)
    try:
        db.row_factory = sqlite3.Row
        db.execute("BEGIN")
        yield db
    finally:
        db.close()


def verify(db: sqlite3.Connection, heads: Sequence[str], keys: Sequence[Ed25519PublicKey]) -> Verified:
    """Check that the record is whole: the chain of its digests, the signed heads, and that the store is as it says.

    `heads` are envelopes, from the store's own file and from copies kept elsewhere, in any order; those of the file may
    end in one that a crash cut off. Raises AuditError at the first thing found.
    """
    chain = _chain(db)
    signed = [_head(line, keys) for line in heads]
    for head in signed:
        if head.seq > len(chain):
            raise AuditError(f"records after {len(chain)} are gone: record {head.seq} was signed")
        if chain[head.seq - 1].digest != head.digest:
            raise AuditError(f"records up to {head.seq} were written anew: another digest was signed")
    _check_state(db, chain)
    last = max(signed, key=lambda head: head.seq, default=None)
    return Verified(len(chain), len(signed), len(chain) - (last.seq if last else 0), last)


def read_heads(path: Path) -> list[str]:
    """The envelopes of a file of heads; a line that a crash cut off is left out. Raises OSError."""
    return [line for line in path.read_text().splitlines() if _is_json(line)]


def _chain(db: sqlite3.Connection) -> list[Record]:
    chain, previous = list[Record](), NOTHING
    for position, record in enumerate(records(db), start=1):
        if record.seq != position:
            raise AuditError(f"record {position} is gone")
        if record.digest != record.digest_after(previous):
            raise AuditError(f"record {position} is not what was written, or not where")
        chain.append(record)
        previous = record.digest
    return chain


def _head(line: str, keys: Sequence[Ed25519PublicKey]) -> Head:
    try:
        return Head.from_json(dsse.verify(line, HEAD_TYPE, keys))
    except dsse.SignatureError as error:
        raise AuditError(f"a head of the record is no good: {error}") from error


def _check_state(db: sqlite3.Connection, chain: Sequence[Record]) -> None:
    """That versions and the active pointer are what the record says came of it all."""
    recorded = {record.version: json.loads(record.detail) for record in chain if record.action in _MAKING}
    for row in db.execute("SELECT version, forgotten, patch_digest FROM versions WHERE patch_digest IS NOT NULL"):
        detail = recorded.pop(row["version"], None)
        if detail != made(json.loads(row["forgotten"]), row["patch_digest"]):
            raise AuditError(f"version {row['version']} is not the one that was recorded")
    for version in recorded:
        raise AuditError(f"version {version} was recorded and is gone")
    active = next((record.version for record in reversed(chain) if record.action in _ACTIVATING), None)
    row = db.execute("SELECT value FROM state WHERE name = 'active_version'").fetchone()
    if active is not None and (row is None or int(row["value"]) != active):
        raise AuditError(f"version {active} was made the active one, and another is")


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"

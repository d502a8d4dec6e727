"""What callers felt around each change of the active version, as it is stored, by second.

It is this server's own measurement and no part of a receipt, which is issued before it is complete. It holds figures
alone.
"""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict

from amnestic_server.recent_calls import CallsInSecond

TABLE = """
CREATE TABLE IF NOT EXISTS swaps (
    seq     INTEGER PRIMARY KEY,
    version INTEGER NOT NULL REFERENCES versions (version),
    job_id  TEXT UNIQUE,                   -- the job whose version it is; NULL for a rollback
    at      REAL NOT NULL,                 -- seconds since the epoch
    calls   TEXT NOT NULL                  -- JSON array: by second, from before the change to after it
) STRICT;
"""


def add(db: sqlite3.Connection, version: int, job_id: str | None, at: float, seconds: Sequence[CallsInSecond]) -> None:
    calls = json.dumps([asdict(second) for second in seconds])
    db.execute("INSERT INTO swaps (version, job_id, at, calls) VALUES (?, ?, ?, ?)", (version, job_id, at, calls))


def of_job(db: sqlite3.Connection, job_id: str) -> tuple[CallsInSecond, ...]:
    """Empty if none was recorded."""
    row = db.execute("SELECT calls FROM swaps WHERE job_id = ?", (job_id,)).fetchone()
    return () if row is None else tuple(CallsInSecond(**second) for second in json.loads(row["calls"]))

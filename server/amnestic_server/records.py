"""Versions and jobs as they are stored, and read again."""

import json
from dataclasses import dataclass, field
from enum import StrEnum
from sqlite3 import Row
from typing import Any, Self

from amnestic_server.request import relaxed_gates


class JobState(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    GATING = "GATING"
    STAGED = "STAGED"
    ACTIVATING = "ACTIVATING"
    SUCCEEDED = "SUCCEEDED"
    REJECTED = "REJECTED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.REJECTED, JobState.FAILED, JobState.CANCELLED)

    @property
    def rests(self) -> bool:
        """True if it has ended, or waits for somebody to promote or cancel it."""
        return self.ended or self is JobState.STAGED


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version; `relaxed_gates` are the limits that the request behind it set looser than the defaults.

    `staged` if it waits to be promoted, `withdrawn` if it was and was given up.
    """

    version: int
    forgotten: tuple[str, ...]
    patch_digest: str | None
    job_id: str | None
    created_at: float
    relaxed_gates: tuple[str, ...] = ()
    staged: bool = False
    withdrawn: bool = False

    @classmethod
    def from_row(cls, row: Row) -> Self:
        """Of a row of `versions`, with its job's `request` and `state`, and `withdrawn_at`."""
        request = {} if row["request"] is None else json.loads(row["request"])
        return cls(
            row["version"],
            tuple(json.loads(row["forgotten"])),
            row["patch_digest"],
            row["job_id"],
            row["created_at"],
            relaxed_gates(request),
            row["state"] == JobState.STAGED,
            row["withdrawn_at"] is not None,
        )


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job as it is stored. `request` and `detail` are JSON objects; times are seconds since the epoch."""

    job_id: str
    request_id: str | None
    request: dict[str, Any]
    state: JobState
    attempts: int = 0
    detail: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    version: int | None = None
    created_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None

    @classmethod
    def from_row(cls, row: Row) -> Self:
        """Of a row of `jobs`."""
        fields = {name: row[name] for name in row.keys() if name != "seq"}  # noqa: SIM118  (sqlite3.Row iterates values)
        fields |= {
            "request": json.loads(row["request"]),
            "detail": json.loads(row["detail"]),
            "state": JobState(row["state"]),
        }
        return cls(**fields)

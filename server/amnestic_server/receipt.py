"""The receipt of a job: what was asked for, what changed and what was measured, as a signed statement.

An in-toto statement (v1) about the patch, whose predicate is ours, in a DSSE envelope. It is made from the store
whenever it is asked for, and says the same each time: everything in it was recorded when it happened, and the audit
record that holds it is named by its digest.
"""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from amnestic import dsse
from amnestic_server.audit import Record
from amnestic_server.errors import PreconditionError
from amnestic_server.records import JobRecord, JobState

STATEMENT = "https://in-toto.io/Statement/v1"
CLAIM = {
    "level": "class-level behaviour, measured",
    "claimed": [
        "the patch changes the listed rows of the token-embedding table and the classifier's head, and nothing else",
        "the figures under `measured` were taken from the served path with the gate split of the corpus named",
        "the limits were recorded before the training began, in the audit record under `requested`",
    ],
    "not_claimed": [
        "certified or provable deletion of what the model learned",
        "deletion of a patient's data, or of any document from a training set",
        "that nobody can recover the labels from the model: probe_ratio says how much a fresh linear probe still finds",
        "anything about other copies of the model, among them the bundle and earlier versions that know the labels",
        "fitness for a clinical purpose",
    ],
}
_WITH_RECEIPT = (JobState.SUCCEEDED, JobState.REJECTED)


def issue(job: JobRecord, audit: Sequence[Record], key: Ed25519PrivateKey) -> str:
    """The envelope for a job that SUCCEEDED or was REJECTED, as a line of JSON.

    `audit` are the job's records, oldest first. Raises PreconditionError for another job: nothing was measured then,
    or not yet.
    """
    if job.state not in _WITH_RECEIPT:
        raise PreconditionError(
            "a job has a receipt once it succeeded or was rejected", field="job_id", reason="JOB_WITHOUT_RECEIPT"
        )
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": "patch", "digest": {"sha256": job.detail["change"]["patch_digest"]}}],
        "predicateType": dsse.RECEIPT,
        "predicate": _predicate(job, audit),
    }
    return dsse.sign(dsse.IN_TOTO, json.dumps(statement, sort_keys=True, allow_nan=False).encode(), key)


def _predicate(job: JobRecord, audit: Sequence[Record]) -> dict[str, Any]:
    request, detail = job.request, job.detail
    change = dict(detail["change"])
    corpus = change.pop("corpus_digest")
    method = change.pop("method")
    return {
        "job": {"id": job.job_id, "outcome": job.state.value, "version": job.version, "attempts": job.attempts},
        "request": {
            "id": job.request_id,
            "by": audit[0].caller,
            "labels": request["labels"],
            "reason": request["reason"],
            "dry_run": request["dry_run"],
            "stage": request["stage"],
            "preset": request["preset"],
            "limits": request["limits"],
            "relaxed_gates": request["relaxed_gates"],
        },
        "forgotten": detail["forgotten"],
        "method": method,
        "inputs": {
            "bundle": detail["bundle"],
            "corpus": corpus,
        },
        "change": change,
        "gates": [{**gate, "value": _number(gate["value"])} for gate in detail["gates"]],
        "measured": {name: _numbers(values) for name, values in detail["measured"].items()},
        # A job of before they were recorded has none, and its receipt stays what it was.
        **({"counts": detail["counts"]} if "counts" in detail else {}),
        "environment": detail["environment"],
        "times": {
            "requested": _time(job.created_at),
            "begun": _time(job.started_at),
            "ended": _time(job.finished_at),
            "swap_seconds": detail.get("swap_seconds"),
        },
        "audit": {"requested": _named(audit[0]), "ended": _named(audit[-1])},
        "claim": CLAIM,
    }


def _named(record: Record) -> dict[str, Any]:
    return {"seq": record.seq, "action": record.action, "digest": record.digest}


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _time(seconds: float | None) -> str | None:
    """RFC 3339."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")

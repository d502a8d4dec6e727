"""Every call of the API, described once for both clients: where it goes, what it sends, how its answer is read.

A `Call` does no input or output. `client` and `asyncio_client` run it over their kind of channel, and turn
gRPC's errors into ours.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from amnestic.v1 import prediction_pb2, unlearning_pb2
from amnestic_client import convert, settings, types
from amnestic_client.errors import AmnesticError, Unavailable

Result = TypeVar("Result")

_PREDICTION = prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"]
_UNLEARNING = unlearning_pb2.DESCRIPTOR.services_by_name["UnlearningService"]


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """One call ready to be made: serialised `request` to `path`, its answer read by `parse`.

    `timeout` is the default in seconds; None for no deadline, which only streams may have.
    """

    path: str
    request: bytes
    parse: Callable[[bytes], Result]
    timeout: float | None


def predict(
    documents: str | Sequence[str], version: int | None, routing_key: str | None, include_features: bool
) -> Call[types.PredictResult]:
    return _call(
        _PREDICTION,
        "Predict",
        convert.predict_request(documents, version, routing_key, include_features),
        convert.predict_result,
    )


def get_model() -> Call[types.Model]:
    return _call(
        _PREDICTION,
        "GetModel",
        prediction_pb2.GetModelRequest(),
        convert.model,
    )


def status() -> Call[types.Status]:
    return _call(
        _PREDICTION,
        "GetStatus",
        prediction_pb2.GetStatusRequest(),
        convert.status,
    )


def unlearn(
    labels: str | Sequence[str],
    request_id: str | None,
    dry_run: bool,
    stage: bool,
    method: types.Method | Mapping[str, Any] | None,
    gates: types.GateLimits | Mapping[str, Any] | None,
    reason: str,
) -> Call[types.Job]:
    return _call(
        _UNLEARNING,
        "Unlearn",
        convert.unlearn_request(
            labels,
            request_id=request_id,
            dry_run=dry_run,
            stage=stage,
            method=method,
            gates=gates,
            reason=reason,
        ),
        lambda answer: convert.job(answer.job),
    )


def watch_job(job_id: str) -> Call[types.Job]:
    return _call(
        _UNLEARNING,
        "WatchJob",
        convert.job_request(unlearning_pb2.WatchJobRequest, job_id),
        lambda answer: convert.job(answer.job),
    )


def get_job(job_id: str) -> Call[types.Job]:
    return _call(
        _UNLEARNING,
        "GetJob",
        convert.job_request(unlearning_pb2.GetJobRequest, job_id),
        lambda answer: convert.job(answer.job),
    )


def receipt(job_id: str) -> Call[types.Receipt]:
    return _call(
        _UNLEARNING,
        "GetReceipt",
        convert.job_request(unlearning_pb2.GetReceiptRequest, job_id),
        lambda answer: types.Receipt(answer.envelope, answer.public_key),
    )


def list_jobs(limit: int | None) -> Call[tuple[types.Job, ...]]:
    return _call(
        _UNLEARNING,
        "ListJobs",
        convert.list_jobs_request(limit),
        lambda answer: tuple(map(convert.job, answer.jobs)),
    )


def cancel_job(job_id: str) -> Call[types.Job]:
    return _call(
        _UNLEARNING,
        "CancelJob",
        convert.job_request(unlearning_pb2.CancelJobRequest, job_id),
        lambda answer: convert.job(answer.job),
    )


def list_versions() -> Call[tuple[types.Version, ...]]:
    return _call(
        _UNLEARNING,
        "ListVersions",
        unlearning_pb2.ListVersionsRequest(),
        lambda answer: tuple(map(convert.version, answer.versions)),
    )


def rollback(version: int, reason: str, restore_forgotten: bool) -> Call[types.Version]:
    return _call(
        _UNLEARNING,
        "Rollback",
        convert.rollback_request(version, reason, restore_forgotten),
        lambda answer: convert.version(answer.version),
    )


def purge(version: int, reason: str) -> Call[types.Version]:
    return _call(
        _UNLEARNING,
        "Purge",
        convert.purge_request(version, reason),
        lambda answer: convert.version(answer.version),
    )


def promote(version: int) -> Call[types.Version]:
    return _call(
        _UNLEARNING,
        "PromoteVersion",
        convert.promote_request(version),
        lambda answer: convert.version(answer.version),
    )


def set_rollout(version: int | None, canary_share: float | None, shadow_share: float | None) -> Call[types.Rollout]:
    return _call(
        _UNLEARNING,
        "SetRollout",
        convert.set_rollout_request(version, canary_share, shadow_share),
        lambda answer: convert.rollout(answer.rollout),
    )


def rollout() -> Call[types.Rollout | None]:
    return _call(
        _UNLEARNING,
        "GetRollout",
        unlearning_pb2.GetRolloutRequest(),
        lambda answer: convert.rollout(answer.rollout) if answer.HasField("rollout") else None,
    )


def check_health() -> Call[bool]:
    """The standard health service (grpc.health.v1), asked about the server as a whole.

    Its two messages are written by hand, so that the base install needs no package for them: the empty request
    means the whole server, and field 1 of the answer is 1 for SERVING.
    """
    return Call("/grpc.health.v1.Health/Check", b"", lambda data: data == b"\x08\x01", settings.PROBE_TIMEOUT)


class Fork:
    """Tells a process that was forked off from the one that made a client.

    gRPC's threads stay behind in the parent, so a call in the child would hang until its deadline.
    """

    def __init__(self) -> None:
        self._process = os.getpid()

    def check(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("a client does not survive a fork; make one in each process")


class JobWatch:
    """A watch as it outlives its streams: decides which answers are news, and when to give up.

    The server may restart while the job goes on, so a stream that breaks is taken up again, a bounded number
    of times in a row. One that never answered is not: then there is no server or no such job.
    """

    def __init__(self, job_id: str, timeout: float | None) -> None:
        self.call = watch_job(job_id)
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._last: types.Job | None = None
        self._broken = 0

    @property
    def ended(self) -> bool:
        return self._last is not None and self._last.state.ended

    def seconds_left(self) -> float | None:
        """Until the caller's deadline, not below 0; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def news(self, data: bytes) -> types.Job | None:
        """The job in one answer; None if a stream that was taken up again repeats what is known."""
        self._broken = 0
        job = self.call.parse(data)
        if job == self._last:
            return None
        self._last = job
        return job

    def pause_after(self, error: AmnesticError) -> float:
        """Seconds to wait before the next stream; raises the error if there shall be none."""
        self._broken += 1
        if not isinstance(error, Unavailable) or self._last is None or self._broken > settings.WATCH_RECONNECTS:
            raise error
        pause = min(settings.WATCH_FIRST_PAUSE * 2.0 ** (self._broken - 1), settings.WATCH_LONGEST_PAUSE)
        left = self.seconds_left()
        return pause if left is None else min(pause, left)

    def pause_after_end(self) -> float:
        """As `pause_after`, for a stream that closed in good order."""
        return 0.0 if self.ended else self.pause_after(Unavailable("the server ended the watch before the job"))


def _call(
    service: ServiceDescriptor,
    method: str,
    request: Message,
    read: Callable[[Any], Result],
) -> Call[Result]:
    response = GetMessageClass(service.methods_by_name[method].output_type)
    path = f"/{service.full_name}/{method}"
    return Call(
        path=path,
        request=request.SerializeToString(),
        parse=lambda data: read(response.FromString(data)),
        timeout=settings.timeout_of(path),
    )

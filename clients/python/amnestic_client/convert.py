"""Between the wire's messages and the client's types; nothing else in the client touches a message's fields.

Requests raise InvalidArgument, naming the field or the document's number, for what the wire cannot carry. What
it can carry is the server's to judge.
"""

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.message import Message

from amnestic.v1 import prediction_pb2, unlearning_pb2
from amnestic_client import types
from amnestic_client.errors import InvalidArgument

T = TypeVar("T")
State = TypeVar("State", types.JobState, types.ServerState)
AboutJob = TypeVar(
    "AboutJob",
    unlearning_pb2.WatchJobRequest,
    unlearning_pb2.GetJobRequest,
    unlearning_pb2.GetReceiptRequest,
    unlearning_pb2.CancelJobRequest,
)


def predict_request(
    documents: str | Sequence[str], version: int | None, routing_key: str | None, include_features: bool
) -> prediction_pb2.PredictRequest:
    texts = [documents] if isinstance(documents, str) else list(documents)
    for number, text in enumerate(texts, 1):
        check_text(text, f"document {number}")
    check_text(routing_key or "", "routing_key")
    request = prediction_pb2.PredictRequest(documents=texts, include_features=include_features)
    _set(request, "version", version)
    _set(request, "routing_key", routing_key)
    return request


def unlearn_request(
    labels: str | Sequence[str],
    *,
    request_id: str | None,
    dry_run: bool,
    stage: bool,
    method: types.Method | Mapping[str, Any] | None,
    gates: types.GateLimits | Mapping[str, Any] | None,
    reason: str,
) -> unlearning_pb2.UnlearnRequest:
    names = [labels] if isinstance(labels, str) else list(labels)
    for name in names:
        check_text(name, "a label")
    check_text(reason, "reason")
    request = unlearning_pb2.UnlearnRequest(labels=names, dry_run=dry_run, stage=stage, reason=reason)
    _set(request, "request_id", request_id or str(uuid.uuid4()))
    _set_all(request.method, method, types.Method)
    _set_all(request.gates, gates, types.GateLimits)
    return request


def job_request(kind: type[AboutJob], job_id: str) -> AboutJob:
    request = kind()
    _set(request, "job_id", job_id)
    return request


def rollback_request(version: int, reason: str, restore_forgotten: bool) -> unlearning_pb2.RollbackRequest:
    check_text(reason, "reason")
    request = unlearning_pb2.RollbackRequest(reason=reason, restore_forgotten=restore_forgotten)
    _set(request, "version", version)
    return request


def purge_request(version: int, reason: str) -> unlearning_pb2.PurgeRequest:
    check_text(reason, "reason")
    request = unlearning_pb2.PurgeRequest(reason=reason)
    _set(request, "version", version)
    return request


def promote_request(version: int) -> unlearning_pb2.PromoteVersionRequest:
    request = unlearning_pb2.PromoteVersionRequest()
    _set(request, "version", version)
    return request


def set_rollout_request(
    version: int | None, canary_share: float | None, shadow_share: float | None
) -> unlearning_pb2.SetRolloutRequest:
    request = unlearning_pb2.SetRolloutRequest()
    _set(request, "version", version)
    _set(request, "canary_share", canary_share)
    _set(request, "shadow_share", shadow_share)
    return request


def list_jobs_request(limit: int | None) -> unlearning_pb2.ListJobsRequest:
    request = unlearning_pb2.ListJobsRequest()
    _set(request, "limit", limit)
    return request


def predict_result(response: prediction_pb2.PredictResponse) -> types.PredictResult:
    return types.PredictResult(response.version, tuple(map(_prediction, response.predictions)))


def model(response: prediction_pb2.GetModelResponse) -> types.Model:
    labels = tuple(_label(label) for label in response.labels)
    return _record(
        types.Model,
        response,
        labels=labels,
        # Servers from before it was told are all multi-label, and cut long documents.
        problem_type=response.problem_type or "multi_label",
        long_documents=response.long_documents or "truncate",
        max_windows=response.max_windows or 1,
        pooling=response.pooling or "max",
    )


def status(response: prediction_pb2.GetStatusResponse) -> types.Status:
    return _record(
        types.Status,
        response,
        state=_state(prediction_pb2.ServerState, response.state, types.ServerState),
        forgotten=tuple(response.forgotten),
        forget_f1=dict(response.forget_f1),
        retain_f1=dict(response.retain_f1),
        load=_load(response.load),
        running_job=_summary(response.running_job) if response.HasField("running_job") else None,
        last_job=_summary(response.last_job) if response.HasField("last_job") else None,
        staged_versions=tuple(response.staged_versions),
        rollout=rollout(response.rollout) if response.HasField("rollout") else None,
    )


def job(message: unlearning_pb2.Job) -> types.Job:
    return _record(
        types.Job,
        message,
        state=_state(unlearning_pb2.JobState, message.state, types.JobState),
        labels=tuple(message.labels),
        forgotten=tuple(message.forgotten),
        method=_optionals(types.Method, message.method),
        gate_limits=_optionals(types.GateLimits, message.gate_limits),
        progress=_progress(message.progress) if message.HasField("progress") else None,
        gates=tuple(_record(types.Gate, gate, label=gate.label or None) for gate in message.gates),
        change=_change(message.change) if message.HasField("change") else None,
        version=message.version or None,
        error=message.error or None,
        created_at=_time(message, "created_at"),
        started_at=_time(message, "started_at"),
        finished_at=_time(message, "finished_at"),
        relaxed_gates=tuple(message.relaxed_gates),
        calls_around_swap=tuple(map(_second, message.calls_around_swap)),
    )


def version(message: unlearning_pb2.Version) -> types.Version:
    return _record(
        types.Version,
        message,
        forgotten=tuple(message.forgotten),
        job_id=message.job_id or None,
        patch_digest=message.patch_digest or None,
        created_at=_time(message, "created_at"),
        f1=dict(message.f1),
        relaxed_gates=tuple(message.relaxed_gates),
    )


def rollout(message: unlearning_pb2.Rollout) -> types.Rollout:
    return _record(
        types.Rollout,
        message,
        since=_time(message, "since"),
        counted_since=_time(message, "counted_since"),
        differences=tuple(_record(types.DecisionDifference, one) for one in message.differences),
    )


def _label(message: prediction_pb2.Label) -> types.Label:
    threshold = message.threshold if message.HasField("threshold") else None
    return types.Label(message.name, threshold, message.forgotten)


def _prediction(message: prediction_pb2.Prediction) -> types.Prediction:
    return types.Prediction(
        scores=tuple(
            types.LabelScore(score.label, score.probability, score.decision, score.forgotten)
            for score in message.scores
        ),
        tokens=message.tokens,
        truncated=message.truncated,
        features=tuple(message.features),
        windows=message.windows or 1,
    )


def _progress(message: unlearning_pb2.Progress) -> types.Progress:
    known = message.seconds_left >= 0
    return _record(types.Progress, message, seconds_left=message.seconds_left if known else None)


def _change(message: unlearning_pb2.ChangeReport) -> types.ChangeReport:
    return _record(types.ChangeReport, message, tokens=tuple(message.tokens))


def _second(message: Message) -> types.CallsInSecond:
    times = ("p50_seconds", "p99_seconds", "max_seconds")
    known = {name: getattr(message, name) if message.HasField(name) else None for name in times}
    return _record(types.CallsInSecond, message, **known)


def _load(message: prediction_pb2.Load) -> types.Load:
    timed = message.HasField("p50_seconds")
    return _record(
        types.Load,
        message,
        p50_seconds=message.p50_seconds if timed else None,
        p99_seconds=message.p99_seconds if timed else None,
    )


def _summary(message: prediction_pb2.JobSummary) -> types.JobSummary:
    return _record(
        types.JobSummary,
        message,
        state=_state(unlearning_pb2.JobState, message.state, types.JobState),
        labels=tuple(message.labels),
        progress=_progress(message.progress) if message.HasField("progress") else None,
        version=message.version or None,
        error=message.error or None,
        started_at=_time(message, "started_at"),
        finished_at=_time(message, "finished_at"),
    )


def _state(wire: Any, value: int, kind: type[State]) -> State:
    """A state by its name; UNSPECIFIED for one that is newer than this client."""
    prefix = wire.Name(0).removesuffix("UNSPECIFIED")
    try:
        return kind(wire.Name(value).removeprefix(prefix))
    except ValueError:
        return kind("UNSPECIFIED")


def _time(message: Message, field: str) -> datetime | None:
    if not message.HasField(field):
        return None
    moment: datetime = getattr(message, field).ToDatetime(tzinfo=UTC)
    return moment


def _record(kind: type[T], message: Message, **converted: Any) -> T:
    """A dataclass from the fields converted, and from the message's own of the same names."""
    names = (field.name for field in dataclasses.fields(kind))  # type: ignore[arg-type]
    return kind(**{name: converted[name] if name in converted else getattr(message, name) for name in names})


def _optionals(kind: type[T], message: Message) -> T:
    """A dataclass of a message's optional fields; None for those absent."""
    names = (field.name for field in dataclasses.fields(kind))  # type: ignore[arg-type]
    return kind(**{name: getattr(message, name) if message.HasField(name) else None for name in names})


def _set_all(message: Message, values: Any | Mapping[str, Any] | None, kind: type[Any]) -> None:
    """Set the fields that are not None; a mapping is read as the dataclass `kind`, so TypeError for a wrong name."""
    if values is None:
        return
    settings = kind(**values) if isinstance(values, Mapping) else values
    for field in dataclasses.fields(settings):
        _set(message, field.name, getattr(settings, field.name))


def _set(message: Message, field: str, value: Any) -> None:
    if value is None:
        return
    try:
        setattr(message, field, value)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{field} is out of range or of the wrong type") from None


def check_text(text: object, what: str) -> None:
    """Raise InvalidArgument for what is not a string that UTF-8 can write.

    The check is ours because the error of the encoder carries the whole text.
    """
    if not isinstance(text, str):
        raise InvalidArgument(f"{what} is not a string")
    if not _is_unicode(text):
        raise InvalidArgument(f"{what} is not valid Unicode: it holds a lone surrogate")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

"""The native gRPC services. A method converts, calls, converts; `calls` measures it and answers its errors."""

from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from amnestic.v1 import prediction_pb2 as prediction
from amnestic.v1 import prediction_pb2_grpc, unlearning_pb2_grpc
from amnestic.v1 import unlearning_pb2 as unlearning
from amnestic_server.bundle import Bundle
from amnestic_server.calls import Context, client, streaming, unary
from amnestic_server.engine import Engine
from amnestic_server.errors import InvalidArgumentError
from amnestic_server.jobs import Jobs, JobView
from amnestic_server.metrics import Metrics
from amnestic_server.prediction import DocumentScores, Predictor
from amnestic_server.records import JobState, VersionRecord
from amnestic_server.request import UnlearnRequest
from amnestic_server.rollout import check_routing_key
from amnestic_server.settings import Settings
from amnestic_server.snapshot import Snapshot, Snapshots
from amnestic_server.staging import RolloutView, Staging
from amnestic_server.status import Status, StatusReport
from amnestic_server.versions import Versions
from amnestic_unlearn.manifest import ENCODER_ONNX, Manifest
from amnestic_unlearn.spec import DEFAULT_PRESET, GateLimits, SettingError, method_of

DEFAULT_JOB_LIMIT = 100
MAX_JOB_LIMIT = 10_000
MAX_REASON_CHARACTERS = 2_000


class PredictionService(prediction_pb2_grpc.PredictionServiceServicer):
    def __init__(
        self,
        predictor: Predictor,
        snapshots: Snapshots,
        bundle: Bundle,
        engine: Engine,
        settings: Settings,
        metrics: Metrics,
        status: StatusReport,
    ) -> None:
        self.metrics = metrics
        self._status = status
        self._predictor = predictor
        self._snapshots = snapshots
        self._bundle = bundle
        self._engine = engine
        self._settings = settings

    @unary
    async def Predict(self, request: prediction.PredictRequest, context: Context) -> prediction.PredictResponse:  # noqa: N802
        pin = self._snapshots.pin(request.version, check_routing_key(request.routing_key))
        # Held until the answer has left: who sees a job SUCCEEDED gets no older answer afterwards.
        context.add_done_callback(lambda _: pin.release())  # type: ignore[arg-type]  # the stubs want a class
        scores = await self._predictor.predict(request.documents, pin, context.time_remaining(), client(context))
        manifest = self._bundle.manifest
        return prediction.PredictResponse(
            version=pin.snapshot.version,
            predictions=[_prediction(score, pin.snapshot, manifest, request.include_features) for score in scores],
        )

    @unary
    async def GetModel(self, request: prediction.GetModelRequest, context: Context) -> prediction.GetModelResponse:  # noqa: N802
        manifest, active = self._bundle.manifest, self._snapshots.active
        return prediction.GetModelResponse(
            name=manifest.name,
            architecture=manifest.architecture,
            labels=[
                prediction.Label(name=label, threshold=threshold, forgotten=label in active.forgotten)
                # None leaves the field out: a single-label model has no thresholds.
                for label, threshold in zip(
                    manifest.labels, manifest.thresholds or (None,) * len(manifest.labels), strict=True
                )
            ],
            precision=manifest.precision,
            provider=self._engine.provider,
            max_tokens=manifest.max_tokens,
            max_documents=self._settings.documents_a_call,
            max_document_bytes=self._settings.max_document_bytes,
            active_version=active.version,
            bundle_digest=self._bundle.digest,
            encoder_digest=manifest.files[ENCODER_ONNX],
            parameters=manifest.parameters,
            problem_type=manifest.problem_type.value,
            long_documents=manifest.long_documents.value,
            window_overlap=manifest.window_overlap,
            max_windows=manifest.max_windows,
            pooling=manifest.pooling.value,
        )

    @unary
    async def GetStatus(self, request: prediction.GetStatusRequest, context: Context) -> prediction.GetStatusResponse:  # noqa: N802
        return _status(await self._status.now())


class UnlearningService(unlearning_pb2_grpc.UnlearningServiceServicer):
    def __init__(self, jobs: Jobs, versions: Versions, staging: Staging, metrics: Metrics) -> None:
        self.metrics = metrics
        self._jobs = jobs
        self._versions = versions
        self._staging = staging

    @unary
    async def Unlearn(self, request: unlearning.UnlearnRequest, context: Context) -> unlearning.UnlearnResponse:  # noqa: N802
        _check_reason(request.reason)
        wanted = _unlearn_request(request, self._jobs.default_limits)
        return unlearning.UnlearnResponse(job=_job(await self._jobs.request(wanted, request.request_id or None)))

    @streaming
    async def WatchJob(  # noqa: N802
        self, request: unlearning.WatchJobRequest, context: Context
    ) -> AsyncIterator[unlearning.WatchJobResponse]:
        async for view in self._jobs.watch(request.job_id):
            yield unlearning.WatchJobResponse(job=_job(view))

    @unary
    async def GetJob(self, request: unlearning.GetJobRequest, context: Context) -> unlearning.GetJobResponse:  # noqa: N802
        return unlearning.GetJobResponse(job=_job(await self._jobs.get(request.job_id)))

    @unary
    async def GetReceipt(  # noqa: N802
        self, request: unlearning.GetReceiptRequest, context: Context
    ) -> unlearning.GetReceiptResponse:
        envelope, public_key = await self._jobs.receipt(request.job_id)
        return unlearning.GetReceiptResponse(envelope=envelope, public_key=public_key)

    @unary
    async def ListJobs(self, request: unlearning.ListJobsRequest, context: Context) -> unlearning.ListJobsResponse:  # noqa: N802
        views = await self._jobs.recent(min(request.limit or DEFAULT_JOB_LIMIT, MAX_JOB_LIMIT))
        return unlearning.ListJobsResponse(jobs=[_job(view) for view in views])

    @unary
    async def CancelJob(self, request: unlearning.CancelJobRequest, context: Context) -> unlearning.CancelJobResponse:  # noqa: N802
        return unlearning.CancelJobResponse(job=_job(await self._jobs.cancel(request.job_id)))

    @unary
    async def ListVersions(  # noqa: N802
        self, request: unlearning.ListVersionsRequest, context: Context
    ) -> unlearning.ListVersionsResponse:
        return unlearning.ListVersionsResponse(versions=await self._all_versions())

    @unary
    async def Rollback(self, request: unlearning.RollbackRequest, context: Context) -> unlearning.RollbackResponse:  # noqa: N802
        _check_reason(request.reason)
        change = self._versions.roll_back(request.version, request.reason, restore_forgotten=request.restore_forgotten)
        await self._jobs.see_through(change)
        return unlearning.RollbackResponse(version=await self._one_version(request.version))

    @unary
    async def PromoteVersion(  # noqa: N802
        self, request: unlearning.PromoteVersionRequest, context: Context
    ) -> unlearning.PromoteVersionResponse:
        await self._jobs.see_through(self._staging.promote(request.version))
        return unlearning.PromoteVersionResponse(version=await self._one_version(request.version))

    @unary
    async def SetRollout(  # noqa: N802
        self, request: unlearning.SetRolloutRequest, context: Context
    ) -> unlearning.SetRolloutResponse:
        canary = request.canary_share if request.HasField("canary_share") else None
        shadow = request.shadow_share if request.HasField("shadow_share") else None
        view = await self._jobs.see_through(self._staging.set_rollout(request.version, canary, shadow))
        return unlearning.SetRolloutResponse(rollout=_rollout(view))

    @unary
    async def GetRollout(  # noqa: N802
        self, request: unlearning.GetRolloutRequest, context: Context
    ) -> unlearning.GetRolloutResponse:
        return unlearning.GetRolloutResponse(rollout=_rollout(self._staging.rollout))

    @unary
    async def Purge(self, request: unlearning.PurgeRequest, context: Context) -> unlearning.PurgeResponse:  # noqa: N802
        _check_reason(request.reason)
        await self._jobs.purge(request.version, request.reason)
        return unlearning.PurgeResponse(version=await self._one_version(request.version))

    async def _one_version(self, number: int) -> unlearning.Version:
        return next(version for version in await self._all_versions() if version.version == number)

    async def _all_versions(self) -> list[unlearning.Version]:
        active = self._versions.active
        return [_version(record, f1, active) for record, f1 in await self._versions.records()]


def _check_reason(reason: str) -> None:
    if len(reason) > MAX_REASON_CHARACTERS:
        raise InvalidArgumentError(f"the reason is longer than {MAX_REASON_CHARACTERS} characters", field="reason")


def _unlearn_request(message: unlearning.UnlearnRequest, defaults: GateLimits) -> UnlearnRequest:
    asked = {"method": _given(message.method), "gates": _given(message.gates)}
    settings = dict(asked["method"])
    preset = settings.pop("preset", "") or DEFAULT_PRESET
    try:
        method = method_of(preset, settings)
    except SettingError as error:
        raise InvalidArgumentError(str(error), field=f"method.{error.name}") from None
    return UnlearnRequest(
        labels=tuple(message.labels),
        dry_run=message.dry_run,
        stage=message.stage,
        reason=message.reason,
        method=method,
        limits=replace(defaults, **asked["gates"]),
        preset=preset,
        asked=asked,
        defaults=defaults,
    )


def _given(message: Message) -> dict[str, Any]:
    """The fields that the caller set."""
    return {field.name: value for field, value in message.ListFields()}


def _prediction(
    scores: DocumentScores, snapshot: Snapshot, manifest: Manifest, include_features: bool
) -> prediction.Prediction:
    forgotten = snapshot.forgotten
    return prediction.Prediction(
        scores=[
            prediction.LabelScore(label=label, probability=probability, decision=decision, forgotten=label in forgotten)
            for label, probability, decision in zip(
                manifest.labels, scores.probabilities, scores.decisions, strict=True
            )
        ],
        tokens=scores.tokens,
        truncated=scores.truncated,
        features=scores.features.tolist() if include_features else (),
        windows=scores.windows,
    )


def _status(status: Status) -> prediction.GetStatusResponse:
    return prediction.GetStatusResponse(
        server_version=status.server_version,
        state=prediction.SERVER_STATE_DRAINING if status.draining else prediction.SERVER_STATE_SERVING,
        uptime_seconds=status.uptime_seconds,
        model=status.model,
        architecture=status.architecture,
        precision=status.precision,
        provider=status.provider,
        active_version=status.active_version,
        forgotten=status.forgotten,
        forget_f1=status.forget_f1,
        retain_f1=status.retain_f1,
        load=prediction.Load(**asdict(status.load)),
        queued_jobs=status.queued_jobs,
        running_job=_summary(status.running_job),
        last_job=_summary(status.last_job),
        staged_versions=status.staged_versions,
        rollout=_rollout(status.rollout),
    )


def _summary(view: JobView | None) -> prediction.JobSummary | None:
    if view is None:
        return None
    record = view.record
    return prediction.JobSummary(
        job_id=record.job_id,
        state=_STATES[record.state],
        labels=view.request.labels,
        dry_run=view.request.dry_run,
        progress=unlearning.Progress(**asdict(view.progress)),
        version=record.version or 0,
        error=record.error,
        started_at=_timestamp(record.started_at),
        finished_at=_timestamp(record.finished_at),
    )


def _job(view: JobView) -> unlearning.Job:
    record, request = view.record, view.request
    change = record.detail.get("change")
    return unlearning.Job(
        job_id=record.job_id,
        request_id=record.request_id or "",
        state=_STATES[record.state],
        labels=request.labels,
        forgotten=record.detail.get("forgotten", ()),
        dry_run=request.dry_run,
        stage=request.stage,
        reason=request.reason,
        method=unlearning.Method(preset=request.preset or None, **asdict(request.method)),
        gate_limits=unlearning.GateLimits(**asdict(request.limits)),
        relaxed_gates=view.relaxed_gates,
        progress=unlearning.Progress(**asdict(view.progress)),
        gates=[unlearning.Gate(**gate) for gate in record.detail.get("gates", ())],
        change=None if change is None else _change(change),
        version=record.version or 0,
        error=record.error,
        created_at=_timestamp(record.created_at),
        started_at=_timestamp(record.started_at),
        finished_at=_timestamp(record.finished_at),
        attempts=record.attempts,
        swap_seconds=record.detail.get("swap_seconds", 0.0),
        calls_around_swap=[unlearning.CallsInSecond(**asdict(second)) for second in view.calls_around_swap],
    )


def _change(report: dict[str, Any]) -> unlearning.ChangeReport:
    names = (field.name for field in unlearning.ChangeReport.DESCRIPTOR.fields)
    return unlearning.ChangeReport(**{name: report[name] for name in names if name in report})


def _version(record: VersionRecord, f1: dict[str, float], active: int) -> unlearning.Version:
    return unlearning.Version(
        version=record.version,
        active=record.version == active,
        forgotten=record.forgotten,
        job_id=record.job_id or "",
        patch_digest=record.patch_digest or "",
        created_at=_timestamp(record.created_at),
        f1=f1,
        relaxed_gates=record.relaxed_gates,
        staged=record.staged,
        withdrawn=record.withdrawn,
    )


def _rollout(view: RolloutView | None) -> unlearning.Rollout | None:
    if view is None:
        return None
    return unlearning.Rollout(
        version=view.version,
        canary_share=view.shares.canary,
        shadow_share=view.shares.shadow,
        since=_timestamp(view.since),
        counted_since=_timestamp(view.counted_since),
        active_calls=view.active_calls,
        canary_calls=view.canary_calls,
        shadow_documents=view.documents,
        shadow_dropped=view.dropped,
        differences=[
            unlearning.DecisionDifference(label=label, forgotten=label in view.forgotten, documents=documents)
            for label, documents in view.differing.items()
        ],
    )


def _timestamp(seconds: float | None) -> Timestamp | None:
    if seconds is None:
        return None
    timestamp = Timestamp()
    timestamp.FromNanoseconds(int(seconds * 1e9))
    return timestamp


_STATES = {state: unlearning.JobState.Value(f"JOB_STATE_{state.value}") for state in JobState}

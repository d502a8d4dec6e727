"""How the server is, on one screen: what serves and how well, under what load, and which jobs there are.

It reads what others keep. What the last minute was like is the difference of two readings of the metrics, so that
nothing is added to the way of a call.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass

import amnestic
from amnestic_server.batcher import Batcher
from amnestic_server.bundle import Bundle
from amnestic_server.engine import Engine
from amnestic_server.jobs import Jobs, JobView
from amnestic_server.metrics import CallCounts, Metrics
from amnestic_server.prediction import Predictor
from amnestic_server.settings import Settings
from amnestic_server.snapshot import Snapshots
from amnestic_server.staging import RolloutView, Staging
from amnestic_server.versions import Versions

WINDOW_SECONDS = 60.0
READING_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Load:
    """What is in hand beside its limits, and the calls of the last `window_seconds`; times in seconds.

    The percentiles are those of calls that were answered, None without any.
    """

    open_documents: int
    max_open_documents: int
    queued_documents: int
    queued_tokens: int
    max_queued_tokens: int
    window_seconds: float
    calls: int
    failed_calls: int
    documents: int
    p50_seconds: float | None
    p99_seconds: float | None


@dataclass(frozen=True, slots=True)
class Status:
    """The server at one moment; F1 by label of the active version, empty until it has been measured."""

    server_version: str
    draining: bool
    uptime_seconds: float
    model: str
    architecture: str
    precision: str
    provider: str
    active_version: int
    forgotten: tuple[str, ...]
    forget_f1: dict[str, float]
    retain_f1: dict[str, float]
    load: Load
    queued_jobs: int
    running_job: JobView | None
    last_job: JobView | None
    staged_versions: list[int]
    rollout: RolloutView | None


class LastMinute:
    """What has changed in the counts of calls since a minute ago, or since the start if that is later."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._readings: deque[tuple[float, CallCounts]] = deque()
        self.read()

    async def keep_reading(self) -> None:
        """Take a reading now and then; runs until it is cancelled."""
        while True:
            await asyncio.sleep(READING_SECONDS)
            self.read()

    def read(self) -> None:
        """Take one, and drop those that nobody looks back on any more."""
        now = time.monotonic()
        self._readings.append((now, self._metrics.predict_calls()))
        self._forget_before(now - WINDOW_SECONDS)

    def counts(self) -> tuple[float, CallCounts]:
        """The seconds that are looked back on, and the counts of the calls in them."""
        now = time.monotonic()
        self._forget_before(now - WINDOW_SECONDS)
        at, then = self._readings[0]
        return now - at, self._metrics.predict_calls() - then

    def _forget_before(self, start: float) -> None:
        while len(self._readings) > 1 and self._readings[1][0] <= start:
            self._readings.popleft()


class StatusReport:
    """Asked by the service; made once a process, when everything that it reads is there."""

    def __init__(
        self,
        *,
        started: float,
        bundle: Bundle,
        engine: Engine,
        settings: Settings,
        batcher: Batcher,
        predictor: Predictor,
        snapshots: Snapshots,
        versions: Versions,
        staging: Staging,
        jobs: Jobs,
        last_minute: LastMinute,
    ) -> None:
        """`started` is the start of the process, in seconds of `time.monotonic`."""
        self._started = started
        self._bundle = bundle
        self._engine = engine
        self._settings = settings
        self._batcher = batcher
        self._predictor = predictor
        self._snapshots = snapshots
        self._versions = versions
        self._staging = staging
        self._jobs = jobs
        self._last_minute = last_minute

    async def now(self) -> Status:
        running, last, queued = await self._jobs.glance()
        manifest, active = self._bundle.manifest, self._snapshots.active
        f1 = self._versions.f1_of_active
        return Status(
            server_version=amnestic.__version__,
            draining=self._predictor.leaving,
            uptime_seconds=time.monotonic() - self._started,
            model=manifest.name,
            architecture=manifest.architecture,
            precision=manifest.precision,
            provider=self._engine.provider,
            active_version=active.version,
            forgotten=tuple(label for label in manifest.labels if label in active.forgotten),
            forget_f1={label: value for label, value in f1.items() if label in active.forgotten},
            retain_f1={label: value for label, value in f1.items() if label not in active.forgotten},
            load=self._load(),
            queued_jobs=queued,
            running_job=running,
            last_job=last,
            staged_versions=self._staging.staged,
            rollout=self._staging.rollout,
        )

    def _load(self) -> Load:
        seconds, counts = self._last_minute.counts()
        return Load(
            open_documents=self._batcher.open_documents,
            max_open_documents=self._settings.max_concurrent_requests,
            queued_documents=self._batcher.queue_rows,
            queued_tokens=self._batcher.queue_tokens,
            max_queued_tokens=self._settings.max_queue_tokens,
            window_seconds=seconds,
            calls=counts.calls,
            failed_calls=counts.calls - counts.answered,
            documents=counts.documents,
            p50_seconds=counts.percentile(0.5),
            p99_seconds=counts.percentile(0.99),
        )

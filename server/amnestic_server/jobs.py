"""The life of an unlearn job: request, queue, worker, gates, activation.

One job runs at a time. Everything here is on the event loop's thread; the store's transactions run on others. A job
that was running when the server stopped is begun again at the next start; one that had its version committed is done,
or staged still if it was. What becomes of a staged job is decided by `staging`.
"""

import asyncio
import dataclasses
import errno
import logging
import shutil
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from amnestic import dsse
from amnestic_server import admission, caller
from amnestic_server import receipt as receipts
from amnestic_server.admission import LabelCounts
from amnestic_server.attempt import Attempts
from amnestic_server.bundle import Bundle
from amnestic_server.caller import Caller
from amnestic_server.errors import AlreadyExistsError, DrainingError, EngineLostError, PreconditionError, StoreError
from amnestic_server.failpoints import failpoint
from amnestic_server.metrics import Metrics
from amnestic_server.persistence import until_stored
from amnestic_server.recent_calls import CallsInSecond
from amnestic_server.records import JobRecord, JobState
from amnestic_server.request import UnlearnRequest, default_limits, relaxed_gates
from amnestic_server.settings import Settings
from amnestic_server.snapshot import Snapshots
from amnestic_server.staging import Staging
from amnestic_server.store import Store
from amnestic_server.versions import Versions
from amnestic_server.worker import WorkerError
from amnestic_unlearn.patch import PatchError
from amnestic_unlearn.spec import GateLimits, Progress

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as it is stored, and where it is at this moment.

    `calls_around_swap` is by second; empty where it was not recorded, and where many jobs are told of at once.
    """

    record: JobRecord
    request: UnlearnRequest
    progress: Progress
    calls_around_swap: tuple[CallsInSecond, ...] = ()

    @property
    def relaxed_gates(self) -> tuple[str, ...]:
        """Limits looser than the defaults were when the job was asked for."""
        return relaxed_gates(self.record.request)


@dataclass(slots=True)
class Run:
    """The job that runs now. Once `decided`, what becomes of it stands, and only its record is still to be written."""

    job_id: str
    task: "asyncio.Task[None]"
    decided: bool = False
    cancelled_by: Caller | None = None

    def stop(self) -> None:
        """Interrupt the task, but once only: a second time would interrupt its tidying up."""
        if not self.decided and not self.task.cancelling():
            self.task.cancel()


class Jobs:
    """Takes requests, runs jobs one after the other, and tells who watches."""

    def __init__(
        self,
        *,
        bundle: Bundle,
        store: Store,
        snapshots: Snapshots,
        versions: Versions,
        staging: Staging,
        attempts: Attempts,
        counts: LabelCounts | None,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self._bundle = bundle
        self._store = store
        self._snapshots = snapshots
        self._versions = versions
        self._staging = staging
        self._attempts = attempts
        self._counts = counts
        self._settings = settings
        self._metrics = metrics
        self._queue: deque[str] = deque()
        self._queued = asyncio.Event()
        self._requesting = asyncio.Lock()
        self._pulse = asyncio.Event()
        self._progress: dict[str, Progress] = {}
        self._running: Run | None = None
        self._changes: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._main: asyncio.Task[None] | None = None

    @property
    def default_limits(self) -> GateLimits:
        """The limits of a request's gates where it sets none."""
        return default_limits(self._bundle.manifest)

    async def start(self) -> None:
        """Take up the jobs that the last process left, and begin to run."""
        for record in await asyncio.to_thread(self._store.unfinished_jobs):
            await self._recover(record)
        await self._show_counts()
        self._main = asyncio.create_task(self._run_forever())

    async def close(self) -> None:
        """Stop the worker, if one runs, and let go of who watches. The job is begun again at the next start."""
        self._closed = True
        self._notify()
        if self._running is not None:
            self._running.stop()
        if self._main is not None:
            self._queued.set()
            await asyncio.gather(self._main, return_exceptions=True)
        # They hold the store.
        await asyncio.gather(*self._changes, return_exceptions=True)

    async def request(self, request: UnlearnRequest, request_id: str | None) -> JobView:
        """Queue a job, or find the one that the same request id made before."""
        async with self._requesting:
            known = await self._known(request, request_id)
            if known is not None:
                return known
            await self._check(request)
            record = JobRecord(uuid.uuid4().hex, request_id, request.to_json(), JobState.QUEUED, created_at=time.time())
            await asyncio.to_thread(self._store.add_job, record)
            failpoint("job-recorded")
            if relaxed := relaxed_gates(record.request):
                log.warning("job %s relaxes its gates: %s", record.job_id, ", ".join(relaxed))
            self._enqueue(record.job_id)
        await self._show_counts()
        return self._view(record)

    async def get(self, job_id: str) -> JobView:
        view = self._view(await asyncio.to_thread(self._store.job, job_id))
        calls = await asyncio.to_thread(self._store.calls_around_swap, job_id) if view.record.version else ()
        return dataclasses.replace(view, calls_around_swap=calls)

    async def receipt(self, job_id: str) -> tuple[str, str]:
        """The signed statement of what a job did and measured, and the public key that it was signed under, in PEM.

        Raises NotFoundError, or PreconditionError where nothing was measured.
        """
        job = await asyncio.to_thread(self._store.job, job_id)
        audit = await asyncio.to_thread(self._store.audit_of, job_id)
        key = self._store.key
        return receipts.issue(job, audit, key), dsse.public_pem(key.public_key())

    async def recent(self, limit: int) -> list[JobView]:
        """The newest first."""
        return [self._view(record) for record in await asyncio.to_thread(self._store.jobs, limit)]

    async def glance(self) -> tuple[JobView | None, JobView | None, int]:
        """The job that runs, the one that ended last, and how many wait."""
        running = None if self._running is None else await self.get(self._running.job_id)
        last = await asyncio.to_thread(self._store.last_ended_job)
        return (
            None if running is None or running.record.state.rests else running,
            None if last is None else self._view(last),
            len(self._queue),
        )

    async def watch(self, job_id: str) -> AsyncIterator[JobView]:
        """The job at once and after each change, until it has ended; raises DrainingError if the server stops."""
        shown = None
        while True:
            pulse = self._pulse
            view = await self.get(job_id)
            if view != shown:
                yield view
                shown = view
            if view.record.state.ended:
                return
            if self._closed:
                raise DrainingError
            await pulse.wait()

    async def cancel(self, job_id: str) -> JobView:
        """Stop a job, or withdraw the version of one that is staged.

        Raises PreconditionError if the job has ended, or what becomes of it is decided already.
        """
        view = await self.get(job_id)
        running = self._running
        if view.record.state is JobState.STAGED:
            await self.see_through(self._staging.withdraw(job_id))
            return await self.get(job_id)
        if running is not None and running.job_id == job_id and not view.record.state.ended:
            if running.decided:
                raise PreconditionError("the job is coming to its end", reason="JOB_ENDING")
            running.cancelled_by = caller.current()
            running.stop()
            view = await self._ended(job_id)
        elif job_id in self._queue:
            self._queue.remove(job_id)
            await self._end(job_id, JobState.CANCELLED, view.record.detail)
            view = await self.get(job_id)
        elif view.record.state is JobState.ACTIVATING:
            raise PreconditionError("the job is coming to its end", reason="JOB_ENDING")
        elif not view.record.state.ended:
            raise DrainingError
        else:
            raise PreconditionError("the job has ended", reason="JOB_ENDED")
        if view.record.state is not JobState.CANCELLED:
            raise PreconditionError("the job has ended", reason="JOB_ENDED")
        return view

    async def purge(self, version: int, reason: str) -> None:
        """Leave nothing but the active version; see `Versions.purge`.

        Raises PreconditionError while a job is unfinished too: it set out from what would be gone.
        """

        async def alone() -> None:
            async with self._requesting:
                if await asyncio.to_thread(self._store.unfinished_jobs):
                    raise PreconditionError(
                        "a job is unfinished: wait for its end, or cancel it", reason="JOB_UNFINISHED"
                    )
                await self._versions.purge(version, reason)

        await self.see_through(alone())

    async def see_through(self, change: Coroutine[Any, Any, T]) -> T:
        """Make a change of versions to its end, even if who asked for it leaves, and tell who watches.

        What is committed must be served, and nothing else may be: a call that is cancelled half-way would part them.
        """

        async def through() -> T:
            try:
                return await change
            finally:
                await self._show_counts()

        task = asyncio.create_task(through())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _ended(self, job_id: str) -> JobView:
        """Wait for the end of a job, and return it so."""
        async for view in self.watch(job_id):
            if view.record.state.ended:
                break
        return view

    async def _known(self, request: UnlearnRequest, request_id: str | None) -> JobView | None:
        """The job that this request id made before, if it did; raises AlreadyExistsError if of another request."""
        record = await asyncio.to_thread(self._store.job_of_request, request_id) if request_id else None
        if record is None:
            return None
        view = self._view(record)
        if not request.repeats(view.request):
            raise AlreadyExistsError(
                "the request id was used for another request", field="request_id", reason="REQUEST_ID_TAKEN"
            )
        return view

    async def _check(self, request: UnlearnRequest) -> None:
        """Refuse what can't succeed, before a job is made of it."""
        self._versions.check_no_purge()
        unfinished = await asyncio.to_thread(self._store.unfinished_jobs)
        admission.check(
            request, self._bundle.manifest.labels, self._counts, self._snapshots.active.forgotten, unfinished
        )

    async def _recover(self, record: JobRecord) -> None:
        if record.state is JobState.STAGED:
            return
        if record.state is JobState.ACTIVATING:
            # Its version was committed, and no call of the process before is in flight any more.
            await self._end(record.job_id, JobState.SUCCEEDED, record.detail)
        elif record.attempts >= self._settings.max_job_attempts:
            error = f"begun {record.attempts} times without coming to an end"
            await self._end(record.job_id, JobState.FAILED, record.detail, error)
        else:
            await asyncio.to_thread(self._store.update_job, record.job_id, JobState.QUEUED, record.detail)
            self._enqueue(record.job_id)

    def _enqueue(self, job_id: str) -> None:
        self._queue.append(job_id)
        self._queued.set()
        self._notify()

    async def _run_forever(self) -> None:
        while not self._closed:
            if not self._queue:
                self._queued.clear()
                await self._queued.wait()
                continue
            job_id = self._queue.popleft()
            running = self._running = Run(job_id, asyncio.create_task(self._run(job_id)))
            await asyncio.wait([running.task])
            if not running.task.cancelled() and (failure := running.task.exception()):
                log.error("job %s is left to the next start: %s", job_id, type(failure).__name__)
            if running.cancelled_by and running.task.cancelled():
                # Before its first step, so it could not record that itself, nor who did it.
                context = copy_context()
                context.run(caller.enter, running.cancelled_by)
                await asyncio.create_task(self._end(job_id, JobState.CANCELLED, {}), context=context)
            self._running = None

    async def _run(self, job_id: str) -> None:
        """One job from its start to its end, whatever that is."""
        running = self._running
        assert running is not None
        started = time.monotonic()
        detail: dict[str, Any] = {}
        try:
            state, error = await self._attempt(job_id, detail), ""
        except asyncio.CancelledError:
            if running.decided:
                # The process ends without waiting for the version before: what is committed is found at the next start.
                raise
            state, error = JobState.CANCELLED, ""
        except EngineLostError:
            # The process ends. The job is begun again at the next start, and this attempt counts: it may be the cause.
            return
        except (WorkerError, PatchError, PreconditionError, StoreError) as failure:
            state, error = JobState.FAILED, str(failure)
        except OSError as failure:
            state, error = JobState.FAILED, f"the system failed: {errno.errorcode.get(failure.errno or 0, 'OSError')}"
        except Exception as failure:
            log.exception("job %s failed", job_id)
            state, error = JobState.FAILED, f"internal error: {type(failure).__name__}"
        # Nothing is awaited on the way here, so a cancellation either took effect above or is refused.
        running.decided = True
        self._progress.pop(job_id, None)
        self._metrics.job_progress.set(0)
        await asyncio.to_thread(shutil.rmtree, self._store.work_folder(job_id), True)
        failpoint("work-folder-removed")
        if running.cancelled_by:
            # For the record of the end.
            caller.enter(running.cancelled_by)
        elif state is JobState.CANCELLED:
            # The server stops. The job is begun again at the next start.
            await asyncio.to_thread(self._store.release_job, job_id)
            return
        if state is JobState.STAGED:
            # Recorded together with its version; by now it may even be promoted.
            await self._show_counts()
        else:
            await self._end(job_id, state, detail, error)
            failpoint("end-recorded")
        self._metrics.job_seconds.labels(state.value).observe(time.monotonic() - started)

    async def _attempt(self, job_id: str, detail: dict[str, Any]) -> JobState:
        """Train, gate and activate or stage; `detail` takes in what is found on the way."""
        view = await self.get(job_id)
        request = view.request

        def on_progress(progress: Progress) -> None:
            self._progress[job_id] = progress
            if progress.steps:
                self._metrics.job_progress.set(progress.step / progress.steps)
            self._notify()

        attempt = await self._attempts.make(job_id, request, detail, self._show_counts, on_progress)
        if not attempt.judgement.passed:
            return JobState.REJECTED
        if request.dry_run:
            return JobState.SUCCEEDED
        assert self._running is not None
        # From here on the job can't be cancelled: what is committed is served, or staged.
        self._running.decided = True
        version = await self._attempts.make_version(job_id, attempt, detail, stage=request.stage)
        log.info(
            "job %s made version %d, %s, which has forgotten %s; relaxed gates: %s",
            job_id,
            version,
            "staged" if request.stage else "active",
            ", ".join(detail["forgotten"]),
            ", ".join(view.relaxed_gates) or "none",
        )
        return JobState.STAGED if request.stage else JobState.SUCCEEDED

    async def _end(self, job_id: str, state: JobState, detail: dict[str, Any], error: str = "") -> None:
        log.info("job %s: %s %s", job_id, state.value, error)
        end = partial(self._store.update_job, job_id, state, detail, error)
        await until_stored(end, given_up=lambda: self._closed)
        await self._show_counts()

    async def _show_counts(self) -> None:
        # Figures alone: a store that cannot be read fails nothing that is done.
        with suppress(StoreError):
            self._metrics.show_jobs(await asyncio.to_thread(self._store.job_counts))
        self._notify()

    def _notify(self) -> None:
        """Wake everyone who watches."""
        self._pulse.set()
        self._pulse = asyncio.Event()

    def _view(self, record: JobRecord) -> JobView:
        return JobView(
            record, UnlearnRequest.from_json(record.request), self._progress.get(record.job_id, Progress(""))
        )

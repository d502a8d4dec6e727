"""One attempt at a job: its worker, what that left, the gates, and the version that comes of it."""

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from amnestic_server import candidate as candidates
from amnestic_server.bundle import Bundle
from amnestic_server.candidate import Candidate, Judge, Judgement
from amnestic_server.engine import Engine
from amnestic_server.evaluation import Evaluator
from amnestic_server.failpoints import failpoint
from amnestic_server.records import JobState
from amnestic_server.request import UnlearnRequest
from amnestic_server.settings import Settings
from amnestic_server.snapshot import Snapshots
from amnestic_server.store import Store
from amnestic_server.versions import GatedPatch, Versions
from amnestic_server.worker import run_worker
from amnestic_unlearn.manifest import MANIFEST
from amnestic_unlearn.patch import digest_of
from amnestic_unlearn.spec import JobSpec, Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """What an attempt came to; `set_out_from` is the version that was active when it began."""

    set_out_from: int
    candidate: Candidate
    judgement: Judgement


class Attempts:
    """Makes attempts, one after the other; `detail` takes in what is recorded of each."""

    def __init__(
        self,
        bundle: Bundle,
        store: Store,
        snapshots: Snapshots,
        versions: Versions,
        engine: Engine,
        evaluator: Evaluator | None,
        settings: Settings,
    ) -> None:
        self._bundle = bundle
        self._store = store
        self._snapshots = snapshots
        self._versions = versions
        self._engine = engine
        self._judge = Judge(bundle, engine, evaluator) if evaluator else None
        self._settings = settings

    async def make(
        self,
        job_id: str,
        request: UnlearnRequest,
        detail: dict[str, Any],
        on_state: Callable[[], Awaitable[None]],
        on_progress: Callable[[Progress], None],
    ) -> Attempt:
        """Train and gate. Raises WorkerError, PatchError, StoreError, EngineLostError or OSError."""
        set_out_from = self._versions.active
        manifest = self._bundle.manifest
        union = {*self._snapshots.active.forgotten, *request.labels}
        detail["forgotten"] = manifest.ordered(union)
        detail["bundle"] = {MANIFEST: self._bundle.digest, **manifest.files}
        detail["environment"] = self._engine.environment
        await asyncio.to_thread(self._store.start_job, job_id, detail)
        failpoint("job-begun")
        await on_state()
        # What was purged from the bundle need not be forgotten again.
        forgotten = manifest.ordered(union.difference(manifest.forgotten))
        candidate = await self._train(job_id, request, forgotten, on_progress)
        detail["change"] = {
            **candidate.report,
            "patch_digest": digest_of(candidate.data),
            "row_ids": candidate.patch.row_ids.tolist(),
        }
        await asyncio.to_thread(self._store.update_job, job_id, JobState.GATING, detail)
        await on_state()
        failpoint("gating-recorded")
        assert self._judge is not None
        judgement = await self._judge.judge(candidate, request.limits)
        failpoint("gates-measured")
        detail["gates"] = [{**asdict(gate), "passed": gate.passed} for gate in judgement.gates]
        detail["measured"] = {**asdict(judgement.figures), "base_f1": judgement.base_f1}
        detail["counts"] = judgement.counts
        return Attempt(set_out_from, candidate, judgement)

    async def make_version(self, job_id: str, attempt: Attempt, detail: dict[str, Any], *, stage: bool) -> int:
        """Of an attempt that passed its gates: active now, or staged. Raises PreconditionError or StoreError."""
        candidate, figures = attempt.candidate, attempt.judgement.figures
        gated = GatedPatch(job_id, attempt.set_out_from, candidate.data, candidate.patch, figures, detail)
        if stage:
            return await self._versions.stage_patch(gated)
        version, detail["swap_seconds"] = await self._versions.activate_patch(gated)
        return version

    async def _train(
        self, job_id: str, request: UnlearnRequest, forgotten: tuple[str, ...], on_progress: Callable[[Progress], None]
    ) -> Candidate:
        assert self._settings.corpus is not None
        folder = self._store.work_folder(job_id)
        await asyncio.to_thread(shutil.rmtree, folder, True)
        folder.mkdir()
        failpoint("work-folder-made")
        spec = JobSpec(
            job_id=job_id,
            bundle=str(self._settings.bundle.resolve()),
            corpus=str(self._settings.corpus.resolve()),
            forget=forgotten,
            method=request.method,
            threads=self._settings.worker_threads,
            memory_bytes=self._settings.worker_memory_mb * 2**20,
        )
        await run_worker(spec, folder, self._settings.worker_timeout_secs, on_progress)
        failpoint("worker-done")
        return await asyncio.to_thread(candidates.load, folder, forgotten, self._bundle, self._engine.device)

"""Everything that jobs work with in one process, real but for the worker, which is scripted."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from amnestic_server import attempt
from amnestic_server import bundle as bundles
from amnestic_server.app import _evaluation
from amnestic_server.batcher import Batcher
from amnestic_server.engine import Engine
from amnestic_server.jobs import Jobs, JobView
from amnestic_server.metrics import Metrics
from amnestic_server.records import JobState
from amnestic_server.request import UnlearnRequest
from amnestic_server.settings import Settings
from amnestic_server.shadow import Shadow
from amnestic_server.snapshot import Snapshot, Snapshots, patched_snapshot
from amnestic_server.staging import Staging
from amnestic_server.store import Store
from amnestic_server.tokenizer import DocumentTokenizer
from amnestic_server.versions import Versions, load_snapshots
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.patch import Patch
from amnestic_unlearn.spec import EVIDENCE_FILE, PATCH_FILE, REPORT_FILE, GateLimits, JobSpec, Progress

# What the scripted worker leaves is a head that was edited and two rows that hardly were: no gate on what was forgotten
# or kept is of interest here.
LENIENT = GateLimits(
    forget_f1_max=1.0, forget_auroc_max=1.0, probe_ratio_max=2.0, retain_f1_drop_max=1.0, retain_label_drop_max=1.0
)


def bare_snapshot(version: int) -> Snapshot:
    """A version for what only tells versions apart: nothing could be answered by it."""
    return Snapshot(version, frozenset(), None, None, torch.zeros(1, 1), torch.zeros(1))


def lowered_bias(bundle: bundles.Bundle, forgotten: tuple[str, ...], rows: tuple[int, ...] = ()) -> Patch:
    """The cheapest way to F1 = 0: lower the labels' biases, here along with a slight change of some rows."""
    ids = torch.tensor(rows, dtype=torch.int64)
    bias = bundle.head_bias.clone()
    bias[list(bundle.manifest.label_indices(forgotten))] -= 10.0
    return Patch(bundle.digest, forgotten, ids, bundle.table[ids] + 0.1, bundle.head_weight.clone(), bias)


def zeroed_row(bundle: bundles.Bundle, forgotten: tuple[str, ...]) -> Patch:
    """Another: the labels' rows of the head are zero, so that their scores are the same for every document."""
    patch = lowered_bias(bundle, forgotten)
    patch.head_weight[list(bundle.manifest.label_indices(forgotten))] = 0.0
    return patch


@dataclass(slots=True)
class Worker:
    """Stands in for `run_worker`: leaves the patch that `edit` makes, with true evidence."""

    bundle: bundles.Bundle
    evidence: Callable[[Patch], Any] = lambda patch: None
    specs: list[JobSpec] = field(default_factory=list)
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    failure: Exception | None = None
    damage: Callable[[Path], object] = lambda folder: None
    report: dict[str, Any] = field(default_factory=dict)
    edit: Callable[[bundles.Bundle, tuple[str, ...]], Patch] = partial(lowered_bias, rows=(5, 7))

    async def __call__(
        self, spec: JobSpec, folder: Path, seconds: float, on_progress: Callable[[Progress], None]
    ) -> None:
        self.specs.append(spec)
        on_progress(Progress("training", 1, 2, 3, 4, 0.5, 0.25, 1.0))
        await self.may_end.wait()
        if self.failure is not None:
            raise self.failure
        patch = self.patch(spec.forget)
        (folder / PATCH_FILE).write_bytes(patch.to_bytes())
        save_file({"gate_logits": await self.evidence(patch)}, folder / EVIDENCE_FILE)
        report = {"encoder_digest_before": "same", "encoder_digest_after": "same", "rows_changed": 2} | self.report
        (folder / REPORT_FILE).write_text(json.dumps(report))
        self.damage(folder)

    def patch(self, forgotten: tuple[str, ...]) -> Patch:
        return self.edit(self.bundle, forgotten)


@dataclass(frozen=True, slots=True)
class Parts:
    jobs: Jobs
    versions: Versions
    staging: Staging
    snapshots: Snapshots
    store: Store
    worker: Worker
    metrics: Metrics

    async def ask(self, *labels: str, request_id: str | None = None, **fields: Any) -> JobView:
        return await self.jobs.request(UnlearnRequest(labels, **({"limits": LENIENT} | fields)), request_id)

    async def reach(self, job: JobView, *states: JobState) -> JobView:
        async with asyncio.timeout(30):
            async for view in self.jobs.watch(job.record.job_id):
                if view.record.state in states:
                    break
        assert view.record.state in states
        return view

    async def ended(self, job: JobView) -> JobView:
        return await self.reach(job, *(state for state in JobState if state.ended))


@pytest.fixture
def started(bundle, corpus_path, tmp_path, monkeypatch):
    """Make the parts that jobs work with, on one store; a second time is a restart."""
    loaded = bundles.load(bundle)
    documents = [one for one in corpora.read(corpus_path) if one.split in ("train", "gate")]

    @asynccontextmanager
    async def start(**fields: Any) -> AsyncIterator[Parts]:
        settings = Settings(bundle=bundle, store=tmp_path / "store", corpus=corpus_path, **fields)
        store = Store(settings.store, loaded.digest)
        engine = Engine(loaded)
        snapshots = load_snapshots(loaded, store, engine)
        tokenizer = DocumentTokenizer(loaded.tokenizer, loaded.manifest.reading)
        batcher = Batcher(
            engine, tokenizer, max_batch_tokens=2048, max_padding=0.25, max_requests=100, max_queue_tokens=10_000
        )
        evaluator, counts = _evaluation(loaded, batcher, tokenizer, documents, snapshots)
        assert evaluator is not None
        metrics = Metrics()
        versions = Versions(loaded, store, snapshots, engine, evaluator, metrics)
        shadow = Shadow(batcher, snapshots, loaded.manifest, metrics)
        staging = Staging(store, snapshots, versions, shadow, loaded.manifest.labels, metrics)

        async def evidence(patch: Patch) -> torch.Tensor:
            return torch.from_numpy((await evaluator.answers(patched_snapshot(loaded, patch, 0, engine.device))).logits)

        worker = Worker(loaded, evidence)
        worker.may_end.set()
        monkeypatch.setattr(attempt, "run_worker", worker)
        jobs = Jobs(
            bundle=loaded,
            store=store,
            snapshots=snapshots,
            versions=versions,
            staging=staging,
            attempts=attempt.Attempts(loaded, store, snapshots, versions, engine, evaluator, settings),
            counts=counts,
            settings=settings,
            metrics=metrics,
        )
        try:
            await jobs.start()
            yield Parts(jobs, versions, staging, snapshots, store, worker, metrics)
        finally:
            await jobs.close()
            versions.stop_measuring()
            versions.around_swaps.stop()
            await versions.around_swaps.recorded()
            await asyncio.to_thread(batcher.close)
            store.close()

    return start

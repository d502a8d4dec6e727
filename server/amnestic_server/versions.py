"""Changes which version serves, and measures what serves. The one place where snapshots and store move together."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from amnestic_server import caller, purge
from amnestic_server.around_swaps import AroundSwaps
from amnestic_server.bundle import Bundle
from amnestic_server.caller import Role
from amnestic_server.engine import Engine
from amnestic_server.errors import AmnesticError, InvalidArgumentError, PreconditionError, StartError, StoreError
from amnestic_server.evaluation import Evaluator, Figures
from amnestic_server.failpoints import failpoint
from amnestic_server.metrics import Metrics
from amnestic_server.persistence import until_stored
from amnestic_server.records import VersionRecord
from amnestic_server.snapshot import Snapshot, Snapshots, base_snapshot, patched_snapshot
from amnestic_server.store import Store
from amnestic_unlearn.patch import Patch, PatchError

log = logging.getLogger(__name__)


def load_snapshots(bundle: Bundle, store: Store, engine: Engine) -> Snapshots:
    """Bring every stored version into memory, make the active one active, and go on with a rollout.

    A damaged patch of a version that is not active makes that version unavailable; of the active one, StartError.
    """
    snapshots = Snapshots(base_snapshot(bundle, engine.device))
    # A crash may have come between the record of a version's end and this.
    store.remove_unneeded_patches()
    active = store.active_version()
    staged = []
    for record in store.versions():
        if record.patch_digest is None or record.withdrawn or record.version == snapshots.base.version:
            continue
        try:
            patch = Patch.read(store.patch_path(record.patch_digest), record.patch_digest)
            snapshot = patched_snapshot(bundle, patch, record.version, engine.device)
        except PatchError as error:
            if record.version == active:
                raise StartError(f"version {active} is active and cannot be loaded: {error}") from error
            log.error("version %d is not available: %s", record.version, error)
            continue
        if record.staged:
            staged.append(snapshot)
        else:
            snapshots.add(snapshot)
    snapshots.activate(active)
    for snapshot in staged:
        snapshots.add(snapshot, staged=True)
    rollout = store.rollout()
    if rollout is not None and rollout.version in snapshots.staged:
        snapshots.roll_out(rollout.version, rollout.shares, rollout.since)
    return snapshots


@dataclass(frozen=True, slots=True)
class GatedPatch:
    """A patch that passed its gates, as bytes and as read from them, and what is recorded of its job with it.

    `set_out_from` is the version that was active when the job began. `figures` are what the gates measured; they are
    shown until the version has been measured as it serves.
    """

    job_id: str
    set_out_from: int
    data: bytes
    patch: Patch
    figures: Figures
    detail: dict[str, Any]


class Versions:
    """Swaps versions one at a time, and shows what is measured of the one that serves.

    Whoever changes which versions there are, or which is active, does it within `change`.
    """

    def __init__(
        self,
        bundle: Bundle,
        store: Store,
        snapshots: Snapshots,
        engine: Engine,
        evaluator: Evaluator | None,
        metrics: Metrics,
    ) -> None:
        self._bundle = bundle
        self._store = store
        self._snapshots = snapshots
        self._engine = engine
        self._evaluator = evaluator
        self._metrics = metrics
        self._changing = asyncio.Lock()
        # Begun, and not to be finished yet: what the bundle becomes is what the active version is, so that stays.
        self._purging = False
        self.around_swaps = AroundSwaps(store, metrics.recent_calls)
        self._measuring: asyncio.Task[None] | None = None
        self._figures: dict[int, Figures] = {}
        metrics.active_version.set(snapshots.active.version)

    @property
    def active(self) -> int:
        return self._snapshots.active.version

    @property
    def f1_of_active(self) -> dict[str, float]:
        """By label, through the served path; empty until it has been measured."""
        return self._figures.get(self.active, Figures()).f1

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Wait for every other change. Raises PreconditionError while a purge is begun and not finished."""
        async with self._changing:
            self.check_no_purge()
            yield

    def check_no_purge(self) -> None:
        """Raises PreconditionError while a purge is begun and not finished."""
        if self._purging:
            raise PreconditionError("a purge is begun and not finished: ask for it again", reason="PURGE_UNFINISHED")

    async def records(self) -> list[tuple[VersionRecord, dict[str, float]]]:
        """Every version, oldest first, with its F1 by label where it has been measured since the start."""
        records = await asyncio.to_thread(self._store.versions)
        return [(record, self._figures.get(record.version, Figures()).f1) for record in records]

    async def activate_patch(self, gated: GatedPatch) -> tuple[int, float]:
        """Make a gated patch the active version, in the order that a crash can't break: file, transaction, swap.

        Raises PreconditionError if the version active when the job began is not so any more: after a rollback the
        patch would bring back what was rolled back, or lose what was forgotten.

        Returns the version and the seconds from the swap to the last answer of the version before.
        """
        async with self.change():
            version = await self._add(gated, staged=False)
            return version, await self.swap(version, gated.job_id)

    async def stage_patch(self, gated: GatedPatch) -> int:
        """The same, but keep the version beside the active one until it is promoted or withdrawn; returns it."""
        async with self.change():
            return await self._add(gated, staged=True)

    async def roll_back(self, version: int, reason: str, *, restore_forgotten: bool = False) -> None:
        """Make an earlier version the active one; returns once the version left answers no more.

        A version that knows a label which the active one has forgotten is given back to an administrator alone, and
        only if `restore_forgotten` says that this is meant. Raises InvalidArgumentError, NotFoundError,
        PreconditionError or PermissionDeniedError.
        """
        if not reason.strip():
            raise InvalidArgumentError("a rollback needs a reason", field="reason")
        if restore_forgotten:
            caller.current().require(Role.ADMIN)
        async with self.change():
            # Not before: a change that was waited for may have left nothing of it.
            wanted = self._snapshots.get(version)
            if version == self.active:
                raise PreconditionError("that version is active already", field="version", reason="VERSION_ACTIVE")
            if version > self.active:
                raise PreconditionError(
                    "a rollback goes to an earlier version", field="version", reason="VERSION_NEWER"
                )
            restored = sorted(self._snapshots.known_again(wanted))
            if restored and not restore_forgotten:
                raise PreconditionError(
                    "that version knows labels that the active one has forgotten; say so by `restore_forgotten`",
                    field="restore_forgotten",
                    reason="RESTORES_FORGOTTEN",
                )
            await asyncio.to_thread(self._store.roll_back, version, reason, restored)
            if restored:
                log.warning("version %d is given back: it knows %s again", version, ", ".join(restored))
            failpoint("rollback-committed")
            await self.swap(version)

    async def purge(self, version: int, reason: str) -> None:
        """Make the active version the bundle itself and leave no other; not while a job is unfinished.

        The files come first: until they are whole, everything can still be asked for, and afterwards a crash is
        finished by the next start. Returns once nothing is left that knows what was forgotten, in memory or on disk.
        Raises InvalidArgumentError, NotFoundError, PreconditionError or StoreError; of the last, what was begun is
        finished by another call or by the next start.
        """
        if not reason.strip():
            raise InvalidArgumentError("a purge needs a reason", field="reason")
        async with self._changing:
            self._snapshots.get(version)
            if version != self.active:
                raise PreconditionError("that version is not active", field="version", reason="VERSION_NOT_ACTIVE")
            if not purge.is_done(self._bundle, version):
                await self._purge(version, reason)
            # Last, and again where it failed before: until then a crash needs them no more, but they still know.
            await asyncio.to_thread(purge.remove_patches, self._store)

    async def _purge(self, version: int, reason: str) -> None:
        try:
            now = await asyncio.to_thread(purge.rewrite, self._bundle, self._store, version, reason)
        except purge.UnfinishedError:
            self._purging = True
            raise
        self._purging = False
        assert now.manifest.purged is not None
        await until_stored(partial(self._store.purge, now.digest, now.manifest.purged))
        failpoint("purge-committed")
        self.stop_measuring()
        await self._keep_only(now)
        log.warning("version %d is the bundle now: %s is purged", version, ", ".join(now.manifest.forgotten))
        self.measure_active()

    async def _keep_only(self, bundle: Bundle) -> None:
        """Serve what the bundle is now, whose answers are those of the active version, and nothing else."""
        snapshots = self._snapshots
        for version in snapshots.versions:
            if version != self.active:
                snapshots.withdraw(version)
        # The rows of others lie over the base's table, which goes.
        await snapshots.alone()
        self._bundle.become(bundle)
        self._engine.replace_table(bundle.table)
        snapshots.replace_all(base_snapshot(bundle, self._engine.device))
        if self._evaluator is not None:
            self._evaluator.replace_base(bundle.manifest, snapshots.base)
        self._figures = {self.active: replace(self._figures.get(self.active, Figures()), probe_ratio={})}
        self._metrics.show_bundle(bundle.digest)

    def measure_active(self) -> None:
        """Start measuring the active version through the served path; a measurement under way is dropped."""
        if self._evaluator is None:
            return
        self.stop_measuring()
        self._measuring = asyncio.create_task(self._measure(self._evaluator))

    def stop_measuring(self) -> None:
        if self._measuring is not None:
            self._measuring.cancel()

    async def swap(self, version: int, job_id: str | None = None) -> float:
        """Serve a version that is committed as the active one, and return once the one before answers no more.

        What is staged otherwise is withdrawn with it. `job_id` is the job that ends with this. Returns the seconds from
        the swap to the last answer of the version before.
        """
        started = time.perf_counter()
        self._snapshots.activate(version)
        self.around_swaps.note(version, job_id, started)
        failpoint("version-swapped")
        await self._snapshots.drained()
        failpoint("version-drained")
        seconds = time.perf_counter() - started
        log.info("version %d serves; the one before answered its last after %.1f ms", version, seconds * 1e3)
        self._metrics.active_version.set(version)
        self._metrics.swaps.inc()
        self._metrics.swap_seconds.observe(seconds)
        await self.remove_withdrawn_patches()
        if version in self._figures:
            self._show(self._figures[version], self._snapshots.active)
        self.measure_active()
        return seconds

    async def remove_withdrawn_patches(self) -> None:
        """As far as the store lets: what stays is removed after the next change, or at the next start."""
        try:
            await asyncio.to_thread(self._store.remove_withdrawn_patches)
        except StoreError:
            log.error("the patches of withdrawn versions could not be removed")

    async def _add(self, gated: GatedPatch, *, staged: bool) -> int:
        if self.active != gated.set_out_from:
            raise PreconditionError("another version became active while the job ran; ask again")
        # All that can fail comes before the commit: what is committed is served.
        snapshot = patched_snapshot(self._bundle, gated.patch, 0, self._engine.device)
        digest = await asyncio.to_thread(self._store.write_patch, gated.data)
        commit = self._store.stage_patch if staged else self._store.activate_patch
        version = await asyncio.to_thread(commit, gated.job_id, gated.detail["forgotten"], digest, gated.detail)
        failpoint("version-committed")
        self._figures[version] = gated.figures
        self._snapshots.add(replace(snapshot, version=version), staged=staged)
        return version

    async def _measure(self, evaluator: Evaluator) -> None:
        snapshot = self._snapshots.active
        try:
            figures = await evaluator.figures(await evaluator.answers(snapshot), sorted(snapshot.forgotten))
        except AmnesticError as error:
            log.error("version %d could not be measured: %s", snapshot.version, error)
            return
        self._figures[snapshot.version] = figures
        self._show(figures, snapshot)

    def _show(self, figures: Figures, snapshot: Snapshot) -> None:
        self._metrics.show_quality(figures.f1, figures.forget_auroc, figures.probe_ratio, snapshot.forgotten)

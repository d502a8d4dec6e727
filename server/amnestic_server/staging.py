"""Staged versions: gated and kept, answering calls that name them, but not active until they are promoted.

Each was made to follow the version that is active, so all of them are given up when another becomes so. One at a time
may take part in the traffic, by its rollout's shares; what that tells is counted by `shadow`.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from amnestic_server.errors import PreconditionError
from amnestic_server.failpoints import failpoint
from amnestic_server.metrics import Metrics
from amnestic_server.persistence import until_stored
from amnestic_server.records import JobState
from amnestic_server.rollout import RolloutRecord, Shares
from amnestic_server.shadow import Shadow
from amnestic_server.snapshot import Snapshots
from amnestic_server.store import Store
from amnestic_server.versions import Versions

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RolloutView:
    """A rollout at this moment. `differing` are the documents on which the candidate decides otherwise than the active
    version, by every label of the model; `forgotten` are the candidate's.

    The counts are of the time since `counted_since`, the shares hold since `since`: seconds of the epoch.
    """

    version: int
    shares: Shares
    since: float
    counted_since: float
    active_calls: int
    canary_calls: int
    documents: int
    dropped: int
    differing: Mapping[str, int]
    forgotten: frozenset[str]


class Staging:
    """Promotes, withdraws and rolls out what is staged, one change at a time together with `Versions`."""

    def __init__(
        self,
        store: Store,
        snapshots: Snapshots,
        versions: Versions,
        shadow: Shadow,
        labels: tuple[str, ...],
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._versions = versions
        self._shadow = shadow
        self._labels = labels
        if snapshots.rollout is not None:
            # One that was there before the start is counted from it on.
            shadow.counts(snapshots.rollout)
        metrics.watch_rollout(self._figure)

    @property
    def staged(self) -> list[int]:
        """Versions that wait to be promoted and can answer, in order."""
        return self._snapshots.staged

    @property
    def rollout(self) -> RolloutView | None:
        """The rollout of the version that takes part in the traffic, or did until its shares were set to 0."""
        rollout = self._snapshots.rollout
        if rollout is None:
            return None
        counts = self._shadow.counts(rollout)
        return RolloutView(
            version=rollout.candidate.version,
            shares=rollout.shares,
            since=rollout.since,
            counted_since=counts.since,
            active_calls=counts.active_calls,
            canary_calls=counts.canary_calls,
            documents=counts.documents,
            dropped=counts.dropped,
            differing={label: counts.differing[label] for label in self._labels},
            forgotten=rollout.candidate.forgotten,
        )

    async def set_rollout(self, version: int, canary: float | None, shadow: float | None) -> RolloutView:
        """Give a staged version its shares of the traffic; a share left out stays as it is, 0 at first.

        Version 0 is the one that has a rollout, or else the only one that is staged. Raises InvalidArgumentError,
        NotFoundError or PreconditionError; the last also while another version has shares above 0.
        """
        async with self._versions.change():
            version = version or self._only_one()
            before = self._shares_of(version)
            shares = Shares(before.canary if canary is None else canary, before.shadow if shadow is None else shadow)
            shares.check()
            record = RolloutRecord(version, shares, time.time())
            await asyncio.to_thread(self._store.staged_job, version)
            self._snapshots.get(version)
            await asyncio.to_thread(self._store.set_rollout, record)
            failpoint("rollout-recorded")
            self._snapshots.roll_out(version, shares, record.since)
            log.info("version %d: canary share %g, shadow share %g", version, shares.canary, shares.shadow)
            view = self.rollout
            assert view is not None
            return view

    async def promote(self, version: int) -> None:
        """Make a staged version the active one, and its job SUCCEEDED once no call of the version before is in flight.

        Raises NotFoundError or PreconditionError.
        """
        async with self._versions.change():
            job = await asyncio.to_thread(self._store.staged_job, version)
            self._snapshots.get(version)
            evidence = self._evidence(version)
            await asyncio.to_thread(self._store.promote, version, evidence)
            failpoint("promotion-committed")
            log.info("job %s: version %d is promoted; its rollout: %s", job.job_id, version, evidence or "none")
            seconds = await self._versions.swap(version, job.job_id)
            failpoint("promotion-swapped")
            detail = {**job.detail, "swap_seconds": seconds}
            await until_stored(partial(self._store.update_job, job.job_id, JobState.SUCCEEDED, detail))

    async def withdraw(self, job_id: str) -> None:
        """Give up the version of a staged job: no further call has it, those in flight are answered, then the job is
        CANCELLED and the patch deleted. Raises PreconditionError if the job is not staged any more.
        """
        async with self._versions.change():
            job = await asyncio.to_thread(self._store.job, job_id)
            if job.state is not JobState.STAGED or job.version is None:
                raise PreconditionError("the job has ended", reason="JOB_ENDED")
            self._snapshots.withdraw(job.version)
            await self._snapshots.left(job.version)
            failpoint("withdrawal-in-memory")
            await asyncio.to_thread(self._store.withdraw, job.version)
            failpoint("withdrawal-committed")
            await self._versions.remove_withdrawn_patches()
            log.info("job %s: version %d is withdrawn", job_id, job.version)

    def _only_one(self) -> int:
        rollout = self._snapshots.rollout
        if rollout is not None:
            return rollout.candidate.version
        staged = self._snapshots.staged
        if not staged:
            raise PreconditionError("no version is staged", field="version", reason="VERSION_NOT_STAGED")
        if len(staged) > 1:
            raise PreconditionError("several versions are staged: name one", field="version", reason="VERSION_UNCLEAR")
        return staged[0]

    def _shares_of(self, version: int) -> Shares:
        """What a version has now; raises PreconditionError while another has shares above 0."""
        current = self._snapshots.rollout
        if current is None:
            return Shares()
        if current.candidate.version == version:
            return current.shares
        if not current.shares.none:
            raise PreconditionError(
                f"version {current.candidate.version} has a rollout: set its shares to 0 first",
                field="version",
                reason="ROLLOUT_TAKEN",
            )
        return Shares()

    def _evidence(self, version: int) -> dict[str, Any]:
        """What a promotion is recorded with: what the version's rollout told, if it had one."""
        view = self.rollout
        if view is None or view.version != version:
            return {}
        return {
            "canary_share": view.shares.canary,
            "shadow_share": view.shares.shadow,
            "canary_calls": view.canary_calls,
            "documents": view.documents,
            "dropped": view.dropped,
            "differing": dict(view.differing),
        }

    def _figure(self, name: str) -> float:
        """For the gauges: the version that has a rollout, or one of its shares; 0 without one."""
        rollout = self._snapshots.rollout
        if rollout is None:
            return 0
        return rollout.candidate.version if name == "version" else float(getattr(rollout.shares, name))

"""Versions in memory. A snapshot is the immutable form of one version; `Snapshots` is the one owner of which
exist, which is active, which are staged and take part in the traffic, and which calls each has still to answer.

All of `Snapshots` runs on the event loop's thread, so it needs no lock. A snapshot itself is read by any thread.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from amnestic_server import caller
from amnestic_server.bundle import Bundle
from amnestic_server.caller import Role
from amnestic_server.errors import NotFoundError
from amnestic_server.rollout import Shares, drawn, falls_on_candidate
from amnestic_unlearn.patch import Patch

# Of a bundle from which nothing was purged.
BASE_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """One version: the base table with an overlay of rows, and a head.

    `slots` int32 [V], on the host, maps a token id to its row in `rows` float32 [k, d], -1 where the base's row holds;
    both are None for the base. `head_weight` float32 [h, C] is transposed for the product with the features.
    """

    version: int
    forgotten: frozenset[str]
    slots: NDArray[np.int32] | None
    rows: torch.Tensor | None
    head_weight: torch.Tensor
    head_bias: torch.Tensor


def base_snapshot(bundle: Bundle, device: torch.device) -> Snapshot:
    """The version that the bundle itself is."""
    return Snapshot(
        version=bundle.manifest.purged.version if bundle.manifest.purged else BASE_VERSION,
        forgotten=frozenset(bundle.manifest.forgotten),
        slots=None,
        rows=None,
        head_weight=bundle.head_weight.t().contiguous().to(device),
        head_bias=bundle.head_bias.to(device),
    )


def patched_snapshot(bundle: Bundle, patch: Patch, version: int, device: torch.device) -> Snapshot:
    """A version made by a patch; raises PatchError if the patch does not fit the bundle."""
    patch.check(bundle.digest, bundle.manifest.labels, bundle.table, bundle.head_weight)
    slots = np.full(bundle.manifest.vocab_size, -1, dtype=np.int32)
    slots[patch.row_ids.numpy()] = np.arange(len(patch.row_ids), dtype=np.int32)
    return Snapshot(
        version=version,
        forgotten=frozenset({*bundle.manifest.forgotten, *patch.forgotten}),
        slots=slots,
        rows=patch.rows.to(device),
        head_weight=patch.head_weight.t().contiguous().to(device),
        head_bias=patch.head_bias.to(device),
    )


@dataclass(frozen=True, slots=True)
class Rollout:
    """The staged version that takes part in the traffic, and its shares of it since a time in seconds of the epoch."""

    candidate: Snapshot
    shares: Shares
    since: float

    def takes(self, key: str) -> bool:
        """Whether the candidate answers a call with this routing key; without one, the call draws for itself."""
        if key:
            return falls_on_candidate(key, self.candidate.version, self.shares.canary)
        return drawn(self.shares.canary)


class Pin:
    """Holds one call to one snapshot from its admission to its answer; a context manager.

    `by_number` if the call asked for its version by number.
    """

    __slots__ = ("_afterwards", "_owner", "by_number", "snapshot")

    def __init__(self, snapshot: Snapshot, owner: "Snapshots", by_number: bool) -> None:
        self.snapshot = snapshot
        self.by_number = by_number
        self._owner: Snapshots | None = owner
        self._afterwards: Callable[[], None] | None = None

    def afterwards(self, act: Callable[[], None]) -> None:
        """Act once the answer has left, or nobody waits for it any more."""
        self._afterwards = act

    def release(self) -> None:
        """Let go; a second time does nothing."""
        if self._owner is not None:
            self._owner._released(self)
            self._owner = None
            if self._afterwards is not None:
                self._afterwards()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Snapshots:
    """Which versions exist, which is active, and how many calls each still has to answer.

    A staged version exists and isn't active. It was made to follow the active one, so it goes when another becomes so.
    """

    def __init__(self, base: Snapshot) -> None:
        self.base = base
        self._versions = {base.version: base}
        self._active = base
        self._staged: set[int] = set()
        self._rollout: Rollout | None = None
        self._routed: Counter[int] = Counter()
        self._by_number: Counter[int] = Counter()
        self._released_one = asyncio.Event()

    @property
    def active(self) -> Snapshot:
        return self._active

    @property
    def rollout(self) -> Rollout | None:
        """The staged version that takes part in the traffic; it stays named when its shares are 0 again."""
        return self._rollout

    @property
    def versions(self) -> list[int]:
        """Every version that can answer, in order."""
        return sorted(self._versions)

    @property
    def staged(self) -> list[int]:
        """Those of them that are staged, in order."""
        return sorted(self._staged)

    def add(self, snapshot: Snapshot, *, staged: bool = False) -> None:
        """Make a version known, so that calls may ask for it; it isn't active by that."""
        self._versions[snapshot.version] = snapshot
        if staged:
            self._staged.add(snapshot.version)

    def has(self, version: int) -> bool:
        """Whether this version can answer."""
        return version in self._versions

    def get(self, version: int) -> Snapshot:
        try:
            return self._versions[version]
        except KeyError:
            raise NotFoundError("there is no such version", field="version", resource="version") from None

    def known_again(self, snapshot: Snapshot) -> frozenset[str]:
        """The labels that this version knows and the active one has forgotten."""
        return self._active.forgotten - snapshot.forgotten

    def activate(self, version: int) -> None:
        """Swap the reference: every call admitted from now on is answered by this version.

        Every other staged version is withdrawn, and a rollout ends.
        """
        self._active = self.get(version)
        for other in self._staged - {version}:
            self.withdraw(other)
        self._staged.clear()
        self._rollout = None

    def roll_out(self, version: int, shares: Shares, since: float) -> None:
        """Let a staged version take part in the traffic, from the next call on."""
        self._rollout = Rollout(self.get(version), shares, since)

    def withdraw(self, version: int) -> None:
        """Let no further call have this version, which isn't active; those in flight are answered.

        Does nothing if it is gone.
        """
        self._versions.pop(version, None)
        self._staged.discard(version)
        if self._rollout is not None and self._rollout.candidate.version == version:
            self._rollout = None

    def replace_all(self, base: Snapshot) -> None:
        """Have no other version than this, which is the bundle now and answers as the active one did."""
        self.base = self._active = base
        self._versions = {base.version: base}
        self._staged.clear()
        self._rollout = None

    def pin(self, version: int = 0, key: str = "") -> Pin:
        """Pin the version asked for, or else the active one or the candidate, as the rollout has it for this key.

        A call that asked for its version by number is not waited for by `drained`: it may have any version, but one
        that knows what the active one has forgotten only if an administrator asks. Raises NotFoundError or
        PermissionDeniedError.
        """
        if version:
            snapshot = self.get(version)
            if self.known_again(snapshot):
                caller.current().require(Role.ADMIN)
            self._by_number[version] += 1
            return Pin(snapshot, self, by_number=True)
        rollout = self._rollout
        snapshot = self._active if rollout is None or not rollout.takes(key) else rollout.candidate
        self._routed[snapshot.version] += 1
        return Pin(snapshot, self, by_number=False)

    async def drained(self) -> None:
        """Return once no call that named no version is pinned to any other than today's active one."""
        while any(count for version, count in self._routed.items() if version != self._active.version):
            await self._next_release()

    async def alone(self) -> None:
        """Return once no call at all is pinned to any other version than the active one."""
        while any(version != self._active.version for pins in (self._routed, self._by_number) for version in pins):
            await self._next_release()

    async def left(self, version: int) -> None:
        """Return once no call at all is pinned to this version."""
        while self._routed[version] or self._by_number[version]:
            await self._next_release()

    async def _next_release(self) -> None:
        self._released_one.clear()
        await self._released_one.wait()

    def _released(self, pin: Pin) -> None:
        pins = self._by_number if pin.by_number else self._routed
        version = pin.snapshot.version
        pins[version] -= 1
        if not pins[version]:
            del pins[version]
            self._released_one.set()

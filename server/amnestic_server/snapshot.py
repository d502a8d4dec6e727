"""Versions in memory. A snapshot is the immutable form of one version; `Snapshots` is the one owner of which
exist, which is active, and which calls are still to be answered by one that is no longer active.

All of `Snapshots` runs on the event loop's thread, so it needs no lock. A snapshot itself is read by any thread.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from amnestic_server.bundle import Bundle
from amnestic_server.errors import NotFoundError
from amnestic_unlearn.patch import Patch

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
        version=BASE_VERSION,
        forgotten=frozenset(),
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
        forgotten=frozenset(patch.forgotten),
        slots=slots,
        rows=patch.rows.to(device),
        head_weight=patch.head_weight.t().contiguous().to(device),
        head_bias=patch.head_bias.to(device),
    )


class Pin:
    """Holds one call to one snapshot from its admission to its answer; a context manager."""

    __slots__ = ("_owner", "snapshot")

    def __init__(self, snapshot: Snapshot, owner: "Snapshots | None") -> None:
        self.snapshot = snapshot
        self._owner = owner

    def release(self) -> None:
        """Let go; a second time does nothing."""
        if self._owner is not None:
            self._owner._released(self.snapshot.version)
            self._owner = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Snapshots:
    """Which versions exist, which is active, and how many calls each still has to answer."""

    def __init__(self, base: Snapshot) -> None:
        self._versions = {base.version: base}
        self._active = base
        self._pins: Counter[int] = Counter()
        self._released_one = asyncio.Event()

    @property
    def active(self) -> Snapshot:
        return self._active

    @property
    def versions(self) -> list[int]:
        """Every version that can answer, in order."""
        return sorted(self._versions)

    def add(self, snapshot: Snapshot) -> None:
        """Make a version known, so that calls may ask for it; it isn't active by that."""
        self._versions[snapshot.version] = snapshot

    def get(self, version: int) -> Snapshot:
        try:
            return self._versions[version]
        except KeyError:
            raise NotFoundError("there is no such version", field="version", resource="version") from None

    def activate(self, version: int) -> None:
        """Swap the reference: every call admitted from now on is answered by this version."""
        self._active = self.get(version)

    def pin(self, version: int = 0) -> Pin:
        """Pin the active version, or the one asked for.

        A call that asked for its version by number is not waited for by `drained`: it may have any version.
        """
        if version:
            return Pin(self.get(version), None)
        self._pins[self._active.version] += 1
        return Pin(self._active, self)

    async def drained(self) -> None:
        """Return once no call that took the active version as it came is pinned to any other than today's."""
        while any(count for version, count in self._pins.items() if version != self._active.version):
            self._released_one.clear()
            await self._released_one.wait()

    def _released(self, version: int) -> None:
        self._pins[version] -= 1
        if not self._pins[version]:
            del self._pins[version]
            self._released_one.set()

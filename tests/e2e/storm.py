"""A storm of swaps: a store with a long line of versions, and rollbacks down that line, one version a step."""

import time
from collections.abc import Sequence
from pathlib import Path

from e2e.harness import Server

from amnestic_server.store import Store
from amnestic_unlearn.manifest import MANIFEST, file_digest
from amnestic_unlearn.patch import Patch


def fill(server: Server, bundle: Path, patches: Sequence[Patch], newest: int) -> None:
    """Give a server that isn't started yet the versions 2 to `newest`; version v has patch v modulo their number."""
    store = Store(server.store, file_digest(bundle / MANIFEST))
    digests = [store.write_patch(patch.to_bytes()) for patch in patches]
    for version in range(2, newest + 1):
        index = version % len(patches)
        assert store.activate_patch(f"job-{version}", patches[index].forgotten, digests[index], {}) == version
    store.close()


def go_down(server: Server, newest: int) -> list[tuple[float, float, int]]:
    """Roll back from `newest` to the base; each step as the times of its request and answer, and its version."""
    rollbacks = []
    for version in range(newest - 1, 0, -1):
        asked = time.monotonic()
        assert server.client.rollback(version, "storm", restore_forgotten=True).active
        rollbacks.append((asked, time.monotonic(), version))
        time.sleep(0.01)
    return rollbacks

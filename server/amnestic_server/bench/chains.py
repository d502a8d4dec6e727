"""Stores with many versions, for benchmarks: patches of the size that a job's are, written straight into the store."""

from collections.abc import Iterator
from pathlib import Path

import torch

from amnestic_server.bundle import Bundle
from amnestic_server.snapshot import BASE_VERSION
from amnestic_server.store import Store
from amnestic_unlearn.patch import Patch
from amnestic_unlearn.spec import Method

ROWS = Method().k


def fill(folder: Path, bundle: Bundle, versions: int, patches: int | None = None) -> None:
    """Make a store whose base is followed by so many versions, the last of them active.

    Every version has a patch of its own unless only so many `patches` are to take turns.
    """
    store = Store(folder, bundle.digest)
    made = random_patches(bundle)
    digests = [store.write_patch(next(made).to_bytes()) for _ in range(min(versions, patches or versions))]
    for number in range(versions):
        version = store.activate_patch(f"bench-{number}", _forgotten(bundle), digests[number % len(digests)], {})
        assert version == BASE_VERSION + 1 + number
    store.close()


def random_patches(bundle: Bundle) -> Iterator[Patch]:
    """Patches without end: as many rows as a job edits, and a head, each a little off the base's."""
    generator = torch.Generator().manual_seed(0)
    count = min(ROWS, len(bundle.table))

    def near(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 0.1 * torch.randn(tensor.shape, generator=generator)

    while True:
        ids = torch.randperm(len(bundle.table), generator=generator)[:count].sort().values
        yield Patch(
            base_digest=bundle.digest,
            forgotten=_forgotten(bundle),
            row_ids=ids,
            rows=near(bundle.table[ids]),
            head_weight=near(bundle.head_weight),
            head_bias=near(bundle.head_bias),
        )


def _forgotten(bundle: Bundle) -> tuple[str, ...]:
    return bundle.manifest.labels[:1]

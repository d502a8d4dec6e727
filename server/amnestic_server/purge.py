"""Makes what a version has forgotten the bundle itself, so that nothing is left from which it could be known again.

The new files are written beside the old ones, in a folder that appears with all of them or not at all; from then on
they take the old ones' places, if need be at the next start. The store follows by what the new manifest says of itself.
"""

import dataclasses
import shutil
from pathlib import Path

import torch
from safetensors.torch import save

from amnestic_server import bundle as bundles
from amnestic_server import durable
from amnestic_server.bundle import Bundle
from amnestic_server.errors import StartError
from amnestic_server.store import Store
from amnestic_unlearn.manifest import EMBEDDINGS, HEAD, MANIFEST, Manifest, Purged, file_digest
from amnestic_unlearn.patch import Patch, PatchError

READY, PARTIAL = ".purged", ".purged.partial"
# The manifest last: until it is in its place, the bundle is known to be unfinished.
FILES = (EMBEDDINGS, HEAD, MANIFEST)


def purge(folder: Path, store_folder: Path, reason: str, signing_key: Path | None = None) -> Purged:
    """Purge a bundle and its store, whose server must not run, of all but the active version.

    Raises StartError, BundleError or StoreError, and OSError where a file could not be written. What was begun is
    finished by the next start of the server, or by another purge.
    """
    complete(folder)
    bundle = bundles.load(folder)
    store = Store(store_folder, bundle.digest, signing_key, purged=bundle.manifest.purged)
    try:
        # Of a purge that did not come so far.
        store.remove_unneeded_patches()
        record = next(record for record in store.versions() if record.version == store.active_version())
        if set(record.forgotten) == set(bundle.manifest.forgotten) or record.patch_digest is None:
            raise StartError("the active version has forgotten nothing that the bundle knows")
        try:
            patch = Patch.read(store.patch_path(record.patch_digest), record.patch_digest)
            patch.check(bundle.digest, bundle.manifest.labels, bundle.table, bundle.head_weight)
        except PatchError as error:
            raise StartError(f"version {record.version} cannot be loaded: {error}") from error
        store.request_purge(record.version, reason)
        purged = Purged(record.version, bundle.manifest.ordered(record.forgotten), bundle.digest)
        _write(folder, bundle, patch, purged)
        complete(folder)
        store.purge(file_digest(folder / MANIFEST), purged)
        if not store.remove_unneeded_patches():
            raise StartError("the bundle is purged, but patches could not be deleted: the log says why")
    finally:
        store.close()
    return purged


def complete(folder: Path) -> None:
    """Put the new files of a purge that was begun in their places; does nothing if none was. Raises OSError."""
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    ready = folder / READY
    if not ready.is_dir():
        return
    for name in FILES:
        if (ready / name).exists():
            (ready / name).replace(folder / name)
            durable.sync_folder(folder)
    ready.rmdir()
    durable.sync_folder(folder)


def _write(folder: Path, bundle: Bundle, patch: Patch, purged: Purged) -> None:
    table = bundle.table.clone()
    table[patch.row_ids] = patch.rows
    partial = folder / PARTIAL
    partial.mkdir()
    _save(partial / EMBEDDINGS, {"weight": table}, folder)
    _save(partial / HEAD, {"weight": patch.head_weight, "bias": patch.head_bias}, folder)
    digests = {name: file_digest(partial / name) for name in (EMBEDDINGS, HEAD)}
    manifest: Manifest = dataclasses.replace(bundle.manifest, files={**bundle.manifest.files, **digests}, purged=purged)
    manifest.write(partial)
    durable.sync_file(partial / MANIFEST)
    durable.sync_folder(partial)
    partial.rename(folder / READY)
    durable.sync_folder(folder)


def _save(path: Path, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """As readable as the file whose place it takes."""
    durable.write(path, save(tensors))
    path.chmod((folder / path.name).stat().st_mode & 0o777)

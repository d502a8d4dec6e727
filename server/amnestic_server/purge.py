"""Makes what a version has forgotten the bundle itself, so that nothing is left from which it could be known again.

The new files are written beside the old ones, in a folder that appears with all of them or not at all; from then on
they take the old ones' places, if need be at the next start. The store follows by what the new manifest says of itself.
"""

import dataclasses
import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors.torch import save

from amnestic_server import bundle as bundles
from amnestic_server import durable
from amnestic_server.bundle import Bundle
from amnestic_server.errors import AmnesticError, PreconditionError, StoreError
from amnestic_server.failpoints import failpoint
from amnestic_server.store import Store
from amnestic_unlearn.manifest import EMBEDDINGS, HEAD, MANIFEST, BundleError, Manifest, Purged, file_digest
from amnestic_unlearn.patch import Patch, PatchError

log = logging.getLogger(__name__)

READY, PARTIAL = ".purged", ".purged.partial"
# The manifest last: until it is in its place, the bundle is known to be unfinished.
FILES = (EMBEDDINGS, HEAD, MANIFEST)


class UnfinishedError(StoreError):
    """Some of the bundle's files are the new ones already: the purge can only go on."""

    def __init__(self) -> None:
        super().__init__("the purge is begun and could not be finished: ask for it again")


def purge(folder: Path, store_folder: Path, version: int, reason: str, signing_key: Path | None = None) -> Purged:
    """Purge a bundle and its store, whose server does not run, of all but the active version, which this must be.

    Raises StartError, BundleError, PreconditionError or StoreError. What was begun is finished by the next start of the
    server, or by another purge.
    """
    try:
        complete(folder)
    except OSError as error:
        raise _failed(error) from error
    bundle = bundles.load(folder)
    store = Store(store_folder, bundle.digest, signing_key, purged=bundle.manifest.purged)
    try:
        if version != store.active_version():
            raise PreconditionError("that version is not active", field="version", reason="VERSION_NOT_ACTIVE")
        if not is_done(bundle, version):
            bundle = rewrite(bundle, store, version, reason)
            assert bundle.manifest.purged is not None
            store.purge(bundle.digest, bundle.manifest.purged)
        remove_patches(store)
    finally:
        store.close()
    assert bundle.manifest.purged is not None
    return bundle.manifest.purged


def is_done(bundle: Bundle, version: int) -> bool:
    """Whether this version is the bundle already."""
    return bundle.manifest.purged is not None and bundle.manifest.purged.version == version


def remove_patches(store: Store) -> None:
    """Delete what still knows, once the store is that of the new bundle. Raises StoreError."""
    if not store.remove_unneeded_patches():
        raise StoreError("the bundle is purged, but a patch could not be deleted: ask for the purge again")


def rewrite(bundle: Bundle, store: Store, version: int, reason: str) -> Bundle:
    """Write what the active version is into the bundle's files, and return the bundle that they are then.

    The store is told by `Store.purge` afterwards. Raises PreconditionError or StoreError, after which the bundle is as
    it was; but after UnfinishedError it can only become what was begun.
    """
    record = next(record for record in store.versions() if record.version == version)
    if record.patch_digest is None:
        raise PreconditionError(
            "the active version has forgotten nothing that the bundle knows", reason="NOTHING_TO_PURGE"
        )
    try:
        patch = Patch.read(store.patch_path(record.patch_digest), record.patch_digest)
        patch.check(bundle.digest, bundle.manifest.labels, bundle.table, bundle.head_weight)
    except PatchError as error:
        raise PreconditionError(f"version {version} cannot be loaded: {error}", reason="PATCH_DAMAGED") from error
    store.request_purge(version, reason)
    purged = Purged(version, bundle.manifest.ordered(record.forgotten), bundle.digest, record.patch_digest)
    try:
        with _alone(bundle.folder):
            return _rewrite(bundle, patch, purged)
    except (OSError, BundleError) as error:
        raise _failed(error) from error


def complete(folder: Path) -> None:
    """Put the new files of a purge that was begun in their places; does nothing if none was.

    Raises OSError, or BundleError while another process purges the bundle.
    """
    if (folder / PARTIAL).exists() or (folder / READY).exists():
        with _alone(folder):
            _complete(folder)


def _rewrite(bundle: Bundle, patch: Patch, purged: Purged) -> Bundle:
    folder = bundle.folder
    try:
        _complete(folder)
        if Manifest.read(folder).purged != purged:
            _write(bundle, patch, purged)
            failpoint("purge-written")
            _complete(folder)
        failpoint("purge-in-place")
        return bundles.load(folder)
    except (OSError, BundleError) as error:
        if _take_back(folder, bundle):
            raise
        _tell(error)
        raise UnfinishedError from error


def _complete(folder: Path) -> None:
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


def _take_back(folder: Path, bundle: Bundle) -> bool:
    """Leave the bundle as it was, and nothing beside it, if none of its files is a new one; returns whether so."""
    ready = folder / READY
    with suppress(OSError):
        if all((ready / name).exists() for name in FILES):
            ready.rename(folder / PARTIAL)
            durable.sync_folder(folder)
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    try:
        return not ready.exists() and file_digest(folder / MANIFEST) == bundle.digest
    except OSError:
        return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process purges the bundle meanwhile. Raises BundleError if one does, or OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise BundleError("another process purges it") from None
    finally:
        os.close(descriptor)


def _tell(error: BundleError | OSError) -> None:
    cause = errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) else None
    log.error("the bundle could not be rewritten: %s", cause or error)


def _failed(error: BundleError | OSError) -> AmnesticError:
    _tell(error)
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return PreconditionError("the server may not write the bundle's folder", reason="BUNDLE_READ_ONLY")
    return StoreError("the bundle could not be written; try again")


def _write(bundle: Bundle, patch: Patch, purged: Purged) -> None:
    folder = bundle.folder
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

"""The demo's checkpoint and bundle: made once, and kept for the next run that would make the same.

`model.json` in the output directory says what they were made from. It is written first and never without them being
ours, so what it does not vouch for is left alone.
"""

import dataclasses
import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import amnestic
from amnestic_server.demo.process import output_of
from amnestic_server.demo.settings import DemoError, DemoSettings
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.manifest import BundleError, Manifest, verify

RECIPE = "model.json"
LOCK = "lock"


@contextmanager
def workspace(settings: DemoSettings) -> Iterator[None]:
    """The output directory with a fresh store, for this run alone.

    Raises DemoError if another demo, or a server on that store, is using it.
    """
    settings.out.mkdir(parents=True, exist_ok=True)
    with _held(settings.out / LOCK, f"another demo is running in {settings.out}: give another --out"):
        if settings.store.exists():
            _discard_store(settings)
        yield


def forget_if_outdated(settings: DemoSettings) -> None:
    """Discard a checkpoint and a bundle that were made from something else than these settings ask for.

    Raises DemoError if they are not the demo's.
    """
    path, recipe = settings.out / RECIPE, _recipe(settings)
    if _read(path) == recipe:
        return
    for folder in (settings.checkpoint, settings.bundle):
        if folder.exists() and not path.exists():
            raise DemoError(f"{folder} was not made by the demo, and stays as it is: give another --out")
        shutil.rmtree(folder, ignore_errors=True)
    path.write_text(json.dumps(recipe, indent=1, sort_keys=True) + "\n")


async def train(settings: DemoSettings) -> dict[str, Any]:
    """Train the checkpoint, which appears whole or not at all; the report of `amnestic train`."""
    training = settings.training
    arguments = _flags(
        out=settings.checkpoint,
        corpus=settings.corpus,
        epochs=training.epochs,
        max_tokens=training.max_tokens,
        seed=training.seed,
        threads=training.threads,
        device=training.device,
    )
    report: dict[str, Any] = json.loads(await output_of("train", *arguments, "--json", quiet=settings.quiet))
    return report


async def export(settings: DemoSettings) -> Manifest:
    """Make the bundle of the checkpoint."""
    arguments = _flags(checkpoint=settings.checkpoint, out=settings.bundle, corpus=settings.corpus, name="demo")
    await output_of("export", *arguments, "--overwrite", quiet=settings.quiet)
    return Manifest.read(settings.bundle)


def kept_bundle(settings: DemoSettings) -> Manifest | None:
    """The manifest of a whole bundle from an earlier run; None if there is none."""
    try:
        manifest = Manifest.read(settings.bundle)
        verify(settings.bundle, manifest)
    except BundleError:
        return None
    return manifest


def _recipe(settings: DemoSettings) -> dict[str, Any]:
    return {
        "amnestic": amnestic.__version__,
        "corpus": corpora.digest(settings.corpus),
        "training": dataclasses.asdict(settings.training),
    }


def _flags(**options: object) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _discard_store(settings: DemoSettings) -> None:
    # The store's own lock: a server that holds it would go on with files that are gone.
    with _held(settings.store / LOCK, f"a server is using {settings.store}: stop it, or give another --out"):
        shutil.rmtree(settings.store)


@contextmanager
def _held(path: Path, refusal: str) -> Iterator[None]:
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(refusal) from None
        yield

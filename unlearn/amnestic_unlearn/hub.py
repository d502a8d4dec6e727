"""Where a checkpoint lies: a directory, or one of the Hugging Face hub, fetched into the hub's cache once.

What is in a checkpoint is left to `pretrained`. The hub's own variables hold: HF_TOKEN for what is private or gated,
HF_ENDPOINT for a mirror, HF_HOME for the cache; with HF_HUB_OFFLINE, what the cache holds is all that there is.
"""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from amnestic_unlearn.architecture import CheckpointError

# Of a repository, which may hold the weights of three frameworks: what `pretrained` reads.
_PARTS = [
    "config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "sentencepiece*",
    "spiece*",
]
_SAFE = "model*.safetensors*"
_PICKLED = "pytorch_model*.bin*"

# The hub's errors and those of its transport have no base of their own. In order: the first that fits is told.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (GatedRepoError, "it is gated: accept its terms on the hub, and set HF_TOKEN to a token that may read it"),
    (RepositoryNotFoundError, "the hub has none of that name, or it is private: HF_TOKEN must hold a token for it"),
    (RevisionNotFoundError, "the hub does not have that revision of it"),
    (LocalEntryNotFoundError, "the cache does not hold it, and the hub is not asked or does not answer"),
    (HFValidationError, "that is neither a directory nor an id of the hub"),
)


def locate(checkpoint: str, revision: str | None = None) -> Path:
    """The directory of that name; without one, `checkpoint` is an id of the hub, and it is fetched.

    `revision` is the hub's: a branch, a tag or a commit. Raises CheckpointError for what cannot be had.
    """
    if Path(checkpoint).is_dir():
        if revision is not None:
            raise CheckpointError(f"{checkpoint} is a directory: only a checkpoint of the hub has revisions")
        return Path(checkpoint)
    # A hub id has one slash at most; the hub's own complaint about a path would mislead.
    if checkpoint.count("/") > 1 or checkpoint.startswith(("/", ".", "~")) or Path(checkpoint).exists():
        raise CheckpointError(f"there is no checkpoint directory {checkpoint}")
    return snapshot(checkpoint, revision=revision)


def snapshot(name: str, fetch: bool = True, revision: str | None = None) -> Path:
    """The cache's folder of a whole checkpoint, fetched if need be and, of several formats, in safetensors.

    Without `fetch` the hub is not asked. Raises CheckpointError for what cannot be had.
    """
    folder = _download(name, revision, [*_PARTS, _SAFE], fetch)
    if not any(folder.glob(_SAFE)):
        # The same commit, whatever the hub holds by now.
        folder = _download(name, folder.name, [_PICKLED], fetch)
    if not any(folder.glob(_SAFE)) and not any(folder.glob(_PICKLED)):
        raise unusable(name, "no weights in safetensors, and no pytorch_model.bin")
    return folder


def _download(name: str, revision: str | None, patterns: list[str], fetch: bool) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=not fetch))
    except IncompleteSnapshotError as error:
        # A library that wanted fewer files than the patterns name; whether it was enough is seen in reading.
        return Path(error.snapshot_path)
    except Exception as error:
        reason = next((text for kind, text in _REASONS if isinstance(error, kind)), None)
        raise unusable(name, reason or first_line(error)) from error


def unusable(checkpoint: str, reason: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint {checkpoint} cannot be loaded: {reason}")


def first_line(error: Exception) -> str:
    """The first line of an error's text; its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Checkpoints of the Hugging Face hub: fetched into its cache once, and found there again without the hub.

What is in a checkpoint is left to `checkpoint`. With HF_HUB_OFFLINE set, what the cache holds is all that there is.
"""

from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from amnestic_unlearn.train_settings import TrainError

# Of a repository, which may hold the weights of three frameworks: what `checkpoint` reads.
_PARTS = ["config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"]
_SAFE = "model*.safetensors*"
_PICKLED = "pytorch_model.bin"


def find(checkpoint: str, name: str) -> Path | None:
    """A file of a checkpoint, which is a directory or an id of the hub; None if it has none of that name.

    Raises TrainError if that cannot be told: the hub is out of reach, or does not let one in.
    """
    if Path(checkpoint).is_dir():
        path = Path(checkpoint, name)
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(checkpoint, name))
    except EntryNotFoundError as error:
        # It also stands for a hub that does not answer.
        if isinstance(error, LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
            raise _unreadable(checkpoint, error) from error
        return None
    # The hub's errors and those of its transport have no base of their own.
    except Exception as error:
        raise _unreadable(checkpoint, error) from error


def snapshot(name: str, fetch: bool = True) -> Path:
    """The cache's folder of a whole checkpoint, fetched if need be and, of several formats, in safetensors.

    Without `fetch` the hub is not asked. Raises TrainError for what cannot be had.
    """
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_PARTS, _SAFE], local_files_only=not fetch))
        if not any(folder.glob(_SAFE)):
            folder = Path(snapshot_download(name, allow_patterns=[_PICKLED], local_files_only=not fetch))
    except Exception as error:
        raise _unreadable(name, error) from error
    if not any(folder.glob(_SAFE)) and not (folder / _PICKLED).is_file():
        raise TrainError(f"the checkpoint {name} cannot be loaded: no weights in safetensors, and no {_PICKLED}")
    return folder


def first_line(error: Exception) -> str:
    """The first line of an error's text; its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _unreadable(checkpoint: str, error: Exception) -> TrainError:
    return TrainError(f"the checkpoint {checkpoint} cannot be loaded: {first_line(error)}")

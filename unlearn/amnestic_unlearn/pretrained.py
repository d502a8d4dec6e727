"""Reads a Hugging Face checkpoint: the one way in, for training as for export.

No code of a checkpoint is run. Weights come from safetensors or, without them, from pickles, of which torch's
restricted unpickler takes tensors alone; whichever, they may lie in several files. Configuration and tokenizer are
read by the library's own classes, and a tokenizer of its older files becomes a fast one.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoTokenizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from amnestic_unlearn.architecture import ARCHITECTURES, Architecture, architecture_of, check_config
from amnestic_unlearn.hub import first_line, locate, unusable

Weights = dict[str, torch.Tensor]

# Either makes a tokenizer. Without one, the library would make one without a vocabulary.
_TOKENIZERS = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"))
_SENTENCEPIECE = ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
_SPLIT = {SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME}
_FAULTS = (OSError, ValueError, KeyError, RuntimeError, TypeError, ImportError)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What a checkpoint holds. `weights` are as in its files: under any name, in any precision."""

    name: str
    architecture: Architecture
    config: Any
    tokenizer: Any
    weights: Weights


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A sequence classifier in float32; `absent` are the weights, in order, that the checkpoint has not, or not so.

    Absent is what has another shape, too. The library has filled such weights with random numbers.
    """

    model: Any
    absent: tuple[str, ...]


def read(checkpoint: str, revision: str | None = None) -> Checkpoint:
    """Read a directory, or an id of the hub at `revision`.

    Raises CheckpointError for what cannot be had, holds more than weights, or is of an architecture or with settings
    that are not supported.
    """
    folder = locate(checkpoint, revision)
    settings = _json(checkpoint, folder / "config.json")
    named = settings.get("model_type")
    if named is not None:
        architecture_of(str(named))  # before gigabytes are read
    weights = _weights(checkpoint, folder)
    architecture = architecture_of(str(named or _type_by(checkpoint, weights)))
    try:
        config = CONFIG_MAPPING[architecture.name].from_pretrained(folder)
    except Exception as error:  # the library checks values by errors of many kinds
        raise unusable(checkpoint, f"config.json: {first_line(error)}") from error
    check_config(architecture, config)
    return Checkpoint(checkpoint, architecture, config, _tokenizer(checkpoint, folder, config), weights)


def classifier(checkpoint: Checkpoint, attention: str | None = None) -> Loaded:
    """The sequence classifier of a checkpoint with `checkpoint.config`; `attention` is the library's implementation.

    Raises CheckpointError if the weights do not make one.
    """
    kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(checkpoint.config)]
    options = {} if attention is None else {"attn_implementation": attention}
    try:
        model, loading = kind.from_pretrained(
            None,
            config=checkpoint.config,
            state_dict=checkpoint.weights,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except _FAULTS as error:
        raise unusable(checkpoint.name, first_line(error)) from error
    absent = {*loading["missing_keys"], *(mismatch[0] for mismatch in loading["mismatched_keys"])}
    return Loaded(model, tuple(sorted(absent)))


def _json(checkpoint: str, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise unusable(checkpoint, f"it has no {path.name}") from None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise unusable(checkpoint, f"{path.name} is damaged")
    return values


def _type_by(checkpoint: str, weights: Iterable[str]) -> str:
    """The `model_type` of a checkpoint from before configurations said it: by the names of its weights."""
    roots = {name.partition(".")[0] for name in weights}
    for name, architecture in ARCHITECTURES.items():
        if architecture.root in roots:
            return name
    raise unusable(checkpoint, "config.json has no model_type")


def _weights(checkpoint: str, folder: Path) -> Weights:
    for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        if (folder / name).is_file():
            weights: Weights = {}
            for part in _parts(checkpoint, folder / name) if name in _SPLIT else (name,):
                weights |= _file(checkpoint, folder / part)
            return weights
    raise unusable(checkpoint, f"it has neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME}, whole or in parts")


def _parts(checkpoint: str, index: Path) -> list[str]:
    """The files that an index names: in its own folder, and there."""
    named = _json(checkpoint, index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(part, str) for part in named.values()):
        raise unusable(checkpoint, f"{index.name} is damaged")
    parts = sorted(set(named.values()))
    for part in parts:
        if Path(part).name != part:
            raise unusable(checkpoint, f"{index.name} names a file outside the checkpoint")
        if not (index.parent / part).is_file():
            raise unusable(checkpoint, f"{part} is missing")
    return parts


def _file(checkpoint: str, path: Path) -> Weights:
    if path.suffix == ".safetensors":
        try:
            safe: Weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise unusable(checkpoint, f"{path.name} is damaged") from error
        return safe
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, EOFError, RuntimeError, ValueError, KeyError, OSError):
        # Torch's own text tells how to run the code in it.
        weights = None
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise unusable(checkpoint, f"{path.name} is damaged, or holds more than weights")
    return weights


def _tokenizer(checkpoint: str, folder: Path, config: Any) -> Any:
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        if not any((folder / name).is_file() for name in _SENTENCEPIECE):
            raise unusable(checkpoint, "it has no tokenizer: neither tokenizer.json nor a vocabulary")
        if find_spec("sentencepiece") is None:
            raise unusable(checkpoint, "its tokenizer is a SentencePiece model alone: pip install sentencepiece")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
    except Exception as error:  # some of the tokenizers' errors are bare
        raise unusable(checkpoint, f"its tokenizer: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise unusable(checkpoint, "its tokenizer is in Python code alone, without a fast one (tokenizer.json)")
    if tokenizer.pad_token_id is None:
        raise unusable(checkpoint, "its tokenizer has no padding token")
    if len(tokenizer) > int(config.vocab_size):
        raise unusable(
            checkpoint, f"its tokenizer has {len(tokenizer)} tokens, the embedding table only {config.vocab_size} rows"
        )
    # As documents are cut in training and serving, whatever the tokenizer would do.
    tokenizer.truncation_side = "right"
    return tokenizer

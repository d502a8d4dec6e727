"""Checkpoints before and after training: a small BERT from scratch, or a pretrained one from a directory or hub.

What is saved is a plain Hugging Face checkpoint of safetensors and a fast tokenizer, with some keys of ours in
`config.json`. Nothing is pickled here, and of a checkpoint that is, as some of the hub still are, torch's restricted
unpickler takes tensors alone: no code in it is run. The training itself is left to `train`.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME
from transformers.utils import logging as transformers_log

from amnestic_unlearn.architecture import ARCHITECTURES
from amnestic_unlearn.hub import find, first_line
from amnestic_unlearn.manifest import ProblemType
from amnestic_unlearn.train_settings import Shape, TrainError
from amnestic_unlearn.windows import Reading

_PAD, _UNKNOWN, _CLS, _SEP, _MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"


def learn_tokenizer(texts: Sequence[str], vocab_size: int, max_tokens: int) -> Any:
    """A lower-casing BERT tokenizer with a WordPiece vocabulary of at most `vocab_size` learned on `texts`.

    The same texts give the same vocabulary.
    """
    tokenizer = _word_piece(_learn_vocabulary(texts, vocab_size))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_CLS} $A {_SEP}",
        pair=f"{_CLS} $A {_SEP} $B:1 {_SEP}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (_CLS, _SEP)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        cls_token=_CLS,
        sep_token=_SEP,
        mask_token=_MASK,
    )


def _learn_vocabulary(texts: Sequence[str], size: int) -> dict[str, int]:
    # The trainer numbers the letters inside words in the order of a hash map, and breaks ties by number. So the
    # first round finds these letters, and the second is told them in order.
    letters = sorted(piece for piece in _train_pieces(texts, size, ()) if len(piece) == 3 and piece.startswith("##"))
    return _train_pieces(texts, size, letters)


def _train_pieces(texts: Sequence[str], size: int, letters: Sequence[str]) -> dict[str, int]:
    tokenizer = _word_piece(None)
    special = [_PAD, _UNKNOWN, _CLS, _SEP, _MASK, *letters]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return vocabulary


def _word_piece(vocabulary: dict[str, int] | None) -> Any:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def small_bert(
    tokenizer: Any,
    labels: Sequence[str],
    shape: Shape,
    max_tokens: int,
    problem_type: ProblemType = ProblemType.MULTI_LABEL,
) -> Any:
    """A BERT sequence classifier with random weights from torch's generator, for inputs up to `max_tokens`."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=max(512, max_tokens),
        pad_token_id=tokenizer.pad_token_id,
        # BERT's 0.02 is for its width of 768. Much narrower, and little of the tokens gets through attention to
        # the first position: learning starts epochs later and ends lower.
        initializer_range=0.02 * math.sqrt(768 / shape.hidden),
        # Its noise costs a sixth of the time and gains nothing on a net this shallow.
        attention_probs_dropout_prob=0.0,
        **_label_config(labels, problem_type),
    )
    return BertForSequenceClassification(config)


def load_pretrained(
    checkpoint: str, labels: Sequence[str], max_tokens: int, problem_type: ProblemType = ProblemType.MULTI_LABEL
) -> tuple[Any, Any]:
    """Tokenizer and model of a directory or hub id, with a fresh head for the labels.

    Weights come from safetensors or, without them, from `pytorch_model.bin` by torch's weights-only loading. Raises
    TrainError for what cannot be had or read, holds more than weights, or lacks a weight of the encoder.
    """
    try:
        config = AutoConfig.from_pretrained(checkpoint, **_label_config(labels, problem_type))
        # As in `small_bert`: its noise is costly and gains little.
        setattr(
            config, "attention_dropout" if config.model_type == "distilbert" else "attention_probs_dropout_prob", 0.0
        )
        if config.model_type not in ARCHITECTURES:
            raise TrainError(f"the checkpoint is a {config.model_type}, not one of {', '.join(ARCHITECTURES)}")
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, use_fast=True)
        model = _load_model(checkpoint, config)
    except (OSError, KeyError, RuntimeError) as error:
        raise TrainError(f"the checkpoint {checkpoint} cannot be loaded: {first_line(error)}") from error
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise TrainError(f"the checkpoint {checkpoint} has no fast tokenizer with a padding token")
    # RoBERTa counts positions from the padding id on.
    offset = tokenizer.pad_token_id + 1 if config.model_type == "roberta" else 0
    if max_tokens > config.max_position_embeddings - offset:
        raise TrainError(f"max_tokens is above the checkpoint's {config.max_position_embeddings - offset} positions")
    tokenizer.model_max_length = max_tokens
    return tokenizer, model


def _load_model(checkpoint: str, config: Any) -> Any:
    options = {
        "config": config,
        "ignore_mismatched_sizes": True,
        "dtype": torch.float32,
        "output_loading_info": True,
    }
    if any(find(checkpoint, name) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        model, loading = AutoModelForSequenceClassification.from_pretrained(checkpoint, use_safetensors=True, **options)
    else:
        # Loaded here, so that it is sure how, and so that no conversion service of the hub is asked.
        weights = _pickled_weights(checkpoint)
        architecture = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
        model, loading = architecture.from_pretrained(None, state_dict=weights, **options)
    # transformers would fill them with random numbers. The head is new anyway, and a pooler is often left out.
    encoder, pooler = f"{model.base_model_prefix}.", f"{model.base_model_prefix}.pooler."
    for name in sorted(loading["missing_keys"]):
        if name.startswith(encoder) and not name.startswith(pooler):
            raise TrainError(f"the checkpoint {checkpoint} cannot be loaded: it lacks the weight {name}")
    return model


def _pickled_weights(checkpoint: str) -> dict[str, torch.Tensor]:
    path = find(checkpoint, WEIGHTS_NAME)
    if path is None:
        raise TrainError(
            f"the checkpoint {checkpoint} cannot be loaded: it has neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME}"
        )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, EOFError, RuntimeError, ValueError, KeyError, OSError):
        # Torch's own text tells how to run the code in it.
        weights = None
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise TrainError(
            f"the checkpoint {checkpoint} cannot be loaded: {WEIGHTS_NAME} is damaged, or holds more than weights"
        )
    return weights


def _label_config(labels: Sequence[str], problem_type: ProblemType) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": problem_type.in_config,
    }


@contextmanager
def transformers_silent() -> Iterator[None]:
    """Without its bars for reading and writing one file, and its warning that the head is new: it has to be."""
    verbosity, bars = transformers_log.get_verbosity(), transformers_log.is_progress_bar_enabled()
    transformers_log.set_verbosity_error()
    transformers_log.disable_progress_bar()
    try:
        yield
    finally:
        transformers_log.set_verbosity(verbosity)
        if bars:
            transformers_log.enable_progress_bar()


def save(model: Any, tokenizer: Any, thresholds: Sequence[float], reading: Reading, out: Path) -> None:
    """Write the checkpoint to `out`, a new or empty directory, whole or not at all; without `thresholds` if empty."""
    # The checkpoint that training started from may have had some.
    model.config.__dict__.pop("amnestic_thresholds", None)
    if thresholds:
        model.config.amnestic_thresholds = list(thresholds)
    reading.write_to(model.config)
    # Encoding has left its truncation in the tokenizer; in tokenizer.json it would cut documents unnoticed.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".train-") as folder:
        partial = Path(folder) / "checkpoint"
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.replace(out)

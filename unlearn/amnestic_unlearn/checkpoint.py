"""Checkpoints before and after training: a small BERT from scratch, or a pretrained one from a directory or hub.

What is saved is a plain Hugging Face checkpoint of safetensors and a fast tokenizer, with some keys of ours in
`config.json`. Reading one is left to `pretrained`, the training itself to `train`.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_log

from amnestic_unlearn import pretrained
from amnestic_unlearn.architecture import positions
from amnestic_unlearn.hub import unusable
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
    checkpoint: str,
    labels: Sequence[str],
    max_tokens: int,
    problem_type: ProblemType = ProblemType.MULTI_LABEL,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """Tokenizer and model of a directory, or an id of the hub at `revision`, with a fresh head for the labels.

    Raises CheckpointError as `pretrained.read` does or if a weight of the encoder is not there, and TrainError if it
    has too few positions.
    """
    source = pretrained.read(checkpoint, revision)
    # As in `small_bert`: its noise is costly and gains little.
    dropout = "attention_dropout" if source.architecture.name == "distilbert" else "attention_probs_dropout_prob"
    for name, value in {**_label_config(labels, problem_type), dropout: 0.0}.items():
        setattr(source.config, name, value)
    loaded = pretrained.classifier(source)
    # The head is new anyway, and a pooler is often left out.
    encoder, pooler = f"{source.architecture.root}.", f"{source.architecture.root}.pooler."
    for name in loaded.absent:
        if name.startswith(encoder) and not name.startswith(pooler):
            raise unusable(checkpoint, f"it lacks the weight {name}, or has it in another shape")
    most = positions(source.architecture, source.config)
    if max_tokens > most:
        raise TrainError(f"max_tokens is above the checkpoint's {most} positions")
    source.tokenizer.model_max_length = max_tokens
    return source.tokenizer, loaded.model


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

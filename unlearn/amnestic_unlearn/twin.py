"""The torch twin of a served classifier: the same parts as the bundle's ONNX graph, but with gradients.

It reads a bundle that was verified already. The encoder is frozen and in evaluation mode; what may change, the
embedding rows and the head, is passed in by the caller, so one twin stands for the base and for every patch.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification

from amnestic_unlearn import manifest as files
from amnestic_unlearn.architecture import ARCHITECTURES
from amnestic_unlearn.manifest import BundleError, Manifest, Precision, ProblemType
from amnestic_unlearn.passes import collate, encode_windows, pool_documents
from amnestic_unlearn.windows import Pooling, Reading, Tokens, Windows, token_counts

TOKENIZER_CHUNK = 256
EVALUATION_BATCH = 32


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """What a version may change. `row_ids` int64 [k] ascending, `rows` [k, d], head [C, h] and [C]; float32."""

    row_ids: torch.Tensor
    rows: torch.Tensor
    head_weight: torch.Tensor
    head_bias: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What documents are answered, their windows pooled: `features` [N, h] and `logits` [N, C]."""

    features: torch.Tensor
    logits: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Twin:
    """A bundle in torch. `table` float32 [V, d]; `head_weight` float32 [C, h], `head_bias` float32 [C].

    `mixed` runs the encoder's matrix products in bfloat16; what goes in and comes out stays in float32.
    """

    manifest: Manifest
    tokenizer: Any
    encoder: nn.Module
    table: torch.Tensor
    head_weight: torch.Tensor
    head_bias: torch.Tensor
    mixed: bool = False

    def base(self, row_ids: torch.Tensor) -> Weights:
        """The unchanged model, with the rows of `row_ids` copied out so that they can be trained."""
        return Weights(row_ids, self.table[row_ids], self.head_weight.clone(), self.head_bias.clone())

    def tokenize(self, texts: Sequence[str]) -> list[Windows]:
        """Token ids of each text, special tokens included, in the windows that the model reads."""
        reading = self.manifest.reading
        return [
            tuple(np.asarray(ids, dtype=np.int32) for ids in reading.windows(encoding)[0])
            for start in range(0, len(texts), TOKENIZER_CHUNK)
            for encoding in self.tokenizer.encode_batch(list(texts[start : start + TOKENIZER_CHUNK]))
        ]

    def features(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The head's input [B, h] from embeddings [B, T, d] and int64 mask [B, T], padding at the right."""
        with torch.autocast(inputs_embeds.device.type, torch.bfloat16, enabled=self.mixed):
            output: torch.Tensor = self.encoder(inputs_embeds=inputs_embeds, attention_mask=attention_mask).logits
        return output.to(inputs_embeds.dtype)

    def answer(self, documents: Sequence[Windows], weights: Weights, slots: torch.Tensor) -> Answers:
        """One batch of documents, with gradients; `slots` from `self.slots(weights.row_ids)`."""
        features = encode_windows(documents, lambda rows: self._encode(rows, weights, slots))
        return Answers(
            pool_documents(features, documents, Pooling.MEAN),
            pool_documents(head(features, weights), documents, self.manifest.pooling),
        )

    def slots(self, row_ids: torch.Tensor) -> torch.Tensor:
        """For each token its place in `row_ids`, or -1; int64 [V]."""
        slots = torch.full((len(self.table),), -1)
        slots[row_ids] = torch.arange(len(row_ids))
        return slots

    @torch.no_grad()
    def ask(self, documents: Sequence[Windows], weights: Weights) -> Answers:
        """Many documents, without gradients."""
        slots = self.slots(weights.row_ids)
        labels, width = weights.head_weight.shape
        features = torch.empty(len(documents), width, dtype=self.table.dtype)
        logits = torch.empty(len(documents), labels, dtype=self.table.dtype)
        by_length = np.argsort(token_counts(documents), kind="stable")
        for start in range(0, len(documents), EVALUATION_BATCH):
            batch = by_length[start : start + EVALUATION_BATCH]
            answers = self.answer([documents[index] for index in batch], weights, slots)
            features[batch], logits[batch] = answers.features, answers.logits
        return Answers(features, logits)

    def evaluate(self, documents: Sequence[Windows], weights: Weights) -> torch.Tensor:
        """Logits [N, C] of many documents, without gradients."""
        return self.ask(documents, weights).logits

    def evaluate_features(self, documents: Sequence[Windows], weights: Weights) -> torch.Tensor:
        """Features [N, h] of many documents, without gradients: what a linear probe is fitted on."""
        return self.ask(documents, weights).features

    def encoder_digest(self) -> str:
        """SHA-256 over the bytes of the encoder's weights in the order of their names."""
        digest = hashlib.sha256()
        for _, tensor in sorted(self.encoder.state_dict().items()):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def _encode(self, rows: Sequence[Tokens], weights: Weights, slots: torch.Tensor) -> torch.Tensor:
        """Features [B, h] of windows."""
        ids, mask = collate(rows, self.manifest.pad_token_id)
        return self.features(self._embed(ids, weights.rows, slots), mask)

    def _embed(self, ids: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        # Only the edited places take part in the backward pass: its cost does not depend on the vocabulary.
        embeds = functional.embedding(ids, self.table).flatten(0, 1)
        slot = slots[ids.flatten()]
        places = torch.nonzero(slot >= 0).squeeze(1)
        edited = embeds.index_copy(0, places, functional.embedding(slot[places], rows))
        return edited.view(*ids.shape, -1)


def head(features: torch.Tensor, weights: Weights) -> torch.Tensor:
    """Logits [B, C] of features [B, h]."""
    return functional.linear(features, weights.head_weight, weights.head_bias)


def load(bundle: Path, manifest: Manifest) -> Twin:
    """Load the twin of a verified bundle; raises BundleError, naming the file that does not fit."""
    embeddings = _tensors(bundle, files.EMBEDDINGS, {"weight": (manifest.vocab_size, manifest.embedding_size)})
    labels = len(manifest.labels)
    head = _tensors(bundle, files.HEAD, {"weight": (labels, manifest.feature_size), "bias": (labels,)})
    return Twin(
        manifest=manifest,
        tokenizer=_tokenizer(bundle, manifest),
        encoder=_encoder(bundle, manifest),
        table=embeddings["weight"],
        head_weight=head["weight"],
        head_bias=head["bias"],
    )


def from_checkpoint(checkpoint: Path, mixed: bool = False) -> Twin:
    """The twin of a checkpoint that `train` saved, without a bundle: nothing is exported, no file is digested.

    Raises OSError or ValueError if it is no such checkpoint.
    """
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, use_safetensors=True, dtype=torch.float32, attn_implementation=_attention(mixed)
    )
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    table = model.get_submodule(architecture.word_embeddings).weight.detach().clone()
    head = model.get_submodule(architecture.head)
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    tokenizer = Tokenizer.from_file(str(checkpoint / files.TOKENIZER))
    single = config.problem_type == ProblemType.SINGLE_LABEL.in_config
    reading = Reading.of(**Reading.in_config(config))
    manifest = Manifest(
        name=checkpoint.name,
        architecture=architecture.name,
        labels=tuple(config.id2label[index] for index in range(len(bias))),
        thresholds=() if single else tuple(config.amnestic_thresholds),
        vocab_size=table.shape[0],
        hidden_size=config.hidden_size,
        embedding_size=table.shape[1],
        feature_size=weight.shape[1],
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        pad_token_id=config.pad_token_id,
        special_token_ids=tuple(
            sorted(index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special)
        ),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        precision=Precision.FP32,
        head=architecture.head_statement,
        parity={},
        files={},
        amnestic_version="",
        problem_type=ProblemType.SINGLE_LABEL if single else ProblemType.MULTI_LABEL,
        **dataclasses.asdict(reading),
    )
    return Twin(manifest, reading.set_up(tokenizer), _without_outer_parts(model), table, weight, bias, mixed)


def _attention(mixed: bool) -> str:
    """transformers' implementation: the fused one's backward pass is slow in bfloat16 on a CPU."""
    return "eager" if mixed else "sdpa"


def _without_outer_parts(model: Any) -> nn.Module:
    """The frozen encoder: the classifier without the two parts that live outside it."""
    architecture = ARCHITECTURES[model.config.model_type]
    model.set_submodule(architecture.word_embeddings, nn.Identity())
    model.set_submodule(architecture.head, nn.Identity())
    frozen: nn.Module = model.eval().requires_grad_(False)
    return frozen


def _encoder(bundle: Path, manifest: Manifest) -> nn.Module:
    try:
        config = AutoConfig.from_pretrained(bundle / files.CONFIG)
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
        # Strict loading below then proves that all else is there.
        encoder = _without_outer_parts(model)
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise BundleError(f"{files.CONFIG} does not describe a classifier of its architecture") from error
    try:
        encoder.load_state_dict(load_file(bundle / files.ENCODER_WEIGHTS), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(f"{files.ENCODER_WEIGHTS} does not fit {files.CONFIG}") from error
    return encoder


def _tensors(bundle: Path, name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(bundle / name)
    except SafetensorError as error:
        raise BundleError(f"{name} is not a safetensors file") from error
    for key, shape in shapes.items():
        if key not in tensors or tuple(tensors[key].shape) != shape or tensors[key].dtype != torch.float32:
            raise BundleError(f"{name} does not fit {files.MANIFEST}")
    return tensors


def _tokenizer(bundle: Path, manifest: Manifest) -> Any:
    try:
        tokenizer = Tokenizer.from_file(str(bundle / files.TOKENIZER))
    except Exception as error:  # the library raises bare Exception
        raise BundleError(f"{files.TOKENIZER} is not a tokenizer") from error
    try:
        return manifest.reading.set_up(tokenizer)
    except ValueError as error:
        raise BundleError(f"{files.TOKENIZER} does not fit {files.MANIFEST}") from error

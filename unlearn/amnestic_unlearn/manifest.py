"""The bundle: a directory with everything that serving and unlearning need, described by `manifest.json`.

Made by `amnestic export`. Every other file is listed in the manifest with its SHA-256, and is checked against
it before it is used.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from amnestic_unlearn.architecture import ARCHITECTURES
from amnestic_unlearn.windows import LongDocuments, Pooling, Reading

FORMAT = 1
MANIFEST = "manifest.json"
ENCODER_ONNX = "encoder.onnx"
ENCODER_WEIGHTS = "encoder.safetensors"
EMBEDDINGS = "embeddings.safetensors"
HEAD = "head.safetensors"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
REQUIRED = (ENCODER_ONNX, ENCODER_WEIGHTS, EMBEDDINGS, HEAD, CONFIG, TOKENIZER)


class BundleError(ValueError):
    """The directory is not a usable bundle. The text names the file at fault."""


class ProblemType(StrEnum):
    """How logits become an answer; `measures.probabilities` and `measures.decide` say exactly how.

    Multi-label: each label by itself, decided at its threshold. Single-label: one label a document, the likeliest.
    """

    MULTI_LABEL = "multi_label"
    SINGLE_LABEL = "single_label"

    @property
    def in_config(self) -> str:
        """The name of it in a Hugging Face configuration."""
        return f"{self.value}_classification"


class Precision(StrEnum):
    """What the encoder is served in. int8 is for CPUs: weights and the inputs of matrix products in 8 bits, all else in
    float32. fp16 and bf16 are for CUDA: weights and activations in 16 bits.
    """

    FP32 = "fp32"
    INT8 = "int8"
    FP16 = "fp16"
    BF16 = "bf16"

    @property
    def is_reduced(self) -> bool:
        return self is not Precision.FP32

    @property
    def only_device(self) -> str | None:
        """The kind of device that this precision is for; None if any."""
        return {Precision.INT8: "cpu", Precision.FP16: "cuda", Precision.BF16: "cuda"}.get(self)


@dataclass(frozen=True, slots=True)
class Purged:
    """That a bundle is what another became when the labels that a version of it had forgotten were purged from it.

    `version` is that version, whose number the bundle itself now has, `patch` the digest of its patch, and `before`
    that of the manifest before.
    """

    version: int
    forgotten: tuple[str, ...]
    before: str
    patch: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle is. Sizes are in elements; `thresholds` are probabilities, one a label, none if single-label.

    `embeddings.safetensors` holds `weight` float32 [vocab_size, embedding_size]. `head.safetensors` holds
    `weight` float32 [labels, feature_size] and `bias` float32 [labels]: the classifier's last linear layer.
    `encoder.onnx` maps `inputs_embeds` float32 [batch, tokens, embedding_size] and `attention_mask` int64
    [batch, tokens] (1 for the leading real tokens, 0 for padding behind them) to `features` float32
    [batch, feature_size], whatever the precision between them.

    `parity` is what the bundle was found to answer beside the checkpoint: `documents`, `max_abs_logit_difference` and
    `decisions_equal`, a share; in a reduced precision also `decisions`, their number, `macro_f1` with
    `checkpoint_macro_f1`, and what was accepted: `decisions_equal_min` and `macro_f1_difference_max`.
    """

    name: str
    architecture: str
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    vocab_size: int
    hidden_size: int
    feature_size: int
    layers: int
    heads: int
    max_tokens: int
    pad_token_id: int
    special_token_ids: tuple[int, ...]
    parameters: int
    precision: Precision
    head: str
    parity: dict[str, float]
    files: dict[str, str]
    amnestic_version: str
    format: int = FORMAT
    # Bundles from before it was written down are all multi-label.
    problem_type: ProblemType = ProblemType.MULTI_LABEL
    # Bundles from before it was written down have embeddings as wide as their layers: 0 stands for that.
    embedding_size: int = 0
    # And these cut long documents. See `windows.Reading`.
    long_documents: LongDocuments = LongDocuments.TRUNCATE
    window_overlap: int = 0
    max_windows: int = 1
    pooling: Pooling = Pooling.MAX
    purged: Purged | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "embedding_size", self.embedding_size or self.hidden_size)

    @property
    def forgotten(self) -> tuple[str, ...]:
        """Labels that the bundle itself has forgotten."""
        return self.purged.forgotten if self.purged else ()

    @property
    def reading(self) -> Reading:
        """How documents are read; raises ValueError if what is said of it is inconsistent."""
        return Reading(self.max_tokens, self.long_documents, self.window_overlap, self.max_windows, self.pooling)

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `folder/manifest.json`; raises BundleError if it is missing, malformed or inconsistent."""
        try:
            fields: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        except OSError as error:
            raise BundleError(f"{MANIFEST} cannot be read: is this a bundle?") from error
        except ValueError as error:
            raise BundleError(f"{MANIFEST} is not JSON") from error
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise BundleError(f"{MANIFEST} has an unknown format")
        try:
            fields["problem_type"] = ProblemType(fields.get("problem_type", ProblemType.MULTI_LABEL))
        except ValueError as error:
            raise BundleError(f"{MANIFEST} names an unknown problem type") from error
        try:
            fields["precision"] = Precision(fields.get("precision", ""))
        except ValueError as error:
            raise BundleError(f"{MANIFEST} names an unknown precision") from error
        try:
            fields["long_documents"] = LongDocuments(fields.get("long_documents", LongDocuments.TRUNCATE))
            fields["pooling"] = Pooling(fields.get("pooling", Pooling.MAX))
        except ValueError as error:
            raise BundleError(f"{MANIFEST} names an unknown way to read long documents") from error
        try:
            for name in ("labels", "thresholds", "special_token_ids"):
                fields[name] = tuple(fields[name])
            if fields.get("purged") is not None:
                fields["purged"] = Purged(**{**fields["purged"], "forgotten": tuple(fields["purged"]["forgotten"])})
            manifest = cls(**fields)
        except (KeyError, TypeError) as error:
            raise BundleError(f"{MANIFEST} lacks a field or has one too many") from error
        manifest._check()
        return manifest

    def _check(self) -> None:
        single = self.problem_type is ProblemType.SINGLE_LABEL
        if single and (self.thresholds or len(self.labels) < 2):
            raise BundleError(f"{MANIFEST} is single-label, but has thresholds or fewer than two labels")
        if not single and (len(self.labels) != len(self.thresholds) or not self.labels):
            raise BundleError(f"{MANIFEST} has not one threshold a label")
        if not isinstance(self.files, dict) or not all(isinstance(digest, str) for digest in self.files.values()):
            raise BundleError(f"{MANIFEST} lists no files by their digests")
        if not set(self.forgotten) < set(self.labels):
            raise BundleError(f"{MANIFEST} has forgotten labels that the model does not have, or all of them")
        if self.architecture not in ARCHITECTURES:
            raise BundleError(f"{MANIFEST} names an unknown architecture")
        try:
            _ = self.reading
        except (ValueError, TypeError) as error:
            raise BundleError(f"{MANIFEST} has windows that don't fit its model") from error

    def ordered(self, labels: Collection[str]) -> tuple[str, ...]:
        """Some of the model's labels in the model's order."""
        return tuple(label for label in self.labels if label in labels)

    def label_indices(self, labels: tuple[str, ...]) -> list[int]:
        """Positions of labels in the model's order; raises KeyError for one that it does not have."""
        positions = {label: index for index, label in enumerate(self.labels)}
        return [positions[label] for label in labels]


def verify(folder: Path, manifest: Manifest) -> str:
    """Check every file of a bundle against its digest, and return the digest of the manifest itself.

    Raises BundleError, naming the file, if one is missing, unreadable, outside the bundle, changed or not listed.
    """
    for name in REQUIRED:
        if name not in manifest.files:
            raise BundleError(f"{MANIFEST} does not list {name}")
    for name, digest in manifest.files.items():
        path = folder / name
        if Path(name).name != name:
            raise BundleError(f"{MANIFEST} lists a path outside the bundle")
        try:
            if not path.is_file():
                raise BundleError(f"{name} is missing")
            found = file_digest(path)
        except OSError as error:
            raise BundleError(f"{name} cannot be read") from error
        if found != digest:
            raise BundleError(f"{name} does not match its digest")
    return file_digest(folder / MANIFEST)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, lower-case hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""A bundle as the serving process holds it: the manifest, and the tensors that live outside the ONNX graph."""

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from amnestic_server import graph_file
from amnestic_unlearn import manifest as manifests
from amnestic_unlearn.manifest import BundleError, Manifest


@dataclass(slots=True, eq=False)
class Bundle:
    """`table` float32 [V, d], `head_weight` float32 [C, h], `head_bias` float32 [C]; `digest` of the manifest.

    It never changes, but for a purge, by which it becomes another.
    """

    folder: Path
    manifest: Manifest
    digest: str
    table: torch.Tensor
    head_weight: torch.Tensor
    head_bias: torch.Tensor

    def become(self, other: "Bundle") -> None:
        """Be what the bundle is now, for all who hold it. What it was is let go of."""
        for field in fields(self):
            setattr(self, field.name, getattr(other, field.name))

    @property
    def encoder(self) -> Path:
        return self.folder / manifests.ENCODER_ONNX

    @property
    def tokenizer(self) -> Path:
        return self.folder / manifests.TOKENIZER


def load(folder: Path) -> Bundle:
    """Verify a bundle's files and load its tensors; raises BundleError, naming the file at fault."""
    manifest = Manifest.read(folder)
    digest = manifests.verify(folder, manifest)
    _check_graph(folder / manifests.ENCODER_ONNX)
    table = _tensors(folder / manifests.EMBEDDINGS)
    head = _tensors(folder / manifests.HEAD)
    labels = len(manifest.labels)
    return Bundle(
        folder=folder,
        manifest=manifest,
        digest=digest,
        table=_tensor(table, "weight", (manifest.vocab_size, manifest.embedding_size), manifests.EMBEDDINGS),
        head_weight=_tensor(head, "weight", (labels, manifest.feature_size), manifests.HEAD),
        head_bias=_tensor(head, "bias", (labels,), manifests.HEAD),
    )


def _check_graph(path: Path) -> None:
    try:
        alone = graph_file.stands_alone(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path.name} is not an ONNX file") from error
    if not alone:
        raise BundleError(f"{path.name} has data in another file, which no digest covers")


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path.name} is not a safetensors file") from error
    return tensors


def _tensor(tensors: dict[str, torch.Tensor], name: str, shape: tuple[int, ...], file: str) -> torch.Tensor:
    tensor = tensors.get(name)
    if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
        raise BundleError(f"{file} holds no float32 tensor `{name}` of the manifest's shape")
    return tensor

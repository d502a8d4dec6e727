"""The result of one unlearn job as a file: which embedding rows changed, to what, and the new head.

A patch is one safetensors file. Its name in the store is its SHA-256. It is small: k rows of width d and a
head of C rows, under 1 MB for BERT-base with k = 256.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

FORMAT = 1


class PatchError(ValueError):
    """The patch is not one, or does not fit the bundle. The text names what is wrong."""


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Row ids int64 [k], strictly ascending; rows float32 [k, d]; head float32 [C, h] and [C].

    `base_digest` is the SHA-256 of the manifest of the bundle it was made for; `forgotten` the labels that a
    version with this patch has forgotten.
    """

    base_digest: str
    forgotten: tuple[str, ...]
    row_ids: torch.Tensor
    rows: torch.Tensor
    head_weight: torch.Tensor
    head_bias: torch.Tensor

    def to_bytes(self) -> bytes:
        """Serialise; the same patch always gives the same bytes."""
        header = {"format": FORMAT, "base": self.base_digest, "forgotten": self.forgotten}
        tensors = {
            "row_ids": self.row_ids,
            "rows": self.rows,
            "head.weight": self.head_weight,
            "head.bias": self.head_bias,
        }
        data: bytes = save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            metadata={"amnestic": json.dumps(header, sort_keys=True)},
        )
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse; raises PatchError unless the file is whole and of this format."""
        try:
            tensors = load(data)
            header = _header(data)
            if header["format"] != FORMAT:
                raise PatchError("the patch has an unknown format")
            return cls(
                base_digest=str(header["base"]),
                forgotten=tuple(header["forgotten"]),
                row_ids=tensors["row_ids"],
                rows=tensors["rows"],
                head_weight=tensors["head.weight"],
                head_bias=tensors["head.bias"],
            )
        except PatchError:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise PatchError("the patch file is corrupt") from error

    @classmethod
    def read(cls, path: Path, digest: str | None = None) -> Self:
        """Read a patch file; raises PatchError if it is missing, corrupt or not of the digest given."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise PatchError("the patch file cannot be read") from error
        if digest is not None and digest_of(data) != digest:
            raise PatchError("the patch file does not match its digest")
        return cls.from_bytes(data)

    def check(self, base_digest: str, labels: tuple[str, ...], table: torch.Tensor, head: torch.Tensor) -> None:
        """Raise PatchError unless the patch fits the bundle and changes just the rows that it declares.

        `table` is the base embedding table [V, d]; `head` the base head's weight [C, h].
        """
        if self.base_digest != base_digest:
            raise PatchError("the patch was made for another bundle")
        if not self.forgotten or not set(self.forgotten) <= set(labels):
            raise PatchError("the patch forgets labels that the model does not have")
        count = len(self.row_ids)
        expected = {
            "row_ids": (self.row_ids, (count,), torch.int64),
            "rows": (self.rows, (count, table.shape[1]), torch.float32),
            "head.weight": (self.head_weight, tuple(head.shape), torch.float32),
            "head.bias": (self.head_bias, (head.shape[0],), torch.float32),
        }
        for name, (tensor, shape, dtype) in expected.items():
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise PatchError(f"{name} has the wrong shape or type")
            if not bool(torch.isfinite(tensor).all()):
                raise PatchError(f"{name} holds values that are not finite")
        if count and (bool((self.row_ids[1:] <= self.row_ids[:-1]).any()) or int(self.row_ids[0]) < 0):
            raise PatchError("row_ids are not ascending")
        if count and int(self.row_ids[-1]) >= table.shape[0]:
            raise PatchError("row_ids lie outside the embedding table")
        if bool((table[self.row_ids] == self.rows).all(dim=1).any()):
            raise PatchError("a declared row is unchanged")


def digest_of(data: bytes) -> str:
    """SHA-256, lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _header(data: bytes) -> dict[str, Any]:
    """Amnestic's own entry in the metadata that a safetensors file begins with."""
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    header: dict[str, Any] = json.loads(metadata["amnestic"])
    return header

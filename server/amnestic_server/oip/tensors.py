"""Tensors as the protocol carries them, raw or typed. Pure: knows no message, model or request.

Raw is row-major and little-endian, a bool in a byte; an element of BYTES is its length in four bytes, then its bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What numpy has for a datatype; BYTES has elements of any length, and so none.
DTYPES = {"FP32": np.dtype("<f4"), "INT32": np.dtype("<i4"), "BOOL": np.dtype("?")}
# The field of InferTensorContents that holds a datatype's elements in the typed form.
TYPED_FIELDS = {"FP32": "fp32_contents", "INT32": "int_contents", "BOOL": "bool_contents", "BYTES": "bytes_contents"}
LENGTH_BYTES = 4


class TensorError(ValueError):
    """The bytes are not the tensor that they are said to be. The text names elements by position, never by content."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One output: an array of its datatype's dtype and of `shape`, or for BYTES its elements in row-major order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: "NDArray[Any] | Sequence[bytes]"

    @property
    def raw(self) -> bytes:
        return self.elements.tobytes() if isinstance(self.elements, np.ndarray) else join_bytes(self.elements)

    @property
    def typed(self) -> Sequence[Any]:
        """The elements for the field that `TYPED_FIELDS` names."""
        elements = self.elements
        return elements.reshape(-1).tolist() if isinstance(elements, np.ndarray) else elements


def join_bytes(elements: Iterable[bytes]) -> bytes:
    """Elements of BYTES in the raw form."""
    return b"".join(part for element in elements for part in (len(element).to_bytes(LENGTH_BYTES, "little"), element))


def split_bytes(raw: bytes, count: int) -> list[bytes]:
    """The `count` elements of BYTES of a raw tensor; raises TensorError if it holds fewer or more."""
    elements = []
    position = 0
    for number in range(1, count + 1):
        start = position + LENGTH_BYTES
        end = start + int.from_bytes(raw[position:start], "little")
        if end > len(raw) or start > len(raw):
            raise TensorError(f"element {number} runs past the end")
        elements.append(raw[start:end])
        position = end
    if position != len(raw):
        raise TensorError(f"there are bytes behind element {count}, its last by the shape")
    return elements


def decode_texts(elements: Iterable[bytes]) -> list[str]:
    """Elements of BYTES as text; raises TensorError if one is not UTF-8."""
    texts = []
    for number, element in enumerate(elements, start=1):
        try:
            texts.append(element.decode())
        except UnicodeDecodeError:
            raise TensorError(f"element {number} is not UTF-8") from None
    return texts

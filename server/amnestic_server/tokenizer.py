"""Text to token ids with the bundle's own tokenizer, by the `tokenizers` library alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from amnestic_unlearn.manifest import BundleError


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids int64 [n], special tokens included; `truncated` if the text was longer than the maximum."""

    ids: NDArray[np.int64]
    truncated: bool


class DocumentTokenizer:
    """Set up once. Encoding releases the interpreter's lock, and any thread may encode."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path.name} is not a tokenizer") from error
        self._tokenizer.enable_truncation(max_length=max_tokens)
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """One result a text, in order."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        return [Encoded(np.asarray(encoding.ids, dtype=np.int64), bool(encoding.overflowing)) for encoding in encodings]

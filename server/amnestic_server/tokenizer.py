"""Text to token ids with the bundle's own tokenizer, by the `tokenizers` library alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from amnestic_unlearn.manifest import BundleError
from amnestic_unlearn.windows import Reading


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document as it is read: token ids int64 [n] of each window, special tokens included.

    `truncated` if the text goes on behind the last window.
    """

    windows: tuple[NDArray[np.int64], ...]
    truncated: bool

    @property
    def tokens(self) -> int:
        """Of all windows: what two of them share counts twice."""
        return sum(map(len, self.windows))


class DocumentTokenizer:
    """Set up once. Encoding releases the interpreter's lock, and any thread may encode."""

    def __init__(self, path: Path, reading: Reading) -> None:
        """Raises BundleError."""
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path.name} is not a tokenizer") from error
        try:
            self._tokenizer = reading.set_up(tokenizer)
        except ValueError as error:
            raise BundleError(f"{path.name} does not fit the manifest") from error
        self._reading = reading

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """One result a text, in order."""
        return [self._encoded(encoding) for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def _encoded(self, encoding: Any) -> Encoded:
        windows, truncated = self._reading.windows(encoding)
        return Encoded(tuple(np.asarray(ids, dtype=np.int64) for ids in windows), truncated)

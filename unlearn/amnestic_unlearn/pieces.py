"""Word pieces as people read them, whatever their tokenizer writes for a blank."""

from collections.abc import Iterable
from typing import Any

from tokenizers import decoders

# What WordPiece itself writes.
CONTINUATION = "##"


def readable(tokenizer: Any, token_ids: Iterable[int]) -> list[str]:
    """The text of each token, with `##` before one that no blank stands before; "" for an id that is no token's.

    `tokenizer` is a `tokenizers.Tokenizer`. Of byte-level BPE `Ġinsulin` becomes `insulin` and `ulin` `##ulin`, and
    of SentencePiece `▁insulin` likewise. A piece that is no text, such as a part of a letter or a blank alone, stays.
    """
    pieces = (tokenizer.id_to_token(int(token)) or "" for token in token_ids)
    decoder = tokenizer.decoder
    if decoder is None or isinstance(decoder, decoders.WordPiece):
        return list(pieces)
    return [_read(decoder, piece) for piece in pieces]


def _read(decoder: Any, piece: str) -> str:
    # Behind another, so that the decoder does not drop the blank before the first.
    text: str = decoder.decode(["a", piece])[1:]
    plain = text.strip()
    if not plain or "\ufffd" in plain:
        return piece
    return plain if text[0].isspace() else CONTINUATION + plain

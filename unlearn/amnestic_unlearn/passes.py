"""Runs the windows of a batch of documents through an encoder in torch, without more memory than cut documents take."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from amnestic_unlearn.windows import Pooling, Tokens, Windows, pool_each

# Padded tokens that a pass may always hold: 16 documents of 512.
PASS_TOKENS = 8_192


def encode_windows(documents: Sequence[Windows], encode: Callable[[list[Tokens]], torch.Tensor]) -> torch.Tensor:
    """`encode` of every window, [W, d] in order; it takes rows of token ids and gives [rows, d].

    One pass if that holds no more than the same documents would if they were cut, or little. Otherwise several, of
    windows of like length, and what each needs for its gradients is computed again when they are asked for.
    """
    rows = [window for document in documents for window in document]
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    size = max(PASS_TOKENS // longest, len(documents))
    if len(rows) <= size:
        return encode(rows)
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    passes = [[rows[index] for index in order[start : start + size]] for start in range(0, len(order), size)]
    if torch.is_grad_enabled():
        encoded = [checkpoint(encode, one, use_reentrant=False) for one in passes]
    else:
        encoded = [encode(one) for one in passes]
    return torch.cat(encoded)[torch.tensor(order).argsort()]


def pool_documents(rows: torch.Tensor, documents: Sequence[Windows], pooling: Pooling) -> torch.Tensor:
    """[N, d] of the documents whose windows' [W, d] are given."""
    return pool_each(rows, [len(document) for document in documents], pooling)


def collate(rows: Sequence[Tokens], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, both int64 [B, longest], padded at the right."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, pad_token_id, dtype=np.int64)
    ids[mask] = np.concatenate(rows)
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))

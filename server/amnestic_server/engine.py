"""Runs the classifier on a batch: gathers embeddings in torch, runs the ONNX encoder, applies each row's head.

Rows of different versions share one pass of the encoder, since versions differ only in embedding rows and head.
The engine knows nothing of queues; `Batcher` decides what runs when, and never runs two batches at a time.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from amnestic_server.bundle import Bundle
from amnestic_server.errors import StartError
from amnestic_server.snapshot import Snapshot

TokenIds = NDArray[np.int64]
WARM_UP_LENGTHS = (2, 16, 128)


class EngineRow(Protocol):
    """What the engine needs of a row: token ids int64 [n] and the version that answers it."""

    @property
    def ids(self) -> TokenIds: ...
    @property
    def snapshot(self) -> Snapshot: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch ready for the encoder: embeddings float32 [B, T, d], mask int64 [B, T], and rows by version."""

    embeddings: torch.Tensor
    mask: torch.Tensor
    groups: list[tuple[Snapshot, torch.Tensor | None]]


@dataclass(frozen=True, slots=True)
class Output:
    """Logits float32 [B, C] and features float32 [B, h], on the host, in the order of the rows."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32]


class Engine:
    """One ONNX Runtime session and the base embedding table, on one device."""

    def __init__(self, bundle: Bundle, *, device: str = "cpu", threads: int = 1, spinning: bool = False) -> None:
        self.device = select_device(device)
        self._feature_size = bundle.manifest.feature_size
        self._table = bundle.table.to(self.device)
        self._session = _open_session(str(bundle.encoder), self.device, threads, spinning)
        self.provider: str = self._session.get_providers()[0]

    def prepare(self, rows: Sequence[EngineRow]) -> Prepared:
        """Pad the rows to the longest and gather their embeddings, each through its own version's overlay."""
        lengths = np.fromiter((len(row.ids) for row in rows), dtype=np.int64, count=len(rows))
        ids = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : lengths[index]] = row.ids
        mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
        tokens = torch.from_numpy(ids).to(self.device)
        embeddings = torch.nn.functional.embedding(tokens, self._table)
        groups = _by_snapshot(rows, self.device)
        for snapshot, members in groups:
            _overlay(embeddings, tokens, snapshot, members)
        return Prepared(embeddings, torch.from_numpy(mask).to(self.device), groups)

    def run(self, prepared: Prepared) -> Output:
        """Run the encoder and each row's head."""
        features = torch.empty((len(prepared.mask), self._feature_size), device=self.device)
        binding = self._session.io_binding()
        _bind(binding.bind_input, "inputs_embeds", prepared.embeddings, np.float32)
        _bind(binding.bind_input, "attention_mask", prepared.mask, np.int64)
        _bind(binding.bind_output, "features", features, np.float32)
        if self.device.type == "cuda":
            # Torch's work on its own stream must be done before ONNX Runtime reads from its.
            torch.cuda.current_stream(self.device).synchronize()
        self._session.run_with_iobinding(binding)
        logits = _heads(features, prepared.groups)
        return Output(logits.cpu().numpy(), features.cpu().numpy())

    def changed_rows(self, snapshot: Snapshot) -> torch.Tensor:
        """Which rows of the embedding table, gathered as for serving, differ from the base's: bool [V], on the host."""
        changed = []
        for ids in torch.split(torch.arange(len(self._table), device=self.device), 4096):
            embeddings = self._table[ids].unsqueeze(0)
            _overlay(embeddings, ids.unsqueeze(0), snapshot, None)
            changed.append((embeddings[0] != self._table[ids]).any(dim=1))
        return torch.cat(changed).cpu()

    def warm_up(self, snapshot: Snapshot, max_tokens: int) -> None:
        """Run a few shapes, so that the first caller doesn't pay for allocation and lazy set-up."""
        for length in {*WARM_UP_LENGTHS, max_tokens}:
            ids = np.zeros(min(length, max_tokens), dtype=np.int64)
            self.run(self.prepare([_WarmUpRow(ids, snapshot)]))


@dataclass(frozen=True, slots=True)
class _WarmUpRow:
    ids: TokenIds
    snapshot: Snapshot


def select_device(device: str) -> torch.device:
    """The device asked for; `auto` takes CUDA where both torch and ONNX Runtime have it.

    Raises StartError if CUDA is asked for and absent: serving slower than asked in silence is worse than not
    starting.
    """
    has_cuda = torch.cuda.is_available() and "CUDAExecutionProvider" in ort.get_available_providers()
    if device == "cuda" and not has_cuda:
        missing = "no CUDA device" if not torch.cuda.is_available() else "ONNX Runtime has no CUDA provider"
        raise StartError(f"--device cuda was asked for, but {missing}: install amnestic[gpu] or use --device cpu")
    return torch.device("cuda" if device == "cuda" or (device == "auto" and has_cuda) else "cpu")


def _open_session(path: str, device: torch.device, threads: int, spinning: bool) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    options.log_severity_level = 3
    if device.type == "cpu":
        return _load_graph(path, options, "CPUExecutionProvider", {})
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    session = _load_graph(path, options, "CUDAExecutionProvider", {"device_id": torch.cuda.current_device()})
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise StartError("ONNX Runtime could not start its CUDA provider: check the CUDA and cuDNN libraries")
    return session


def _load_graph(path: str, options: Any, provider: str, provider_options: dict[str, Any]) -> Any:
    try:
        return ort.InferenceSession(path, options, providers=[(provider, provider_options)])
    except Exception as error:  # ONNX Runtime's errors share no public base class
        raise StartError(f"encoder.onnx cannot be loaded by {provider}") from error


def _by_snapshot(rows: Sequence[EngineRow], device: torch.device) -> list[tuple[Snapshot, torch.Tensor | None]]:
    """Rows' positions by snapshot; None stands for all rows, the usual case of one version in a batch."""
    members: dict[int, list[int]] = {}
    snapshots: dict[int, Snapshot] = {}
    for index, row in enumerate(rows):
        snapshots[id(row.snapshot)] = row.snapshot
        members.setdefault(id(row.snapshot), []).append(index)
    if len(members) == 1:
        return [(rows[0].snapshot, None)]
    return [(snapshots[key], torch.tensor(members[key], device=device)) for key in members]


def _overlay(embeddings: torch.Tensor, tokens: torch.Tensor, snapshot: Snapshot, members: torch.Tensor | None) -> None:
    """Replace, in place, the embeddings of tokens whose rows this version has patched."""
    if snapshot.slots is None or snapshot.rows is None:
        return
    slots = snapshot.slots[tokens if members is None else tokens[members]]
    row, column = (slots >= 0).nonzero(as_tuple=True)
    patched = snapshot.rows[slots[row, column].long()]
    embeddings[row if members is None else members[row], column] = patched


def _heads(features: torch.Tensor, groups: list[tuple[Snapshot, torch.Tensor | None]]) -> torch.Tensor:
    first, members = groups[0]
    if members is None:
        return torch.addmm(first.head_bias, features, first.head_weight)
    logits = features.new_empty((len(features), len(first.head_bias)))
    for snapshot, indices in groups:
        logits[indices] = torch.addmm(snapshot.head_bias, features[indices], snapshot.head_weight)
    return logits


def _bind(bind: Any, name: str, tensor: torch.Tensor, dtype: Any) -> None:
    """Bind a contiguous torch tensor's own memory, without a copy."""
    bind(name, tensor.device.type, tensor.device.index or 0, dtype, tuple(tensor.shape), tensor.data_ptr())


def limit_library_threads() -> None:
    """Keep torch and tokenizers from starting thread pools that would fight with the encoder's.

    The interpreter's switch interval is cut too: a thread that comes back from the encoder should not wait for the
    5 ms that another may hold the lock by default.
    """
    sys.setswitchinterval(0.0005)
    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

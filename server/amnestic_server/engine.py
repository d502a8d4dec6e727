"""Runs the classifier on a batch: gathers embeddings in torch, runs the ONNX encoder, applies each row's head.

Rows of different versions share one pass of the encoder, since versions differ only in embedding rows and head.
The engine knows nothing of queues; `Batcher` decides what runs when, and never more than `instances` batches at once.

On a CUDA device everything is queued on one stream, so that nothing waits but the host, once, for the logits.
"""

import os
import platform
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

import amnestic
from amnestic_server.bundle import Bundle
from amnestic_server.devices import select_device
from amnestic_server.errors import StartError
from amnestic_server.snapshot import Snapshot

TokenIds = NDArray[np.int64]
WARM_UP_LENGTHS = (2, 16, 128)
# Tokens of a pass that the device does best with. More of them leave the caches of a CPU.
CPU_BATCH_TOKENS = 512
GPU_BATCH_TOKENS = 16_384

_RUN_OPTIONS = ort.RunOptions()
# The heads follow on the same stream, and the copy of their logits waits for it.
_RUN_OPTIONS.add_run_config_entry("disable_synchronize_execution_providers", "1")


class EngineRow(Protocol):
    """What the engine needs of a row: token ids int64 [n] and the version that answers it."""

    @property
    def ids(self) -> TokenIds: ...
    @property
    def snapshot(self) -> Snapshot: ...


# A version and the positions of its rows in the batch, int64; None stands for all rows.
Group = tuple[Snapshot, NDArray[np.int64] | None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch ready for the encoder: embeddings float32 [B, T, d], mask int64 [B, T], and rows by version."""

    embeddings: torch.Tensor
    mask: torch.Tensor
    groups: Sequence[Group]


@dataclass(frozen=True, slots=True)
class Output:
    """Logits float32 [B, C] and features float32 [B, h], on the host, in the order of the rows."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32]


class Engine:
    """The encoder in ONNX Runtime and the base embedding table, on one device.

    `instances` passes may run at once, each on one thread of its own, or a single one on all `threads`; 0 takes as many
    as there are threads. That needs the encoder in memory twice. A CUDA device runs one pass at a time.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "cpu",
        threads: int = 1,
        instances: int = 1,
        spinning: bool = False,
        gpu_memory_mb: int = 0,
    ) -> None:
        self.device = select_device(device, bundle.manifest.precision)
        self.instances = 1 if self.device.type == "cuda" else instances or threads
        self._stream = _stream(self.device)
        self._precision = bundle.manifest.precision
        self._feature_size = bundle.manifest.feature_size
        self._table = bundle.table.to(self.device)
        path = str(bundle.encoder)
        if self._stream is not None:
            self._wide = self._narrow = _open_on_cuda(path, self._stream, gpu_memory_mb)
        else:
            self._wide = self._narrow = _open_on_cpu(path, threads, spinning)
            if self.instances > 1:
                self._narrow = _open_on_cpu(path, 1, spinning)
        self.batch_tokens = GPU_BATCH_TOKENS if self._stream is not None else CPU_BATCH_TOKENS
        self.provider: str = self._wide.get_providers()[0]

    @property
    def environment(self) -> dict[str, str]:
        """What it runs on, for the record."""
        return {
            "amnestic": amnestic.__version__,
            "onnxruntime": ort.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "provider": self.provider,
            "precision": self._precision.value,
        }

    def prepare(self, rows: Sequence[EngineRow]) -> Prepared:
        """Pad the rows to the longest and gather their embeddings, each through its own version's overlay."""
        lengths = np.fromiter((len(row.ids) for row in rows), dtype=np.int64, count=len(rows))
        ids = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : lengths[index]] = row.ids
        mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
        groups = _by_snapshot(rows)
        with self._on_stream():
            embeddings = torch.nn.functional.embedding(self._upload(ids), self._table)
            for snapshot, members in groups:
                self._overlay(embeddings, ids, snapshot, members)
            return Prepared(embeddings, self._upload(mask), groups)

    def run(self, prepared: Prepared, *, wide: bool = True) -> Output:
        """Run the encoder and each row's head; `wide` on all threads, else on the caller's alone."""
        session = self._wide if wide else self._narrow
        binding = session.io_binding()
        with self._on_stream():
            features = torch.empty((len(prepared.mask), self._feature_size), device=self.device)
            _bind(binding.bind_input, "inputs_embeds", prepared.embeddings, np.float32)
            _bind(binding.bind_input, "attention_mask", prepared.mask, np.int64)
            _bind(binding.bind_output, "features", features, np.float32)
            session.run_with_iobinding(binding, _RUN_OPTIONS)
            logits = self._heads(features, prepared.groups)
            return Output(logits.cpu().numpy(), features.cpu().numpy())

    def replace_table(self, table: torch.Tensor) -> None:
        """Gather from another base table float32 [V, d], from the next batch on.

        Every version that may still be asked for must read the same through either.
        """
        self._table = table.to(self.device)

    def changed_rows(self, snapshot: Snapshot) -> torch.Tensor:
        """Which rows of the embedding table, gathered as for serving, differ from the base's: bool [V], on the host."""
        changed = []
        for begin in range(0, len(self._table), 4096):
            base = self._table[begin : begin + 4096]
            embeddings = base.unsqueeze(0).clone()
            self._overlay(embeddings, np.arange(begin, begin + len(base))[None], snapshot, None)
            changed.append((embeddings[0] != base).any(dim=1))
        return torch.cat(changed).cpu()

    def warm_up(self, snapshot: Snapshot, max_tokens: int) -> None:
        """Run a few shapes, so that the first caller doesn't pay for allocation and lazy set-up."""
        for length in {*WARM_UP_LENGTHS, max_tokens}:
            self.run_blank(snapshot, min(length, max_tokens))
        if self._narrow is not self._wide:
            # It runs only when much waits: what it then allocates is little beside that.
            self.run_blank(snapshot, min(WARM_UP_LENGTHS[0], max_tokens), wide=False)

    def run_blank(self, snapshot: Snapshot, length: int, *, wide: bool = True) -> None:
        """Run a row of so many tokens that says nothing; raises whatever the provider does."""
        self.run(self.prepare([_BlankRow(np.zeros(length, dtype=np.int64), snapshot)]), wide=wide)

    def _overlay(
        self, embeddings: torch.Tensor, ids: TokenIds, snapshot: Snapshot, members: NDArray[np.int64] | None
    ) -> None:
        """Replace, in place, the embeddings of tokens whose rows this version has patched.

        Which these are is found on the host, so that the device is not waited for.
        """
        if snapshot.slots is None or snapshot.rows is None:
            return
        slots = snapshot.slots[ids if members is None else ids[members]]
        row, column = (slots >= 0).nonzero()
        if not len(row):
            return
        patched = snapshot.rows[self._upload(slots[row, column].astype(np.int64))]
        positions = (row if members is None else members[row]) * ids.shape[1] + column
        embeddings.view(-1, embeddings.shape[2]).index_copy_(0, self._upload(positions), patched)

    def _heads(self, features: torch.Tensor, groups: Sequence[Group]) -> torch.Tensor:
        """Logits float32 [B, C], each row's by the head of its own version."""
        first, members = groups[0]
        if members is None:
            return torch.addmm(first.head_bias, features, first.head_weight)
        owner = np.empty(len(features), dtype=np.int64)
        for index, (_, members) in enumerate(groups):
            owner[members] = index
        which = self._upload(owner)
        weights = torch.stack([snapshot.head_weight for snapshot, _ in groups])[which]
        biases = torch.stack([snapshot.head_bias for snapshot, _ in groups])[which]
        return torch.baddbmm(biases.unsqueeze(1), features.unsqueeze(1), weights).squeeze(1)

    def _on_stream(self) -> AbstractContextManager[object]:
        # On a CPU torch would look for devices, at every pass.
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _upload(self, values: NDArray[np.int64]) -> torch.Tensor:
        """To the device, from pinned memory where there is one; the host does not wait for it."""
        tensor = torch.from_numpy(values)
        return tensor if self._stream is None else tensor.pin_memory().to(self.device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class _BlankRow:
    ids: TokenIds
    snapshot: Snapshot


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _open_on_cpu(path: str, threads: int, spinning: bool) -> Any:
    options = _options()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    return _load_graph(path, options, "CPUExecutionProvider", {})


def _open_on_cuda(path: str, stream: torch.cuda.Stream, memory_mb: int) -> Any:
    ort.preload_dlls()
    provider_options = {
        "device_id": str(stream.device.index),
        "user_compute_stream": str(stream.cuda_stream),
        # What the bundle says is fp32 is computed in fp32.
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
    }
    if memory_mb:
        provider_options["gpu_mem_limit"] = str(memory_mb * 2**20)
    session = _load_graph(path, _options(), "CUDAExecutionProvider", provider_options)
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise StartError("ONNX Runtime could not start its CUDA provider: check the CUDA and cuDNN libraries")
    return session


def _options() -> Any:
    options = ort.SessionOptions()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _load_graph(path: str, options: Any, provider: str, provider_options: dict[str, Any]) -> Any:
    try:
        return ort.InferenceSession(path, options, providers=[(provider, provider_options)])
    except Exception as error:  # ONNX Runtime's errors share no public base class
        raise StartError(f"encoder.onnx cannot be loaded by {provider}") from error


def _by_snapshot(rows: Sequence[EngineRow]) -> list[Group]:
    """Rows by version, in order of first appearance; a batch of one version is the usual case."""
    members: dict[int, list[int]] = {}
    snapshots: dict[int, Snapshot] = {}
    for index, row in enumerate(rows):
        snapshots[id(row.snapshot)] = row.snapshot
        members.setdefault(id(row.snapshot), []).append(index)
    if len(members) == 1:
        return [(rows[0].snapshot, None)]
    return [(snapshots[key], np.array(members[key])) for key in members]


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

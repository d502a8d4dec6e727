"""What a worker left behind, checked and judged before it may serve."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from amnestic_server import gates
from amnestic_server.bundle import Bundle
from amnestic_server.engine import Engine
from amnestic_server.evaluation import Evaluator, Figures
from amnestic_server.gates import Gate
from amnestic_server.snapshot import Snapshot, patched_snapshot
from amnestic_server.worker import WorkerError
from amnestic_unlearn.manifest import ENCODER_ONNX, file_digest
from amnestic_unlearn.patch import Patch, PatchError
from amnestic_unlearn.spec import EVIDENCE_FILE, PATCH_FILE, GateLimits, read_report


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A patch that fits the bundle; `torch_logits` float32 [N, C] are the worker's own on the gate documents."""

    data: bytes
    patch: Patch
    snapshot: Snapshot
    torch_logits: NDArray[np.float32]
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found of a candidate on the served path, and the base's F1 by label on the same documents.

    `counts` are what both F1 are made of; see `Evaluator.counts`.
    """

    gates: list[Gate]
    figures: Figures
    base_f1: dict[str, float]
    counts: dict[str, dict[str, list[int]]]

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)


def load(folder: Path, forgotten: tuple[str, ...], bundle: Bundle, device: torch.device) -> Candidate:
    """Read the worker's files. Raises WorkerError if they are not whole, PatchError if the patch does not fit."""
    try:
        data = (folder / PATCH_FILE).read_bytes()
        torch_logits = load_file(folder / EVIDENCE_FILE)["gate_logits"].numpy()
        report = read_report(folder)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise WorkerError("the worker left no whole result") from error
    patch = Patch.from_bytes(data)
    if patch.forgotten != forgotten:
        raise PatchError("the patch forgets other labels than were asked for")
    return Candidate(data, patch, patched_snapshot(bundle, patch, 0, device), torch_logits, report)


class Judge:
    """Measures candidates against the base, on the served path: the same engine, precision and queue as callers."""

    def __init__(self, bundle: Bundle, engine: Engine, evaluator: Evaluator) -> None:
        self._bundle = bundle
        self._engine = engine
        self._evaluator = evaluator

    async def judge(self, candidate: Candidate, limits: GateLimits) -> Judgement:
        """Every gate, whether or not one before it failed."""
        evaluator, forgotten = self._evaluator, self._bundle.manifest.ordered(candidate.snapshot.forgotten)
        served = await evaluator.answers(candidate.snapshot)
        figures = await evaluator.figures(served, forgotten)
        # As of a version that has forgotten the same: a single-label base is measured on the same documents.
        base_f1 = await evaluator.base_f1(forgotten)
        chance = {label: evaluator.chance(label) for label in forgotten}
        conditions = [
            *gates.forgetting(figures, chance, limits),
            *gates.retention(base_f1, figures.f1, forgotten, limits),
            gates.encoder_unchanged(await asyncio.to_thread(self._changed_digests, candidate)),
            gates.only_declared_changed(await asyncio.to_thread(self._wrongly_changed_rows, candidate)),
            gates.logit_difference(candidate.torch_logits, served.logits, limits),
        ]
        return Judgement(conditions, figures, dict(base_f1), await evaluator.counts(served, forgotten))

    def _changed_digests(self, candidate: Candidate) -> int:
        in_onnx = file_digest(self._bundle.encoder) != self._bundle.manifest.files[ENCODER_ONNX]
        in_torch = candidate.report["encoder_digest_before"] != candidate.report["encoder_digest_after"]
        return int(in_onnx) + int(in_torch)

    def _wrongly_changed_rows(self, candidate: Candidate) -> int:
        """Rows of the table, as the engine would gather them, that changed undeclared or are declared and did not."""
        declared = torch.zeros(self._bundle.manifest.vocab_size, dtype=torch.bool)
        declared[candidate.patch.row_ids] = True
        return int((self._engine.changed_rows(candidate.snapshot) != declared).sum())

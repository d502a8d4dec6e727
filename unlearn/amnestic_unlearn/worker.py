"""One unlearn job from its specification to its files: read, train, measure, write.

It knows nothing of the process it runs in; `__main__` sets that up and turns errors into messages. What it
writes is evidence for the server to check, not a decision: the gates are the server's.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from amnestic_unlearn import corpus, steu, twin
from amnestic_unlearn.corpus import CorpusError, Document
from amnestic_unlearn.errors import (
    MIN_FORGET_DOCUMENTS,
    InputError,
    NoGateDocumentsError,
    NothingToKeepError,
    TooFewForgetDocumentsError,
    UnknownLabelError,
)
from amnestic_unlearn.forgetting import Report, TrainingData
from amnestic_unlearn.manifest import BundleError, Manifest, file_digest, verify
from amnestic_unlearn.patch import Patch
from amnestic_unlearn.pieces import readable
from amnestic_unlearn.spec import EVIDENCE_FILE, PATCH_FILE, REPORT_FILE, JobSpec, Progress
from amnestic_unlearn.steu import SteuResult
from amnestic_unlearn.twin import Twin, Weights

GATE_LOGITS = "gate_logits"


def work(spec: JobSpec, out: Path, report: Report) -> None:
    """Do the job and write report, evidence and, last, the patch to `out`; each appears whole or not at all.

    The evidence holds `gate_logits` float32 [N, C]: what torch computes with the patch for the documents of
    the gate split, in corpus order. Raises WorkerError.
    """
    report(Progress("loading"))
    model, base_digest = _load(Path(spec.bundle), spec.forget)
    train, gate = _documents(Path(spec.corpus), model.manifest)
    data = _training_data(model, train, spec.forget)
    encoder_before = model.encoder_digest()

    started = time.monotonic()
    result = steu.run(model, data, spec.method, report)
    seconds = time.monotonic() - started

    report(Progress("evaluating", len(result.epochs), len(result.epochs)))
    logits = model.evaluate(model.tokenize([document.text for document in gate]), result.weights)
    weights = changed_only(result.weights, model.table)
    summary = {
        **_change(model, weights, result),
        "forget_documents": len(data.forget),
        "retain_documents": len(data.retain),
        "training_seconds": seconds,
        "epochs": [dataclasses.asdict(losses) for losses in result.epochs],
        "encoder_digest_before": encoder_before,
        "encoder_digest_after": model.encoder_digest(),
        "corpus_digest": file_digest(Path(spec.corpus)),
        "method": dataclasses.asdict(spec.method),
    }
    patch = Patch(base_digest, spec.forget, **{field: getattr(weights, field) for field in Weights.__slots__})
    _write(out / REPORT_FILE, json.dumps(summary, indent=1, sort_keys=True).encode() + b"\n")
    _write(out / EVIDENCE_FILE, save({GATE_LOGITS: logits}))
    _write(out / PATCH_FILE, patch.to_bytes())


def changed_only(weights: Weights, table: torch.Tensor) -> Weights:
    """Without the rows that training left as they are in the table."""
    changed = (weights.rows != table[weights.row_ids]).any(dim=1)
    return dataclasses.replace(weights, row_ids=weights.row_ids[changed], rows=weights.rows[changed])


def _load(bundle: Path, forget: Sequence[str]) -> tuple[Twin, str]:
    try:
        manifest = Manifest.read(bundle)
        digest = verify(bundle, manifest)
        if not set(forget) <= set(manifest.labels):
            raise UnknownLabelError
        if set(forget) == set(manifest.labels):
            raise NothingToKeepError
        return twin.load(bundle, manifest), digest
    except BundleError as error:
        raise InputError(str(error)) from error


def _documents(path: Path, manifest: Manifest) -> tuple[list[Document], list[Document]]:
    try:
        documents = corpus.read(path, manifest.labels, ("train", "gate"), manifest.problem_type)
    except CorpusError as error:
        raise InputError(str(error)) from error
    train = [document for document in documents if document.split == "train"]
    gate = [document for document in documents if document.split == "gate"]
    if not gate:
        raise NoGateDocumentsError
    return train, gate


def _training_data(model: Twin, train: Sequence[Document], forget: Sequence[str]) -> TrainingData:
    truth = corpus.truth(train, model.manifest.labels)
    targets = tuple(model.manifest.label_indices(tuple(forget)))
    if (truth[:, targets].sum(axis=0) < MIN_FORGET_DOCUMENTS).any():
        raise TooFewForgetDocumentsError
    tokens = model.tokenize([document.text for document in train])
    return TrainingData(tokens, truth, targets, model.manifest.problem_type)


def _change(model: Twin, weights: Weights, result: SteuResult) -> dict[str, Any]:
    head = int((weights.head_weight != model.head_weight).sum() + (weights.head_bias != model.head_bias).sum())
    parameters = weights.rows.numel() + head
    chosen = result.selection.token_ids
    written = chosen[np.isin(chosen, weights.row_ids.numpy())]
    return {
        "rows_changed": len(weights.row_ids),
        "parameters_changed": parameters,
        "parameters_changed_ratio": parameters / model.manifest.parameters,
        "tokens": readable(model.tokenizer, written),
    }


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

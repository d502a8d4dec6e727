"""Trains a text classifier on a corpus, from a Hugging Face checkpoint or a small BERT from scratch.

Learns on the train split, chooses each label's decision threshold on the gate split, measures on the test
split, and leaves the probe split alone. A document is read as it will be served: cut, or in windows whose logits are
pooled, so that gradients, thresholds and figures are those of whole documents. The result is a Hugging Face
checkpoint whose `config.json` also holds `amnestic_thresholds`, one probability a label in label order,
`amnestic_max_tokens`, the longest input trained on, and what else `windows.Reading` says. A single-label classifier
decides for its likeliest label, so it has no thresholds. Making a bundle of it is left to export.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from amnestic_unlearn import checkpoint as checkpoints
from amnestic_unlearn import corpus, measures
from amnestic_unlearn.corpus import Document
from amnestic_unlearn.manifest import ProblemType
from amnestic_unlearn.passes import collate, encode_windows, pool_documents
from amnestic_unlearn.train_settings import CHECKPOINT_RATE, SCRATCH_RATE, TrainError, TrainSettings
from amnestic_unlearn.windows import Pooling, Reading, Tokens, Windows, token_counts

# Batches are cut from blocks of this many batches, sorted by length: little padding, yet a random order.
_BLOCK = 16

# Told the stage, how much of how much is done (0 of 0: not known), and a figure of it.
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What training gave: F1 by label and their mean on the test split, as the checkpoint in `out` decides.

    `documents` by split, and how many of them were cut.
    """

    out: str
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    f1: dict[str, float]
    macro_f1: float
    documents: dict[str, int]
    truncated: dict[str, int]
    parameters: int
    loss: float
    seconds: float
    problem_type: ProblemType


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Token ids of each document, its labels as bool [N, C], the id that pads a batch, and how many were cut."""

    documents: list[Windows]
    truth: NDArray[np.bool_]
    pad: int
    pooling: Pooling = Pooling.MAX
    problem_type: ProblemType = ProblemType.MULTI_LABEL
    truncated: int = 0


def train(
    corpus_path: Path,
    out: Path,
    *,
    checkpoint: str | None = None,
    revision: str | None = None,
    settings: TrainSettings | None = None,
    problem_type: ProblemType = ProblemType.MULTI_LABEL,
    progress: Progress = lambda stage, done, total, detail: None,
) -> TrainReport:
    """Train on a corpus and save the checkpoint to `out`, a new or empty directory, whole or not at all.

    `checkpoint` is a local directory, or a hub id at `revision`; None trains from scratch. `progress` is told of every
    step, over all epochs. Loss: mean binary cross-entropy over documents and labels, or if single-label the mean
    cross-entropy of the softmax over documents. Raises TrainError, CheckpointError as `pretrained.read` does and
    CorpusError as `corpus.read` does.
    """
    begin = time.monotonic()
    settings = settings or TrainSettings()
    settings.validate()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainError(f"{out} exists and is not an empty directory")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    documents, labels = _load(corpus_path, problem_type)
    progress("preparing", 0, 0, "")
    with torch.random.fork_rng(), checkpoints.transformers_silent():
        torch.manual_seed(settings.seed)
        tokenizer, model = _initial(checkpoint, revision, documents["train"], labels, settings, problem_type)
        model.to(_device(settings.device))
        if settings.precision == "bf16" and model.device.type == "cpu":
            # The fused attention's backward pass is slow in bfloat16 on a CPU; plain matrix products are not.
            model.set_attn_implementation("eager")
        encoded = {
            split: _encode(tokenizer, part, labels, settings.reading, problem_type) for split, part in documents.items()
        }
        loss = _fit(model, encoded["train"], settings, _rate(checkpoint, settings), progress)
        progress("measuring", 0, 0, "")
        thresholds = _thresholds(model, encoded["gate"])
        decided = measures.decide(_logits(model, encoded["test"]), np.array(thresholds), problem_type)
        checkpoints.save(model, tokenizer, thresholds, settings.reading, out)
    f1 = measures.f1_by_label(encoded["test"].truth, decided)
    return TrainReport(
        out=str(out),
        labels=labels,
        thresholds=thresholds,
        f1={label: float(value) for label, value in zip(labels, f1, strict=True)},
        macro_f1=float(f1.mean()),
        documents={split: len(part) for split, part in documents.items()},
        truncated={split: part.truncated for split, part in encoded.items()},
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        loss=loss,
        seconds=time.monotonic() - begin,
        problem_type=problem_type,
    )


def _load(path: Path, problem_type: ProblemType) -> tuple[dict[str, list[Document]], tuple[str, ...]]:
    everything = corpus.read(path, problem_type=problem_type)
    labels = tuple(sorted({label for document in everything for label in document.labels}))
    if not labels:
        raise TrainError(f"{path.name}: no document has a label")
    if problem_type is ProblemType.SINGLE_LABEL and len(labels) < 2:
        raise TrainError(f"{path.name}: a single-label classifier needs at least two labels")
    documents = {
        split: [document for document in everything if document.split == split] for split in ("train", "gate", "test")
    }
    for split, part in documents.items():
        found = {label for document in part for label in document.labels}
        for label in labels:
            if label not in found:
                raise TrainError(f"{path.name}: no document of the {split} split has the label {label!r}")
    return documents, labels


def _device(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainError("device is cuda, but there is no CUDA device")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _rate(checkpoint: str | None, settings: TrainSettings) -> float:
    if settings.learning_rate is not None:
        return settings.learning_rate
    return SCRATCH_RATE if checkpoint is None else CHECKPOINT_RATE


def _initial(
    checkpoint: str | None,
    revision: str | None,
    documents: Sequence[Document],
    labels: Sequence[str],
    settings: TrainSettings,
    problem_type: ProblemType,
) -> tuple[Any, Any]:
    if checkpoint is not None:
        return checkpoints.load_pretrained(checkpoint, labels, settings.max_tokens, problem_type, revision)
    texts = [document.text for document in documents]
    tokenizer = checkpoints.learn_tokenizer(texts, settings.shape.vocab_size, settings.max_tokens)
    return tokenizer, checkpoints.small_bert(tokenizer, labels, settings.shape, settings.max_tokens, problem_type)


def _encode(
    tokenizer: Any,
    documents: Sequence[Document],
    labels: Sequence[str],
    reading: Reading,
    problem_type: ProblemType,
) -> _Encoded:
    try:
        backend = reading.set_up(tokenizer.backend_tokenizer)
    except ValueError as error:
        raise TrainError(str(error)) from None
    read = [reading.windows(encoding) for encoding in backend.encode_batch([document.text for document in documents])]
    return _Encoded(
        documents=[tuple(np.asarray(ids, dtype=np.int32) for ids in windows) for windows, _ in read],
        truth=corpus.truth(documents, labels),
        pad=tokenizer.pad_token_id,
        pooling=reading.pooling,
        problem_type=problem_type,
        truncated=sum(truncated for _, truncated in read),
    )


def _fit(model: Any, data: _Encoded, settings: TrainSettings, rate: float, progress: Progress) -> float:
    """Run every epoch; returns the mean loss of the last."""
    steps = settings.epochs * math.ceil(len(data.documents) / settings.batch_size)
    optimizer = torch.optim.AdamW(_parameter_groups(model, settings.weight_decay), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _linear(steps, round(steps * settings.warmup)))
    generator = torch.Generator().manual_seed(settings.seed)
    loss, step = math.nan, 0
    model.train()
    for epoch in range(1, settings.epochs + 1):
        losses = []
        for rows in _batches(data, settings.batch_size, generator):
            with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                batch_loss = _loss(_answer(model, data, rows), data, rows)
            losses.append(_step(model, batch_loss, optimizer, schedule))
            step += 1
            progress(f"epoch {epoch}/{settings.epochs}", step, steps, f"loss {losses[-1]:.3f}")
        loss = sum(losses) / len(losses)
        if not math.isfinite(loss):
            raise TrainError("the loss is not finite: the learning rate is too large")
    return loss


def _step(model: Any, loss: Tensor, optimizer: Any, schedule: Any) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    return float(loss.detach())


def _parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Biases and LayerNorm are not decayed."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _linear(steps: int, warmup: int) -> Any:
    return lambda step: min((step + 1) / max(1, warmup), (steps - step) / max(1, steps - warmup))


def _batches(data: _Encoded, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Every row once, in random batches of documents of like length."""
    lengths = token_counts(data.documents)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = []
    for start in range(0, len(order), size * _BLOCK):
        block = sorted(order[start : start + size * _BLOCK], key=lengths.__getitem__)
        batches += [block[at : at + size] for at in range(0, len(block), size)]
    for index in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[index]


def _answer(model: Any, data: _Encoded, rows: Sequence[int]) -> Tensor:
    """Logits [B, C] of some documents, pooled over their windows."""

    def encode(windows: Sequence[Tokens]) -> Tensor:
        ids, mask = collate(windows, data.pad)
        logits: Tensor = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
        return logits

    documents = [data.documents[row] for row in rows]
    return pool_documents(encode_windows(documents, encode), documents, data.pooling)


def _loss(logits: Tensor, data: _Encoded, rows: Sequence[int]) -> Tensor:
    truth = data.truth[list(rows)]
    if data.problem_type is ProblemType.SINGLE_LABEL:
        return functional.cross_entropy(logits, torch.from_numpy(truth.argmax(axis=1)).to(logits.device))
    wanted = torch.from_numpy(truth.astype(np.float32)).to(logits.device)
    return functional.binary_cross_entropy_with_logits(logits, wanted)


@torch.no_grad()
def _logits(model: Any, data: _Encoded, size: int = 64) -> NDArray[np.float64]:
    model.eval()
    order = np.argsort(token_counts(data.documents), kind="stable").tolist()
    logits = np.empty(data.truth.shape)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        logits[rows] = _answer(model, data, rows).float().cpu().numpy()
    return logits


def _thresholds(model: Any, data: _Encoded) -> tuple[float, ...]:
    """Each label's best on the documents of `data`; none if single-label."""
    if data.problem_type is ProblemType.SINGLE_LABEL:
        return ()
    probability = measures.probabilities(_logits(model, data), data.problem_type)
    columns = zip(data.truth.T, probability.T, strict=True)
    return tuple(measures.best_threshold(truth, column) for truth, column in columns)

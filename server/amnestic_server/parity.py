"""Proves that a bundle's files answer as the checkpoint does, on real documents.

Either side goes its own way: the checkpoint's tokenizer and torch model, and the files of the bundle as serving would
use them. Full precision is held to the logits themselves; a reduced one, which cannot keep those, to the decisions and
the F1 that come of them. This module never runs in the serving process.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer

from amnestic_server.devices import cuda_missing, sums_int8_exactly
from amnestic_server.errors import ExportError
from amnestic_server.source import Source
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn import manifest as files
from amnestic_unlearn.manifest import Precision, ProblemType
from amnestic_unlearn.measures import decide, f1_by_label
from amnestic_unlearn.windows import pool

BATCH = 16
FULL_DOCUMENTS = 64
# Documents that the ones for full precision are chosen from: enough to meet all lengths, and quick to read.
CANDIDATES = 4_096
LOGIT_DIFFERENCE_MAX = 1e-4
# Fewer would let one changed decision in a thousand pass unseen.
REDUCED_DECISIONS_MIN = 500
REDUCED_DOCUMENTS_MAX = 2_048
REDUCED_SPLITS = ("gate", "test")
Logits = NDArray[np.float32]
Bools = NDArray[np.bool_]
# Told the stage, and how many documents of how many are done (0 of 0: not known).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a reduced precision must keep: the smallest share of equal decisions, the largest difference of macro F1.

    F1 is limited in the mean over labels: one label's rests on few documents, and with 60 positive ones a single
    changed decision may move it by 0.008.
    """

    decisions_equal: float = 0.999
    macro_f1_difference: float = 0.002


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Documents to compare on, and the labels that are true of them, bool [N, C]; None where that is not needed."""

    texts: list[str]
    truth: Bools | None = None


def sample(path: Path, source: Source, precision: Precision) -> Sample:
    """The documents of a corpus that parity is to be proven on; raises ExportError if they are too few."""
    return _labelled(path, source) if precision.is_reduced else _of_all_lengths(path)


def provider_of(precision: Precision) -> str:
    """ONNX Runtime's provider that parity is proven with; raises ExportError if this machine has none.

    fp16 is proven without CUDA too: a CPU computes in float32 from the same rounded weights. bf16 it does not compute.
    """
    missing = cuda_missing()
    if precision is Precision.BF16 and missing:
        raise ExportError(f"bf16 is proven on CUDA alone, and there is {missing}: export on a machine that has it")
    if precision is Precision.INT8 and not sums_int8_exactly():
        raise ExportError("this processor has no VNNI to sum int8 exactly: export on one that has it, or in fp32")
    for_cuda = precision.only_device == "cuda" and not missing
    return "CUDAExecutionProvider" if for_cuda else "CPUExecutionProvider"


def check(
    folder: Path, source: Source, documents: Sample, precision: Precision, limits: Limits, progress: Progress
) -> dict[str, float]:
    """Compare the checkpoint with the bundle's files; what is found goes into the manifest.

    Raises ExportError if they differ by more than the precision may.
    """
    # Either half is as many windows.
    expected = _torch_logits(source, documents.texts, lambda done, rows: progress("checking parity", done, 2 * rows))
    served = _bundle_logits(
        folder,
        source,
        documents.texts,
        precision,
        lambda done, rows: progress("checking parity", rows + done, 2 * rows),
    )
    found = _compare(source, expected, served, documents.truth)
    if precision.is_reduced:
        _refuse_reduced(found, precision, limits)
        return found | {
            "decisions_equal_min": limits.decisions_equal,
            "macro_f1_difference_max": limits.macro_f1_difference,
        }
    _refuse_full(found)
    return found


def _of_all_lengths(path: Path) -> Sample:
    """Documents spread evenly from the shortest to the longest, in mixed order."""
    candidates = sorted((document.text for document in itertools.islice(corpora.stream(path), CANDIDATES)), key=len)
    if len(candidates) < FULL_DOCUMENTS:
        raise ExportError(f"{path.name} has {len(candidates)} documents; the parity check needs {FULL_DOCUMENTS}")
    chosen = np.linspace(0, len(candidates) - 1, FULL_DOCUMENTS).round().astype(int)
    batches = FULL_DOCUMENTS // BATCH
    # Every batch takes each fourth of them, so that short and long documents share it and padding is put to the test.
    return Sample([candidates[index] for start in range(batches) for index in chosen[start::batches]])


def _labelled(path: Path, source: Source) -> Sample:
    """Documents that the checkpoint was not trained on, spread evenly over the corpus if there are too many."""
    documents = corpora.read(path, source.labels, REDUCED_SPLITS, source.problem_type)
    chosen = np.unique(np.linspace(0, len(documents) - 1, REDUCED_DOCUMENTS_MAX).round().astype(int))
    documents = [documents[index] for index in chosen] if documents else []
    decisions = len(documents) * _decisions_a_document(source)
    if decisions < REDUCED_DECISIONS_MIN:
        raise ExportError(
            f"the splits {' and '.join(REDUCED_SPLITS)} of {path.name} give {decisions} decisions; a reduced precision"
            f" is proven on {REDUCED_DECISIONS_MIN} or more"
        )
    # Like lengths share a batch, so that little of it is padding.
    documents.sort(key=lambda document: len(document.text))
    return Sample([document.text for document in documents], corpora.truth(documents, source.labels))


def _decisions_a_document(source: Source) -> int:
    """One for each label, but one in all where labels exclude each other: a changed one changes two of these."""
    return 1 if source.problem_type is ProblemType.SINGLE_LABEL else len(source.labels)


def _compare(source: Source, expected: Logits, served: Logits, truth: Bools | None) -> dict[str, float]:
    thresholds = np.array(source.thresholds)
    wanted, given = (decide(logits, thresholds, source.problem_type) for logits in (expected, served))
    equal = wanted == given
    if source.problem_type is ProblemType.SINGLE_LABEL:
        equal = equal.all(axis=1)
    found = {
        "documents": len(expected),
        "max_abs_logit_difference": float(np.abs(expected - served).max()),
        "decisions_equal": float(equal.mean()),
    }
    if truth is not None:
        found |= {
            "decisions": equal.size,
            "checkpoint_macro_f1": float(f1_by_label(truth, wanted).mean()),
            "macro_f1": float(f1_by_label(truth, given).mean()),
        }
    return found


def _refuse_full(found: dict[str, float]) -> None:
    """Raise ExportError unless the logits are the checkpoint's; one that is not a number isn't."""
    difference = found["max_abs_logit_difference"]
    if not difference <= LOGIT_DIFFERENCE_MAX:
        raise ExportError(
            f"parity failed: torch and the exported parts differ by {difference:.2g} in a logit, more than"
            f" {LOGIT_DIFFERENCE_MAX:g}"
        )


def _refuse_reduced(found: dict[str, float], precision: Precision, limits: Limits) -> None:
    """Raise ExportError unless decisions and F1 are kept within the limits; never if a logit is not a number."""
    equal, moved = found["decisions_equal"], abs(found["macro_f1"] - found["checkpoint_macro_f1"])
    kept = equal >= limits.decisions_equal and moved <= limits.macro_f1_difference
    if not kept or not np.isfinite(found["max_abs_logit_difference"]):
        raise ExportError(
            f"parity failed: in {precision}, {equal:.3%} of {found['decisions']:.0f} decisions are equal (at least"
            f" {limits.decisions_equal:.3%} must be), and macro F1 is {found['macro_f1']:.4f}, the checkpoint's"
            f" {found['checkpoint_macro_f1']:.4f} (they may differ by {limits.macro_f1_difference:g})"
        )


def _torch_logits(source: Source, texts: Sequence[str], told: Callable[[int, int], None]) -> Logits:
    """The checkpoint's own answer, [N, C]: its tokenizer, and its model on token ids."""
    reading = source.reading
    # Of windows transformers gives a row each, in order, and the number of its text.
    encoded = source.tokenizer(
        list(texts),
        truncation=True,
        max_length=reading.max_tokens,
        stride=reading.window_overlap,
        return_overflowing_tokens=True,
    )
    windows: list[list[list[int]]] = [[] for _ in texts]
    for number, ids in zip(encoded["overflow_to_sample_mapping"], encoded["input_ids"], strict=True):
        windows[number].append(ids)

    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Logits:
        with torch.inference_mode():
            logits = source.model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
        answered: Logits = logits.numpy()
        return answered

    return _pooled_logits(source, [ids[: reading.max_windows] for ids in windows], run, told)


def _bundle_logits(
    folder: Path, source: Source, texts: Sequence[str], precision: Precision, told: Callable[[int, int], None]
) -> Logits:
    """What the bundle answers, [N, C], by its files alone: tokenizer, table, graph and head."""
    tokenizer = source.reading.set_up(Tokenizer.from_file(str(folder / files.TOKENIZER)))
    table = load_file(folder / files.EMBEDDINGS)["weight"].numpy()
    head = load_file(folder / files.HEAD)
    encoder = _session(folder / files.ENCODER_ONNX, provider_of(precision))

    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Logits:
        (features,) = encoder.run(["features"], {"inputs_embeds": table[ids], "attention_mask": mask})
        answered: Logits = features @ head["weight"].numpy().T + head["bias"].numpy()
        return answered

    windows = [source.reading.windows(encoding)[0] for encoding in tokenizer.encode_batch(list(texts))]
    return _pooled_logits(source, windows, run, told)


def _session(path: Path, provider: str) -> ort.InferenceSession:
    if provider == "CUDAExecutionProvider":
        ort.preload_dlls()
    try:
        return ort.InferenceSession(str(path), providers=[provider])
    except Exception as error:  # ONNX Runtime's errors share no public base class
        raise ExportError(f"ONNX Runtime's {provider} cannot load the encoder in this precision") from error


def _pooled_logits(
    source: Source,
    documents: Sequence[Sequence[Sequence[int]]],
    run: Callable[[NDArray[np.int64], NDArray[np.int64]], Logits],
    told: Callable[[int, int], None],
) -> Logits:
    """[N, C] of documents in windows of token ids; `run` takes ids and mask of a batch of windows."""
    rows = [ids for windows in documents for ids in windows]
    answers = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        answers.append(run(*_pad(batch, source.pad_token_id)))
        told(start + len(batch), len(rows))
    ends = np.cumsum([len(windows) for windows in documents])
    return np.stack([pool(part, source.reading.pooling) for part in np.split(np.concatenate(answers), ends[:-1])])


def _pad(encoded: Sequence[Sequence[int]], pad_token_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and mask, both int64 [B, longest], padded at the right."""
    lengths = np.array([len(ids) for ids in encoded])
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(mask.shape, pad_token_id, dtype=np.int64)
    padded[mask] = np.concatenate(encoded)
    return padded, mask.astype(np.int64)

"""Makes a bundle of a Hugging Face checkpoint, and proves that the bundle computes what the checkpoint does.

Nothing is published before the parity check: real documents go through the checkpoint's own tokenizer and torch
model, and through the files of the new bundle as serving would use them. The graph is written by `graph`; this
module never runs in the serving process.
"""

import itertools
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import amnestic
from amnestic_server import graph
from amnestic_server.graph import count_fused
from amnestic_server.source import NOTHING_GIVEN, Given, Source, load
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn import manifest as files
from amnestic_unlearn.checkpoint import transformers_silent
from amnestic_unlearn.manifest import Manifest, file_digest
from amnestic_unlearn.measures import decide
from amnestic_unlearn.windows import pool

PARITY_DOCUMENTS = 64
PARITY_BATCH = 16
# Documents that the ones for parity are chosen from: enough to meet all lengths, and quick to read.
PARITY_CANDIDATES = 4_096
LOGIT_DIFFERENCE_MAX = 1e-4

Logits = NDArray[np.float32]
# Told the stage, and how many documents of how many are done (0 of 0: not known).
Progress = Callable[[str, int, int], None]


class ExportError(ValueError):
    """The bundle cannot be made. The text says why; what is at fault with a checkpoint is a CheckpointError's."""


def export(
    checkpoint: str | Path,
    out: Path,
    *,
    corpus: Path | None = None,
    name: str | None = None,
    given: Given = NOTHING_GIVEN,
    revision: str | None = None,
    overwrite: bool = False,
    warn: Callable[[str], None] = warnings.warn,
    progress: Progress = lambda stage, done, total: None,
) -> Manifest:
    """Write the bundle of a sequence classifier of one of the `ARCHITECTURES` to `out`.

    `checkpoint` is a local directory, or a hub id at `revision`. How it is read is said in `pretrained`, what its
    configuration says of serving in `source`; `given` is what it does not say.

    The bundle appears under its name whole or not at all, and only if the largest difference of a logit between
    the checkpoint in torch and the bundle's parts is at most 1e-4 on 64 documents of `corpus` (by default the one
    that is shipped). `overwrite` lets it take the place of an earlier bundle. `warn` is told what was assumed.

    Raises CheckpointError and ExportError, saying what is at fault, and CorpusError as `corpus.stream` does.
    """
    _check_target(out, overwrite)
    texts = _parity_texts(corpus or corpora.SHIPPED)
    with transformers_silent():
        progress("loading the checkpoint", 0, 0)
        source = load(str(checkpoint), revision, name, given, warn)
        progress("writing the bundle", 0, 0)
        model = _build(source)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
            folder = Path(scratch) / "bundle"
            folder.mkdir()
            _write_parts(folder, source, model)
            manifest = replace(_manifest(folder, source), parity=_parity(folder, source, texts, progress))
            manifest.write(folder)
            _publish(folder, out, Path(scratch) / "replaced")
    return manifest


def fused_in(bundle: Path) -> dict[str, int]:
    """Count the fused operators in a bundle's encoder."""
    return count_fused(onnx.load(bundle / files.ENCODER_ONNX))


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise ExportError(f"{out} exists already")
    if not (out / files.MANIFEST).is_file():
        raise ExportError(f"{out} is not a bundle, so it is not overwritten")


def _publish(folder: Path, out: Path, replaced: Path) -> None:
    """Move the finished bundle to its name; the one that was there goes to `replaced`, or back if that fails."""
    if not out.exists():
        folder.rename(out)
        return
    out.rename(replaced)
    try:
        folder.rename(out)
    except OSError:
        replaced.rename(out)
        raise


def _build(source: Source) -> onnx.ModelProto:
    model = graph.build_encoder(source.architecture, source.config, source.model.state_dict())
    fused, layers = count_fused(model).get("Attention", 0), int(source.config.num_hidden_layers)
    if fused != layers:
        raise ExportError(f"attention is fused in {fused} of {layers} layers")
    return model


def _write_parts(folder: Path, source: Source, encoder: onnx.ModelProto) -> None:
    """Every file of the bundle but the manifest."""
    (folder / files.ENCODER_ONNX).write_bytes(encoder.SerializeToString())
    state = {key: value.detach().contiguous() for key, value in source.model.state_dict().items()}
    table = state.pop(f"{source.architecture.word_embeddings}.weight")
    head = {part: state.pop(f"{source.architecture.head}.{part}") for part in ("weight", "bias")}
    save_file(state, folder / files.ENCODER_WEIGHTS)
    save_file({"weight": table}, folder / files.EMBEDDINGS)
    save_file(head, folder / files.HEAD)
    source.config.save_pretrained(folder)
    _write_tokenizer(folder, source.tokenizer)


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Truncation and padding are serving's to set; left in the file they would cut documents unnoticed."""
    tokenizer.save_pretrained(folder)
    path = folder / files.TOKENIZER
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["truncation"] = settings["padding"] = None
    path.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")


def _manifest(folder: Path, source: Source) -> Manifest:
    """The manifest of the files in `folder`, without the parity still to be measured."""
    head = source.model.get_submodule(source.architecture.head)
    return Manifest(
        name=source.name,
        architecture=source.architecture.name,
        labels=source.labels,
        thresholds=source.thresholds,
        vocab_size=int(source.config.vocab_size),
        hidden_size=int(source.config.hidden_size),
        embedding_size=int(source.model.get_submodule(source.architecture.word_embeddings).embedding_dim),
        feature_size=int(head.in_features),
        layers=int(source.config.num_hidden_layers),
        heads=int(source.config.num_attention_heads),
        pad_token_id=source.pad_token_id,
        special_token_ids=tuple(sorted(int(index) for index in source.tokenizer.all_special_ids)),
        parameters=sum(parameter.numel() for parameter in source.model.parameters()),
        precision="fp32",
        head=source.architecture.head_statement,
        parity={},
        files={path.name: file_digest(path) for path in sorted(folder.iterdir())},
        amnestic_version=amnestic.__version__,
        problem_type=source.problem_type,
        **asdict(source.reading),
    )


def _parity_texts(path: Path) -> list[str]:
    """Documents of all lengths, spread evenly from the shortest to the longest, in mixed order."""
    candidates = sorted(
        (document.text for document in itertools.islice(corpora.stream(path), PARITY_CANDIDATES)), key=len
    )
    if len(candidates) < PARITY_DOCUMENTS:
        raise ExportError(f"{path.name} has {len(candidates)} documents; the parity check needs {PARITY_DOCUMENTS}")
    chosen = np.linspace(0, len(candidates) - 1, PARITY_DOCUMENTS).round().astype(int)
    batches = PARITY_DOCUMENTS // PARITY_BATCH
    # Every batch takes each fourth of them, so that short and long documents share it and padding is put to the test.
    return [candidates[index] for start in range(batches) for index in chosen[start::batches]]


def _parity(folder: Path, source: Source, texts: Sequence[str], progress: Progress) -> dict[str, float]:
    """Compare the checkpoint with the bundle's files on `texts`; raises ExportError if they differ."""
    # Either half is as many windows.
    expected = _torch_logits(source, texts, lambda done, rows: progress("checking parity", done, 2 * rows))
    served = _bundle_logits(
        folder, source, texts, lambda done, rows: progress("checking parity", rows + done, 2 * rows)
    )
    difference = float(np.abs(expected - served).max())
    # Written so that a logit that is not a number fails.
    if not difference <= LOGIT_DIFFERENCE_MAX:
        raise ExportError(
            f"parity failed: torch and the exported parts differ by {difference:.2g} in a logit, more than"
            f" {LOGIT_DIFFERENCE_MAX:g}"
        )
    thresholds = np.array(source.thresholds)
    agreed = decide(expected, thresholds, source.problem_type) == decide(served, thresholds, source.problem_type)
    return {
        "documents": len(texts),
        "max_abs_logit_difference": difference,
        "decisions_equal": float(agreed.mean()),
    }


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


def _bundle_logits(folder: Path, source: Source, texts: Sequence[str], told: Callable[[int, int], None]) -> Logits:
    """What the bundle answers, [N, C], by its files alone: tokenizer, table, graph and head."""
    tokenizer = source.reading.set_up(Tokenizer.from_file(str(folder / files.TOKENIZER)))
    table = load_file(folder / files.EMBEDDINGS)["weight"].numpy()
    head = load_file(folder / files.HEAD)
    encoder = ort.InferenceSession(str(folder / files.ENCODER_ONNX), providers=["CPUExecutionProvider"])

    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Logits:
        (features,) = encoder.run(["features"], {"inputs_embeds": table[ids], "attention_mask": mask})
        answered: Logits = features @ head["weight"].numpy().T + head["bias"].numpy()
        return answered

    windows = [source.reading.windows(encoding)[0] for encoding in tokenizer.encode_batch(list(texts))]
    return _pooled_logits(source, windows, run, told)


def _pooled_logits(
    source: Source,
    documents: Sequence[Sequence[Sequence[int]]],
    run: Callable[[NDArray[np.int64], NDArray[np.int64]], Logits],
    told: Callable[[int, int], None],
) -> Logits:
    """[N, C] of documents in windows of token ids; `run` takes ids and mask of a batch of windows."""
    rows = [ids for windows in documents for ids in windows]
    answers = []
    for start in range(0, len(rows), PARITY_BATCH):
        batch = rows[start : start + PARITY_BATCH]
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

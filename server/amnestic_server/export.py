"""Makes a bundle of a Hugging Face checkpoint, and proves that the bundle computes what the checkpoint does.

Nothing is published before the parity check: real documents go through the checkpoint's own tokenizer and torch
model, and through the files of the new bundle as serving would use them. The graph is written by `graph`; this
module never runs in the serving process.
"""

import itertools
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import amnestic
from amnestic_server import graph
from amnestic_server.graph import ExportError, count_fused
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn import manifest as files
from amnestic_unlearn.architecture import Architecture
from amnestic_unlearn.checkpoint import transformers_silent
from amnestic_unlearn.manifest import Manifest, ProblemType, file_digest
from amnestic_unlearn.measures import decide

DEFAULT_THRESHOLD = 0.5
PARITY_DOCUMENTS = 64
PARITY_BATCH = 16
# Documents that the ones for parity are chosen from: enough to meet all lengths, and quick to read.
PARITY_CANDIDATES = 4_096
LOGIT_DIFFERENCE_MAX = 1e-4

Logits = NDArray[np.float32]
# Told the stage, and how many documents of how many are done (0 of 0: not known).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """A checkpoint that can be exported, in torch, and what its configuration says of serving."""

    name: str
    architecture: Architecture
    config: Any
    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    problem_type: ProblemType
    max_tokens: int
    pad_token_id: int


def export(
    checkpoint: str | Path,
    out: Path,
    *,
    corpus: Path | None = None,
    name: str | None = None,
    problem_type: ProblemType | None = None,
    overwrite: bool = False,
    warn: Callable[[str], None] = warnings.warn,
    progress: Progress = lambda stage, done, total: None,
) -> Manifest:
    """Write the bundle of a BERT, DistilBERT or RoBERTa sequence classifier to `out`.

    `checkpoint` is a local directory or a hub id. Weights are read from safetensors alone and no code of the
    checkpoint is run. Labels come from `id2label` of its configuration, thresholds from `amnestic_thresholds`
    (0.5 where it is absent), the longest input from `amnestic_max_tokens` (else the shorter of the position
    table and the tokenizer's own maximum). `problem_type` is for a configuration that does not say which; thresholds
    are a multi-label model's alone.

    The bundle appears under its name whole or not at all, and only if the largest difference of a logit between
    the checkpoint in torch and the bundle's parts is at most 1e-4 on 64 documents of `corpus` (by default the one
    that is shipped). `overwrite` lets it take the place of an earlier bundle. `warn` is told what was assumed.

    Raises ExportError, saying what is at fault, and CorpusError as `corpus.stream` does.
    """
    _check_target(out, overwrite)
    texts = _parity_texts(corpus or corpora.SHIPPED)
    with transformers_silent():
        progress("loading the checkpoint", 0, 0)
        source = _load(str(checkpoint), name, problem_type, warn)
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


def _load(checkpoint: str, name: str | None, problem_type: ProblemType | None, warn: Callable[[str], None]) -> _Source:
    # A hub id has one slash at most; the hub's own complaint about a path would mislead.
    if not Path(checkpoint).is_dir() and (checkpoint.count("/") > 1 or checkpoint.startswith(("/", "."))):
        raise ExportError(f"there is no checkpoint directory {checkpoint}")
    with _loading(checkpoint):
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    architecture = graph.architecture_of(config)
    graph.check_config(architecture, config)
    problem_type = _problem_type(config, problem_type)
    config.problem_type = problem_type.in_config
    labels = _labels(config, problem_type)
    thresholds = _thresholds(config, len(labels), warn) if problem_type is ProblemType.MULTI_LABEL else ()
    with _loading(checkpoint):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, use_fast=True, trust_remote_code=False)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            checkpoint,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
        )
    # transformers would fill them with random numbers.
    if missing := sorted(loading["missing_keys"]):
        raise ExportError(f"the checkpoint lacks the weight {missing[0]}: is it a trained sequence classifier?")
    _check_tokenizer(tokenizer, int(config.vocab_size))
    pad_token_id = config.pad_token_id if config.pad_token_id is not None else tokenizer.pad_token_id
    if pad_token_id is None:
        raise ExportError("neither the configuration nor the tokenizer has a padding token")
    return _Source(
        name=name or (Path(checkpoint).resolve().name if Path(checkpoint).exists() else checkpoint),
        architecture=architecture,
        config=model.config,
        model=model.eval(),
        tokenizer=tokenizer,
        labels=labels,
        thresholds=thresholds,
        problem_type=problem_type,
        max_tokens=_max_tokens(config, tokenizer),
        pad_token_id=int(pad_token_id),
    )


@contextmanager
def _loading(checkpoint: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"the checkpoint {checkpoint} cannot be loaded: {reason}") from error


def _problem_type(config: Any, given: ProblemType | None) -> ProblemType:
    kinds: dict[str | None, ProblemType] = {kind.in_config: kind for kind in ProblemType}
    said = config.problem_type
    if said is None and given is None:
        # A wrong guess would be served without an error: sigmoids of a softmax's logits, or the other way round.
        raise ExportError("the configuration has no problem_type: give --problem-type multi-label or single-label")
    if said is not None and said not in kinds:
        raise ExportError(f"problem_type is {said}; it must be {' or '.join(kind.in_config for kind in ProblemType)}")
    if said is not None and given is not None and kinds[said] is not given:
        raise ExportError(f"the configuration says that problem_type is {said}")
    return kinds[said] if given is None else given


def _labels(config: Any, problem_type: ProblemType) -> tuple[str, ...]:
    labels = tuple(str(config.id2label[index]) for index in sorted(config.id2label))
    if not labels or len(set(labels)) != len(labels) or not all(labels):
        raise ExportError("id2label must give each label a name of its own")
    if problem_type is ProblemType.SINGLE_LABEL and len(labels) < 2:
        raise ExportError("a single-label classifier needs at least two labels")
    return labels


def _thresholds(config: Any, labels: int, warn: Callable[[str], None]) -> tuple[float, ...]:
    given = getattr(config, "amnestic_thresholds", None)
    if given is None:
        warn(f"the checkpoint has no amnestic_thresholds: every label is decided at {DEFAULT_THRESHOLD}")
        return (DEFAULT_THRESHOLD,) * labels
    if not isinstance(given, list) or len(given) != labels:
        raise ExportError("amnestic_thresholds is not a list of one threshold a label")
    if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in given):
        raise ExportError("amnestic_thresholds holds a value that is not a probability")
    return tuple(float(value) for value in given)


def _max_tokens(config: Any, tokenizer: Any) -> int:
    capacity = int(config.max_position_embeddings) - graph.first_position(config)
    given = getattr(config, "amnestic_max_tokens", None)
    if given is None:
        return min(capacity, int(tokenizer.model_max_length))
    least = int(tokenizer.num_special_tokens_to_add()) + 1
    if not isinstance(given, int) or not least <= given <= capacity:
        raise ExportError(f"amnestic_max_tokens must be from {least} to {capacity}, the positions of the encoder")
    return given


def _check_tokenizer(tokenizer: Any, vocab_size: int) -> None:
    if not tokenizer.is_fast:
        raise ExportError("the checkpoint has no fast tokenizer (tokenizer.json)")
    if len(tokenizer) > vocab_size:
        raise ExportError(f"the tokenizer has {len(tokenizer)} tokens, the embedding table only {vocab_size} rows")


def _build(source: _Source) -> onnx.ModelProto:
    model = graph.build_encoder(source.architecture, source.config, source.model.state_dict())
    fused, layers = count_fused(model)["Attention"], int(source.config.num_hidden_layers)
    if fused != layers:
        raise ExportError(f"attention is fused in {fused} of {layers} layers")
    return model


def _write_parts(folder: Path, source: _Source, encoder: onnx.ModelProto) -> None:
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


def _manifest(folder: Path, source: _Source) -> Manifest:
    """The manifest of the files in `folder`, without the parity still to be measured."""
    head = source.model.get_submodule(source.architecture.head)
    return Manifest(
        name=source.name,
        architecture=source.architecture.name,
        labels=source.labels,
        thresholds=source.thresholds,
        vocab_size=int(source.config.vocab_size),
        hidden_size=int(source.config.hidden_size),
        feature_size=int(head.in_features),
        layers=int(source.config.num_hidden_layers),
        heads=int(source.config.num_attention_heads),
        max_tokens=source.max_tokens,
        pad_token_id=source.pad_token_id,
        special_token_ids=tuple(sorted(int(index) for index in source.tokenizer.all_special_ids)),
        parameters=sum(parameter.numel() for parameter in source.model.parameters()),
        precision="fp32",
        head=source.architecture.head_statement,
        parity={},
        files={path.name: file_digest(path) for path in sorted(folder.iterdir())},
        amnestic_version=amnestic.__version__,
        problem_type=source.problem_type,
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


def _parity(folder: Path, source: _Source, texts: Sequence[str], progress: Progress) -> dict[str, float]:
    """Compare the checkpoint with the bundle's files on `texts`; raises ExportError if they differ."""
    total = 2 * len(texts)
    expected = _torch_logits(source, texts, lambda done: progress("checking parity", done, total))
    served = _bundle_logits(folder, source, texts, lambda done: progress("checking parity", len(texts) + done, total))
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


def _torch_logits(source: _Source, texts: Sequence[str], told: Callable[[int], None]) -> Logits:
    """The checkpoint's own answer, [N, C]: its tokenizer, and its model on token ids."""
    tokenize, results = source.tokenizer, []
    for start in range(0, len(texts), PARITY_BATCH):
        batch = list(texts[start : start + PARITY_BATCH])
        encoded = tokenize(batch, truncation=True, max_length=source.max_tokens)["input_ids"]
        ids, mask = _pad(encoded, source.pad_token_id)
        with torch.inference_mode():
            logits = source.model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
        results.append(logits.numpy())
        told(start + len(batch))
    return np.concatenate(results)


def _bundle_logits(folder: Path, source: _Source, texts: Sequence[str], told: Callable[[int], None]) -> Logits:
    """What the bundle answers, [N, C], by its files alone: tokenizer, table, graph and head."""
    tokenizer = Tokenizer.from_file(str(folder / files.TOKENIZER))
    tokenizer.enable_truncation(source.max_tokens)
    table = load_file(folder / files.EMBEDDINGS)["weight"].numpy()
    head = load_file(folder / files.HEAD)
    encoder = ort.InferenceSession(str(folder / files.ENCODER_ONNX), providers=["CPUExecutionProvider"])
    results = []
    for start in range(0, len(texts), PARITY_BATCH):
        batch = [encoding.ids for encoding in tokenizer.encode_batch(list(texts[start : start + PARITY_BATCH]))]
        ids, mask = _pad(batch, source.pad_token_id)
        (features,) = encoder.run(["features"], {"inputs_embeds": table[ids], "attention_mask": mask})
        results.append(features @ head["weight"].numpy().T + head["bias"].numpy())
        told(start + len(batch))
    return np.concatenate(results)


def _pad(encoded: Sequence[Sequence[int]], pad_token_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and mask, both int64 [B, longest], padded at the right."""
    lengths = np.array([len(ids) for ids in encoded])
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(mask.shape, pad_token_id, dtype=np.int64)
    padded[mask] = np.concatenate(encoded)
    return padded, mask.astype(np.int64)

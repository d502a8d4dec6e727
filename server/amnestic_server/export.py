"""Makes a bundle of a Hugging Face checkpoint. Nothing is published before `parity` has held.

The graph is written by `graph`; this module never runs in the serving process.
"""

import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
from safetensors.torch import save_file

import amnestic
from amnestic_server import graph, parity
from amnestic_server.errors import ExportError
from amnestic_server.graph import count_fused
from amnestic_server.parity import DEFAULT_LIMITS, Limits, Progress
from amnestic_server.source import NOTHING_GIVEN, Given, Source, load
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn import manifest as files
from amnestic_unlearn.checkpoint import transformers_silent
from amnestic_unlearn.manifest import Manifest, Precision, file_digest


def export(
    checkpoint: str | Path,
    out: Path,
    *,
    corpus: Path | None = None,
    precision: Precision = Precision.FP32,
    limits: Limits = DEFAULT_LIMITS,
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
    that is shipped). In a reduced `precision` it needs a corpus with the checkpoint's labels, and instead the decisions
    on its gate and test splits, and their macro F1, must be the checkpoint's within `limits`.
    `overwrite` lets it take the place of an earlier bundle. `warn` is told what was assumed.

    Raises CheckpointError and ExportError, saying what is at fault, and CorpusError as `corpus.stream` does.
    """
    _check_target(out, overwrite)
    if precision.is_reduced and corpus is None:
        raise ExportError(f"{precision} is proven on documents of the model's own labels: give --corpus")
    parity.provider_of(precision)
    with transformers_silent():
        progress("loading the checkpoint", 0, 0)
        source = load(str(checkpoint), revision, name, given, warn)
        documents = parity.sample(corpus or corpora.SHIPPED, source, precision)
        progress("writing the bundle", 0, 0)
        model = _build(source, precision)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
            folder = Path(scratch) / "bundle"
            folder.mkdir()
            _write_parts(folder, source, model)
            found = parity.check(folder, source, documents, precision, limits, progress)
            manifest = replace(_manifest(folder, source, precision), parity=found)
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


def _build(source: Source, precision: Precision) -> onnx.ModelProto:
    model = graph.build_encoder(source.architecture, source.config, source.model.state_dict(), precision)
    counted, layers = count_fused(model), int(source.config.num_hidden_layers)
    fused = sum(counted.get(name, 0) for name in graph.ATTENTION)
    if fused != layers:
        raise ExportError(f"attention is fused in {fused} of {layers} layers")
    return model


def _write_parts(folder: Path, source: Source, encoder: onnx.ModelProto) -> None:
    """Every file of the bundle but the manifest."""
    (folder / files.ENCODER_ONNX).write_bytes(encoder.SerializeToString())
    state = {key: value.detach().contiguous() for key, value in source.model.state_dict().items()}
    table = state.pop(f"{source.architecture.word_embeddings}.weight")
    head = {part: state.pop(f"{source.architecture.head}.{part}") for part in ("weight", "bias")}
    _write_tensors(state, folder / files.ENCODER_WEIGHTS)
    _write_tensors({"weight": table}, folder / files.EMBEDDINGS)
    _write_tensors(head, folder / files.HEAD)
    source.config.save_pretrained(folder)
    _write_tokenizer(folder, source.tokenizer)


def _write_tensors(tensors: dict[str, Any], path: Path) -> None:
    """As readable as any other file of the bundle; safetensors by itself lets the owner alone read."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path)
    path.chmod(mode)


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Truncation and padding are serving's to set; left in the file they would cut documents unnoticed."""
    tokenizer.save_pretrained(folder)
    path = folder / files.TOKENIZER
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["truncation"] = settings["padding"] = None
    path.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")


def _manifest(folder: Path, source: Source, precision: Precision) -> Manifest:
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
        precision=precision,
        head=source.architecture.head_statement,
        parity={},
        files={path.name: file_digest(path) for path in sorted(folder.iterdir())},
        amnestic_version=amnestic.__version__,
        problem_type=source.problem_type,
        **asdict(source.reading),
    )

"""Checkpoints to bundles: what is written, that it answers as the checkpoint does, and what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from toys import LABELS, MAX_TOKENS, toy_checkpoint
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from amnestic_server import graph
from amnestic_server.cli import group
from amnestic_server.errors import ExportError
from amnestic_server.export import export
from amnestic_server.source import Given
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.architecture import ARCHITECTURES, CheckpointError
from amnestic_unlearn.corpus import Document
from amnestic_unlearn.manifest import REQUIRED, BundleError, Manifest, ProblemType, verify
from amnestic_unlearn.measures import decide, f1_by_label

NOBODY = 65534


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, corpus_path: Path) -> Any:
    """A checkpoint with random weights of each architecture, its bundle and the manifest that export gave."""
    folder = tmp_path_factory.mktemp(request.param)
    source = toy_checkpoint(folder / "source", corpus_path, request.param, trained=False)
    return source, folder / "bundle", export(source, folder / "bundle", corpus=corpus_path)


@pytest.fixture
def source(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the trained checkpoint that a test may spoil."""
    return Path(shutil.copytree(checkpoint, tmp_path / "source"))


def edit(path: Path, **settings: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    fields = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


def served_logits(bundle: Path, texts: list[str]) -> np.ndarray:
    """One text at a time and without padding, by the bundle's files alone."""
    manifest = Manifest.read(bundle)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.enable_truncation(manifest.max_tokens)
    table = load_file(bundle / "embeddings.safetensors")["weight"].numpy()
    head = {name: tensor.numpy() for name, tensor in load_file(bundle / "head.safetensors").items()}
    session = ort.InferenceSession(str(bundle / "encoder.onnx"), providers=["CPUExecutionProvider"])
    rows = []
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids])
        inputs = {"inputs_embeds": table[ids], "attention_mask": np.ones_like(ids)}
        rows.append(session.run(["features"], inputs)[0][0] @ head["weight"].T + head["bias"])
    return np.array(rows)


def test_the_bundle_answers_as_the_checkpoint_in_padded_batches(exported: Any, corpus_path: Path) -> None:
    source, bundle, _ = exported
    texts = [document.text for document in corpora.read(corpus_path, splits=("test",))]
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    encoded = tokenizer(texts, truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors="pt")
    assert 0 in encoded["attention_mask"] and encoded["input_ids"].shape[1] == MAX_TOKENS
    with torch.inference_mode():
        inputs = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
        expected = model(**inputs).logits.numpy()
    np.testing.assert_allclose(served_logits(bundle, texts), expected, atol=1e-4)


def test_the_manifest_says_what_was_made(exported: Any) -> None:
    source, bundle, manifest = exported
    model = AutoModelForSequenceClassification.from_pretrained(source)
    assert Manifest.read(bundle) == manifest
    assert manifest.architecture == model.config.model_type
    assert (manifest.labels, manifest.thresholds) == (LABELS, (0.5,) * 4)
    assert (manifest.layers, manifest.heads, manifest.max_tokens, manifest.precision) == (2, 2, MAX_TOKENS, "fp32")
    assert (manifest.vocab_size, manifest.hidden_size, manifest.feature_size) == (model.config.vocab_size, 32, 32)
    assert manifest.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert manifest.head == ARCHITECTURES[manifest.architecture].head_statement
    assert manifest.pad_token_id == model.config.pad_token_id
    assert manifest.pad_token_id in manifest.special_token_ids
    assert manifest.parity["documents"] >= 64
    assert manifest.parity["max_abs_logit_difference"] <= 1e-4
    assert manifest.parity["decisions_equal"] == 1.0


def test_the_files_hold_each_weight_once(exported: Any) -> None:
    source, bundle, manifest = exported
    architecture = ARCHITECTURES[manifest.architecture]
    parts = load_file(bundle / "encoder.safetensors")
    parts[f"{architecture.word_embeddings}.weight"] = load_file(bundle / "embeddings.safetensors")["weight"]
    for name, tensor in load_file(bundle / "head.safetensors").items():
        parts[f"{architecture.head}.{name}"] = tensor
    original = AutoModelForSequenceClassification.from_pretrained(source).state_dict()
    assert parts.keys() == original.keys()
    assert all(torch.equal(parts[name], original[name]) for name in original)


def test_the_bundle_verifies_and_stands_alone(exported: Any) -> None:
    _, bundle, manifest = exported
    assert set(REQUIRED) <= manifest.files.keys()
    assert {path.name for path in bundle.iterdir()} == {*manifest.files, "manifest.json"}
    assert len(verify(bundle, manifest)) == 64
    assert str(bundle.parent) not in (bundle / "config.json").read_text()
    assert not [path.name for path in bundle.parent.iterdir() if path.name.startswith(".")]


def test_a_changed_file_is_found(bundle: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(bundle)
    for name in manifest.files:
        copy = Path(shutil.copytree(bundle, tmp_path / name))
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(BundleError, match=f"{name} does not match its digest"):
            verify(copy, manifest)


def test_another_user_may_read_a_bundle_as_far_as_the_umask_lets(bundle: Path) -> None:
    modes = {path.name: path.stat().st_mode for path in bundle.iterdir()}
    assert modes == dict.fromkeys(modes, modes["manifest.json"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take on another user")
def test_a_file_that_cannot_be_read_is_told(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    copy.chmod(0o700)
    manifest = Manifest.read(copy)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(BundleError, match=r" cannot be read$"):
            verify(copy, manifest)
    finally:
        os.seteuid(0)


def test_the_toy_has_learned(bundle: Path, corpus_path: Path) -> None:
    documents = corpora.read(corpus_path, splits=("test",))
    decided = decide(served_logits(bundle, [document.text for document in documents]), np.full(4, 0.5))
    assert f1_by_label(corpora.truth(documents, LABELS), decided).mean() > 0.9


def test_truncation_and_padding_are_taken_out_of_the_tokenizer(source: Path, corpus_path: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(source / "tokenizer.json"))
    export(source, tmp_path / "bundle", corpus=corpus_path)
    written = Tokenizer.from_file(str(tmp_path / "bundle" / "tokenizer.json"))
    assert written.truncation is None and written.padding is None


def test_a_checkpoint_in_half_precision_is_exported_in_single(source: Path, corpus_path: Path, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(source).half().save_pretrained(source)
    export(source, tmp_path / "bundle", corpus=corpus_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "bundle" / "encoder.safetensors").values()} == {
        torch.float32
    }
    assert json.loads((tmp_path / "bundle" / "config.json").read_text())["dtype"] == "float32"


def test_without_settings_of_ours_it_says_what_it_assumes(source: Path, corpus_path: Path, tmp_path: Path) -> None:
    edit(source / "config.json", amnestic_thresholds=None, amnestic_max_tokens=None)
    edit(source / "tokenizer_config.json", model_max_length=10**30)
    told: list[str] = []
    manifest = export(source, tmp_path / "bundle", corpus=corpus_path, warn=told.append)
    assert manifest.thresholds == (0.5,) * 4
    assert manifest.max_tokens == MAX_TOKENS + 8
    assert told == ["the checkpoint has no amnestic_thresholds: every label is decided at 0.5"]


@pytest.mark.parametrize(
    ("said", "given"),
    [("single_label_classification", None), (None, ProblemType.SINGLE_LABEL)],
)
def test_a_single_label_checkpoint_is_exported_without_thresholds(
    source: Path, corpus_path: Path, tmp_path: Path, said: str | None, given: ProblemType | None
) -> None:
    edit(source / "config.json", problem_type=said)
    told: list[str] = []
    manifest = export(source, tmp_path / "bundle", corpus=corpus_path, given=Given(given), warn=told.append)
    assert (manifest.problem_type, manifest.thresholds, told) == (ProblemType.SINGLE_LABEL, (), [])
    assert manifest.parity["decisions_equal"] == 1.0
    read = Manifest.read(tmp_path / "bundle")
    assert read == manifest and isinstance(read.problem_type, ProblemType)
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert config["problem_type"] == "single_label_classification"


def test_a_problem_type_that_contradicts_the_configuration_is_refused(
    source: Path, corpus_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="says that problem_type is multi_label_classification"):
        export(source, tmp_path / "bundle", corpus=corpus_path, given=Given(ProblemType.SINGLE_LABEL))


def test_a_manifest_from_before_problem_type_and_width_is_read(bundle: Path, tmp_path: Path) -> None:
    fields = json.loads((bundle / "manifest.json").read_text())
    assert fields.pop("problem_type") == "multi_label"
    assert fields.pop("embedding_size") == fields["hidden_size"]
    (tmp_path / "manifest.json").write_text(json.dumps(fields))
    assert Manifest.read(tmp_path) == Manifest.read(bundle)
    assert Manifest.read(tmp_path).problem_type is ProblemType.MULTI_LABEL


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problem_type": "regression"}, "unknown problem type"),
        ({"problem_type": "single_label"}, "single-label, but has thresholds"),
        ({"problem_type": "single_label", "thresholds": [], "labels": ["a"]}, "fewer than two labels"),
        ({"thresholds": []}, "not one threshold a label"),
    ],
)
def test_a_manifest_whose_decisions_are_not_defined_is_refused(
    bundle: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    (tmp_path / "manifest.json").write_text((bundle / "manifest.json").read_text())
    edit(tmp_path / "manifest.json", **settings)
    with pytest.raises(BundleError, match=message):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "albert"}, "albert is not supported"),
        ({"hidden_act": "silu"}, "activation silu is not supported"),
        ({"problem_type": "regression"}, "problem_type is regression"),
        ({"problem_type": None}, "has no problem_type"),
        ({"id2label": {"0": "a", "1": "b", "2": "b", "3": "c"}}, "id2label"),
        ({"amnestic_thresholds": [0.5]}, "not a list of one threshold a label"),
        ({"amnestic_thresholds": [0.5, 0.5, 0.5, 1.5]}, "not a probability"),
        ({"amnestic_max_tokens": 1_000}, f"from 3 to {MAX_TOKENS + 8}"),
        ({"amnestic_max_tokens": 2}, "from 3"),
    ],
)
def test_a_configuration_that_cannot_be_served_is_refused(
    source: Path, corpus_path: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    edit(source / "config.json", **settings)
    with pytest.raises(CheckpointError, match=message):
        export(source, tmp_path / "bundle", corpus=corpus_path)
    assert not (tmp_path / "bundle").exists()


def without(folder: Path, start: str) -> None:
    """Leave the weights out whose names start so."""
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(start)}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_checkpoint_without_a_head_is_refused_with_what_to_do(
    source: Path, corpus_path: Path, tmp_path: Path
) -> None:
    without(source, "classifier")
    with pytest.raises(CheckpointError) as refused:
        export(source, tmp_path / "bundle", corpus=corpus_path)
    assert str(refused.value) == (
        f"the checkpoint {source} has no classification head: train one with `amnestic train --checkpoint {source}`"
    )


def test_a_weight_that_would_be_random_is_refused(source: Path, corpus_path: Path, tmp_path: Path) -> None:
    without(source, "bert.pooler")
    with pytest.raises(CheckpointError, match=r"lacks the weight bert\.pooler\.dense\.bias, or has it in another"):
        export(source, tmp_path / "bundle", corpus=corpus_path)


def test_a_checkpoint_that_is_not_there_is_refused(corpus_path: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint directory"):
        export(tmp_path / "nowhere", tmp_path / "bundle", corpus=corpus_path)


def scale_a_weight(model: onnx.ModelProto) -> None:
    tensor = next(item for item in model.graph.initializer if item.name.endswith("output.dense.weight.T"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))


def spoil_a_weight(model: onnx.ModelProto) -> None:
    tensor = next(item for item in model.graph.initializer if item.name == "positions")
    tensor.CopyFrom(numpy_helper.from_array(np.full(tuple(tensor.dims), np.nan, dtype=np.float32), tensor.name))


def ignore_the_mask(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.input[3] = ""


@pytest.mark.parametrize("fault", [scale_a_weight, spoil_a_weight, ignore_the_mask])
def test_parts_that_answer_otherwise_are_not_published(
    checkpoint: Path,
    corpus_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[onnx.ModelProto], None],
) -> None:
    build = graph.build_encoder

    def faulty(*arguments: Any) -> onnx.ModelProto:
        model = build(*arguments)
        fault(model)
        return model

    monkeypatch.setattr(graph, "build_encoder", faulty)
    with pytest.raises(ExportError, match="parity failed: torch and the exported parts differ by"):
        export(checkpoint, tmp_path / "bundle", corpus=corpus_path)
    assert not list(tmp_path.iterdir())


def test_a_layer_without_fused_attention_is_refused(
    checkpoint: Path, corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = graph.build_encoder

    def unfused(*arguments: Any) -> onnx.ModelProto:
        model = build(*arguments)
        next(node for node in model.graph.node if node.op_type == "Attention").domain = ""
        return model

    monkeypatch.setattr(graph, "build_encoder", unfused)
    with pytest.raises(ExportError, match="attention is fused in 1 of 2 layers"):
        export(checkpoint, tmp_path / "bundle", corpus=corpus_path)


def test_a_corpus_too_small_for_the_check_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    documents = [Document("stable overnight", (), "test", f"patient-{index}") for index in range(63)]
    small = tmp_path / "small.jsonl"
    small.write_text("".join(json.dumps(row_of(document)) + "\n" for document in documents))
    with pytest.raises(ExportError, match=r"small\.jsonl has 63 documents; the parity check needs 64"):
        export(checkpoint, tmp_path / "bundle", corpus=small)


def row_of(document: Document) -> dict[str, Any]:
    return {
        "text": document.text,
        "labels": list(document.labels),
        "split": document.split,
        "group": document.group,
    }


def test_what_stands_at_the_target_is_kept(checkpoint: Path, corpus_path: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite, message in ((False, "exists already"), (True, "is not a bundle")):
        with pytest.raises(ExportError, match=message):
            export(checkpoint, tmp_path, corpus=corpus_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_bundle_is_overwritten_only_when_asked(
    checkpoint: Path, bundle: Path, corpus_path: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (out / "left_over").touch()
    with pytest.raises(ExportError, match="exists already"):
        export(checkpoint, out, corpus=corpus_path)
    manifest = export(checkpoint, out, corpus=corpus_path, name="renamed", overwrite=True)
    assert Manifest.read(out) == manifest
    assert manifest.name == "renamed"
    assert not (out / "left_over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_empty_target_is_used(checkpoint: Path, corpus_path: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    verify(tmp_path / "bundle", export(checkpoint, tmp_path / "bundle", corpus=corpus_path))


def test_the_command_shows_what_was_made(checkpoint: Path, corpus_path: Path, tmp_path: Path) -> None:
    arguments = [
        "export",
        "--checkpoint",
        str(checkpoint),
        "--out",
        str(tmp_path / "bundle"),
        "--corpus",
        str(corpus_path),
    ]
    shown = CliRunner().invoke(group, arguments)
    assert shown.exit_code == 0, shown.output
    for part in ("bert, 2 layers, 32 wide", "2 Attention, 5 SkipLayerNormalization", "64 documents", "alpha"):
        assert part in shown.output
    again = CliRunner().invoke(group, arguments)
    assert again.exit_code == 1 and "exists already" in again.output
    machine = CliRunner().invoke(group, [*arguments, "--overwrite", "--json"])
    made = json.loads(machine.stdout)
    assert made["fused"] == {"Attention": 2, "SkipLayerNormalization": 5, "BiasGelu": 2}
    assert made["bytes"] == sum(path.stat().st_size for path in (tmp_path / "bundle").iterdir())
    assert made["labels"] == list(LABELS)


def test_the_command_is_told_the_problem_type_that_a_checkpoint_leaves_out(
    source: Path, corpus_path: Path, tmp_path: Path
) -> None:
    edit(source / "config.json", problem_type=None)
    arguments = ["export", "--checkpoint", str(source), "--out", str(tmp_path / "bundle"), "--corpus", str(corpus_path)]
    refused = CliRunner().invoke(group, arguments)
    assert refused.exit_code == 1 and "give --problem-type multi-label or single-label" in refused.output
    shown = CliRunner().invoke(group, [*arguments, "--problem-type", "single-label"])
    assert shown.exit_code == 0, shown.output
    assert "single-label" in shown.output and "(from" not in shown.output
    assert Manifest.read(tmp_path / "bundle").problem_type is ProblemType.SINGLE_LABEL

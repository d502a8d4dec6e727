"""Bundles in reduced precision: proven by their decisions on labelled documents, or refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from toys import LABELS
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from amnestic_server import devices
from amnestic_server.cli import group
from amnestic_server.devices import cuda_missing, sums_int8_exactly
from amnestic_server.errors import ExportError
from amnestic_server.export import export
from amnestic_server.parity import Limits
from amnestic_server.source import Given
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.manifest import BundleError, Manifest, Precision, ProblemType, verify

needs_exact_sums = pytest.mark.skipif(not sums_int8_exactly(), reason="this processor does not sum int8 exactly")


@pytest.fixture
def doubtful(checkpoint: Path, corpus_path: Path, tmp_path: Path) -> Path:
    """The checkpoint with one threshold in the midst of probabilities that hardly differ: its decisions are chance."""
    source = Path(shutil.copytree(checkpoint, tmp_path / "doubtful"))
    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    with torch.no_grad():
        model.classifier.weight *= 1e-3
    model.config.amnestic_thresholds = [
        float(np.median(column)) for column in probabilities(model, source, corpus_path)
    ]
    model.save_pretrained(source)
    return source


def probabilities(model: Any, source: Path, corpus: Path) -> np.ndarray:
    """By label, of the documents that parity is proven on."""
    texts = [document.text for document in corpora.read(corpus, splits=("gate", "test"))]
    encoded = AutoTokenizer.from_pretrained(source)(texts, truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
    return logits.sigmoid().numpy().T


@needs_exact_sums
def test_an_int8_bundle_tells_what_was_found(bundle: Path, int8_bundle: Path, corpus_path: Path) -> None:
    manifest = Manifest.read(int8_bundle)
    verify(int8_bundle, manifest)
    assert manifest.precision is Precision.INT8
    documents = corpora.read(corpus_path, splits=("gate", "test"))
    parity = manifest.parity
    assert parity["documents"] == len(documents) and parity["decisions"] == len(documents) * len(LABELS)
    assert parity["decisions_equal"] >= parity["decisions_equal_min"] == 0.999
    assert abs(parity["macro_f1"] - parity["checkpoint_macro_f1"]) <= parity["macro_f1_difference_max"] == 0.002
    assert parity["macro_f1"] > 0.9
    assert 1e-4 < parity["max_abs_logit_difference"] < 0.5
    full = bundle / "encoder.onnx", int8_bundle / "encoder.onnx"
    assert full[1].stat().st_size < full[0].stat().st_size
    # Unlearning trains on the same weights, and versions patch the same table.
    for name in ("encoder.safetensors", "embeddings.safetensors", "head.safetensors"):
        assert manifest.files[name] == Manifest.read(bundle).files[name]


@needs_exact_sums
def test_decisions_that_change_are_refused_with_both_figures(doubtful: Path, corpus_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "bundle"
    export(doubtful, tmp_path / "full", corpus=corpus_path)
    with pytest.raises(ExportError) as refused:
        export(doubtful, out, corpus=corpus_path, precision=Precision.INT8)
    told = re.fullmatch(
        r"parity failed: in int8, (.+)% of 672 decisions are equal \(at least 99.900% must be\), and macro F1 is (.+),"
        r" the checkpoint's (.+) \(they may differ by 0.002\)",
        str(refused.value),
    )
    assert told is not None
    share, f1, expected = map(float, told.groups())
    assert 50 < share < 99.9 and 0 < f1 < 1 and 0 < expected < 1
    assert not out.exists() and not list(out.parent.iterdir())


@needs_exact_sums
def test_what_is_accepted_beyond_is_written_down(doubtful: Path, corpus_path: Path, tmp_path: Path) -> None:
    limits = Limits(decisions_equal=0.5, macro_f1_difference=0.2)
    manifest = export(doubtful, tmp_path / "bundle", corpus=corpus_path, precision=Precision.INT8, limits=limits)
    assert manifest.parity["decisions_equal"] < 0.999
    assert (manifest.parity["decisions_equal_min"], manifest.parity["macro_f1_difference_max"]) == (0.5, 0.2)
    assert Manifest.read(tmp_path / "bundle") == manifest


@needs_exact_sums
def test_a_single_label_document_is_one_decision(checkpoint: Path, tmp_path: Path) -> None:
    from toys import single_label_corpus

    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    del config["problem_type"], config["amnestic_thresholds"]
    (source / "config.json").write_text(json.dumps(config))
    corpus = single_label_corpus(tmp_path / "single.jsonl")
    with pytest.raises(ExportError, match="give 168 decisions; a reduced precision is proven on 500 or more"):
        export(
            source,
            tmp_path / "bundle",
            corpus=corpus,
            precision=Precision.INT8,
            given=Given(ProblemType.SINGLE_LABEL),
        )


def test_fp16_is_proven_by_its_rounded_weights(
    checkpoint: Path, bundle: Path, corpus_path: Path, tmp_path: Path
) -> None:
    manifest = export(checkpoint, tmp_path / "bundle", corpus=corpus_path, precision=Precision.FP16)
    assert manifest.precision is Precision.FP16
    assert 1e-6 < manifest.parity["max_abs_logit_difference"] < 0.05
    assert (tmp_path / "bundle" / "encoder.onnx").stat().st_size < 0.7 * (bundle / "encoder.onnx").stat().st_size


@pytest.mark.skipif(not cuda_missing(), reason="there is CUDA here")
def test_bf16_is_proven_on_cuda_alone(checkpoint: Path, corpus_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="bf16 is proven on CUDA alone, and there is no CUDA device"):
        export(checkpoint, tmp_path / "bundle", corpus=corpus_path, precision=Precision.BF16)
    assert not list(tmp_path.iterdir())


def test_int8_is_not_proven_where_sums_saturate(
    checkpoint: Path, corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text("flags : avx2\n")
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(devices.platform, "machine", lambda: "x86_64")
    with pytest.raises(ExportError, match="no VNNI"):
        export(checkpoint, tmp_path / "bundle", corpus=corpus_path, precision=Precision.INT8)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP16])
def test_documents_of_the_own_labels_are_needed(checkpoint: Path, tmp_path: Path, precision: Precision) -> None:
    with pytest.raises(
        ExportError, match=f"{precision} is proven on documents of the model's own labels: give --corpus"
    ):
        export(checkpoint, tmp_path / "bundle", precision=precision)


def test_the_command_tells_what_was_found_and_what_is_refused(
    checkpoint: Path, doubtful: Path, corpus_path: Path, tmp_path: Path
) -> None:
    arguments = ["export", "--out", str(tmp_path / "bundle"), "--corpus", str(corpus_path), "--precision", "fp16"]
    made = CliRunner().invoke(group, [*arguments, "--checkpoint", str(checkpoint)], env={"COLUMNS": "200"})
    assert made.exit_code == 0, made.output
    for part in ("in fp16", "100.000% of 672 decisions equal", "macro F1 0.98", "the checkpoint's 0.98"):
        assert part in made.stdout
    arguments += ["--checkpoint", str(doubtful), "--overwrite"]
    refused = CliRunner().invoke(group, arguments)
    assert refused.exit_code == 1 and "parity failed: in fp16" in refused.stderr
    assert Manifest.read(tmp_path / "bundle").name == checkpoint.name
    accepted = CliRunner().invoke(group, [*arguments, "--accept-decisions", "0.5", "--accept-f1", "0.5", "--json"])
    parity = json.loads(accepted.stdout)["parity"]
    assert (parity["decisions_equal_min"], parity["macro_f1_difference_max"]) == (0.5, 0.5)


def test_an_unknown_precision_is_refused_and_an_old_manifest_is_read(bundle: Path, tmp_path: Path) -> None:
    fields = json.loads((bundle / "manifest.json").read_text())
    assert fields["precision"] == "fp32" and set(fields["parity"]) == {
        "documents",
        "max_abs_logit_difference",
        "decisions_equal",
    }
    (tmp_path / "manifest.json").write_text(json.dumps(fields))
    assert Manifest.read(tmp_path).precision is Precision.FP32
    (tmp_path / "manifest.json").write_text(json.dumps({**fields, "precision": "int4"}))
    with pytest.raises(BundleError, match="unknown precision"):
        Manifest.read(tmp_path)

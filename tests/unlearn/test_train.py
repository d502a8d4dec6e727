"""Training on small generated corpora: what is learned, what is frozen into the checkpoint, what is refused."""

import dataclasses
import itertools
import json
import math
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer
from toys import toy_model, toy_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from amnestic_server.cli.train import command as command_line
from amnestic_unlearn import corpus, measures
from amnestic_unlearn import train as training
from amnestic_unlearn.architecture import ARCHITECTURES, CheckpointError
from amnestic_unlearn.corpus import SPLITS, Document
from amnestic_unlearn.manifest import file_digest
from amnestic_unlearn.train import train
from amnestic_unlearn.train_settings import Shape, TrainError, TrainSettings

SIGNS = {"renal": ["dialysis", "oliguria"], "cardiac": ["infarct", "angina"], "neuro": ["seizure", "stroke"]}
LABELS = ("cardiac", "neuro", "renal")
TINY = Shape(vocab_size=200, layers=1, hidden=32, heads=2, intermediate=64)
FAST = TrainSettings(epochs=20, batch_size=8, learning_rate=3e-3, max_tokens=32, threads=1, device="cpu", shape=TINY)


def documents(count: int = 640) -> list[Document]:
    chance = random.Random(0)
    made = []
    for number in range(count):
        labels = tuple(sorted(label for label in SIGNS if chance.random() < 0.4))
        words = chance.choices(["patient", "unit", "bed", "night", "given", "seen", "again"], k=chance.randint(3, 12))
        for label in labels:
            words.insert(chance.randrange(len(words)), chance.choice(SIGNS[label]))
        made.append(Document(" ".join(words), labels, SPLITS[(number % 8) // 2], f"p{number}"))
    return made


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "c.parquet"
    corpus.write(documents(), path)
    return path


@pytest.fixture(scope="module")
def trained(corpus_file: Path) -> tuple[Path, training.TrainReport]:
    out = corpus_file.parent / "checkpoint"
    return out, train(corpus_file, out, settings=FAST)


def test_it_learns_and_reports_on_the_test_split(trained: tuple[Path, training.TrainReport]) -> None:
    _, report = trained
    assert report.labels == LABELS
    assert report.macro_f1 == pytest.approx(np.mean(list(report.f1.values())))
    assert report.macro_f1 > 0.9
    assert report.documents == {"train": 160, "gate": 160, "test": 160}
    assert math.isfinite(report.loss)


def test_mixed_precision_learns_as_well_and_keeps_float32_weights(corpus_file: Path, tmp_path: Path) -> None:
    settings = replace(FAST, precision="bf16")
    report = train(corpus_file, tmp_path / "bf16", settings=settings)
    assert report.macro_f1 > 0.9
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    # It was used: rounding to 8 bits leaves other weights than float32.
    full = train(corpus_file, tmp_path / "fp32", settings=FAST)
    assert full.loss != report.loss


def test_the_checkpoint_gives_the_reported_figures_by_itself(
    trained: tuple[Path, training.TrainReport], corpus_file: Path
) -> None:
    out, report = trained
    config = json.loads((out / "config.json").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    logits = []
    with torch.no_grad():
        for document in (tests := corpus.read(corpus_file, splits=("test",))):
            logits.append(model(**tokenizer(document.text, return_tensors="pt")).logits[0].numpy())
    decided = measures.decide(np.array(logits), np.array(config["amnestic_thresholds"]))
    names = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
    f1 = measures.f1_by_label(corpus.truth(tests, names), decided)
    assert dict(zip(names, f1, strict=True)) == pytest.approx(report.f1)


def test_the_checkpoint_holds_what_export_needs_and_no_pickle(trained: tuple[Path, training.TrainReport]) -> None:
    out, report = trained
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "bert"
    assert config["problem_type"] == "multi_label_classification"
    assert config["label2id"] == {label: index for index, label in enumerate(LABELS)}
    assert config["amnestic_thresholds"] == list(report.thresholds)
    assert all(0 < threshold < 1 for threshold in report.thresholds)
    assert config["amnestic_max_tokens"] == 32
    assert {path.suffix for path in out.iterdir()} <= {".json", ".safetensors"}
    tokenizer = json.loads((out / "tokenizer.json").read_text())
    assert tokenizer["truncation"] is None and tokenizer["padding"] is None
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 32
    assert len(Tokenizer.from_file(str(out / "tokenizer.json")).encode("bed " * 500).ids) == 502
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


def test_the_same_seed_gives_the_same_checkpoint(
    trained: tuple[Path, training.TrainReport], corpus_file: Path, tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    again = train(corpus_file, tmp_path / "again", settings=FAST)
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator is left as it was"
    train(corpus_file, tmp_path / "other", settings=replace(FAST, seed=1))
    for name in ("model.safetensors", "tokenizer.json"):
        assert file_digest(tmp_path / "again" / name) == file_digest(trained[0] / name)
    assert file_digest(tmp_path / "other/model.safetensors") != file_digest(trained[0] / "model.safetensors")
    assert again.thresholds == trained[1].thresholds


def test_test_and_probe_documents_leave_no_trace(trained: tuple[Path, training.TrainReport], tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    hidden = [
        replace(document, text="zzz") if document.split in ("test", "probe") else document for document in documents()
    ]
    corpus.write(hidden, path)
    train(path, tmp_path / "out", settings=FAST)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert file_digest(tmp_path / "out" / name) == file_digest(trained[0] / name)


def test_thresholds_are_the_best_on_the_gate_split(trained: tuple[Path, training.TrainReport], tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    inverted = [
        replace(document, labels=tuple(set(LABELS) - set(document.labels))) if document.split == "gate" else document
        for document in documents()
    ]
    corpus.write(inverted, path)
    report = train(path, tmp_path / "out", settings=FAST)
    assert file_digest(tmp_path / "out/model.safetensors") == file_digest(trained[0] / "model.safetensors")
    assert max(report.thresholds) < min(trained[1].thresholds), "labels turned round: best is to decide for all"


def pretrained(folder: Path, name: str, **settings: Any) -> Path:
    """A classifier of other labels with random weights and one layer."""
    tokenizer = toy_tokenizer([document.text for document in documents()], name)
    torch.manual_seed(0)
    settings |= {
        "n_layers" if name == "distilbert" else "num_hidden_layers": 1,
        "id2label": dict(enumerate("abcdefg")),
        "label2id": {},
    }
    toy_model(name, len(tokenizer), **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_a_checkpoint_is_fine_tuned(corpus_file: Path, tmp_path: Path, name: str) -> None:
    source = pretrained(tmp_path / "source", name)
    settings = dataclasses.replace(FAST, epochs=30)
    report = train(corpus_file, tmp_path / "out", checkpoint=str(source), settings=settings)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["model_type"] == name
    assert config["id2label"] == {str(index): label for index, label in enumerate(LABELS)}
    assert report.macro_f1 > 0.9
    assert json.loads((tmp_path / "out/tokenizer.json").read_text())["truncation"] is None
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert sum(parameter.numel() for parameter in model.parameters()) == report.parameters


def test_an_unfit_checkpoint_is_refused(corpus_file: Path, tmp_path: Path) -> None:
    def refused(source: Path, message: str) -> None:
        with pytest.raises((CheckpointError, TrainError), match=message):
            train(corpus_file, tmp_path / "out", checkpoint=str(source), settings=replace(FAST, max_tokens=41))
        assert not (tmp_path / "out").exists()

    bert = pretrained(tmp_path / "bert", "bert")
    refused(
        pretrained(tmp_path / "roberta", "roberta", max_position_embeddings=42),
        "max_tokens is above the checkpoint's 40 positions",
    )
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**config, "model_type": "albert"}))
    refused(bert, "architecture albert is not supported")
    (bert / "config.json").write_text("{")
    refused(bert, "cannot be loaded: config.json is damaged")


@pytest.mark.parametrize("split", ["train", "gate", "test"])
def test_a_label_without_documents_in_a_split_is_refused(tmp_path: Path, split: str) -> None:
    without = [
        replace(document, labels=()) if document.split == split and "renal" in document.labels else document
        for document in documents()
    ]
    corpus.write(without, tmp_path / "c.parquet")
    with pytest.raises(TrainError, match=f"no document of the {split} split has the label 'renal'"):
        train(tmp_path / "c.parquet", tmp_path / "out", settings=FAST)


def test_a_corpus_without_labels_is_refused(tmp_path: Path) -> None:
    corpus.write([replace(document, labels=()) for document in documents(8)], tmp_path / "c.parquet")
    with pytest.raises(TrainError, match="no document has a label"):
        train(tmp_path / "c.parquet", tmp_path / "out", settings=FAST)


def test_work_that_is_there_is_not_overwritten(corpus_file: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(TrainError, match="not an empty directory"):
        train(corpus_file, tmp_path, settings=FAST)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"warmup": 1.5}, "warmup"),
        ({"device": "tpu"}, "device"),
        ({"shape": replace(TINY, heads=3)}, "hidden"),
        ({"shape": replace(TINY, layers=0)}, "layers"),
    ],
)
def test_a_setting_out_of_range_is_named(
    corpus_file: Path, tmp_path: Path, change: dict[str, object], name: str
) -> None:
    with pytest.raises(TrainError, match=name):
        train(corpus_file, tmp_path / "out", settings=replace(FAST, **change))


def test_every_document_is_seen_once_an_epoch_in_batches_of_like_length() -> None:
    chance = random.Random(1)
    lengths = [chance.randint(1, 256) for _ in range(1_000)]
    documents = [(np.ones(length, dtype=np.int32),) for length in lengths]
    data = training._Encoded(documents, np.zeros((1_000, 1), dtype=np.bool_), 0)
    generator = torch.Generator().manual_seed(0)
    first = list(training._batches(data, 16, generator))
    second = list(training._batches(data, 16, generator))
    assert sorted(itertools.chain.from_iterable(first)) == list(range(1_000))
    assert first != second
    padded = sum(len(rows) * max(lengths[row] for row in rows) for rows in first)
    assert padded < 1.15 * sum(lengths)


def test_the_rate_rises_then_falls_to_almost_nothing() -> None:
    factor = training._linear(100, 10)
    rates = [factor(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(1 / 90)


def test_the_command_trains_and_says_how_it_goes(corpus_file: Path, tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "out"), "--corpus", str(corpus_file), "--epochs", "2", "--json"]
    command = [sys.executable, "-c", "from amnestic_server.cli import main; main()", "train", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["f1"]) == set(LABELS)
    told = [line.split(":")[0] for line in done.stderr.splitlines()]
    assert sorted(set(told), key=told.index) == ["preparing", "epoch 1/2", "epoch 2/2", "measuring"]
    assert re.search(r"^epoch 2/2: \d+%,(?: 0:\d\d left,)? loss \d\.\d{3}\b", done.stderr, re.MULTILINE)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_command_refuses_in_one_line(corpus_file: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["--out", str(corpus_file.parent)], f"{corpus_file.parent} exists and is not an empty directory"),
        (["--out", str(tmp_path / "out"), "--corpus", str(tmp_path / "no.csv")], "no.csv: no such file"),
        (["--out", str(tmp_path / "out"), "--epochs", "0"], "epochs must be from 1 to 10000"),
    ):
        result = CliRunner().invoke(command_line, arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"Error: {message}\n"

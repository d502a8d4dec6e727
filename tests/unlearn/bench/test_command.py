"""`amnestic bench unlearn` from the command line, on the tiny matrix."""

import gzip
import json

import pytest
from click.testing import CliRunner
from huggingface_hub import constants
from tiny import TINY, measured

from amnestic_server.cli import bench_unlearn
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.bench import ledger, matrix, workers
from amnestic_unlearn.bench.matrix import BenchEncoder
from amnestic_unlearn.bench.methods import METHOD_NAMES
from amnestic_unlearn.train_settings import TrainError


@pytest.fixture(autouse=True)
def encoders(monkeypatch, tmp_path):
    monkeypatch.setattr(matrix, "ENCODERS", {"tiny": TINY})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def call(*arguments):
    return CliRunner().invoke(bench_unlearn.unlearn, [str(argument) for argument in arguments])


def collection(path):
    """300 rows as the published files are derived to, with one label of 150 and one too rare to be kept."""
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt") as file:
        for number in range(300):
            labels = ["Urology"] * (number % 2) + ["Rare"] * (number % 10 == 0)
            file.write(json.dumps({"id": number, "text": f"note {number}", "labels": labels}) + "\n")


def test_it_runs_what_is_left_and_reports_it(elsewhere, corpus_path, tmp_path):
    name = elsewhere.sources[0].name
    given = ("--corpus", corpus_path, "--target", "alpha", "--encoder", "tiny", "--seed", 0, "--out", elsewhere.out)
    given += ("--method", "original", "--method", "zero-row", "--report", tmp_path / "docs", "--json")
    result = call(*given)
    assert result.exit_code == 0, result.output
    assert f"1/2  {name}, tiny, seed 0, alpha: original: forget F1 " in result.stderr
    assert f"2/2  {name}, tiny, seed 0, alpha: zero-row: forget F1 0.000" in result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["cells"], told["measured"], told["failed"]) == (2, 2, 0)
    rows = ledger.read(elsewhere.results)
    assert told["summary"][1]["forget_f1"]["value"] == rows[1]["forget_f1"] == 0
    assert "`zero-row`" in (tmp_path / "docs" / "unlearning.md").read_text()
    assert len((elsewhere.results.parent / "results.csv").read_text().splitlines()) == 3
    before = elsewhere.results.read_bytes()
    again = call(*given)
    assert "nothing is left to run" in again.stderr
    assert again.stdout == result.stdout
    assert elsewhere.results.read_bytes() == before


def test_a_report_alone_runs_nothing(plan, told, corpus_path, monkeypatch):
    monkeypatch.setattr(workers, "run", None)
    given = ("--corpus", corpus_path, "--target", "beta", "--encoder", "tiny", "--seed", 0, "--out", plan.out)
    result = call(*given, "--report-only")
    assert result.exit_code == 0, result.output
    assert " cells measured, 0 failed; rows in " in result.output
    every = len(METHOD_NAMES)
    assert f"{len(plan.methods)} of {every} cells" in result.output


def test_failures_are_counted_alike_in_print_and_in_json(corpus_path, tmp_path):
    name = matrix.own_name("toy", corpora.digest(corpus_path))
    for method, error in (("original", ""), ("zero-row", "it diverged")):
        ledger.append(tmp_path / "results.jsonl", measured(name, "tiny", 0, "alpha", method, error=error))
    given = ("--corpus", corpus_path, "--target", "alpha", "--encoder", "tiny", "--seed", 0, "--out", tmp_path)
    result = call(*given, "--method", "original", "--method", "zero-row", "--report-only", "--json")
    assert "1 of 2 cells measured, 1 failed" in result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["cells"], told["measured"], told["failed"]) == (2, 1, 1)
    assert [row["method"] for row in told["summary"]] == ["original"]


def test_a_sequence_tells_of_its_own_requests(corpus_path, tmp_path):
    name = matrix.own_name("toy", corpora.digest(corpus_path))
    alpha, both = ["alpha"], ["alpha", "beta"]
    rows = [
        {"step": 1, "asked": alpha, "label": "alpha", "forget_f1": 0.1},
        {"step": 2, "asked": both, "label": "alpha", "forget_f1": 0.2},
        {"step": 2, "asked": both, "label": "beta", "forget_f1": 0.4},
        # Of another plan, which began with another label.
        {"step": 1, "asked": ["gamma"], "label": "gamma", "forget_f1": 0.9},
    ]
    for row in rows:
        ledger.append(tmp_path / "sequence.jsonl", measured(name, "tiny", 0, "", "zero-row", **row))
    failure = {"step": 1, "asked": alpha, "label": "", "error": "it diverged"}
    ledger.append(tmp_path / "sequence.jsonl", measured(name, "tiny", 1, "", "zero-row", **failure))
    given = ("--corpus", corpus_path, "--target", "alpha", "--target", "beta", "--encoder", "tiny", "--out", tmp_path)
    given += ("--seed", 0, "--seed", 1, "--method", "original", "--method", "zero-row", "--sequence")
    result = call(*given, "--report-only", "--json")
    assert result.exit_code == 0, result.output
    assert "2 of 4 requests measured, 1 failed; rows in " in result.stderr and "cells" not in result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["requests"], told["measured"], told["failed"]) == (4, 2, 1)
    assert [row["label"] for row in told["sequence"]] == ["alpha", "alpha", "beta", ""]
    figures = [(row["request"], row["forget_f1"]["value"], row["worst_forget_f1"]["value"]) for row in told["summary"]]
    assert figures == [(1, 0.1, 0.1), (2, pytest.approx(0.3), 0.4)]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--corpus", "TOY"), "is a file of your own: give --target"),
        (("--corpus", "TOY", "--target", "omega"), "no corpus has the label 'omega'"),
        (("--corpus", "nowhere.csv", "--target", "alpha"), "is neither a file nor one of eicu, mtsamples, codiesp"),
        (("--corpus", "TOY", "--target", "alpha", "--method", "none"), "no method 'none'; there are original"),
        (("--corpus", "TOY", "--target", "alpha", "--encoder", "none"), "the checkpoint none cannot be loaded"),
        (("--corpus", "mtsamples"), "no corpus is left to run on"),
        (("--corpus", "TOY", "--corpus", "TOY", "--target", "alpha"), "--corpus names toy-"),
        (("--corpus", "eicu", "--encoder", "tiny", "--encoder", "tiny"), "--encoder names tiny 2 times"),
    ],
)
def test_what_cannot_be_run_is_said(arguments, text, corpus_path, tmp_path):
    given = [corpus_path if argument == "TOY" else argument for argument in arguments]
    result = call(*given, "--out", tmp_path)
    assert result.exit_code != 0
    assert text in " ".join(result.output.split())


def test_a_file_is_never_taken_for_a_corpus_that_is_built_in_or_for_another(corpus_path, tmp_path):
    documents = corpora.read(corpus_path)
    files = [tmp_path / folder / "eicu.jsonl" for folder in ("one", "two")]
    for file, kept in zip(files, (documents, documents[1:]), strict=True):
        file.parent.mkdir()
        corpora.write(kept, file)
    sources = bench_unlearn._sources(("eicu", *map(str, files)), ("renal", "alpha"), None, tmp_path, False)
    names = [source.name for source in sources]
    assert names == ["eicu", *(f"eicu-{corpora.digest(file)[:6]}" for file in files)]
    assert len(set(names)) == 3


def test_a_report_needs_no_weights(monkeypatch):
    absent = BenchEncoder("absent", TINY.training, "no_such_package")
    monkeypatch.setattr(matrix, "ENCODERS", {"absent": absent})
    assert bench_unlearn._encoders((), quick=False, run=False) == (absent,)
    with pytest.raises(TrainError, match="needs the package no_such_package"):
        bench_unlearn._encoders((), quick=False, run=True)


def test_collections_that_are_not_at_hand_are_skipped_with_the_reason(corpus_path, tmp_path):
    result = call(
        "--corpus", "codiesp", "--corpus", corpus_path, "--target", "alpha", "--out", tmp_path, "--report-only"
    )
    assert result.exit_code == 0, result.output
    assert "skipping codiesp: it is not shipped" in result.output and "codiesp.jsonl.gz" in result.output


def test_collections_are_made_once_from_their_folder(tmp_path):
    collection(tmp_path / "data" / "mtsamples" / "mtsamples_multilabel.jsonl.gz")
    path = bench_unlearn._corpus("mtsamples", tmp_path / "data", tmp_path / "corpora")
    assert {label for document in corpora.read(path) for label in document.labels} == {"Urology"}
    made = path.read_bytes()
    assert bench_unlearn._corpus("mtsamples", None, tmp_path / "corpora") == path
    assert path.read_bytes() == made
    assert bench_unlearn._corpus("codiesp", tmp_path / "data", tmp_path / "corpora") is None


def test_the_shipped_corpus_is_copied_under_its_name(tmp_path):
    path = bench_unlearn._corpus("eicu", None, tmp_path)
    assert path.name == "eicu.parquet"
    assert corpora.digest(path) == corpora.digest(corpora.SHIPPED)

"""The matrix as it is run: real processes, of which some are killed, and cells of which some fail."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY, key

from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.bench import ledger, models, run, sequence, workers
from amnestic_unlearn.bench.cells import Source
from amnestic_unlearn.bench.methods import METHODS, unchanged
from amnestic_unlearn.bench.workers import WorkersError
from amnestic_unlearn.errors import LossNotFiniteError, TooFewForgetDocumentsError
from amnestic_unlearn.forgetting import Outcome
from amnestic_unlearn.measures import decide, f1_by_label
from amnestic_unlearn.twin import from_checkpoint

SECRET = "Mrs. Miller, born in 1951"


ATTEMPTS = []


def breaks_once(twin, data, seed, report):
    ATTEMPTS.append(seed)
    if len(ATTEMPTS) == 1:
        raise RuntimeError(SECRET)
    return unchanged(twin, data, seed, report)


def start(plan, folder):
    plan.write(folder / "plan.json")
    return subprocess.Popen(
        [sys.executable, "-m", "amnestic_unlearn.bench", str(folder / "plan.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def listen(process, until):
    """What a process tells, up to the first line of which `until` is true."""
    heard = []
    for line in process.stdout:
        heard.append(json.loads(line))
        if until(heard[-1]):
            return heard
    raise AssertionError("the process ended before")


def by_key(plan):
    return {key(row): row for row in ledger.read(plan.results)}


def test_two_processes_measure_every_cell_once(plan, told):
    rows = ledger.read(plan.results)
    assert sorted(map(key, rows)) == sorted(plan.cells())
    assert not any(row["error"] for row in rows)
    assert sorted(key(row) for row in told if "begun" not in row) == sorted(plan.cells())
    for name in ("cpu", "torch", "transformers", "precision", "date", "settings"):
        assert all(row[name] for row in rows)
    assert {row["corpus_digest"] for row in rows} == {corpora.digest(Path(plan.sources[0].path))}
    assert run.left(plan) == 0


def test_figures_are_those_of_the_classifiers_alone(plan, told):
    rows, name = by_key(plan), plan.sources[0].name
    original = rows[name, "tiny", 0, "beta", "original"]
    retrained = rows[name, "tiny", 0, "beta", "retrained"]
    edited = rows[name, "tiny", 0, "beta", "bias-edit"]
    assert original["parameters_changed"] == 0 and original["retain_f1_delta"] == 0
    assert retrained["seconds"] == retrained["retrain_seconds"] == original["retrain_seconds"] > 0
    assert retrained["forget_f1"] == rows[name, "tiny", 0, "beta", "zero-row"]["forget_f1"] == 0
    assert retrained["forget_auroc"] == 0.5
    assert edited["probe_auroc"] == original["probe_auroc"] == original["probe_auroc_original"]
    assert retrained["probe_auroc"] == original["probe_auroc_retrained"]
    # The gold standard decides about the other labels as it does by itself, under thresholds of its own.
    folder = next(plan.models.glob(f"{name}/tiny/seed0/without-beta*/checkpoint"))
    alone = from_checkpoint(folder)
    documents = corpora.read(Path(plan.sources[0].path), splits=("test",))
    tokens = alone.tokenize([document.text for document in documents])
    logits = alone.evaluate(tokens, alone.base(torch.empty(0, dtype=torch.int64))).numpy()
    decided = decide(logits, np.array(alone.manifest.thresholds))
    f1 = f1_by_label(corpora.truth(documents, alone.manifest.labels), decided)
    assert "beta" not in alone.manifest.labels
    assert retrained["retain_f1"] == pytest.approx(f1.mean(), abs=1e-6)


def test_a_second_run_does_nothing_and_changed_settings_run_again(plan, told):
    before = plan.results.read_bytes()
    assert list(workers.run(plan, jobs=1)) == []
    assert plan.results.read_bytes() == before
    longer = dataclasses.replace(TINY, training=dataclasses.replace(TINY.training, epochs=2))
    assert run.left(dataclasses.replace(plan, encoders=(longer,))) == len(plan.cells())


def test_a_killed_process_loses_only_the_cell_it_was_at(elsewhere, tmp_path):
    process = start(elsewhere, tmp_path)
    listen(process, lambda row: row.get("begun") and key(row) == elsewhere.cells()[2])
    process.kill()
    process.wait(timeout=60)
    kept = elsewhere.results.read_bytes()
    assert [key(row) for row in ledger.read(elsewhere.results)][:2] == elsewhere.cells()[:2]
    with elsewhere.results.open("ab") as file:
        file.write(b'{"corpus": "toy", "enco')
    list(workers.run(elsewhere, jobs=1))
    assert elsewhere.results.read_bytes().startswith(kept)
    assert [key(row) for row in ledger.read(elsewhere.results)] == elsewhere.cells()


def test_what_another_process_has_is_left_to_it_and_taken_over_if_it_ends(elsewhere, tmp_path):
    theirs, ours = elsewhere.cases()
    with ledger.claim(elsewhere.claims, run.claim_name(elsewhere, theirs)):
        process = start(elsewhere, tmp_path)
        last = (*ours.key, elsewhere.methods[-1])
        listen(process, lambda row: "begun" not in row and key(row) == last)
        assert {key(row)[3] for row in ledger.read(elsewhere.results)} == {ours.target}
    assert process.wait(timeout=250) == 0
    assert sorted(by_key(elsewhere)) == sorted(elsewhere.cells())


def test_a_run_that_is_closed_stops_its_processes(elsewhere):
    told = workers.run(elsewhere, jobs=2)
    next(told)
    told.close()
    for case in elsewhere.cases():
        with ledger.claim(elsewhere.claims, run.claim_name(elsewhere, case)) as ours:
            assert ours


def test_a_process_leaves_with_its_parent(elsewhere, tmp_path):
    process = start(elsewhere, tmp_path)
    listen(process, lambda row: row.get("begun"))
    process.stdin.close()
    assert process.wait(timeout=60) == 3


def test_a_broken_plan_is_an_error(tmp_path, plan):
    bad = dataclasses.replace(plan, out=str(tmp_path), methods=("no-such-way",))
    with pytest.raises(WorkersError, match="1 of 1 processes ended with 1"):
        list(workers.run(bad, jobs=1))


def test_cells_that_fail_become_rows_and_the_run_goes_on(elsewhere):
    def diverges(twin, data, seed, report):
        raise LossNotFiniteError

    def spoils(twin, data, seed, report):
        weights = twin.base(torch.empty(0, dtype=torch.int64))
        return Outcome(twin, dataclasses.replace(weights, head_bias=weights.head_bias * torch.nan), 1)

    methods = {"diverges": diverges, "breaks": breaks_once, "spoils": spoils, "original": unchanged}
    case = dataclasses.replace(elsewhere, sources=(dataclasses.replace(elsewhere.sources[0], targets=("beta",)),))
    plan = dataclasses.replace(case, methods=tuple(methods))
    run.run(plan, lambda row: None, methods)
    errors = {row["method"]: row["error"] for row in ledger.read(plan.results)}
    assert errors["diverges"] == str(LossNotFiniteError())
    assert errors["breaks"].startswith("internal error: RuntimeError at test_run.py:")
    assert errors["spoils"] == "the answers are not finite"
    assert errors["original"] == ""
    assert SECRET not in plan.results.read_text()
    # What nobody foresaw is worth another try; what is known to fail is not.
    again = []
    run.run(plan, again.append, methods)
    assert [(row["method"], row["error"]) for row in again if "begun" not in row] == [("breaks", "")]


def test_a_label_with_few_documents_fails_before_anything_is_trained(tmp_path, corpus_path, plan):
    documents = corpora.read(corpus_path)
    few = [document for document in documents if document.split == "train"][:5]
    rare = [dataclasses.replace(document, labels=("rare",)) if document in few else document for document in documents]
    corpora.write(rare, tmp_path / "rare.jsonl")
    source = Source("rare", str(tmp_path / "rare.jsonl"), ("rare",))
    here = dataclasses.replace(plan, out=str(tmp_path), sources=(source,))
    run.run(here, lambda row: None)
    assert {row["error"] for row in ledger.read(here.results)} == {str(TooFewForgetDocumentsError())}
    assert len(ledger.read(here.results)) == len(here.methods)
    assert not here.models.exists()


def test_a_model_is_kept_until_its_recipe_changes(elsewhere):
    kept = models.trained(elsewhere.models, elsewhere.sources[0], TINY, seed=0)
    weights = kept.checkpoint / "model.safetensors"
    made = weights.stat().st_mtime_ns
    assert models.trained(elsewhere.models, elsewhere.sources[0], TINY, seed=0) == kept
    assert weights.stat().st_mtime_ns == made
    # As a process leaves it that was killed before the last.
    (kept.checkpoint.parent / models.RECIPE).write_text("{")
    (kept.checkpoint.parent / ".train-killed").mkdir()
    assert models.trained(elsewhere.models, elsewhere.sources[0], TINY, seed=0).checkpoint == kept.checkpoint
    assert weights.stat().st_mtime_ns > made
    assert not (kept.checkpoint.parent / ".train-killed").exists()


def test_the_gold_standard_answers_in_the_originals_order(elsewhere):
    original = from_checkpoint(models.trained(elsewhere.models, elsewhere.sources[0], TINY, 0).checkpoint)
    checkpoint = models.trained(elsewhere.models, elsewhere.sources[0], TINY, 0, "beta").checkpoint
    alone = from_checkpoint(checkpoint)
    labels = original.manifest.labels
    gold = models.load_retrained(checkpoint, labels)
    for label, row, bias, threshold in zip(
        labels, gold.head_weight, gold.head_bias, gold.manifest.thresholds, strict=True
    ):
        if label == "beta":
            assert not row.any() and bias == models.ABSENT
        else:
            column = alone.manifest.labels.index(label)
            assert torch.equal(row, alone.head_weight[column]) and bias == alone.head_bias[column]
            assert threshold == alone.manifest.thresholds[column]


def test_requests_in_turn_measure_every_label_forgotten_so_far(elsewhere):
    plan = dataclasses.replace(elsewhere, methods=("original", "zero-row"), sequence=True)
    assert sequence.left(plan) == 3
    sequence.run(plan, lambda row: None)
    rows = ledger.read(plan.results)
    assert [(row["step"], row["label"]) for row in rows] == [(1, "alpha"), (2, "alpha"), (2, "beta")]
    assert all(row["error"] == "" and row["forget_f1"] == 0 for row in rows)
    # A row of the head is no other label's.
    assert all(row["retain_f1_delta"] == 0 for row in rows)
    assert rows[1]["seconds"] == rows[2]["seconds"]
    assert sequence.left(plan) == 0
    # A request whose rows are not all there runs again.
    lines = plan.results.read_bytes().splitlines(keepends=True)
    plan.results.write_bytes(b"".join(lines[:2]))
    assert sequence.left(plan) == 2
    sequence.run(plan, lambda row: None, METHODS)
    assert [row["label"] for row in ledger.read(plan.results)] == ["alpha", "alpha", "alpha", "beta"]


def test_rows_and_models_of_other_weights_are_not_taken_for_ones_own(plan, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"one")
    own = dataclasses.replace(TINY, path=str(tmp_path))

    def settings(encoder):
        here = dataclasses.replace(plan, encoders=(encoder,))
        return run_settings(here), sequence_settings(dataclasses.replace(here, sequence=True))

    def run_settings(here):
        return run._settings(next(here.cases()), "zero-row", run.Workshop(here), METHODS)

    def sequence_settings(here):
        return sequence._settings(next(here.cases()), METHODS["zero-row"], run.Workshop(here))

    before = settings(own)
    assert settings(own) == before
    assert all(ours != theirs for ours, theirs in zip(before, settings(TINY), strict=True))
    (tmp_path / "pytorch_model.bin").write_bytes(b"two")
    assert all(now != then for now, then in zip(settings(own), before, strict=True))


def test_corpora_of_one_stem_have_models_of_their_own(plan, monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(models, "train", lambda source, out, **how: made.append(out))
    source = plan.sources[0]
    for name in ("toy-000000", "toy-111111"):
        models.trained(tmp_path, dataclasses.replace(source, name=name), TINY, 0)
    assert [out.relative_to(tmp_path).parts[0] for out in made] == ["toy-000000", "toy-111111"]

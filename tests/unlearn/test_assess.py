"""A row of the benchmark end to end on the toy bundle: outcomes whose figures are known beforehand."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from toys import LABELS, toy_checkpoint

from amnestic_unlearn import corpus, measures, twin
from amnestic_unlearn.bench import assess as module
from amnestic_unlearn.bench.assess import Answers, Bypass, answers, assess, bypassed, hold, refer
from amnestic_unlearn.forgetting import Outcome
from amnestic_unlearn.manifest import Manifest
from amnestic_unlearn.selection import select

TARGET = LABELS.index("beta")


@pytest.fixture(scope="module")
def model(bundle):
    return twin.load(bundle, Manifest.read(bundle))


@pytest.fixture(scope="module")
def held(model, corpus_path):
    return hold(corpus.read(corpus_path), model)


def outcome(model, row_ids=(), **changes):
    weights = model.base(torch.tensor(row_ids, dtype=torch.int64))
    return Outcome(model, dataclasses.replace(weights, **changes), parameters_changed=0)


@pytest.fixture(scope="module")
def original(model, held):
    return answers(outcome(model), held)


@pytest.fixture(scope="module")
def retrained(held, corpus_path, tmp_path_factory):
    """The toy model trained again on the corpus without the label."""
    folder = tmp_path_factory.mktemp("retrained")
    documents = [
        dataclasses.replace(document, labels=tuple(label for label in document.labels if label != "beta"))
        for document in corpus.read(corpus_path)
    ]
    corpus.write(documents, folder / "corpus.jsonl")
    checkpoint = toy_checkpoint(folder / "checkpoint", folder / "corpus.jsonl")
    return answers(outcome(twin.from_checkpoint(checkpoint)), held)


@pytest.fixture(scope="module")
def reference(original, retrained, held):
    return refer(original, retrained, held, TARGET)


@pytest.fixture(scope="module")
def edited(held, model):
    """The tokens that speak for the label."""
    train = np.flatnonzero(held.at("train"))
    having = held.truth[train][:, [TARGET]]
    documents = [held.tokens[index] for index in train]
    return select(documents, having, model.manifest.special_token_ids, model.manifest.vocab_size, 12).token_ids


@pytest.fixture(scope="module")
def erased(model, edited):
    """Every edited row zero."""
    row_ids = sorted(edited.tolist())
    return outcome(model, row_ids, rows=torch.zeros(len(row_ids), model.table.shape[1]))


def test_answers_are_the_outcomes_in_one_pass(model, held, original):
    expected = outcome(model)
    assert original.features == pytest.approx(expected.features(held.tokens).numpy())
    assert original.logits == pytest.approx(expected.logits(held.tokens).numpy(), abs=1e-6)
    assert original.logits.shape == held.truth.shape and original.logits.dtype == np.float32


def test_the_table_names_every_key_and_no_other(original, reference, held, edited):
    documented = []
    for cell in re.findall(r"^\| ([a-z].*?) \|", module.__doc__, re.MULTILINE)[1:]:
        first, *rest = cell.split(", ")
        documented += [first, *(first + key if key.startswith("_") else key for key in rest)]
    row = assess(original, reference, held, edited)
    assert list(row) == documented
    assert all(type(value) is float for value in row.values())


def test_the_original_has_everything(original, reference, held, edited):
    row = assess(original, reference, held, edited)
    test = held.at("test")
    decided = measures.decide(original.logits[test], held.thresholds)
    f1 = measures.f1_by_label(held.truth[test], decided)
    others = [column for column in range(len(LABELS)) if column != TARGET]
    assert row["forget_f1"] == pytest.approx(f1[TARGET])
    assert row["retain_f1"] == pytest.approx(f1[others].mean())
    assert row["retain_f1_delta"] == row["retain_f1_delta_low"] == row["retain_f1_delta_high"] == 0
    assert row["retain_worst_delta"] == row["kl_retain_edited"] == 0
    assert row["forget_auroc"] == row["forget_auroc_two_sided"] > 0.95
    assert row["forget_best_f1_excess"] == pytest.approx(
        row["forget_best_f1"] - measures.trivial_f1(held.truth[test, TARGET])
    )
    assert row["probe_recovery"] == row["prototype_recovery"] == 1
    assert row["probe_auroc_low"] <= row["probe_auroc"] == row["probe_auroc_original"] <= row["probe_auroc_high"]
    assert row["probe_auroc_original"] > row["probe_auroc_retrained"] + 0.02
    assert row["relearn_examples"] == row["relearn_examples_original"] <= row["relearn_examples_retrained"]
    assert row["relearn_steps"] == row["relearn_steps_original"] <= row["relearn_steps_retrained"]
    assert row["kl_forget"] > 0.1
    assert math.isnan(row["bypass_recall"])
    # Among documents with the label, the smaller loss is the larger logit.
    having, train = held.truth[:, TARGET], held.at("train")
    among = (train | test) & having
    area = measures.auroc(train[among], original.logits[among, TARGET])
    assert row["membership_auroc"] == pytest.approx(max(area, 1 - area), abs=0.01)


def test_the_retrained_model_is_the_zero(retrained, reference, held, edited):
    row = assess(retrained, reference, held, edited)
    assert row["forget_f1"] == row["kl_forget"] == row["probe_recovery"] == row["prototype_recovery"] == 0
    assert row["probe_auroc"] == row["probe_auroc_retrained"]
    assert row["relearn_steps"] == row["relearn_steps_retrained"]


def test_a_moved_bias_hides_the_label_and_takes_nothing_away(model, original, reference, held, edited):
    bias = model.head_bias.clone()
    bias[TARGET] -= 30
    candidate = outcome(model, head_bias=bias)
    row = assess(answers(candidate, held), reference, held, edited, bypassed(candidate, held, TARGET, edited))
    before = assess(original, reference, held, edited)
    assert row["forget_f1"] == row["bypass_recall"] == 0
    for key in ("forget_best_f1", "forget_auroc", "probe_auroc", "prototype_auroc", "relearn_steps", "retain_f1"):
        assert row[key] == pytest.approx(before[key], abs=1e-3), key
    assert row["probe_recovery"] == pytest.approx(1)


def test_an_inverted_logit_is_no_forgetting(original, reference, held, edited):
    logits = original.logits.copy()
    logits[:, TARGET] *= -1
    row = assess(Answers(original.features, logits), reference, held, edited)
    assert row["forget_auroc"] < 0.05 and row["forget_auroc_two_sided"] > 0.95


def test_the_worst_label_is_named(original, reference, held, edited):
    logits = original.logits.copy()
    logits[:, 2] = -30.0
    row = assess(Answers(original.features, logits), reference, held, edited)
    before = assess(original, reference, held, edited)
    assert row["retain_worst_label"] == 2.0
    assert row["retain_worst_delta"] == pytest.approx(3 * row["retain_f1_delta"])
    assert row["retain_f1_delta"] == pytest.approx(row["retain_f1"] - before["retain_f1"])
    assert row["retain_f1_delta_low"] < row["retain_f1_delta"] < row["retain_f1_delta_high"] < 0
    assert row["kl_retain_edited"] > 0


def test_rewriting_goes_round_erased_rows(erased, reference, held, edited, model):
    positives = int((held.at("test") & held.truth[:, TARGET]).sum())
    bypass = bypassed(erased, held, TARGET, edited)
    assert bypass.answers.logits.shape == (positives, len(LABELS))
    assert bypass.answers.features.shape == (positives, model.head_weight.shape[1])
    row = assess(answers(erased, held), reference, held, edited, bypass)
    assert row["bypass_avoided"] == bypass.avoided > 0.5
    assert row["forget_auroc"] < 0.9
    assert 0 <= row["bypass_recall"] <= 1 and 0 <= row["bypass_probe_auroc"] <= 1


def test_bypass_figures_follow_their_definitions(original, reference, held, edited):
    positive, negative = (held.at("test") & (held.truth[:, TARGET] == wanted) for wanted in (True, False))
    # A rewriting that the model does not notice.
    unseen = Bypass(Answers(original.features[positive], original.logits[positive]), 1.0)
    row = assess(original, reference, held, edited, unseen)
    decided = measures.decide(original.logits, held.thresholds)[:, TARGET]
    assert row["bypass_recall"] == pytest.approx(decided[positive].mean())
    assert row["bypass_probe_auroc"] > 0.9
    # One that leaves nothing but what a document without the label looks like.
    drawn = np.resize(np.flatnonzero(negative), positive.sum())
    plain = Bypass(Answers(original.features[drawn], original.logits[drawn]), 1.0)
    row = assess(original, reference, held, edited, plain)
    assert row["bypass_recall"] == pytest.approx(decided[drawn].mean())
    assert row["bypass_probe_auroc"] == pytest.approx(0.5, abs=0.1)


def test_divergence_is_measured_on_the_documents_it_names(original, retrained, reference, held, edited):
    test, having = held.at("test"), held.truth[:, TARGET]
    touched = np.array([bool(set(tokens.tolist()) & set(edited.tolist())) for (tokens,) in held.tokens])
    others = [column for column in range(len(LABELS)) if column != TARGET]
    row = assess(retrained, reference, held, edited)
    chosen = test & ~having & touched
    assert 0 < chosen.sum() < (test & ~having).sum()
    p, q = (measures.sigmoid(answer.logits[chosen][:, others].astype(float)) for answer in (original, retrained))
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert row["kl_retain_edited"] == pytest.approx(kl.mean(), rel=1e-4)
    assert math.isnan(assess(retrained, reference, held, np.array([], dtype=np.int64))["kl_retain_edited"])


def test_a_label_without_test_documents_leaves_nan_not_an_error(original, retrained, held, edited):
    truth = held.truth.copy()
    truth[held.at("test"), TARGET] = False
    without = dataclasses.replace(held, truth=truth)
    row = assess(original, refer(original, retrained, without, TARGET), without, edited)
    for key in ("forget_f1", "forget_best_f1", "forget_auroc", "forget_auroc_two_sided", "prototype_auroc"):
        assert math.isnan(row[key]), key
    for key in ("relearn_examples", "relearn_steps", "kl_forget", "membership_auroc"):
        assert math.isnan(row[key]), key
    # The probe split still has some.
    assert row["probe_auroc"] > 0.9 and row["retain_f1"] > 0.8


def test_other_labels_without_test_documents_are_not_averaged(original, retrained, held, edited):
    truth = held.truth.copy()
    truth[held.at("test"), 0] = False
    fewer = dataclasses.replace(held, truth=truth)
    row = assess(original, refer(original, retrained, fewer, TARGET), fewer, edited)
    test = held.at("test")
    f1 = measures.f1_by_label(truth[test], measures.decide(original.logits[test], held.thresholds))
    assert row["retain_f1"] == pytest.approx(f1[[2, 3]].mean())
    truth[test] = False
    row = assess(original, refer(original, retrained, fewer, TARGET), fewer, edited)
    assert math.isnan(row["retain_f1"]) and math.isnan(row["retain_worst_label"])

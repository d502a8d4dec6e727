"""Attacks find what was planted and nothing in noise, and agree with plain second implementations."""

import math

import numpy as np
import pytest

from amnestic_unlearn import attacks
from amnestic_unlearn.attacks import (
    EXAMPLES,
    STEP_CAP,
    bar,
    material,
    membership_auroc,
    prototype_auroc,
    recovery,
    relearn_examples,
    relearn_steps,
)
from amnestic_unlearn.measures import auroc


def planted(signal, seed=0, documents=300, width=24, share=0.3):
    """Features of two sets of documents, with a label that shifts a third of them by `signal`."""
    random = np.random.default_rng(seed)
    truth = random.random(2 * documents) < share
    values = random.normal(size=(2 * documents, width)).astype(np.float32)
    values[:, : width // 3] += signal * truth[:, None]
    # Scales and offsets of an encoder's features are anything.
    values = (values * np.linspace(0.1, 9, width) + np.linspace(-5, 5, width)).astype(np.float32)
    return material(values[:documents], truth[:documents], values[documents:], truth[documents:])


def nobody(given):
    """The same, without a positive document to measure on."""
    return attacks.Material(given.seen, given.seen_truth, given.unseen, np.zeros_like(given.unseen_truth))


def without_examples(given):
    return attacks.Material(given.seen, np.zeros_like(given.seen_truth), given.unseen, given.unseen_truth)


def test_recovery_is_0_at_the_retrained_and_1_at_the_original():
    assert recovery(0.6, retrained=0.6, original=0.9) == 0
    assert recovery(0.9, retrained=0.6, original=0.9) == 1
    assert recovery(0.7, retrained=0.6, original=0.8) == pytest.approx(0.5)
    assert recovery(0.5, retrained=0.6, original=0.8) == pytest.approx(-0.5)


def test_recovery_is_undefined_where_nothing_was_to_recover():
    assert math.isnan(recovery(0.7, retrained=0.81, original=0.8))
    assert math.isnan(recovery(float("nan"), retrained=0.6, original=0.8))


def test_nothing_is_recovered_where_the_gold_standard_tells_more():
    assert math.isnan(recovery(0.75, retrained=0.8, original=0.7))


def test_the_bar_is_90_percent_of_what_lies_above_chance():
    assert bar(0.9) == pytest.approx(0.86)
    assert math.isnan(bar(0.5)) and math.isnan(bar(0.4)) and math.isnan(bar(float("nan")))


def test_material_is_standardised_by_the_documents_seen():
    given = planted(2.0)
    assert given.seen.mean(axis=0) == pytest.approx(np.zeros(24), abs=1e-6)
    assert given.seen.std(axis=0) == pytest.approx(np.ones(24), abs=1e-6)
    assert np.abs(given.unseen.mean(axis=0)).max() < 0.4


def test_prototypes_find_what_is_planted_and_nothing_in_noise():
    assert prototype_auroc(planted(3.0)) > 0.95
    assert abs(prototype_auroc(planted(0.0)) - 0.5) < 0.08
    assert prototype_auroc(planted(1.0)) < prototype_auroc(planted(2.0))


def test_prototypes_by_distance_written_out():
    given = planted(0.7, documents=60)
    random = np.random.default_rng(4)
    areas = []
    for _ in range(50):
        positive = random.permutation(np.flatnonzero(given.seen_truth))[:5]
        negative = random.permutation(np.flatnonzero(~given.seen_truth))[:5]
        near, far = given.seen[positive].mean(axis=0), given.seen[negative].mean(axis=0)
        score = [sum((row - far) ** 2) - sum((row - near) ** 2) for row in given.unseen]
        areas.append(auroc(given.unseen_truth, np.array(score)))
    assert prototype_auroc(given, seed=4) == pytest.approx(np.mean(areas))
    assert prototype_auroc(given, seed=5) != prototype_auroc(given, seed=4)


def test_relearning_takes_more_where_less_is_left():
    strong, weak, nothing = planted(3.0), planted(0.8), planted(0.0)
    wanted = 0.85
    few, more, never = (relearn_examples(given, wanted) for given in (strong, weak, nothing))
    assert few.reached == more.reached == 1.0 and never.reached == 0.0
    assert 1 <= few.effort < more.effort < never.effort
    quick, slow, not_at_all = (relearn_steps(given, wanted) for given in (strong, weak, nothing))
    assert quick.reached == 1.0 and not_at_all.reached == 0.0
    assert 1 <= quick.effort < slow.effort < not_at_all.effort == STEP_CAP + 1


def test_an_effort_that_never_suffices_counts_as_one_more_than_the_cap():
    given = planted(0.0)
    cap = max(size for size in EXAMPLES if size <= given.examples)
    assert cap == 50
    assert relearn_examples(given, 0.99) == attacks.Relearned(cap + 1, 0.0)


def test_a_mean_over_draws_counts_those_that_failed(monkeypatch):
    needed = iter([1, None, 5, 2])
    monkeypatch.setattr(attacks, "_examples_needed", lambda *_: next(needed))
    found = relearn_examples(planted(1.0), 0.8, draws=4)
    assert found == attacks.Relearned((1 + 51 + 5 + 2) / 4, 0.75)


def test_a_bar_that_anything_clears_takes_one_example_and_one_step():
    given = planted(3.0)
    assert relearn_examples(given, 0.01) == relearn_steps(given, 0.01) == attacks.Relearned(1.0, 1.0)


def test_steps_are_adams_on_the_logistic_loss():
    given = planted(0.8, documents=31)
    # One batch holds every document, so the order does not matter: Adam written out.
    weight, bias = np.zeros(24), 0.0
    first, second = np.zeros(25), np.zeros(25)
    for step, found in zip(range(1, 31), attacks._head_rows(given, seed=0), strict=False):
        error = 1 / (1 + np.exp(-(given.seen @ weight + bias))) - given.seen_truth
        gradient = np.append(given.seen.T @ error, error.sum()) / 31
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        change = 0.01 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        weight, bias = weight - change[:-1], bias - change[-1]
        assert found == pytest.approx(weight, abs=1e-9)


def test_the_seed_decides_the_draws():
    given = planted(0.8)
    assert relearn_examples(given, 0.85, seed=1) == relearn_examples(given, 0.85, seed=1)
    assert relearn_steps(given, 0.85, seed=1) == relearn_steps(given, 0.85, seed=1)
    assert len({relearn_examples(given, 0.85, seed=seed).effort for seed in range(4)}) > 1


def test_undefined_without_documents_to_learn_from_or_to_measure_on():
    given = planted(3.0)
    for lacking in (nobody(given), without_examples(given)):
        assert math.isnan(prototype_auroc(lacking))
        assert math.isnan(relearn_examples(lacking, 0.8).effort) and math.isnan(relearn_examples(lacking, 0.8).reached)
        assert math.isnan(relearn_steps(lacking, 0.8).effort)
    assert math.isnan(relearn_examples(given, float("nan")).effort)
    assert math.isnan(relearn_steps(given, float("nan")).effort)


def test_membership_ranks_by_loss_and_is_two_sided():
    assert membership_auroc(np.array([5.0, 3.0]), np.array([1.0, -2.0])) == 1.0
    assert membership_auroc(np.array([1.0, -2.0]), np.array([5.0, 3.0])) == 1.0
    assert membership_auroc(np.array([0.0, 2.0]), np.array([1.0])) == 0.5
    # Losses of sure decisions still differ, where probabilities round to 1.
    assert membership_auroc(np.array([60.0, 50.0]), np.array([40.0, 45.0])) == 1.0
    assert math.isnan(membership_auroc(np.array([]), np.array([1.0])))


def test_membership_finds_memory_and_nothing_in_noise():
    random = np.random.default_rng(0)
    assert membership_auroc(random.normal(2, 1, 400), random.normal(0, 1, 400)) > 0.9
    assert membership_auroc(random.normal(0, 1, 2000), random.normal(0, 1, 2000)) < 0.53

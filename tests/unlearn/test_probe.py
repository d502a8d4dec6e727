"""The auditor's probe: it finds what is there, not what is not, and at the minimum of its loss."""

import math
import subprocess
import sys

import numpy as np
import pytest

from amnestic_unlearn.measures import auroc
from amnestic_unlearn.probe import (
    FOLDS,
    PENALTIES,
    assign_folds,
    cross_fitted,
    cross_fitted_auc,
    excess_ratio,
    fit,
    has_moved,
    probe_auc,
)


def features(seed, signal, documents=400, width=12, share=0.3):
    random = np.random.default_rng(seed)
    truth = random.random(documents) < share
    values = random.normal(size=(documents, width)).astype(np.float32)
    values[:, 3] += signal * truth
    return values, truth


def test_finds_a_label_that_the_features_hold():
    assert probe_auc(*features(0, 3.0), *features(1, 3.0)) > 0.95


def test_finds_nothing_in_noise():
    assert abs(probe_auc(*features(0, 0.0), *features(1, 0.0)) - 0.5) < 0.1


def test_does_not_depend_on_scale_or_offset_of_a_feature():
    train, truth = features(0, 1.0)
    test, test_truth = features(1, 1.0)
    scale, offset = np.linspace(0.01, 100, 12), np.linspace(-50, 50, 12)
    moved = probe_auc(train * scale + offset, truth, test * scale + offset, test_truth)
    assert abs(moved - probe_auc(train, truth, test, test_truth)) < 1e-4


def test_the_same_features_give_the_same_probe():
    assert probe_auc(*features(0, 1.0), *features(1, 1.0)) == probe_auc(*features(0, 1.0), *features(1, 1.0))


def test_a_constant_feature_does_no_harm():
    train, truth = features(0, 3.0)
    train[:, 5] = 1.0
    assert probe_auc(train, truth, train, truth) > 0.95


def test_undefined_without_both_kinds_of_documents():
    values, truth = features(0, 1.0)
    assert math.isnan(probe_auc(values, np.zeros_like(truth), values, truth))
    assert math.isnan(probe_auc(values, np.ones_like(truth), values, truth))
    assert math.isnan(probe_auc(values, truth, values, np.zeros_like(truth)))


def newton(values, truth, l2):
    """The minimum of the balanced loss by Newton's method, written out."""
    inputs = np.column_stack([values, np.ones(len(values))]).astype(np.float64)
    balance = np.where(truth, 0.5 / truth.mean(), 0.5 / (1 - truth.mean()))
    penalty = np.diag([l2] * values.shape[1] + [0.0])
    solution = np.zeros(inputs.shape[1])
    for _ in range(50):
        probability = 1 / (1 + np.exp(-inputs @ solution))
        gradient = inputs.T @ (balance * (probability - truth)) + penalty @ solution
        curvature = (inputs * (balance * probability * (1 - probability))[:, None]).T @ inputs + penalty
        solution -= np.linalg.solve(curvature, gradient)
    return solution[:-1]


@pytest.mark.parametrize("l2", PENALTIES)
@pytest.mark.parametrize(("documents", "width"), [(200, 4), (60, 30), (20, 90), (2, 12)])
def test_fit_is_the_minimum_of_the_balanced_loss(documents, width, l2):
    values, truth = features(2, 1.5, documents=documents, width=max(width, 4))
    truth[:2] = True, False
    # As an encoder's features, all go with a few directions.
    values = values @ np.random.default_rng(3).normal(size=(width, width)) * np.geomspace(1, 0.01, width)
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    assert np.abs(fit(values, truth, l2) - newton(values, truth, l2)).max() < 1e-5


def test_cross_fitted_scores_find_a_label_and_nothing_in_noise():
    folds = np.arange(400) % 5
    values, truth = features(0, 3.0)
    assert auroc(truth, cross_fitted(values, truth, folds)) > 0.95
    noise, truth = features(3, 0.0)
    assert abs(auroc(truth, cross_fitted(noise, truth, folds)) - 0.5) < 0.1


def test_no_document_is_scored_by_a_probe_that_saw_it():
    _, truth = features(0, 0.0)
    folds = np.arange(400) % 5
    # Each document's column tells its truth, but nobody else's: a probe of the others scores all of a fold alike.
    scores = cross_fitted(np.diag(np.where(truth, 1.0, -1.0)), truth, folds)
    assert max(np.ptp(scores[folds == fold]) for fold in range(5)) < 1e-9


def test_folds_follow_the_group_and_are_about_equal():
    groups = [f"patient-{number // 2}" for number in range(4000)]
    folds = assign_folds(groups)
    assert (folds[::2] == folds[1::2]).all()
    assert np.bincount(folds, minlength=FOLDS).min() > 600


def test_the_cross_fitted_auc_is_of_the_scores_and_undefined_for_what_is_not_finite():
    values, truth = features(0, 1.5)
    folds = np.arange(len(truth)) % FOLDS
    assert cross_fitted_auc(values, truth, folds) == auroc(truth, cross_fitted(values, truth, folds)) > 0.7
    values[3, 2] = np.inf
    assert math.isnan(cross_fitted_auc(values, truth, folds))


@pytest.mark.parametrize(
    ("candidate", "base", "ratio"),
    [
        (0.9, 0.9, 1.0),
        (0.5, 0.9, 0.0),
        (0.7, 0.9, 0.5),
        (0.4, 0.9, -0.25),
        # A base in which a probe finds no more than chance would: counted as chance, 0.1.
        (0.58, 0.48, 0.8),
        (0.6, 0.6, 1.0),
        (0.8, 0.5, 3.0),
    ],
)
def test_the_ratio_is_of_what_is_above_one_half(candidate, base, ratio):
    assert excess_ratio(candidate, base, chance=0.1, moved=True) == pytest.approx(ratio)


@pytest.mark.parametrize("found", [0.3, 0.5, 0.55, 0.6, 0.61, 0.9])
def test_features_as_they_were_tell_as_much_as_before_also_where_that_is_nothing(found):
    assert excess_ratio(found, found, chance=0.1, moved=False) == pytest.approx(1.0)


def test_rounding_of_what_is_known_stands_in_the_ratio():
    assert excess_ratio(0.899, 0.9, chance=0.1, moved=False) == pytest.approx(0.9975)


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize(
    "figures", [(math.nan, 0.9, 0.1), (math.nan, 0.5, 0.1), (0.9, math.nan, 0.1), (0.9, math.nan, math.nan)]
)
def test_the_ratio_of_what_is_undefined_is_undefined(figures, moved):
    assert math.isnan(excess_ratio(*figures, moved))


@pytest.mark.parametrize("moved", [True, False])
def test_the_ratio_is_undefined_where_chance_is(moved):
    assert math.isnan(excess_ratio(0.9, 0.4, math.nan, moved))


def test_features_move_by_more_than_rounding_in_any_document():
    base, _ = features(0, 1.0, width=64)
    base[:, 5] = 7.0 + 1e-6 * base[:, 6]  # nearly constant, as a dead feature is
    rounding = np.float32(1e-6) * np.random.default_rng(1).normal(size=base.shape).astype(np.float32)
    assert not has_moved(base, base)
    assert not has_moved(base + rounding, base)
    for change in (0.1, np.nan, np.inf):
        moved = base.copy()
        moved[17, 9] += change
        assert has_moved(moved, base)


def test_a_probe_does_not_load_the_compiler_of_torch():
    """Which holds all threads of a server that serves for a tenth of a second."""
    script = (
        "import sys, numpy; from amnestic_unlearn.probe import fit;"
        "fit(numpy.eye(9), numpy.arange(9) % 2 == 0, 1.0); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"

"""The bootstrap by group: whole patients are drawn, both systems see the same draws, and the interval holds."""

import math

import numpy as np
import pytest

from amnestic_unlearn.bootstrap import auroc_of, interval, macro_f1_of, paired, resample
from amnestic_unlearn.measures import auroc, f1_by_label


def systems(seed, documents=120):
    """Truth [N, 2], the decisions of two systems that err alike, and groups of two documents."""
    random = np.random.default_rng(seed)
    truth = random.random((documents, 2)) < 0.4
    first = truth ^ (random.random(truth.shape) < 0.2)
    second = first ^ (random.random(truth.shape) < 0.02)
    return truth, first, second, [f"patient-{number // 2}" for number in range(documents)]


def test_whole_groups_are_drawn_as_many_as_there_are():
    groups = ["a", "b", "a", "c", "c", "c", "d"]
    weights = resample(groups, resamples=500, seed=1)
    assert weights.shape == (500, 7)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 3:6] == weights[:, 3:4]).all()
    assert (weights[:, [0, 1, 3, 6]].sum(axis=1) == 4).all()
    # Each group is drawn once on average, and not always.
    assert weights.mean(axis=0) == pytest.approx(np.ones(7), abs=0.15)
    assert weights.std(axis=0).min() > 0.5


def test_the_seed_decides_the_draws():
    groups = [str(number) for number in range(20)]
    assert (resample(groups, seed=3) == resample(groups, seed=3)).all()
    assert (resample(groups, seed=3) != resample(groups, seed=4)).any()


def test_resamples_are_the_measures_of_repeated_documents():
    truth, first, second, groups = systems(0)
    weights = resample(groups, resamples=40, seed=2)
    score = np.random.default_rng(1).integers(0, 6, len(groups)) / 5
    differences, areas = [], []
    for row in weights.astype(int):
        chosen = np.repeat(np.arange(len(groups)), row)
        one, other = f1_by_label(truth[chosen], first[chosen]), f1_by_label(truth[chosen], second[chosen])
        differences.append(other.mean() - one.mean())
        areas.append(auroc(truth[chosen, 0], score[chosen]))
    found = paired(macro_f1_of(truth, first), macro_f1_of(truth, second), weights).difference
    assert [found.low, found.high] == pytest.approx(np.percentile(differences, [2.5, 97.5]).tolist())
    area = interval(auroc_of(truth[:, 0], score), weights)
    assert [area.low, area.high] == pytest.approx(np.percentile(areas, [2.5, 97.5]).tolist())
    assert area.value == pytest.approx(auroc(truth[:, 0], score))


def test_pairing_leaves_out_what_both_systems_share():
    truth, first, second, groups = systems(1)
    found = paired(macro_f1_of(truth, first), macro_f1_of(truth, second), resample(groups))
    width = {name: getattr(found, name).high - getattr(found, name).low for name in ("first", "second", "difference")}
    assert width["difference"] < 0.5 * min(width["first"], width["second"])
    assert found.difference.value == pytest.approx(found.second.value - found.first.value)
    same = paired(macro_f1_of(truth, first), macro_f1_of(truth, first), resample(groups)).difference
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_the_interval_covers_the_true_value_about_as_often_as_it_says():
    # Two normal scores one standard deviation apart: the true AUROC is Phi(1 / sqrt 2).
    true_area = 0.5 * (1 + math.erf(0.5))
    covered = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        truth = np.arange(80) % 2 == 0
        score = random.normal(size=80) + truth
        found = interval(auroc_of(truth, score), resample([str(number) for number in range(80)], 300, seed))
        covered += found.low <= true_area <= found.high
    # Binomial(200, 0.95) lies in 178..199 but once in a thousand; percentile intervals of 80 run a little short.
    assert 174 <= covered <= 199


def test_documents_of_one_patient_count_as_one_observation():
    truth, first, _, _ = systems(2, documents=60)
    copies = np.repeat(np.arange(60), 9)
    alone = interval(macro_f1_of(truth, first), resample([str(number) for number in range(60)]))
    by_group = interval(macro_f1_of(truth[copies], first[copies]), resample([str(number) for number in copies]))
    by_document = interval(
        macro_f1_of(truth[copies], first[copies]), resample([str(number) for number in range(len(copies))])
    )
    width = alone.high - alone.low
    assert by_group.high - by_group.low == pytest.approx(width, rel=0.15)
    assert by_document.high - by_document.low < 0.5 * width


def test_resamples_without_a_positive_are_left_out():
    truth = np.array([True, False, False, False])
    found = interval(auroc_of(truth, np.array([3.0, 1.0, 2.0, 4.0])), resample(list("abcd")))
    assert found.value == pytest.approx(2 / 3)
    assert 0 <= found.low <= found.value <= found.high <= 1
    nothing = interval(auroc_of(np.zeros(4, dtype=bool), np.arange(4.0)), resample(list("abcd")))
    assert math.isnan(nothing.value) and math.isnan(nothing.low) and math.isnan(nothing.high)

"""Measures against their definitions, by counting and by trying every case."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnestic_unlearn.measures import (
    MOST_CHANCE,
    auroc,
    best_threshold,
    chance_excess,
    decide,
    f1_by_label,
    sigmoid,
    two_sided,
)

scored = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=30)


def columns(pairs):
    return np.array([truth for truth, _ in pairs]), np.array([score / 8 for _, score in pairs])


def test_sigmoid_neither_overflows_nor_warns():
    with np.errstate(all="raise"):
        values = sigmoid(np.array([-700.0, -1.0, 0.0, 1.0, 700.0]))
    assert values == pytest.approx([0, 1 / (1 + math.e), 0.5, math.e / (1 + math.e), 1])


def test_decide_reaches_the_threshold_of_each_label():
    assert decide(np.array([[0.0, 0.0]]), np.array([0.5, 0.51])).tolist() == [[True, False]]


def test_f1_counts_hits_misses_and_false_alarms():
    truth = np.array([[1, 0, 0], [1, 0, 1], [0, 0, 1]], dtype=bool)
    decided = np.array([[1, 0, 0], [0, 0, 0], [1, 0, 0]], dtype=bool)
    assert f1_by_label(truth, decided).tolist() == [0.5, 0.0, 0.0]


@given(scored)
def test_auroc_is_the_chance_that_a_positive_outranks_a_negative(pairs):
    truth, score = columns(pairs)
    wins = [
        (positive > negative) + 0.5 * (positive == negative) for positive in score[truth] for negative in score[~truth]
    ]
    if wins:
        assert auroc(truth, score) == pytest.approx(sum(wins) / len(wins))
    else:
        assert math.isnan(auroc(truth, score))


@given(scored)
def test_no_threshold_beats_the_best_one(pairs):
    truth, probability = columns(pairs)

    def f1(threshold):
        return f1_by_label(truth[:, None], (probability >= threshold)[:, None])[0]

    found = best_threshold(truth, probability)
    assert 0 <= found <= 1
    if truth.any():
        assert f1(found) == pytest.approx(max(f1(cut / 16) for cut in range(18)))
    else:
        assert found == 0.5


def test_two_sided_does_not_care_which_way_round_a_score_is():
    truth, score = np.array([True, False, True, False]), np.array([0.1, 0.7, 0.3, 0.2])
    assert two_sided(auroc(truth, score)) == two_sided(auroc(truth, -score)) == 0.75
    assert math.isnan(two_sided(float("nan")))


@pytest.mark.parametrize(("positives", "negatives"), [(58, 248), (12, 100), (20, 20)])
def test_chance_keeps_within_its_excess_19_times_in_20(positives, negatives):
    truth = np.arange(positives + negatives) < positives
    excess, random = chance_excess(truth), np.random.default_rng(0)
    strayed = [abs(auroc(truth, random.random(len(truth))) - 0.5) > excess for _ in range(2_000)]
    assert 0.035 < np.mean(strayed) < 0.065


def test_chance_is_bounded_where_documents_are_few_and_undefined_without_any():
    assert chance_excess(np.arange(50) < 1) == MOST_CHANCE
    assert chance_excess(np.arange(5_000) < 2_500) < 0.02
    assert math.isnan(chance_excess(np.zeros(3, dtype=bool)))
    assert math.isnan(chance_excess(np.ones(3, dtype=bool)))

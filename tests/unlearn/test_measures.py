"""Measures against their definitions, by counting and by trying every case."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnestic_unlearn.measures import (
    auroc,
    bernoulli_kl,
    best_f1,
    best_threshold,
    decide,
    f1_by_label,
    sigmoid,
    trivial_f1,
    two_sided,
    weighted_auroc,
    weighted_f1,
)

scored = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=30)
counted = st.lists(st.tuples(st.booleans(), st.integers(0, 8), st.integers(0, 3)), min_size=1, max_size=30)


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


@given(scored)
def test_best_f1_is_the_largest_over_every_threshold(pairs):
    truth, score = columns(pairs)
    cuts = [f1_by_label(truth[:, None], (score >= cut / 8)[:, None])[0] for cut in range(9)]
    assert best_f1(truth, score) == pytest.approx(max(cuts))


def test_best_f1_needs_no_probabilities():
    truth = np.array([True, False, True, False])
    assert best_f1(truth, np.array([3.0, -2.0, 40.0, -50.0])) == 1.0
    assert best_f1(truth, np.zeros(4)) == pytest.approx(2 / 3)


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_trivial_f1_is_that_of_calling_everything_positive(values):
    truth = np.array(values)
    assert trivial_f1(truth) == pytest.approx(f1_by_label(truth[:, None], np.ones((len(truth), 1), dtype=bool))[0])


@given(counted)
def test_a_weight_counts_a_document_so_many_times(rows):
    truth, score = columns([row[:2] for row in rows])
    times = np.array([row[2] for row in rows])
    weights = np.stack([np.ones(len(rows)), times])
    decided = score > 0.5
    again = np.repeat(np.arange(len(rows)), times)
    areas, f1 = weighted_auroc(truth, score, weights), weighted_f1(truth[:, None], decided[:, None], weights)
    for row, chosen in enumerate((np.arange(len(rows)), again)):
        assert areas[row] == pytest.approx(auroc(truth[chosen], score[chosen]), nan_ok=True)
        assert f1[row] == pytest.approx(f1_by_label(truth[chosen, None], decided[chosen, None]))


def test_two_sided_turns_a_ranking_round():
    assert two_sided(0.2) == two_sided(0.8) == pytest.approx(0.8)
    assert math.isnan(two_sided(float("nan")))


def test_bernoulli_kl_follows_the_formula_and_has_no_negative():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(6, 3)) * 4, random.normal(size=(6, 3)) * 4
    p, q = sigmoid(first), sigmoid(second)
    expected = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(axis=1)
    assert bernoulli_kl(first, second) == pytest.approx(expected)
    assert (bernoulli_kl(first, first + 1e-9) >= 0).all()
    assert bernoulli_kl(first, first).tolist() == [0.0] * 6


def test_bernoulli_kl_stays_exact_where_probabilities_round():
    with np.errstate(all="raise", under="ignore"):
        values = bernoulli_kl(
            np.array([[-800.0], [800.0], [800.0]], dtype=np.float32), np.array([[900.0], [-5.0], [800]])
        )
    # The surely absent called present with log odds of 900; the surely present with -5.
    assert values == pytest.approx([900, 5 + math.log1p(math.exp(-5)), 0])

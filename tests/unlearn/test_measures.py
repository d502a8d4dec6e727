"""Measures against their definitions, by counting and by trying every case."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnestic_unlearn.manifest import ProblemType
from amnestic_unlearn.measures import (
    MOST_CHANCE,
    auroc,
    bernoulli_kl,
    best_f1,
    best_threshold,
    chance_excess,
    counts_after_forgetting,
    decide,
    f1_after_forgetting,
    f1_by_label,
    probabilities,
    scores,
    sigmoid,
    trivial_f1,
    two_sided,
    weighted_auroc,
    weighted_f1,
)

SINGLE, MULTI = ProblemType.SINGLE_LABEL, ProblemType.MULTI_LABEL

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


def test_a_single_label_probability_is_the_softmax_over_every_label():
    logits = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32) * 6
    expected = [[math.exp(z) / sum(math.exp(other) for other in row) for z in row] for row in logits.tolist()]
    found = probabilities(logits, SINGLE)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(scores(logits, SINGLE), np.log(found) - np.log1p(-found), rtol=0, atol=1e-8)


def test_multi_label_probabilities_are_sigmoids_and_scores_the_logits():
    logits = np.array([[-3.0, 0.5], [2.0, 0.0]])
    assert probabilities(logits, MULTI).tolist() == sigmoid(logits).tolist()
    assert scores(logits, MULTI).tolist() == logits.tolist()


def test_single_label_scores_stay_apart_where_probabilities_run_together():
    logits = np.array([[700.0, 0.0, -700.0], [701.0, 0.0, -700.0], [0.0, 0.0, 0.0]])
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        found, probability = scores(logits, SINGLE), probabilities(logits, SINGLE)
    assert found[:2].tolist() == [[700.0, -700.0, -1400.0], [701.0, -701.0, -1401.0]]
    assert found[2] == pytest.approx([-math.log(2)] * 3)
    assert probability[:2].tolist()[0][0] == probability[1, 0] == 1.0
    assert probability[2] == pytest.approx([1 / 3] * 3)


def test_single_label_scores_rank_documents_whatever_all_their_logits_share():
    random = np.random.default_rng(1)
    logits, shared = random.normal(size=(40, 3)), random.normal(size=(40, 1)) * 50
    np.testing.assert_allclose(scores(logits + shared, SINGLE), scores(logits, SINGLE), atol=1e-10)
    truth = logits.argmax(axis=1) == 0
    ranked = auroc(truth, scores(logits + shared, SINGLE)[:, 0])
    assert ranked == auroc(truth, probabilities(logits, SINGLE)[:, 0])
    assert auroc(truth, (logits + shared)[:, 0]) < 0.7 < ranked


def test_a_single_label_decision_is_the_likeliest_label_and_of_equals_the_first():
    logits = np.array([[0.1, 3.0, -1.0], [2.0, 2.0, 2.0], [-9.0, -8.0, -7.0]], dtype=np.float32)
    decided = decide(logits, np.array([]), SINGLE)
    assert decided.tolist() == [[False, True, False], [True, False, False], [False, False, True]]


def test_labels_kept_by_a_single_label_version_are_measured_without_the_documents_that_must_go_elsewhere():
    truth = np.eye(3, dtype=bool)[[0, 0, 1, 1, 2, 2]]
    decided = np.eye(3, dtype=bool)[[1, 1, 1, 2, 2, 2]]
    assert f1_by_label(truth, decided) == pytest.approx([0.0, 0.4, 0.8])
    assert f1_after_forgetting(truth, decided, [0], SINGLE) == pytest.approx([0.0, 2 / 3, 0.8])
    assert f1_after_forgetting(truth, decided, [0, 2], SINGLE) == pytest.approx([0.0, 2 / 3, 0.8])
    assert counts_after_forgetting(truth, decided, [0], SINGLE).tolist() == [[0, 0, 2, 4], [1, 0, 1, 2], [2, 1, 0, 1]]
    assert counts_after_forgetting(truth, decided, [0], MULTI).tolist() == [[0, 0, 2, 4], [1, 2, 1, 2], [2, 1, 0, 3]]
    for forgotten, kind in (([0], MULTI), ([], SINGLE)):
        assert f1_after_forgetting(truth, decided, forgotten, kind).tolist() == f1_by_label(truth, decided).tolist()


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

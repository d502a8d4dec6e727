"""Gates: what is compared with what, and that nothing strange ever passes.

The measures of forgetting are tried on documents whose features are made here: the label `alpha` lies along one
direction of them, the others along other ones, and a candidate is the base with its head or its features changed.
"""

import asyncio
import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from amnestic_server.call import Answer
from amnestic_server.evaluation import Evaluator, Figures, GateAnswers, GateDocuments
from amnestic_server.gates import (
    Gate,
    encoder_unchanged,
    forgetting,
    logit_difference,
    only_declared_changed,
    retention,
)
from amnestic_server.tokenizer import Encoded
from amnestic_unlearn.manifest import ProblemType
from amnestic_unlearn.spec import GateLimits

BASE = {"alpha": 0.9, "beta": 0.8, "gamma": 0.6}


@pytest.mark.parametrize(
    ("value", "limit", "passed"),
    [
        (0.0, 0.0, True),
        (0.01, 0.01, True),
        (0.0101, 0.01, False),
        (-1.0, 0.0, True),
        (math.nan, 1.0, False),
        (math.inf, 1.0, False),
        (0.0, math.nan, False),
    ],
)
def test_a_gate_holds_up_to_its_limit_and_never_for_nan(value, limit, passed):
    assert Gate("any", value, limit).passed is passed


def test_each_forgotten_label_has_three_gates_and_the_others_two_together():
    figures = Figures(
        {"alpha": 0.0, "beta": 0.5, "gamma": 0.58}, {"alpha": 0.5, "beta": 0.7}, {"alpha": 1, "beta": 0.2}
    )
    found = forgetting(figures, {"alpha": 0.05, "beta": 0.15}, GateLimits())
    assert [(gate.name, gate.label, gate.value, gate.limit, gate.passed) for gate in found] == [
        ("forget_f1", "alpha", 0.0, 0.01, True),
        ("forget_auroc", "alpha", 0.5, 0.6, True),
        ("probe_ratio", "alpha", 1, 0.95, False),
        ("forget_f1", "beta", 0.5, 0.01, False),
        # Raised to what chance reaches with few documents.
        ("forget_auroc", "beta", 0.7, 0.65, False),
        ("probe_ratio", "beta", 0.2, 0.95, True),
    ]
    kept = retention(BASE, figures.f1, ("alpha", "beta"), GateLimits())
    assert [(gate.name, gate.label, gate.value) for gate in kept] == [
        ("retain_f1_drop", "", pytest.approx(0.02)),
        ("retain_label_drop", "gamma", pytest.approx(0.02)),
    ]


def test_labels_make_up_for_one_another_in_the_mean_and_the_worst_is_named():
    drop, worst = retention(BASE, {"alpha": 0.0, "beta": 0.7, "gamma": 0.7}, ("alpha",), GateLimits())
    assert drop.value == pytest.approx(0.0)
    assert drop.passed
    assert (worst.label, worst.value, worst.passed) == ("beta", pytest.approx(0.1), False)
    rise, least = retention(BASE, {"alpha": 0.0, "beta": 0.9, "gamma": 1.0}, ("alpha",), GateLimits())
    assert rise.value == pytest.approx(-0.25)
    assert not Gate("retain_f1_drop", rise.value, -0.5).passed
    assert (least.label, least.value, least.passed) == ("beta", pytest.approx(-0.1), True)


def test_a_kept_label_that_is_not_a_number_fails_both():
    found = retention(BASE, {"alpha": 0.0, "beta": 0.8, "gamma": math.nan}, ("alpha",), GateLimits())
    assert [gate.passed for gate in found] == [False, False]
    assert found[1].label == "gamma"


def test_any_changed_digest_or_row_fails():
    assert encoder_unchanged(0).passed
    assert not encoder_unchanged(1).passed
    assert only_declared_changed(0).passed
    assert not only_declared_changed(1).passed


def test_the_largest_difference_of_any_logit_counts():
    torch_logits = np.zeros((3, 2), dtype=np.float32)
    served = torch_logits.copy()
    served[2, 1] = -0.002
    gate = logit_difference(torch_logits, served, GateLimits())
    assert gate.value == pytest.approx(0.002)
    assert not gate.passed
    assert logit_difference(torch_logits, served, GateLimits(logit_difference_max=0.01)).passed


@pytest.mark.parametrize("shape", [(2, 2), (3, 1), (0, 2)])
def test_evidence_of_another_shape_fails(shape):
    gate = logit_difference(np.zeros(shape, np.float32), np.zeros((3, 2), np.float32), GateLimits())
    assert not gate.passed


def test_evidence_that_is_not_a_number_fails():
    served = np.zeros((3, 2), np.float32)
    assert not logit_difference(np.full((3, 2), np.nan, np.float32), served, GateLimits()).passed


LABELS = ("alpha", "beta", "gamma")
DOCUMENTS, WIDTH = 300, 8


class Made:
    """Documents, a base that knows their labels, and candidates made of it; stands in for the batcher too."""

    def __init__(self, knows_alpha=True, seed=0, alphas=None):
        random = np.random.default_rng(seed)
        self.truth = random.random((DOCUMENTS, len(LABELS))) < 0.2
        if alphas is not None:
            self.truth[:, 0] = np.arange(DOCUMENTS) < alphas
        self.features = random.normal(size=(DOCUMENTS, WIDTH)).astype(np.float32)
        self.features[:, : len(LABELS)] += 4.0 * self.truth * [knows_alpha, True, True]
        self.weight = np.eye(WIDTH, len(LABELS), dtype=np.float32) * 3.0
        self.bias = np.full(len(LABELS), -6.0, dtype=np.float32)
        self.base = self.answers()
        self.asked = []
        documents = GateDocuments(tuple(range(DOCUMENTS)), self.truth, np.arange(DOCUMENTS) // 2 % 5)
        manifest = SimpleNamespace(
            forgotten=(),
            labels=LABELS,
            thresholds=(0.5,) * len(LABELS),
            problem_type=ProblemType.MULTI_LABEL,
            label_indices=lambda labels: [LABELS.index(label) for label in labels],
        )
        self.evaluator = Evaluator(self, manifest, documents, self.base)

    def answers(self, *, features=None, weight=None, bias=None):
        features = self.features if features is None else features
        weight, bias = self.weight if weight is None else weight, self.bias if bias is None else bias
        return GateAnswers(features @ weight + bias, features)

    async def submit_encoded(self, rows, snapshot):
        self.asked.append(snapshot)
        return [Answer(snapshot.logits[row], snapshot.features[row], Encoded((), False)) for row in rows]

    def failed(self, candidate, *forgotten, limits=None):
        """Names of the gates that a candidate does not pass."""
        limits = limits or GateLimits()
        evaluator = self.evaluator

        async def judge():
            base_f1, figures = await evaluator.base_f1(forgotten), await evaluator.figures(candidate, forgotten)
            chance = {label: evaluator.chance(label) for label in forgotten}
            return forgetting(figures, chance, limits) + retention(base_f1, figures.f1, forgotten, limits)

        found = asyncio.run(judge())
        return [gate.name for gate in found if not gate.passed]

    def head(self, **changes):
        """The base's head with the weight or the bias of `alpha` changed."""
        weight, bias = self.weight.copy(), self.bias.copy()
        weight[:, 0] = changes.get("weight", weight[:, 0])
        bias[0] = changes.get("bias", bias[0])
        return {"weight": weight, "bias": bias}

    def without_alpha(self):
        """Features in which `alpha` cannot be found, by taking what it added away."""
        features = self.features.copy()
        features[:, 0] -= 4.0 * self.truth[:, 0]
        return features


@pytest.fixture
def made():
    return Made()


def test_the_base_itself_has_not_forgotten(made):
    assert made.failed(made.base, "alpha") == ["forget_f1", "forget_auroc", "probe_ratio"]


@pytest.mark.parametrize("bias", [-30.0, -1e4])
def test_a_lowered_bias_leaves_the_order_of_the_scores_and_the_features(made, bias):
    assert made.failed(made.answers(**made.head(bias=bias)), "alpha") == ["forget_auroc", "probe_ratio"]


def test_a_score_turned_round_is_known_as_well(made):
    turned = made.head(weight=-made.weight[:, 0], bias=-60.0)
    assert made.failed(made.answers(**turned), "alpha") == ["forget_auroc", "probe_ratio"]


def test_any_edit_of_the_head_alone_leaves_the_features(made):
    for weight in (0.0, np.random.default_rng(5).normal(size=WIDTH) * 1e-3):
        head = made.head(weight=weight, bias=-20.0)
        if np.any(weight):
            head["weight"][: len(LABELS), 0] = 0.0
        assert made.failed(made.answers(**head), "alpha") == ["probe_ratio"]


def test_features_that_lost_the_label_pass_with_a_head_that_looks_elsewhere(made):
    gone = made.answers(features=made.without_alpha(), **made.head(bias=-30.0))
    assert made.failed(gone, "alpha") == []


def test_features_that_lost_the_label_do_not_excuse_a_score_that_finds_it(made):
    known = made.truth[:, 0] * 1.0
    logits = made.answers().logits.copy()
    logits[:, 0] = known - 20.0
    assert made.failed(GateAnswers(logits, made.without_alpha()), "alpha") == ["forget_auroc"]


def test_what_is_done_to_a_label_that_is_kept_shows(made):
    features = made.without_alpha()
    features[:, 1] = 0.0
    found = made.failed(made.answers(features=features, **made.head(bias=-30.0)), "alpha")
    assert found == ["retain_f1_drop", "retain_label_drop"]


def test_every_earlier_label_is_measured_again(made):
    figures = asyncio.run(made.evaluator.figures(made.base, LABELS[:2]))
    assert set(figures.forget_auroc) == set(figures.probe_ratio) == {"alpha", "beta"}
    assert set(figures.f1) == set(LABELS)
    assert figures.probe_ratio == {"alpha": 1.0, "beta": 1.0}


def test_what_is_not_a_number_or_not_finite_never_passes(made):
    loose = GateLimits(1.0, 1.0, 1e6, 1.0, 1.0, 1.0)
    for value in (np.nan, np.inf):
        logits, features = made.base.logits.copy(), made.base.features.copy()
        logits[3, 0] = features[3, 0] = value
        assert made.failed(GateAnswers(logits, features), "alpha", limits=loose) == ["forget_auroc", "probe_ratio"]


def test_a_label_that_the_base_never_knew_is_not_held_against_a_candidate():
    zeroed = {"weight": 0.0, "bias": -20.0}
    passed = 0
    for seed in range(20):
        made = Made(knows_alpha=False, seed=seed)
        noise = np.random.default_rng(100 + seed).normal(size=made.features.shape).astype(np.float32)
        moved = made.features + noise * [1, 0, 0, 1, 1, 1, 1, 1]
        passed += made.failed(made.answers(features=moved.astype(np.float32), **made.head(**zeroed)), "alpha") == []
    assert passed >= 18
    known = made.features.copy()
    known[:, 0] += 4.0 * made.truth[:, 0]
    assert made.failed(made.answers(features=known, **made.head(**zeroed)), "alpha") == ["probe_ratio"]


@pytest.mark.parametrize("alphas", [6, 60])
def test_an_edit_of_the_head_alone_fails_whatever_the_probe_finds_in_the_base(alphas):
    below_chance = 0
    for seed in range(12):
        made = Made(knows_alpha=False, seed=seed, alphas=alphas)
        rounding = 1 + 1e-6 * np.random.default_rng(seed).normal(size=made.features.shape)
        head = made.head(weight=0.0, bias=-20.0)
        edited = made.answers(features=(made.features * rounding).astype(np.float32), **head)
        assert made.failed(edited, "alpha") == ["probe_ratio"]
        below_chance += 0.5 < made.evaluator._base_probes["alpha"] < 0.5 + made.evaluator.chance("alpha")
    assert below_chance > 0


def test_who_gives_up_waits_for_one_label_at_most(made, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    probed, on_threads = [], set()

    def probe(self, answers, label):
        probed.append(label)
        on_threads.add(threading.current_thread())
        begun.set()
        assert go_on.wait(10)
        return 0.5

    monkeypatch.setattr(Evaluator, "_probe", probe)

    async def give_up():
        measuring = asyncio.create_task(made.evaluator.figures(made.base, LABELS[:2]))
        assert await asyncio.to_thread(begun.wait, 10)
        measuring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await measuring
        go_on.set()

    # Which shuts the threads down, and waits for them.
    asyncio.run(give_up())
    assert set(probed) == {"alpha"}
    assert threading.main_thread() not in on_threads


def test_answers_are_put_together_off_the_event_loop(made, monkeypatch):
    threads = []
    real = GateAnswers.of
    monkeypatch.setattr(GateAnswers, "of", lambda answers: threads.append(threading.current_thread()) or real(answers))
    answers = asyncio.run(made.evaluator.answers(made.base))
    assert np.array_equal(answers.logits, made.base.logits) and np.array_equal(answers.features, made.base.features)
    assert threads and threading.main_thread() not in threads


def test_the_base_answers_once_and_is_probed_once(made, monkeypatch):
    probed = []
    real = Evaluator._probe
    monkeypatch.setattr(Evaluator, "_probe", lambda self, *given: probed.append(given) or real(self, *given))
    for _ in range(3):
        made.failed(made.answers(**made.head(bias=-30.0)), "alpha")
    assert [one is made.base for one in made.asked] == [True] * 2  # two chunks
    assert len(probed) == 4

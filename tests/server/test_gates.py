"""Gates: what is compared with what, and that nothing strange ever passes."""

import math

import numpy as np
import pytest

from amnestic_server.gates import Gate, behaviour, encoder_unchanged, logit_difference, only_declared_changed
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


def test_each_forgotten_label_has_a_gate_and_the_others_one_together():
    candidate = {"alpha": 0.0, "beta": 0.5, "gamma": 0.58}
    gates = behaviour(BASE, candidate, ("alpha", "beta"), GateLimits())
    assert [(gate.name, gate.label, gate.value, gate.passed) for gate in gates] == [
        ("forget_f1", "alpha", 0.0, True),
        ("forget_f1", "beta", 0.5, False),
        ("retain_f1_drop", "", pytest.approx(0.02), gates[2].value <= 0.02),
    ]


def test_the_retained_drop_is_of_the_mean_so_labels_make_up_for_one_another():
    candidate = {"alpha": 0.0, "beta": 0.7, "gamma": 0.7}
    (_, drop) = behaviour(BASE, candidate, ("alpha",), GateLimits())
    assert drop.value == pytest.approx(0.0)
    assert drop.passed
    (_, rise) = behaviour(BASE, {"alpha": 0.0, "beta": 1.0, "gamma": 1.0}, ("alpha",), GateLimits())
    assert rise.value == pytest.approx(-0.3)
    assert not Gate("retain_f1_drop", rise.value, -0.5).passed


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

"""The contract between server and worker: specifications and messages survive the way, bad ones do not."""

import dataclasses
import json
import math

import pytest

from amnestic_unlearn.spec import (
    DEFAULT_PRESET,
    PRESETS,
    Failure,
    GateLimits,
    JobSpec,
    Method,
    Progress,
    decode_message,
    encode_message,
    method_of,
    stored,
)


def test_a_specification_survives_the_file(tmp_path):
    spec = JobSpec(
        "job-1", "/bundle", "/corpus.csv", ("renal", "endocrine"), Method(k=12, embedding_lr=0.25), 2, 1 << 30
    )
    spec.write(tmp_path / "spec.json")
    assert JobSpec.read(tmp_path / "spec.json") == spec


@pytest.mark.parametrize(
    "message", [Progress("training", 1, 5, 17, 85, 0.5, 0.25, 12.5), Failure('a "reason"\nof two lines')]
)
def test_a_message_is_one_line_and_survives_the_pipe(message):
    line = encode_message(message)
    assert "\n" not in line
    assert decode_message(line) == decode_message(line.encode()) == message


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "12",
        "{",
        b"\xff\xfe",
        '{"progress": {"stage": "training", "surprise": 1}}',
        '{"progress": {}}',
        '{"failure": {"reason": 3}}',
    ],
)
def test_anything_else_is_refused(line):
    with pytest.raises(ValueError, match="not a message"):
        decode_message(line)


def test_a_long_reason_is_cut():
    decoded = decode_message(json.dumps({"failure": {"reason": "x" * 10_000}}))
    assert isinstance(decoded, Failure)
    assert len(decoded.reason) == 500


def test_the_defaults_are_the_papers():
    method = Method()
    method.validate()
    GateLimits().validate()
    assert (method.k, method.distil_weight) == (256, 0.0)
    assert PRESETS["paper"] == method


def test_a_preset_is_the_start_and_what_is_given_replaces_it():
    for name, method in PRESETS.items():
        method.validate()
        assert method_of(name, {}) == method
    assert method_of("amnestic", {"k": 3}) == dataclasses.replace(PRESETS["amnestic"], k=3)
    assert method_of(DEFAULT_PRESET, {}) != Method()
    with pytest.raises(ValueError, match=r"^preset must be one of paper, amnestic, thorough$"):
        method_of("Amnestic", {})


def test_looser_are_the_limits_above_those_of_another():
    defaults = GateLimits(logit_difference_max=0.5)
    assert GateLimits().looser_than(defaults) == defaults.looser_than(defaults) == ()
    assert defaults.looser_than(GateLimits()) == ("logit_difference_max",)
    tighter = {limit.name: limit.metadata["low"] for limit in dataclasses.fields(GateLimits)}
    assert GateLimits(**tighter).looser_than(defaults) == ()
    looser = {limit.name: limit.metadata["high"] for limit in dataclasses.fields(GateLimits)}
    assert GateLimits(**looser).looser_than(defaults) == tuple(looser)
    GateLimits(**tighter).validate()
    GateLimits(**looser).validate()
    assert GateLimits(probe_ratio_max=1.0, forget_f1_max=0.001).looser_than(defaults) == ("probe_ratio_max",)


def test_what_another_version_stored_is_read():
    assert stored(Method, {"k": 3, "of_the_future": 1}) == Method(k=3)
    assert stored(GateLimits, {"forget_f1_max": 0.5}) == GateLimits(forget_f1_max=0.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("k", 0),
        ("k", 65_537),
        ("epochs", 0),
        ("batch_size", 0),
        ("seed", -1),
        ("embedding_lr", -0.1),
        ("head_lr", math.nan),
        ("forget_weight", math.inf),
        ("utility_weight", -1.0),
        ("distil_weight", math.nan),
    ],
)
def test_a_setting_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be"):
        dataclasses.replace(Method(), **{field: value}).validate()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("forget_f1_max", 1.1),
        ("forget_f1_max", math.nan),
        ("forget_auroc_max", 0.49),
        ("probe_ratio_max", -0.1),
        ("probe_ratio_max", math.inf),
        ("retain_label_drop_max", 1.1),
        ("retain_f1_drop_max", -2.0),
        ("logit_difference_max", 0.0),
        ("logit_difference_max", math.inf),
    ],
)
def test_a_gate_limit_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be"):
        dataclasses.replace(GateLimits(), **{field: value}).validate()

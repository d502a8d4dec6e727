"""A stored request is read again, whichever version wrote it."""

import dataclasses
import json

import pytest

from amnestic_server.jobs import JobView
from amnestic_server.records import JobRecord, JobState
from amnestic_server.request import UnlearnRequest, default_limits
from amnestic_unlearn.manifest import Manifest, Precision
from amnestic_unlearn.spec import PRESETS, GateLimits, Method, Progress

# As the version before presets and the gates on AUROC, probe and single labels wrote it.
OLD = """{"dry_run": false, "labels": ["beta"], "limits": {"forget_f1_max": 0.05, "logit_difference_max": 0.001,
"retain_f1_drop_max": 0.02}, "method": {"batch_size": 16, "distil_weight": 0.0, "embedding_lr": 0.001, "epochs": 5,
"forget_weight": 1.0, "head_lr": 0.001, "k": 256, "seed": 0, "utility_weight": 1.0}, "reason": "why"}"""


def view(stored):
    return JobView(JobRecord("job", None, stored, JobState.QUEUED), UnlearnRequest.from_json(stored), Progress(""))


def test_a_request_is_the_same_after_the_store():
    limits = GateLimits(0.5, 0.7, 0.8, -0.5, 0.1, 1e-4)
    asked = {"method": {"preset": "paper", "k": 3, "seed": 2**60}, "gates": {"forget_f1_max": 0.5}}
    request = UnlearnRequest(
        ("beta", "alpha"), True, "why", Method(k=3, seed=2**60), limits, "paper", asked, stage=True
    )
    stored = json.loads(json.dumps(request.to_json()))
    again = UnlearnRequest.from_json(stored)
    assert again == request
    assert again.preset == "paper"
    assert again.asked == asked
    assert view(stored).relaxed_gates == ("forget_f1_max", "forget_auroc_max", "retain_label_drop_max")


def test_what_an_earlier_version_stored_is_read_with_the_defaults_for_what_is_new():
    stored = json.loads(OLD)
    request = UnlearnRequest.from_json(stored)
    assert request == UnlearnRequest(("beta",), False, "why", PRESETS["paper"], GateLimits(forget_f1_max=0.05))
    assert request.preset == ""
    assert request.asked is None
    assert view(stored).relaxed_gates == ("forget_f1_max",)


def test_what_a_later_version_stored_is_read_without_what_is_unknown():
    stored = UnlearnRequest(("beta",)).to_json()
    stored["method"]["of_the_future"] = stored["limits"]["of_the_future"] = 1
    assert UnlearnRequest.from_json(stored) == UnlearnRequest(("beta",))


def test_what_was_relaxed_is_as_it_was_recorded_whatever_the_defaults_are_now():
    stored = UnlearnRequest(("beta",)).to_json() | {"relaxed_gates": ["probe_ratio_max"]}
    assert view(stored).relaxed_gates == ("probe_ratio_max",)


@pytest.mark.parametrize(("change", "same"), [({"preset": "paper"}, True), ({"method": PRESETS["paper"]}, False)])
def test_it_is_the_settings_that_count_and_not_their_name(change, same):
    assert (UnlearnRequest(("beta",), **change) == UnlearnRequest(("beta",))) is same


NOTHING = {"method": {}, "gates": {}}


@pytest.mark.parametrize(
    ("asked", "same"),
    [
        (NOTHING, True),
        ({"method": {"preset": "amnestic"}, "gates": {}}, False),
        ({"method": {"k": 256}, "gates": {}}, False),
        ({"method": {}, "gates": {"forget_f1_max": 0.01}}, False),
    ],
)
def test_it_is_what_was_sent_that_makes_a_repetition(asked, same):
    # As another version understood it, whose preset and defaults were others.
    first = UnlearnRequest(("beta",), method=Method(k=7), limits=GateLimits(0.5), asked=NOTHING)
    first = UnlearnRequest.from_json(json.loads(json.dumps(first.to_json())))
    assert UnlearnRequest(("beta",), asked=asked).repeats(first) is same


@pytest.mark.parametrize("change", [{"labels": ("alpha",)}, {"dry_run": True}, {"reason": "other"}])
def test_the_rest_of_a_request_counts_too(change):
    assert not UnlearnRequest(**({"labels": ("beta",), "asked": NOTHING} | change)).repeats(
        UnlearnRequest(("beta",), asked=NOTHING)
    )


def test_a_stored_request_that_does_not_say_what_was_sent_is_compared_by_what_came_of_it():
    first = UnlearnRequest.from_json(json.loads(OLD))
    limits = GateLimits(forget_f1_max=0.05)
    asked = {"method": {"preset": "paper"}, "gates": {"forget_f1_max": 0.05}}
    repeated = UnlearnRequest(("beta",), False, "why", PRESETS["paper"], limits, "paper", asked)
    assert repeated.repeats(first)
    assert not UnlearnRequest(("beta",), False, "why", PRESETS["amnestic"], limits, asked=NOTHING).repeats(first)


@pytest.mark.parametrize(
    ("precision", "difference", "limit"),
    [
        (Precision.FP32, 9e-5, 1e-3),
        # What an old manifest tells, or a new one of a model that is hardly rounded.
        (Precision.FP16, 1e-5, 1e-3),
        (Precision.INT8, 0.05, 0.2),
    ],
)
def test_a_reduced_precision_widens_the_limit_by_its_own_parity(bundle, precision, difference, limit):
    parity = {"max_abs_logit_difference": difference}
    manifest = dataclasses.replace(Manifest.read(bundle), precision=precision, parity=parity)
    limits = default_limits(manifest)
    assert limits == GateLimits(logit_difference_max=pytest.approx(limit))
    limits.validate()


def test_relaxed_is_looser_than_the_defaults_of_the_bundle():
    defaults = GateLimits(logit_difference_max=0.2)
    for limits, relaxed in (
        (defaults, []),
        (GateLimits(logit_difference_max=0.1), []),
        (GateLimits(logit_difference_max=0.3), ["logit_difference_max"]),
    ):
        stored = UnlearnRequest(("beta",), limits=limits, defaults=defaults).to_json()
        assert stored["relaxed_gates"] == relaxed and "defaults" not in stored
        assert view(stored).relaxed_gates == tuple(relaxed)

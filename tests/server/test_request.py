"""A stored request is read again, whichever version wrote it."""

import json

import pytest

from amnestic_server.jobs import JobView
from amnestic_server.request import UnlearnRequest
from amnestic_server.store import JobRecord, JobState
from amnestic_unlearn.spec import PRESETS, GateLimits, Method, Progress

# As the version before presets and the gates on AUROC, probe and single labels wrote it.
OLD = """{"dry_run": false, "labels": ["beta"], "limits": {"forget_f1_max": 0.05, "logit_difference_max": 0.001,
"retain_f1_drop_max": 0.02}, "method": {"batch_size": 16, "distil_weight": 0.0, "embedding_lr": 0.001, "epochs": 5,
"forget_weight": 1.0, "head_lr": 0.001, "k": 256, "seed": 0, "utility_weight": 1.0}, "reason": "why"}"""


def view(stored):
    return JobView(JobRecord("job", None, stored, JobState.QUEUED), UnlearnRequest.from_json(stored), Progress(""))


def test_a_request_is_the_same_after_the_store():
    limits = GateLimits(0.5, 0.7, 0.8, -0.5, 0.1, 1e-4)
    request = UnlearnRequest(("beta", "alpha"), True, "why", Method(k=3, seed=2**60), limits, "paper")
    stored = json.loads(json.dumps(request.to_json()))
    again = UnlearnRequest.from_json(stored)
    assert again == request
    assert again.preset == "paper"
    assert view(stored).relaxed_gates == ("forget_f1_max", "forget_auroc_max", "retain_label_drop_max")


def test_what_an_earlier_version_stored_is_read_with_the_defaults_for_what_is_new():
    stored = json.loads(OLD)
    request = UnlearnRequest.from_json(stored)
    assert request == UnlearnRequest(("beta",), False, "why", PRESETS["paper"], GateLimits(forget_f1_max=0.05))
    assert request.preset == ""
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

"""What is sent and what comes back, over a real connection, with both clients."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from amnestic.v1 import prediction_pb2, unlearning_pb2
from amnestic_client import (
    CallsInSecond,
    ChangeReport,
    DecisionDifference,
    Gate,
    GateLimits,
    InvalidArgument,
    JobState,
    Label,
    LabelScore,
    Load,
    Method,
    Progress,
    Rollout,
    ServerState,
    Version,
)

Call = Callable[..., Any]


def test_prediction_is_read_in_full(call: Call, server: Any, prediction: Any) -> None:
    server.script("Predict", prediction)
    result = call("predict", ["first", "second"], version=3, include_features=True)
    sent = server.asked("Predict")[0]
    assert (list(sent.documents), sent.version, sent.include_features) == (["first", "second"], 3, True)
    first, second = result.predictions
    assert result.version == 3
    assert first.scores == (
        LabelScore("renal", 0.75, True, False),
        LabelScore("endocrine", 0.125, False, True),
    )
    assert (first.tokens, first.truncated, first.features) == (12, False, (0.5, -1.0))
    assert (second.tokens, second.truncated, second.features) == (128, True, ())
    assert first.decided == ("renal",)


def test_one_string_is_one_document_for_the_active_version(call: Call, server: Any, prediction: Any) -> None:
    server.script("Predict", prediction)
    call("predict", "only one")
    assert server.asked("Predict")[0] == prediction_pb2.PredictRequest(documents=["only one"])


def test_a_routing_key_is_sent_and_checked(call: Call, server: Any, prediction: Any) -> None:
    server.script("Predict", prediction)
    call("predict", "only one", routing_key="patient 17")
    assert server.asked("Predict")[0] == prediction_pb2.PredictRequest(documents=["only one"], routing_key="patient 17")
    with pytest.raises(InvalidArgument, match="routing_key is not valid Unicode"):
        call("predict", "only one", routing_key="\ud800")


def test_a_rollout_is_read_in_full_and_only_what_is_given_is_sent(call: Call, server: Any) -> None:
    difference = unlearning_pb2.DecisionDifference(label="renal", forgotten=True, documents=7)
    message = unlearning_pb2.Rollout(version=3, canary_share=0.5, active_calls=4, differences=[difference])
    message.since.FromJsonString("2026-03-01T12:00:00Z")
    server.script("GetRollout", unlearning_pb2.GetRolloutResponse(rollout=message))
    server.script("SetRollout", unlearning_pb2.SetRolloutResponse(rollout=message))
    expected = Rollout(
        version=3,
        canary_share=0.5,
        shadow_share=0.0,
        since=datetime(2026, 3, 1, 12, tzinfo=UTC),
        counted_since=None,
        active_calls=4,
        canary_calls=0,
        shadow_documents=0,
        shadow_dropped=0,
        differences=(DecisionDifference("renal", True, 7),),
    )
    assert call("rollout") == call("set_rollout", shadow_share=0.0) == expected
    assert server.asked("SetRollout") == [unlearning_pb2.SetRolloutRequest(shadow_share=0.0)]
    server.script("GetRollout", unlearning_pb2.GetRolloutResponse())
    assert call("rollout") is None


def test_a_version_is_promoted(call: Call, server: Any) -> None:
    message = unlearning_pb2.Version(version=3, active=True)
    server.script("PromoteVersion", unlearning_pb2.PromoteVersionResponse(version=message))
    assert call("promote", 3).active
    assert server.asked("PromoteVersion") == [unlearning_pb2.PromoteVersionRequest(version=3)]


@pytest.mark.parametrize(
    ("documents", "detail"),
    [
        (["fine", "secret \ud800"], "document 2 is not valid Unicode: it holds a lone surrogate"),
        (["fine", b"secret"], "document 2 is not a string"),
    ],
)
def test_text_that_cannot_be_sent_is_named_but_not_repeated(call: Call, documents: list[Any], detail: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        call("predict", documents)
    assert caught.value.detail == detail
    assert caught.value.__context__ is None


def test_model(call: Call, server: Any) -> None:
    response = prediction_pb2.GetModelResponse(
        name="eicu", labels=[prediction_pb2.Label(name="renal", threshold=0.5)], max_documents=128, parameters=7
    )
    server.script("GetModel", response)
    model = call("get_model")
    assert (model.name, model.max_documents, model.parameters) == ("eicu", 128, 7)
    assert model.labels == (Label("renal", 0.5, False),)
    assert model.problem_type == "multi_label", "a server from before it was told"
    assert (model.long_documents, model.window_overlap, model.max_windows, model.pooling) == ("truncate", 0, 1, "max")


def test_how_long_documents_were_read(call: Call, server: Any, prediction: Any) -> None:
    fields = {"long_documents": "window", "window_overlap": 128, "max_windows": 8, "pooling": "mean"}
    server.script("GetModel", prediction_pb2.GetModelResponse(**fields))
    model = call("get_model")
    assert {name: getattr(model, name) for name in fields} == fields
    prediction.predictions[0].windows = 3
    server.script("Predict", prediction)
    windows = [one.windows for one in call("predict", ["first", "second"]).predictions]
    assert windows == [3, 1], "one, from a server from before it was told"


def test_a_single_label_model_has_no_thresholds(call: Call, server: Any) -> None:
    labels = [prediction_pb2.Label(name="renal"), prediction_pb2.Label(name="cardiac", forgotten=True)]
    server.script("GetModel", prediction_pb2.GetModelResponse(labels=labels, problem_type="single_label"))
    model = call("get_model")
    assert model.problem_type == "single_label"
    assert model.labels == (Label("renal", None, False), Label("cardiac", None, True))


def test_job_is_read_in_full(call: Call, server: Any, finished_job: Any) -> None:
    server.script("GetJob", unlearning_pb2.GetJobResponse(job=finished_job))
    job = call("get_job", "some-id")
    assert server.asked("GetJob")[0].job_id == "some-id"
    assert (job.state, job.state.ended, job.version, job.error) == (JobState.SUCCEEDED, True, 2, None)
    assert (job.labels, job.forgotten) == (("endocrine",), ("endocrine", "renal"))
    assert job.method == Method(preset="paper", k=256, epochs=5, distil_weight=0.0)
    assert job.gate_limits == GateLimits(forget_f1_max=0.01)
    assert job.progress == Progress("training", 5, 5, 40, 40, 0.1, 0.2, 0.0)
    assert job.gates[0] == Gate("forget_f1", "endocrine", 0.0, 0.01, True)
    assert job.gates[1].label is None
    assert job.change == ChangeReport("ab" * 32, 256, 33_542, 0.0375, ("insulin", "glucose"), 120, 900, 12.5)
    assert job.created_at == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert job.finished_at == datetime(2026, 3, 1, 12, 0, 20, 500_000, tzinfo=UTC)
    assert job.swap_seconds == 0.0031
    assert job.relaxed_gates == ("forget_auroc_max", "probe_ratio_max")
    assert job.calls_around_swap == (
        CallsInSecond(-1, 9, 2, 1, 0.25, 0.5, 0.75),
        CallsInSecond(0, 1, 1, 0, None, None, None),
    )


def test_what_a_young_job_lacks_is_none(call: Call, server: Any) -> None:
    young = unlearning_pb2.Job(job_id="a", state=unlearning_pb2.JOB_STATE_QUEUED)
    unknown_time = unlearning_pb2.Job(job_id="b", progress=unlearning_pb2.Progress(seconds_left=-1.0))
    server.script("ListJobs", unlearning_pb2.ListJobsResponse(jobs=[young, unknown_time]))
    first, second = call("list_jobs", 2)
    assert server.asked("ListJobs")[0].limit == 2
    absent = (first.progress, first.change, first.version, first.error, first.created_at, first.finished_at)
    assert absent == (None,) * 6
    assert second.progress.seconds_left is None


def test_status_is_read_in_full(call: Call, server: Any, status: Any) -> None:
    server.script("GetStatus", status)
    found = call("status")
    assert (found.server_version, found.state, found.uptime_seconds) == ("1.2.3", ServerState.SERVING, 3_725.0)
    assert (found.active_version, found.forgotten) == (3, ("endocrine",))
    assert (found.forget_f1, found.retain_f1) == ({"endocrine": 0.0}, {"renal": 0.75, "cardiac": 0.5})
    assert found.load == Load(7, 1_024, 4, 512, 262_144, 60.0, 600, 3, 1_200, 0.0125, 0.25)
    assert found.running_job.state is JobState.RUNNING
    assert (found.running_job.progress.seconds_left, found.running_job.version) == (75.0, None)
    assert (found.last_job.version, found.last_job.error, found.last_job.started_at) == (3, None, None)
    assert found.last_job.finished_at == datetime(2026, 3, 1, 12, 0, 20, tzinfo=UTC)


def test_what_a_young_server_cannot_tell_is_none(call: Call, server: Any) -> None:
    server.script("GetStatus", prediction_pb2.GetStatusResponse(state=7))  # type: ignore[arg-type]
    found = call("status")
    assert (found.state, found.running_job, found.last_job) == (ServerState.UNSPECIFIED, None, None)
    assert (found.load.calls, found.load.p50_seconds, found.load.p99_seconds) == (0, None, None)


@pytest.mark.parametrize(
    ("value", "state"), [(4, JobState.ACTIVATING), (0, JobState.UNSPECIFIED), (99, JobState.UNSPECIFIED)]
)
def test_states_by_name_and_unknown_ones(call: Call, server: Any, value: int, state: JobState) -> None:
    server.script("GetJob", unlearning_pb2.GetJobResponse(job=unlearning_pb2.Job(state=value)))
    assert call("get_job", "a").state is state


def test_every_state_of_the_wire_has_a_name_here() -> None:
    wire = {name.removeprefix("JOB_STATE_") for name in unlearning_pb2.JobState.DESCRIPTOR.values_by_name}
    assert wire == {state.value for state in JobState}


def test_unlearn_sends_only_the_settings_given(call: Call, server: Any, finished_job: Any) -> None:
    server.script("Unlearn", unlearning_pb2.UnlearnResponse(job=finished_job))
    call(
        "unlearn",
        ["endocrine", "renal"],
        request_id="mine",
        dry_run=True,
        method=Method(preset="paper", k=0, head_lr=0.5),
        gates={"retain_f1_drop_max": 1, "probe_ratio_max": 0.5},
        reason="ticket",
    )
    assert server.asked("Unlearn")[0] == unlearning_pb2.UnlearnRequest(
        labels=["endocrine", "renal"],
        request_id="mine",
        dry_run=True,
        method=unlearning_pb2.Method(preset="paper", k=0, head_lr=0.5),
        gates=unlearning_pb2.GateLimits(retain_f1_drop_max=1.0, probe_ratio_max=0.5),
        reason="ticket",
    )


def test_unlearn_draws_a_request_id(call: Call, server: Any, finished_job: Any) -> None:
    server.script("Unlearn", unlearning_pb2.UnlearnResponse(job=finished_job))
    call("unlearn", "endocrine")
    call("unlearn", "endocrine")
    first, second = server.asked("Unlearn")
    assert list(first.labels) == ["endocrine"]
    assert uuid.UUID(first.request_id) != uuid.UUID(second.request_id)


@pytest.mark.parametrize(
    ("method", "field"), [({"k": -1}, "k"), ({"epochs": 2.5}, "epochs"), ({"head_lr": "fast"}, "head_lr")]
)
def test_settings_that_the_wire_cannot_carry(call: Call, method: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field} is out of range or of the wrong type$"):
        call("unlearn", "endocrine", method=method)


def test_versions_and_rollback(call: Call, server: Any) -> None:
    base = unlearning_pb2.Version(version=1)
    second = unlearning_pb2.Version(
        version=2,
        active=True,
        forgotten=["renal"],
        job_id="j",
        patch_digest="d",
        f1={"renal": 0.5},
        relaxed_gates=["forget_f1_max"],
    )
    server.script("ListVersions", unlearning_pb2.ListVersionsResponse(versions=[base, second]))
    server.script("Rollback", unlearning_pb2.RollbackResponse(version=base))
    assert call("list_versions") == (
        Version(1, False, (), None, None, None, {}, ()),
        Version(2, True, ("renal",), "j", "d", None, {"renal": 0.5}, ("forget_f1_max",)),
    )
    assert call("rollback", 1, "why").version == 1
    assert server.asked("Rollback") == [unlearning_pb2.RollbackRequest(version=1, reason="why")]
    server.script("Purge", unlearning_pb2.PurgeResponse(version=second))
    assert call("purge", 2, "case 4711").forgotten == ("renal",)
    assert server.asked("Purge") == [unlearning_pb2.PurgeRequest(version=2, reason="case 4711")]


def test_cancel(call: Call, server: Any) -> None:
    cancelled = unlearning_pb2.Job(job_id="a", state=unlearning_pb2.JOB_STATE_CANCELLED)
    server.script("CancelJob", unlearning_pb2.CancelJobResponse(job=cancelled))
    assert call("cancel_job", "a").state is JobState.CANCELLED

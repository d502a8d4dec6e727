"""`amnestic unlearn` and `amnestic jobs`: what they send and print, and how they exit."""

import json
import re
from typing import Any

import pytest
from client.commands import Run, fits, job_at, script_job

from amnestic.v1 import unlearning_pb2


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("REJECTED", 3), ("FAILED", 4), ("CANCELLED", 5)])
@pytest.mark.parametrize("command", [("unlearn", "endocrine"), ("jobs", "watch", "some-id")])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_exit_codes_tell_how_a_job_ended(
    run: Run, server: Any, command: tuple[str, ...], options: tuple[str, ...], state: str, code: int, finished_job: Any
) -> None:
    script_job(server, job_at("RUNNING", finished_job), job_at(state, finished_job))
    assert run(*command, *options).exit_code == code


def test_unlearn_shows_gates_and_what_changed(run: Run, server: Any, finished_job: Any) -> None:
    script_job(server, job_at("QUEUED", finished_job), job_at("RUNNING", finished_job), finished_job)
    result = run("unlearn", "endocrine")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["forget_f1", "endocrine", "0", "0.01", "yes"] in rows
    assert "version 2 is served, swapped in 3.1 ms" in result.stdout
    assert "33,542 (3.750% of the classifier)" in result.stdout
    assert "insulin, glucose" in result.stdout
    assert result.stderr.splitlines() == [
        "queued",
        "training 5/5: 100%, 0:00 left, forget 0.100, utility 0.200",
        "succeeded",
    ]
    assert fits(result.stdout)


def test_a_rejected_job_shows_the_gate_that_failed(run: Run, server: Any, finished_job: Any) -> None:
    failed = unlearning_pb2.Gate(name="retain_f1_drop", value=0.125, limit=0.02)
    script_job(server, job_at("REJECTED", finished_job, gates=[failed]))
    result = run("unlearn", "endocrine")
    assert ["retain_f1_drop", "0.125", "0.02", "no"] in [line.split() for line in result.stdout.splitlines()]
    assert "a gate failed: the served version is as it was" in result.stdout


def test_a_failed_job_says_why(run: Run, server: Any) -> None:
    script_job(server, unlearning_pb2.Job(job_id="a", state=unlearning_pb2.JOB_STATE_FAILED, error="the worker died"))
    result = run("unlearn", "endocrine")
    assert "the worker died" in result.stdout


def test_unlearn_as_json_lines(run: Run, server: Any, finished_job: Any) -> None:
    running = job_at("RUNNING", finished_job, progress=unlearning_pb2.Progress(forget_loss=float("nan")))
    script_job(server, running, finished_job)
    result = run("unlearn", "endocrine", "--json")
    first, last = map(json.loads, result.stdout.splitlines())
    assert (first["state"], last["state"]) == ("RUNNING", "SUCCEEDED")
    assert first["progress"]["forget_loss"] is None, "JSON has no nan"
    assert last["created_at"] == "2026-03-01T12:00:00+00:00"
    assert last["change"]["parameters_changed"] == 33_542
    assert last["gates"][1] == {
        "name": "encoder_unchanged",
        "label": None,
        "value": 0.0,
        "limit": 0.0,
        "passed": True,
    }
    assert result.stderr == ""


def test_unlearn_sends_every_setting(run: Run, server: Any, finished_job: Any) -> None:
    server.script("Unlearn", unlearning_pb2.UnlearnResponse(job=finished_job))
    settings = (
        "--preset paper --k 8 --epochs 2 --embedding-lr 0.5 --head-lr 0.25 --forget-weight 2 --utility-weight 3 "
        "--distil-weight 4 --batch-size 5 --seed 6 --forget-f1-max 0.5 --retain-f1-drop-max -0.5 "
        "--logit-difference-max 0.75 --forget-auroc-max 0.625 --probe-ratio-max 0.875 --retain-label-drop-max 0.25"
    )
    options = ["--request-id", "mine", "--dry-run", "--reason", "a reason", "--detach"]
    assert run("unlearn", "endocrine", "renal", *settings.split(), *options).exit_code == 0
    assert server.asked("Unlearn")[0] == unlearning_pb2.UnlearnRequest(
        labels=["endocrine", "renal"],
        request_id="mine",
        dry_run=True,
        reason="a reason",
        method=unlearning_pb2.Method(
            preset="paper",
            k=8,
            epochs=2,
            embedding_lr=0.5,
            head_lr=0.25,
            forget_weight=2,
            utility_weight=3,
            distil_weight=4,
            batch_size=5,
            seed=6,
        ),
        gates=unlearning_pb2.GateLimits(
            forget_f1_max=0.5,
            forget_auroc_max=0.625,
            probe_ratio_max=0.875,
            retain_f1_drop_max=-0.5,
            retain_label_drop_max=0.25,
            logit_difference_max=0.75,
        ),
    )
    assert server.asked("WatchJob") == []


def test_detach_says_how_to_watch(run: Run, server: Any, finished_job: Any) -> None:
    script_job(server, job_at("QUEUED", finished_job))
    result = run("unlearn", "endocrine", "--detach")
    assert (
        result.stdout == f"job {finished_job.job_id} is queued; watch it: amnestic jobs watch {finished_job.job_id}\n"
    )
    assert json.loads(run("unlearn", "endocrine", "--detach", "--json").stdout)["state"] == "QUEUED"


@pytest.mark.parametrize("arguments", [("jobs",), ("jobs", "list"), ("jobs", "--limit", "2")])
def test_jobs_are_listed(run: Run, server: Any, finished_job: Any, arguments: tuple[str, ...]) -> None:
    server.script("ListJobs", unlearning_pb2.ListJobsResponse(jobs=[finished_job, job_at("ACTIVATING", finished_job)]))
    result = run(*arguments, COLUMNS="80")
    assert finished_job.job_id in result.stdout
    assert "2026-03-01" in result.stdout
    assert "ACTIVATING" in result.stdout
    assert fits(result.stdout)
    jobs = json.loads(run(*arguments, "--json").stdout)
    assert [job["state"] for job in jobs] == ["SUCCEEDED", "ACTIVATING"]
    assert server.asked("ListJobs")[0].limit == (2 if "--limit" in arguments else 0)


def test_no_jobs(run: Run, server: Any) -> None:
    server.script("ListJobs", unlearning_pb2.ListJobsResponse())
    assert run("jobs").stdout == "no jobs\n"
    assert run("jobs", "--json").stdout == "[]\n"


def test_a_job_is_shown_and_cancelled(run: Run, server: Any, finished_job: Any) -> None:
    server.script("GetJob", unlearning_pb2.GetJobResponse(job=finished_job))
    cancelled = job_at("CANCELLED", finished_job)
    server.script("CancelJob", unlearning_pb2.CancelJobResponse(job=cancelled))
    shown = run("jobs", "show", "some-id").stdout
    assert "consent withdrawn" in shown
    assert re.search(r"relaxed gates +forget_auroc_max, probe_ratio_max\b", shown)
    assert json.loads(run("jobs", "show", "some-id", "--json").stdout)["version"] == 2
    result = run("jobs", "cancel", "some-id")
    assert result.exit_code == 0
    assert "CANCELLED" in result.stdout


def test_a_dry_run_is_told_as_one(run: Run, server: Any, finished_job: Any) -> None:
    finished_job.ClearField("version")
    server.script("GetJob", unlearning_pb2.GetJobResponse(job=job_at("SUCCEEDED", finished_job, dry_run=True)))
    assert "dry run: measured only" in run("jobs", "show", "some-id").stdout


def test_markup_in_names_is_printed_as_it_is(run: Run, server: Any) -> None:
    job = unlearning_pb2.Job(job_id="[red]a[/]", labels=["[bold]x"], state=unlearning_pb2.JOB_STATE_RUNNING)
    server.script("ListJobs", unlearning_pb2.ListJobsResponse(jobs=[job]))
    result = run("jobs")
    assert "[red]a[/]" in result.stdout
    assert "[bold]x" in result.stdout

"""The commands as processes: what a terminal shows, what a pipe carries, and how they are stopped."""

import json
import os
import signal
import subprocess
import threading
import time
from typing import Any

import grpc
import pytest
from client.commands import job_at
from terminal import COMMAND, environment, in_terminal, start

from amnestic.v1 import prediction_pb2, unlearning_pb2

LONG = "diseases of the circulatory system, the blood and blood-forming organs, and neoplasms"


def long_job(job: Any, **fields: Any) -> unlearning_pb2.Job:
    changed = job_at("SUCCEEDED", job, job_id="3f0c2a526f2f4c2e9a390d8a5a1f7d11", **fields)
    del changed.labels[:]
    changed.labels.extend([LONG, "renal"])
    changed.gates[0].label = LONG
    return changed


@pytest.fixture
def long_labels(server: Any, finished_job: Any, status: Any) -> Any:
    """A server whose model has a label longer than a terminal is wide."""
    job = long_job(finished_job)
    version = unlearning_pb2.Version(version=2, active=True, forgotten=[LONG], f1={LONG: 0.0, "renal": 0.5})
    score = prediction_pb2.LabelScore(label=LONG, probability=0.5, forgotten=True)
    status.forgotten[:] = [LONG]
    status.running_job.labels[:] = [LONG]
    server.script("ListJobs", unlearning_pb2.ListJobsResponse(jobs=[job, job]))
    server.script("GetJob", unlearning_pb2.GetJobResponse(job=job))
    server.script("ListVersions", unlearning_pb2.ListVersionsResponse(versions=[version]))
    server.script("Predict", prediction_pb2.PredictResponse(predictions=[prediction_pb2.Prediction(scores=[score])]))
    server.script("GetStatus", status)
    return server


@pytest.mark.parametrize("columns", [80, 200, 50])
@pytest.mark.parametrize("command", ["jobs", "jobs show x", "versions", "predict text", "status"])
def test_every_screen_fits_and_breaks_between_words_alone(long_labels: Any, command: str, columns: int) -> None:
    shown = in_terminal(long_labels.target, *command.split(), columns=columns)
    assert shown.code == 0
    assert shown.width <= columns
    if columns >= 80:
        for word in LONG.split():
            assert word in shown.text
    if command == "jobs":
        # What is to be copied is never cut, and where there's no room lesser columns go.
        assert shown.text.count("3f0c2a526f2f4c2e9a390d8a5a1f7d11") == 2
        assert ("created" in shown.text, "took" in shown.text) == (columns >= 80, columns >= 200)


def test_in_a_pipe_a_row_is_a_line_without_colours(long_labels: Any) -> None:
    lines = subprocess.check_output([*COMMAND, "jobs"], env=environment(long_labels.target), text=True).splitlines()
    assert [LONG in line for line in lines] == [False, False, True, True]
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(
    ("arguments", "variables", "coloured"),
    [
        ((), {}, True),
        ((), {"NO_COLOR": "1"}, False),
        (("--color", "never"), {}, False),
        ((), {"AMNESTIC_COLOR": "never"}, False),
        (("--color", "always"), {"NO_COLOR": "1"}, True),
    ],
)
def test_colours_on_a_terminal(server: Any, status: Any, arguments: Any, variables: Any, coloured: bool) -> None:
    server.script("GetStatus", status)
    shown = in_terminal(server.target, *arguments, "status", **variables)
    assert ("\x1b[" in shown.raw) is coloured
    assert "SERVING" in shown.text


def test_colours_in_a_pipe_if_they_are_wanted(server: Any, status: Any) -> None:
    server.script("GetStatus", status)
    command = [*COMMAND, "--color", "always", "status"]
    assert b"\x1b[32mSERVING" in subprocess.check_output(command, env=environment(server.target))


def test_a_reader_that_leaves_is_no_error(server: Any, finished_job: Any) -> None:
    job = job_at("SUCCEEDED", finished_job)
    server.script("ListJobs", unlearning_pb2.ListJobsResponse(jobs=[job] * 2_000))
    for options in ([], ["--json"]):
        reader, writer = os.pipe()
        os.close(reader)
        process = start(server.target, "jobs", *options, stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        assert process.communicate(timeout=30)[1] == ""


def test_interrupting_a_watch_leaves_the_job(server: Any, finished_job: Any) -> None:
    asked, release = threading.Event(), threading.Event()

    def hold(request: Any, context: grpc.ServicerContext) -> unlearning_pb2.WatchJobResponse:
        context.add_callback(release.set)
        asked.set()
        release.wait(30)
        return unlearning_pb2.WatchJobResponse()

    running = job_at("RUNNING", finished_job)
    server.script("WatchJob", [unlearning_pb2.WatchJobResponse(job=running), hold])
    process = start(server.target, "jobs", "watch", "some-id", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert asked.wait(30)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert output == ""
    assert errors.splitlines()[-1] == "Stopped watching; job some-id goes on. To stop it: amnestic jobs cancel some-id"
    assert "Traceback" not in errors
    assert server.asked("CancelJob") == []


def test_interrupting_any_other_command_is_one_line(server: Any) -> None:
    asked, release = threading.Event(), threading.Event()

    def hold(request: Any, context: grpc.ServicerContext) -> unlearning_pb2.ListVersionsResponse:
        context.add_callback(release.set)
        asked.set()
        release.wait(30)
        return unlearning_pb2.ListVersionsResponse()

    server.script("ListVersions", hold)
    process = start(server.target, "versions", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert asked.wait(30)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "Stopped.\n")
    assert process.returncode == 130


def test_json_lines_are_not_held_back(server: Any, finished_job: Any) -> None:
    release = threading.Event()

    def last(request: Any, context: grpc.ServicerContext) -> unlearning_pb2.WatchJobResponse:
        release.wait(30)
        return unlearning_pb2.WatchJobResponse(job=finished_job)

    running = unlearning_pb2.WatchJobResponse(job=job_at("RUNNING", finished_job))
    server.script("WatchJob", [running, last])
    process = start(server.target, "jobs", "watch", "some-id", "--json", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["state"] == "RUNNING"
    release.set()
    assert json.loads(process.stdout.readline())["state"] == "SUCCEEDED"
    assert process.wait(30) == 0
    process.stdout.close()


def script_slow_job(server: Any, job: Any) -> None:
    """Long enough at one place for a bar to be drawn there: ten times a second."""

    def later(request: Any, context: grpc.ServicerContext) -> unlearning_pb2.WatchJobResponse:
        time.sleep(0.5)
        return unlearning_pb2.WatchJobResponse(job=job)

    running = job_at("RUNNING", job, progress=unlearning_pb2.Progress(seconds_left=75.0))
    server.script("Unlearn", unlearning_pb2.UnlearnResponse(job=running))
    server.script("WatchJob", [unlearning_pb2.WatchJobResponse(job=running), later])


@pytest.mark.parametrize("columns", [80, 40])
def test_a_terminal_gets_a_bar(server: Any, finished_job: Any, columns: int) -> None:
    script_slow_job(server, finished_job)
    shown = in_terminal(server.target, "unlearn", "endocrine", columns=columns)
    assert shown.code == 0
    # Where there's no room, the share and the time left are kept longest.
    stage, facts = ("training 5/5", " left  forget 0.100, utility 0.200") if columns == 80 else ("training 5…", "…")
    assert f"{stage} {'━' * 16} 100%  1:15{facts}" in shown.text
    assert shown.width <= columns
    assert "SUCCEEDED" in shown.text


@pytest.mark.parametrize(("option", "variables"), [((), {"CI": "true"}), (("--quiet",), {})])
def test_under_ci_there_are_lines_and_with_quiet_nothing(
    server: Any, finished_job: Any, option: tuple[str, ...], variables: dict[str, str]
) -> None:
    script_slow_job(server, finished_job)
    shown = in_terminal(server.target, "unlearn", "endocrine", *option, **variables)
    assert "━━ " not in shown.text
    assert ("training 5/5: 100%, 1:15 left, forget 0.100, utility 0.200\n" in shown.text) is bool(variables)
    assert ("training" in shown.text.splitlines()[0]) is bool(variables)

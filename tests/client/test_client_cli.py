"""The commands that talk to a server: what they send and print, and how they exit."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result

from amnestic.v1 import prediction_pb2, unlearning_pb2
from amnestic_server.cli import group

Run = Callable[..., Result]

COMMANDS = [["predict"], ["unlearn"], ["jobs"], ["jobs", "list"], ["jobs", "show"], ["jobs", "watch"]]
COMMANDS += [["jobs", "cancel"], ["versions"], ["rollback"]]


@pytest.fixture
def run(server: Any) -> Run:
    """Runs `amnestic ARGUMENTS` against the fake server."""

    def invoke(*arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(group, arguments, input=stdin, env={"AMNESTIC_SERVER": server.target, "TZ": "UTC"})

    return invoke


def job_at(state: str, job: Any, **fields: Any) -> unlearning_pb2.Job:
    changed = unlearning_pb2.Job()
    changed.CopyFrom(job)
    changed.MergeFrom(unlearning_pb2.Job(state=unlearning_pb2.JobState.Value(f"JOB_STATE_{state}"), **fields))
    return changed


def script_job(server: Any, *jobs: unlearning_pb2.Job) -> None:
    server.script("Unlearn", unlearning_pb2.UnlearnResponse(job=jobs[0]))
    server.script("WatchJob", [unlearning_pb2.WatchJobResponse(job=job) for job in jobs])


def abort(code: str, detail: str) -> Callable[[Any, grpc.ServicerContext], None]:
    return lambda request, context: context.abort(grpc.StatusCode[code], detail)


def fits(output: str) -> bool:
    return all(len(line) <= 80 for line in output.splitlines())


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example_and_fits(run: Run, command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert f"  amnestic {command[0]}" in result.output.partition("Example")[2]
    assert fits(result.output)


def test_predict_prints_a_table(run: Run, server: Any, prediction: Any) -> None:
    server.script("GetModel", prediction_pb2.GetModelResponse(max_documents=128))
    server.script("Predict", prediction)
    result = run("predict", "first note", "second note")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["1", "12", "renal", "0.750", "yes"] in rows
    assert ["endocrine", "0.125", "no", "forgotten"] in rows
    assert ["2", "128,", "cut", "renal", "0.750", "yes"] in rows
    assert "answered by version 3" in result.stdout
    assert "note" not in result.stdout
    assert "\x1b" not in result.stdout
    assert fits(result.stdout)


def test_predict_shows_in_how_many_windows_a_document_was_read(run: Run, server: Any, prediction: Any) -> None:
    prediction.predictions[1].windows = 3
    server.script("GetModel", prediction_pb2.GetModelResponse(max_documents=128))
    server.script("Predict", prediction)
    result = run("predict", "acute renal failure", "on dialysis")
    assert fits(result.stdout)
    rows = [line.split()[:6] for line in result.stdout.splitlines()]
    assert ["2", "128", "in", "3", "windows,", "renal"] in rows


def test_predict_as_json(run: Run, server: Any, prediction: Any) -> None:
    server.script("Predict", prediction)
    result = run("predict", "text", "--version", "3", "--features", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["version"] == 3
    assert answer["predictions"][0] == {
        "scores": [
            {"label": "renal", "probability": 0.75, "decision": True, "forgotten": False},
            {"label": "endocrine", "probability": 0.125, "decision": False, "forgotten": True},
        ],
        "tokens": 12,
        "truncated": False,
        "features": [0.5, -1.0],
        "windows": 1,
    }
    sent = server.asked("Predict")[0]
    assert (sent.version, sent.include_features) == (3, True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", "first\r\n\n  \nsecond\u2028still second"),
        ("notes.jsonl", '{"text": "first"}\n\n{"text": "second\\u2028still second", "id": 7}\n'),
    ],
)
def test_predict_reads_files(run: Run, server: Any, prediction: Any, tmp_path: Path, name: str, content: str) -> None:
    server.script("GetModel", prediction_pb2.GetModelResponse(max_documents=128))
    server.script("Predict", prediction)
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert run("predict", "--file", str(path)).exit_code == 0
    assert list(server.asked("Predict")[0].documents) == ["first", "second\u2028still second"]


@pytest.mark.parametrize("arguments", [(), ("--file", "-")])
def test_predict_reads_a_pipe(run: Run, server: Any, prediction: Any, arguments: tuple[str, ...]) -> None:
    server.script("GetModel", prediction_pb2.GetModelResponse(max_documents=128))
    server.script("Predict", prediction)
    assert run("predict", *arguments, stdin="first\nsecond\n").exit_code == 0
    assert list(server.asked("Predict")[0].documents) == ["first", "second"]


def test_predict_splits_what_is_too_much_for_one_call(run: Run, server: Any) -> None:
    def echo(request: Any, context: Any) -> prediction_pb2.PredictResponse:
        predictions = [prediction_pb2.Prediction(tokens=int(text)) for text in request.documents]
        return prediction_pb2.PredictResponse(version=5, predictions=predictions)

    server.script("GetModel", prediction_pb2.GetModelResponse(max_documents=2))
    server.script("Predict", echo)
    result = run("predict", "--json", stdin="1\n2\n3\n4\n5\n")
    assert [prediction["tokens"] for prediction in json.loads(result.stdout)["predictions"]] == [1, 2, 3, 4, 5]
    sent = [(list(request.documents), request.version) for request in server.asked("Predict")]
    assert sent == [(["1", "2"], 0), (["3", "4"], 5), (["5"], 5)], "the first answer's version is pinned"


def test_predict_says_in_which_part_a_document_was_refused(run: Run, server: Any) -> None:
    answer = prediction_pb2.PredictResponse(version=5, predictions=[prediction_pb2.Prediction()] * 2)
    server.script("GetModel", prediction_pb2.GetModelResponse(max_documents=2))
    server.script("Predict", answer, abort("INVALID_ARGUMENT", "document 1 is too large"))
    result = run("predict", stdin="1\n2\n3\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: in documents 3 to 3: document 1 is too large (INVALID_ARGUMENT)\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "secret"}\n{"text": 3}\n', 'a.jsonl, line 2: no string "text"'),
        ("a.jsonl", b'{"text": "fine"}\n\nsecret {\n', "a.jsonl, line 3: not JSON"),
        ("a.txt", b"fine\nsecret \xff\n", "a.txt, line 2: not UTF-8"),
    ],
)
def test_a_bad_line_is_named_but_not_repeated(
    run: Run, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    result = run("predict", "--file", str(path))
    assert (result.exit_code, result.stderr) == (1, f"Error: {message}\n")
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict",),
        ("predict", "text", "--file", __file__),
        ("predict", "--file", "missing.txt"),
        ("predict", "text", "--version", "0"),
        ("unlearn",),
        ("unlearn", "renal", "--k", "many"),
        ("jobs", "show"),
        ("jobs", "burn"),
        ("rollback", "1"),
        ("versions", "--timeout", "0"),
    ],
)
def test_usage_errors(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error:" in result.stderr
    assert result.stdout == ""


def test_an_error_of_the_server_is_one_line(run: Run, server: Any) -> None:
    server.script("Unlearn", abort("NOT_FOUND", "the model has no such label"))
    result = run("unlearn", "liver", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: the model has no such label (NOT_FOUND)\n"


def test_an_absent_server_is_one_line(run: Run, server: Any) -> None:
    server.stop()
    result = run("versions", "--timeout", "5")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: no server is ready at {server.target} (UNAVAILABLE: ")
    assert result.stderr.count("\n") == 1


def test_timeout_reaches_the_call(run: Run, server: Any) -> None:
    server.script("ListVersions", lambda request, context: time.sleep(1) or unlearning_pb2.ListVersionsResponse())
    started = time.monotonic()
    result = run("versions", "--timeout", "0.3")
    assert time.monotonic() - started < 0.9
    assert result.exit_code == 1
    assert result.stderr.endswith("(DEADLINE_EXCEEDED)\n")


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
    assert result.stderr.splitlines() == ["queued", "training epoch 5/5", "succeeded"]
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
    result = run(*arguments)
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


def test_versions(run: Run, server: Any) -> None:
    base = unlearning_pb2.Version(version=1, f1={"renal": 0.5, "endocrine": 0.75})
    base.created_at.FromJsonString("2026-03-01T12:00:00Z")
    second = unlearning_pb2.Version(
        version=2,
        active=True,
        forgotten=["endocrine"],
        job_id="j",
        f1={"renal": 0.5, "endocrine": 0.0},
        relaxed_gates=["forget_auroc_max", "probe_ratio_max"],
    )
    server.script("ListVersions", unlearning_pb2.ListVersionsResponse(versions=[base, second]))
    shown = run("versions").stdout
    assert shown.endswith("version 2 relaxed its gates: forget_auroc_max, probe_ratio_max\n")
    rows = [line.split() for line in shown.splitlines()]
    assert ["1", "none", "0.625", "2026-03-01", "12:00"] in rows
    assert ["2", "active", "endocrine", "0.000", "0.500"] in rows
    versions = json.loads(run("versions", "--json").stdout)
    assert [version["f1"]["endocrine"] for version in versions] == [0.75, 0.0]
    assert versions[0]["job_id"] is None


def test_rollback(run: Run, server: Any) -> None:
    server.script("Rollback", unlearning_pb2.RollbackResponse(version=unlearning_pb2.Version(version=1, active=True)))
    assert run("rollback", "1", "--reason", "review").stdout == "version 1 is active; forgotten: none\n"
    assert server.asked("Rollback") == [unlearning_pb2.RollbackRequest(version=1, reason="review")]
    assert json.loads(run("rollback", "1", "--reason", "review", "--json").stdout)["active"] is True


def test_markup_in_names_is_printed_as_it_is(run: Run, server: Any) -> None:
    job = unlearning_pb2.Job(job_id="[red]a[/]", labels=["[bold]x"], state=unlearning_pb2.JOB_STATE_RUNNING)
    server.script("ListJobs", unlearning_pb2.ListJobsResponse(jobs=[job]))
    result = run("jobs")
    assert "[red]a[/]" in result.stdout
    assert "[bold]x" in result.stdout


def start(server: Any, *arguments: str, **kwargs: Any) -> subprocess.Popen[str]:
    """`amnestic ARGUMENTS` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "from amnestic_server.cli import main; main()", *arguments],
        env={**os.environ, "AMNESTIC_SERVER": server.target},
        text=True,
        **kwargs,
    )


def test_interrupting_a_watch_leaves_the_job(server: Any, finished_job: Any) -> None:
    asked, release = threading.Event(), threading.Event()

    def hold(request: Any, context: grpc.ServicerContext) -> unlearning_pb2.WatchJobResponse:
        context.add_callback(release.set)
        asked.set()
        release.wait(30)
        return unlearning_pb2.WatchJobResponse()

    running = job_at("RUNNING", finished_job)
    server.script("WatchJob", [unlearning_pb2.WatchJobResponse(job=running), hold])
    process = start(server, "jobs", "watch", "some-id", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert asked.wait(30)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert output == ""
    assert errors.splitlines()[-1] == "Stopped watching; job some-id goes on. To stop it: amnestic jobs cancel some-id"
    assert "Traceback" not in errors
    assert server.asked("CancelJob") == []


def test_json_lines_are_not_held_back(server: Any, finished_job: Any) -> None:
    release = threading.Event()

    def last(request: Any, context: grpc.ServicerContext) -> unlearning_pb2.WatchJobResponse:
        release.wait(30)
        return unlearning_pb2.WatchJobResponse(job=finished_job)

    running = unlearning_pb2.WatchJobResponse(job=job_at("RUNNING", finished_job))
    server.script("WatchJob", [running, last])
    process = start(server, "jobs", "watch", "some-id", "--json", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["state"] == "RUNNING"
    release.set()
    assert json.loads(process.stdout.readline())["state"] == "SUCCEEDED"
    assert process.wait(30) == 0


def test_a_terminal_gets_a_bar(server: Any, finished_job: Any) -> None:
    pty = pytest.importorskip("pty")

    def later(request: Any, context: grpc.ServicerContext) -> unlearning_pb2.WatchJobResponse:
        time.sleep(0.5)  # a bar is drawn ten times a second
        return unlearning_pb2.WatchJobResponse(job=finished_job)

    running = job_at("RUNNING", finished_job, progress=unlearning_pb2.Progress(seconds_left=75.0))
    script_job(server, running)
    server.script("WatchJob", [unlearning_pb2.WatchJobResponse(job=running), later])
    leader, follower = pty.openpty()
    process = start(server, "unlearn", "endocrine", stdin=subprocess.DEVNULL, stdout=follower, stderr=follower)
    os.close(follower)
    seen = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # Linux says EIO when the other side has closed
            break
        if not piece:
            break
        seen += piece
    os.close(leader)
    assert process.wait(30) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "━" in text
    assert "1:15 left" in text
    assert "forget 0.100" in text
    assert "SUCCEEDED" in text

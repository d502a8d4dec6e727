"""`amnestic status`: the screen, the JSON, and the watch that goes on when the server is away for a while."""

import json
import re
import signal
import subprocess
from typing import Any

from client.commands import Run, abort, fits
from terminal import in_terminal, start

from amnestic.v1 import prediction_pb2


def test_one_screen(run: Run, server: Any, status: Any) -> None:
    server.script("GetStatus", status)
    result = run("status", COLUMNS="80")
    assert result.exit_code == 0
    facts = dict(line.rstrip().split("  ", 1) for line in result.stdout.splitlines() if not line.startswith(" "))
    assert {name: value.strip() for name, value in facts.items()} == {
        "server": f"SERVING at {server.target}, up 1:02:05; 1.2.3",
        "model": "icu (bert, fp32) on CPUExecutionProvider",
        "version": "3; forgotten: endocrine",
        "F1": "0.625 of the labels kept (mean); forgotten: 0.000 of endocrine",
        "open": "7 of 1,024 documents",
        "queue": "4 documents, 512 of 262,144 tokens",
        "last minute": "10.0 calls/s, 20.0 documents/s, 3 failed; p50 12.5 ms, p99 250.0 ms",
        "running job": "renal: training 2/5, 40%, 1:15 left; 2 more waiting",
        "last job": "SUCCEEDED 2026-03-01 12:00, endocrine: version 3",
    }
    assert fits(result.stdout)


def test_a_server_that_has_done_nothing_yet(run: Run, server: Any) -> None:
    server.script(
        "GetStatus",
        prediction_pb2.GetStatusResponse(
            state=prediction_pb2.SERVER_STATE_DRAINING, load=prediction_pb2.Load(window_seconds=0.0), queued_jobs=1
        ),
    )
    shown = run("status").stdout
    for part in ("DRAINING", "forgotten: none", "not measured", "last 0 s     no calls", "1 more waiting"):
        assert part in shown
    assert re.search(r"^last job +none *$", shown, re.MULTILINE)


def test_as_json(run: Run, server: Any, status: Any) -> None:
    server.script("GetStatus", status)
    told = json.loads(run("status", "--json").stdout)
    assert set(told) == {field.name for field in prediction_pb2.GetStatusResponse.DESCRIPTOR.fields}
    assert (told["state"], told["active_version"], told["retain_f1"]) == (
        "SERVING",
        3,
        {"cardiac": 0.5, "renal": 0.75},
    )
    assert set(told["load"]) == {field.name for field in prediction_pb2.Load.DESCRIPTOR.fields}
    assert told["running_job"]["progress"]["seconds_left"] == 75.0
    assert told["last_job"]["finished_at"] == "2026-03-01T12:00:20+00:00"


def test_without_a_server_the_exit_code_says_so(run: Run, server: Any) -> None:
    server.stop()
    result = run("status", "--timeout", "2")
    assert (result.exit_code, result.stdout) == (6, "")
    assert result.stderr.startswith(f"Error: no server is ready at {server.target} (")
    assert result.stderr.count("\n") == 1


def test_a_watch_goes_on_while_the_server_is_away(server: Any, status: Any) -> None:
    away = abort("INTERNAL", "internal error")
    server.script("GetStatus", status, away, status)
    process = start(
        server.target,
        *("status", "--watch", "--interval", "0.1", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert [json.loads(process.stdout.readline())["active_version"] for _ in range(3)] == [3, 3, 3]
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "internal error (INTERNAL)\n"
    assert process.returncode == 130


def test_a_watch_on_a_terminal_is_drawn_over(server: Any, status: Any) -> None:
    server.script("GetStatus", status)

    stopped = []

    def stop_at_the_second_look(process: Any, seen: str) -> None:
        if not stopped and len(server.asked("GetStatus")) > 2 and seen.count("SERVING") > 1:
            stopped.append(process.send_signal(signal.SIGINT))

    shown = in_terminal(server.target, *("status", "--watch", "--interval", "0.1"), on_output=stop_at_the_second_look)
    assert shown.code == 130
    assert "\x1b[?1049h" in shown.raw and "\x1b[?1049l" in shown.raw, "on a screen of its own, and back"
    assert "Traceback" not in shown.text

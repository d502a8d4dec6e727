"""Help, wrong usage, and errors of every command that talks to a server."""

import re
from typing import Any

import grpc
import pytest
from client.commands import Run, abort, fits, hang

from amnestic.v1 import unlearning_pb2

COMMANDS = [["predict"], ["unlearn"], ["jobs"], ["jobs", "list"], ["jobs", "show"], ["jobs", "watch"]]
COMMANDS += [
    ["rollout"],
    ["rollout", "show"],
    ["rollout", "set"],
    ["jobs", "cancel"],
    ["versions"],
    ["rollback"],
    ["promote"],
    ["purge"],
    ["status"],
    ["completion"],
    ["serve"],
    ["demo"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example_and_fits(run: Run, command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert f"  amnestic {command[0]}" in result.output.partition("Example")[2]
    assert fits(result.output)


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
        ("purge", "2", "--yes"),
        ("purge", "2", "--yes", "--reason", "why", "--offline"),
        ("versions", "--timeout", "0"),
    ],
)
def test_usage_errors(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error:" in result.stderr
    assert result.stdout == ""


def test_the_help_of_all_tells_exit_codes_and_fits(run: Run) -> None:
    shown = run("--help").output
    for code in (0, 1, 2, 3, 4, 5, 6, 130):
        assert re.search(rf"^ +{code}  \w", shown, re.MULTILINE)
    assert fits(shown)


@pytest.mark.parametrize(
    ("command", "sections"),
    [
        ("serve", ["Files", "Network", "Engine", "Queue and limits", "Unlearning"]),
        ("unlearn", ["Options", "Method", "Gates", "Connection"]),
        ("status", ["Options", "Connection"]),
    ],
)
def test_options_stand_in_sections(run: Run, command: str, sections: list[str]) -> None:
    shown = run(command, "--help").output
    titles = re.findall(r"^(\w[\w ]*):$", shown, re.MULTILINE)
    assert [title for title in titles if title in sections] == sections
    assert shown.count("--timeout") == (command != "serve")


@pytest.mark.parametrize(
    ("typed", "meant"), [("stauts", "status"), ("predcit", "predict"), ("version", "versions"), ("xyzzy", None)]
)
def test_a_mistyped_command_is_guessed(run: Run, typed: str, meant: str | None) -> None:
    result = run(typed)
    assert result.exit_code == 2
    guess = f" Did you mean '{meant}'?" if meant else ""
    assert result.stderr.endswith(f"Error: No such command '{typed}'.{guess}\n")


def test_the_environment_stands_in_for_options(run: Run, server: Any) -> None:
    server.script("ListJobs", unlearning_pb2.ListJobsResponse())
    server.script("ListVersions", hang, unlearning_pb2.ListVersionsResponse())
    assert run("jobs", AMNESTIC_JOBS_LIST_LIMIT="7", AMNESTIC_JOBS_LIST_JSON="1").stdout == "[]\n"
    assert server.asked("ListJobs")[0].limit == 7
    assert run("versions", AMNESTIC_TIMEOUT="0.3").exit_code == 6
    assert run("versions", "--timeout", "30", AMNESTIC_TIMEOUT="0.001").exit_code == 0
    # A variable of this name is likely to be there for other reasons.
    assert run("jobs", AMNESTIC_VERSION="1").stdout == "no jobs\n"


@pytest.mark.parametrize(
    ("code", "exits"), [("UNAVAILABLE", 6), ("RESOURCE_EXHAUSTED", 6), ("DEADLINE_EXCEEDED", 6), ("INTERNAL", 1)]
)
def test_exit_codes_tell_whether_to_try_again(run: Run, server: Any, code: str, exits: int) -> None:
    server.script("Rollback", abort(code, "some detail"))
    result = run("rollback", "1", "--reason", "review")
    assert result.exit_code == exits
    assert "some detail" in result.stderr


def test_an_error_of_the_server_is_one_line(run: Run, server: Any) -> None:
    server.script("Unlearn", abort("NOT_FOUND", "the model has no such label"))
    result = run("unlearn", "liver", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: the model has no such label (NOT_FOUND)\n"


def test_an_absent_server_is_one_line(run: Run, server: Any) -> None:
    server.stop()
    result = run("versions", "--timeout", "5")
    assert (result.exit_code, result.stdout) == (6, "")
    assert result.stderr.startswith(f"Error: no server is ready at {server.target} (UNAVAILABLE: ")
    assert result.stderr.count("\n") == 1


def test_timeout_reaches_the_call(run: Run, server: Any) -> None:
    left: list[float] = []

    def step(request: Any, context: grpc.ServicerContext) -> None:
        left.append(context.time_remaining())
        hang(request, context)

    server.script("ListVersions", step)
    result = run("versions", "--timeout", "0.3")
    assert left[0] < 0.5
    assert result.exit_code == 6
    assert result.stderr.endswith("(DEADLINE_EXCEEDED)\n")

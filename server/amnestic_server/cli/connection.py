"""What the commands that talk to a running server share: their options, the client, and how errors are told."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, ParamSpec

import click

from amnestic_client import AmnesticError, Client, Unavailable
from amnestic_client.settings import QUERY_TIMEOUT, ROLLBACK_TIMEOUT, TARGET
from amnestic_server.cli import exits, sections

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Connection:
    """An open client of `server`, the timeout of each call (None: the default of each), and the form of output."""

    client: Client
    server: str
    timeout: float | None
    as_json: bool


def connected(function: Callable[Concatenate[Connection, P], None]) -> Callable[..., None]:
    """Give a command --server, --timeout and --json, and a `Connection` as its first argument.

    A call that fails becomes one line on standard error, and the exit code of its kind.
    """
    own = tuple(sections.parameters(function))

    @click.option(
        "--server",
        metavar="HOST:PORT",
        default=TARGET,
        envvar="AMNESTIC_SERVER",
        show_default=True,
        show_envvar=True,
        help="Server to ask.",
    )
    @click.option(
        "--timeout",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True),
        envvar="AMNESTIC_TIMEOUT",
        show_envvar=True,
        help=f"Longest wait for an answer; {QUERY_TIMEOUT:g}, for a rollback {ROLLBACK_TIMEOUT:g}, unless given.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
    @functools.wraps(function)
    def command(server: str, timeout: float | None, as_json: bool, *args: P.args, **options: P.kwargs) -> None:
        with Client(server) as client:
            try:
                function(Connection(client, server, timeout, as_json), *args, **options)
            except AmnesticError as error:
                raise exits.failure(error, sentence(error, server)) from error

    sections.place(
        "Connection", (one for one in sections.parameters(command) if one not in own and one.name != "as_json")
    )
    return command


def sentence(error: AmnesticError, server: str) -> str:
    """A failed call in one line."""
    detail = " ".join(error.detail.split())
    if isinstance(error, Unavailable):
        return f"no server is ready at {server} (UNAVAILABLE: {detail})"
    return f"{detail} ({error.code.name})"

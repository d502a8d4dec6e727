"""What the commands that talk to a running server share: their options, the client, and how errors are told."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, ParamSpec

import click

from amnestic_client import AmnesticError, Client, Unavailable
from amnestic_client.settings import TARGET, timeout_of

P = ParamSpec("P")

QUERY_TIMEOUT = timeout_of("/amnestic.v1.PredictionService/Predict")
ROLLBACK_TIMEOUT = timeout_of("/amnestic.v1.UnlearningService/Rollback")


@dataclass(frozen=True, slots=True)
class Connection:
    """An open client, the timeout for each of its calls (None: the default of each), and the form of output."""

    client: Client
    timeout: float | None
    as_json: bool


def connected(function: Callable[Concatenate[Connection, P], None]) -> Callable[..., None]:
    """Give a command --server, --timeout and --json, and a `Connection` as its first argument.

    A call that fails becomes one line on standard error and exit code 1.
    """

    @click.option(
        "--server",
        metavar="TARGET",
        default=TARGET,
        envvar="AMNESTIC_SERVER",
        show_default=True,
        show_envvar=True,
        help="Server to ask: HOST:PORT, or unix:PATH for its Unix domain socket.",
    )
    @click.option(
        "--timeout",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True),
        help=f"Longest wait for an answer; {QUERY_TIMEOUT:g}, for a rollback {ROLLBACK_TIMEOUT:g}, unless given.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
    @functools.wraps(function)
    def command(server: str, timeout: float | None, as_json: bool, *args: P.args, **options: P.kwargs) -> None:
        with Client(server) as client:
            try:
                function(Connection(client, timeout, as_json), *args, **options)
            except AmnesticError as error:
                raise click.ClickException(_sentence(error, server)) from error

    return command


def _sentence(error: AmnesticError, server: str) -> str:
    detail = " ".join(error.detail.split())
    if isinstance(error, Unavailable):
        return f"no server is ready at {server} (UNAVAILABLE: {detail})"
    return f"{detail} ({error.code.name})"

"""What the commands that talk to a running server share: their options, the client, and how errors are told."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from amnestic_client import AmnesticError, Client, Tls, TlsError, Unavailable
from amnestic_client.settings import TARGET, timeout_of
from amnestic_server.cli import exits, sections

P = ParamSpec("P")
Command = TypeVar("Command", bound=Callable[..., Any])

TLS_OPTIONS = ("tls", "tls_ca", "tls_cert", "tls_key", "tls_server_name")
QUERY_TIMEOUT = timeout_of("/amnestic.v1.PredictionService/Predict")
ROLLBACK_TIMEOUT = timeout_of("/amnestic.v1.UnlearningService/Rollback")


@dataclass(frozen=True, slots=True)
class Connection:
    """An open client of `server`, the timeout of each call (None: the default of each), and the form of output."""

    client: Client
    server: str
    timeout: float | None
    as_json: bool


def _pem_option(flag: str, help_text: str) -> Callable[[Command], Command]:
    return click.option(
        flag,
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        envvar=f"AMNESTIC_{flag.removeprefix('--').upper().replace('-', '_')}",
        show_envvar=True,
        help=help_text,
    )


def connected(function: Callable[Concatenate[Connection, P], None]) -> Callable[..., None]:
    """Give a command --server, those of TLS, --timeout and --json, and a `Connection` as its first argument.

    A call that fails becomes one line on standard error, and the exit code of its kind.
    """
    own = tuple(sections.parameters(function))

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
        "--tls",
        is_flag=True,
        envvar="AMNESTIC_TLS",
        show_envvar=True,
        help="Speak TLS; any other option of TLS implies it.",
    )
    @_pem_option("--tls-ca", "Authorities to trust, PEM; those that gRPC carries unless given.")
    @_pem_option("--tls-cert", "Client certificate, PEM, for a server that asks for one.")
    @_pem_option("--tls-key", "Key of the client certificate, PEM.")
    @click.option(
        "--tls-server-name",
        metavar="NAME",
        envvar="AMNESTIC_TLS_SERVER_NAME",
        show_envvar=True,
        help="Name in the server's certificate, if it is not that of --server.",
    )
    @click.option(
        "--token-file",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        envvar="AMNESTIC_TOKEN_FILE",
        show_envvar=True,
        help="File with a bearer token, for a server that asks for one; read for each call.",
    )
    @click.option(
        "--timeout",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True),
        envvar="AMNESTIC_TIMEOUT",
        show_envvar=True,
        help=f"Longest wait for an answer; {QUERY_TIMEOUT:g}, for a rollback, a promotion or a purge"
        f" {ROLLBACK_TIMEOUT:g}, unless given. A job is watched for as long as it takes.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
    @functools.wraps(function)
    def command(
        server: str,
        tls: bool,
        tls_ca: Path | None,
        tls_cert: Path | None,
        tls_key: Path | None,
        tls_server_name: str | None,
        token_file: Path | None,
        timeout: float | None,
        as_json: bool,
        *args: P.args,
        **options: P.kwargs,
    ) -> None:
        with _client(server, tls_of(tls, tls_ca, tls_cert, tls_key, tls_server_name), token_of(token_file)) as client:
            try:
                function(Connection(client, server, timeout, as_json), *args, **options)
            except AmnesticError as error:
                raise exits.failure(error, sentence(error, server)) from error

    sections.place(
        "Connection", (one for one in sections.parameters(command) if one not in own and one.name != "as_json")
    )
    return command


def tls_of(
    tls: bool | None, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None, tls_server_name: str | None
) -> Tls | None:
    """What the options of TLS say; None for plain text."""
    given = Tls(ca=tls_ca, certificate=tls_cert, key=tls_key, server_name=tls_server_name)
    return given if tls or given != Tls() else None


def token_of(file: Path | None) -> Callable[[], str] | None:
    """What reads the token of a file for each call: whoever renews it need not tell us."""
    return None if file is None else lambda: file.read_text(encoding="utf-8").strip()


def _client(server: str, tls: Tls | None, token: Callable[[], str] | None) -> Client:
    try:
        return Client(server, tls=tls, token=token)
    except TlsError as error:
        raise click.ClickException(str(error)) from None


def sentence(error: AmnesticError, server: str) -> str:
    """A failed call in one line."""
    detail = " ".join(error.detail.split())
    if isinstance(error, Unavailable):
        return f"no server is ready at {server} (UNAVAILABLE: {detail})"
    return f"{detail} ({error.code.name})"

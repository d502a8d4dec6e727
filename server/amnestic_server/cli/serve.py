"""`amnestic serve`: every field of `Settings` is a flag with an environment twin."""

import asyncio
import dataclasses
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from amnestic_server import logs
from amnestic_server.cli.sections import Sectioned, section
from amnestic_server.errors import ExitError, StartError, StoreError
from amnestic_server.settings import DEVICES, Settings

# What a setting is about, by the beginning of its name. What is named nowhere stands under the last.
SECTIONS = {
    "Files": ("bundle", "store", "require_store", "corpus"),
    "Security": ("tls_", "allow_plaintext", "access", "signing_", "max_connection_age"),
    "Network": (
        "host",
        "grpc_",
        "operations_port",
        "monitoring_host",
        "metrics_",
        "health_port",
        "uds",
        "tcp",
        "no_tcp",
        "reflection",
        "keepalive",
        "client_ping",
        "exit_",
        "otel",
    ),
    "Queue and limits": ("max_concurrent", "max_queue", "max_document"),
    "Engine": ("device", "threads", "spinning", "max_batch", "max_padding"),
    "Unlearning": ("worker_", "max_job"),
    "Others": ("",),
}
EXAMPLE = """\b
Example:
  amnestic serve --bundle bundle --store store --corpus corpus.parquet
"""


def _options(command: Callable[..., None]) -> Callable[..., None]:
    hints = typing.get_type_hints(Settings)
    for field in reversed(dataclasses.fields(Settings)):
        flag = f"--{field.name.replace('_', '-')}"
        required = field.default is dataclasses.MISSING
        option = click.option(
            f"{flag}/--no-{flag[2:]}" if hints[field.name] is bool else flag,
            field.name,
            type=_type(field.name, hints[field.name]),
            required=required,
            default=None if required else field.default,
            show_default=not required and field.default is not None,
            envvar=f"AMNESTIC_{field.name.upper()}",
            show_envvar=True,
            help=field.metadata["help"],
        )
        command = section(_section(field.name), option)(command)
    return command


def _section(name: str) -> str:
    return next(title for title, beginnings in SECTIONS.items() if name.startswith(beginnings))


def _type(name: str, hint: Any) -> Any:
    if name == "device":
        return click.Choice(DEVICES)
    if isinstance(hint, types.UnionType):
        hint = typing.get_args(hint)[0]
    return click.Path(path_type=Path) if hint is Path else hint


@click.command(cls=Sectioned, epilog=EXAMPLE)
@_options
@click.option(
    "--log-level",
    type=click.Choice(logs.LEVELS),
    default="info",
    show_default=True,
    envvar="AMNESTIC_LOG_LEVEL",
    show_envvar=True,
    help="What is logged to standard error; debug has a line a call. SIGUSR1 logs more from then on, SIGUSR2 less.",
)
@click.option(
    "--log-format",
    type=click.Choice(list(logs.FORMATTERS)),
    default="text",
    show_default=True,
    envvar="AMNESTIC_LOG_FORMAT",
    show_envvar=True,
    help="Lines for people, or a JSON object a line.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the line that says it is ready as JSON.")
def command(log_level: str, log_format: str, as_json: bool, **values: Any) -> None:
    """Serve a bundle over gRPC, ready to forget labels of the corpus while it serves.

    Once it takes calls, it prints one line with its addresses. SIGTERM or Ctrl-C ends it, after what was accepted
    has been answered.
    """
    from amnestic_server.app import serve  # torch and ONNX Runtime: not for --help

    logs.set_up(log_level, log_format)
    logs.forget_memory()
    try:
        settings = Settings(**values)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    try:
        asyncio.run(serve(settings, as_json=as_json))
    except (StartError, ExitError, StoreError) as error:
        raise click.ClickException(str(error)) from error

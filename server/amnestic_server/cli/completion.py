"""`amnestic completion`: the shell's script, and what a running server says may follow.

A server is asked only for labels, jobs and versions, and is given little time: without an answer nothing is offered.
"""

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem, get_completion_class

from amnestic_client import AmnesticError, Client, TlsError, Version
from amnestic_client.settings import TARGET
from amnestic_server.cli.connection import TLS_OPTIONS, tls_of, token_of

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_AMNESTIC_COMPLETE"
# Someone waits with a finger on the key.
SECONDS = 1.0
MOST_JOBS = 20

EXAMPLE = """\b
Examples:
  eval "$(amnestic completion bash)"                        # in ~/.bashrc
  eval "$(amnestic completion zsh)"                         # in ~/.zshrc
  amnestic completion fish > ~/.config/fish/completions/amnestic.fish
"""


@click.command(epilog=EXAMPLE)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options, labels, jobs and versions in a shell.

    Labels, job ids and versions are asked of the server that AMNESTIC_SERVER or --server names.
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click completes these shells"
    click.echo(kind(context.find_root().command, {}, "amnestic", VARIABLE).source())


def labels(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Labels of the model that are not forgotten yet."""
    chosen = context.params.get("labels") or ()
    return _offered(
        context,
        incomplete,
        lambda client: ((label.name, "") for label in client.get_model(timeout=SECONDS).labels if not label.forgotten),
        chosen,
    )


def job_ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The newest jobs, with their states and labels."""
    return _offered(
        context,
        incomplete,
        lambda client: (
            (job.job_id, f"{job.state.lower()}: {_words(job.labels)}")
            for job in client.list_jobs(MOST_JOBS, timeout=SECONDS)
        ),
    )


def versions(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Every version that can answer, with what it has forgotten."""
    return _versions(context, incomplete, lambda one: not one.withdrawn)


def staged_versions(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Those of them that wait to be promoted."""
    return _versions(context, incomplete, lambda one: one.staged)


def _versions(context: click.Context, incomplete: str, offers: Callable[[Version], bool]) -> list[CompletionItem]:
    return _offered(
        context,
        incomplete,
        lambda client: (
            (str(one.version), f"forgotten: {_words(one.forgotten) or 'none'}{_state(one)}")
            for one in client.list_versions(timeout=SECONDS)
            if offers(one)
        ),
    )


def _state(version: Version) -> str:
    return " (active)" if version.active else " (staged)" if version.staged else ""


def _words(labels: Iterable[str]) -> str:
    """Without a comma, at which fish would end."""
    return " and ".join(labels)


def _offered(
    context: click.Context,
    incomplete: str,
    ask: Callable[[Client], Iterable[tuple[str, str]]],
    without: Iterable[str] = (),
) -> list[CompletionItem]:
    try:
        with Client(
            context.params.get("server") or TARGET,
            tls=tls_of(**{name: context.params.get(name) for name in TLS_OPTIONS}),
            token=token_of(context.params.get("token_file")),
        ) as client:
            found = list(ask(client))
    except (AmnesticError, TlsError, ValueError):
        return []
    taken = set(without)
    return [
        CompletionItem(value, help=text or None)
        for value, text in found
        if value.startswith(incomplete) and value not in taken
    ]

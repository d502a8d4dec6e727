"""`amnestic rollout`: a staged version's part in the traffic, and what that has told."""

from collections.abc import Iterator

import click

from amnestic_client import Rollout, Version
from amnestic_server.cli import render
from amnestic_server.cli.completion import staged_versions
from amnestic_server.cli.connection import Connection, connected
from amnestic_server.cli.sections import DefaultGroup, Sectioned
from amnestic_server.cli.tables import Cell, Column, Fitted, facts

EXAMPLE = """\b
Examples:
  amnestic rollout
  amnestic rollout set --canary 0.05 --shadow 1.0
  amnestic rollout set --canary 0 --shadow 0
"""


@click.group(cls=DefaultGroup, default="show", epilog=EXAMPLE)
def command() -> None:
    """Show or set a staged version's part in the traffic. Without a subcommand: show it."""


@command.command(cls=Sectioned, epilog="\b\nExample:\n  amnestic rollout show --json\n")
@connected
def show(connection: Connection) -> None:
    """Show the shares, and how often the staged version decides otherwise than the active one."""
    rollout = connection.client.rollout(timeout=connection.timeout)
    if connection.as_json:
        render.print_json(rollout)
    elif rollout is not None:
        _print(rollout)
    else:
        _print_staged(connection.client.list_versions(timeout=connection.timeout))


@command.command("set", cls=Sectioned, epilog=EXAMPLE)
@click.option(
    "--version",
    type=click.IntRange(min=1),
    help="The staged version; without it the one that has a rollout, or else the only one.",
    shell_complete=staged_versions,
)
@click.option("--canary", metavar="SHARE", type=float, help="Share of the calls that it answers itself, 0 to 1.")
@click.option("--shadow", metavar="SHARE", type=float, help="Share of the documents that it answers again, 0 to 1.")
@connected
def set_shares(connection: Connection, version: int | None, canary: float | None, shadow: float | None) -> None:
    """Give a staged version its shares of the traffic; a share left out stays as it is."""
    if canary is None and shadow is None:
        raise click.UsageError("give --canary, --shadow or both")
    rollout = connection.client.set_rollout(
        version, canary_share=canary, shadow_share=shadow, timeout=connection.timeout
    )
    if connection.as_json:
        render.print_json(rollout)
    else:
        _print(rollout)


def _print(rollout: Rollout) -> None:
    columns = (Column("label", words=True), Column("decided otherwise", right=True), Column("expected"))
    # What is not expected to differ is what to look at.
    ordered = sorted(rollout.differences, key=lambda one: one.forgotten)
    rows = [
        (one.label, _of(one.documents, rollout.shadow_documents), "yes, forgotten" if one.forgotten else "")
        for one in ordered
    ]
    render.show(facts(_facts(rollout)))
    if rollout.shadow_documents:
        render.show("", Fitted(columns, rows))


def _facts(rollout: Rollout) -> Iterator[tuple[str, Cell]]:
    yield "version", f"{rollout.version}, staged"
    yield "canary", f"{rollout.canary_share:g} of the calls"
    yield "shadow", f"{rollout.shadow_share:g} of the documents"
    yield "since", render.moment(rollout.since)
    yield "counted since", render.moment(rollout.counted_since)
    yield "answered", f"{_of(rollout.canary_calls, rollout.canary_calls + rollout.active_calls)} calls"
    yield "compared", f"{rollout.shadow_documents:,} documents, {rollout.shadow_dropped:,} more dropped"


def _of(part: int, whole: int) -> str:
    share = f" ({part / whole:.2%})" if whole else ""
    return f"{part:,} of {whole:,}{share}"


def _print_staged(versions: tuple[Version, ...]) -> None:
    staged = [str(one.version) for one in versions if one.staged]
    if not staged:
        render.show("no version is staged")
        return
    render.show(
        f"no rollout; staged: {', '.join(staged)}. To begin: amnestic rollout set --version {staged[0]} --shadow 1"
    )

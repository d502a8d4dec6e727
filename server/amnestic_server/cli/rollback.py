"""`amnestic rollback`: makes an earlier version the active one."""

import click

from amnestic_server.cli import render
from amnestic_server.cli.completion import versions
from amnestic_server.cli.connection import Connection, connected
from amnestic_server.cli.sections import Sectioned

EXAMPLE = """\b
Example:
  amnestic rollback 1 --reason "gate figures under review" --restore-forgotten
"""


@click.command(cls=Sectioned, epilog=EXAMPLE)
@click.argument("version", type=click.IntRange(min=1), shell_complete=versions)
@click.option("--reason", required=True, help="Why, for the record. Must not hold patient data.")
@click.option(
    "--restore-forgotten",
    is_flag=True,
    help="Go back even to a VERSION that knows a label which the active one has forgotten.",
)
@connected
def command(connection: Connection, version: int, reason: str, restore_forgotten: bool) -> None:
    """Make an earlier VERSION the active one; done when no call to the version left is in flight.

    What was forgotten since stays so unless --restore-forgotten says otherwise.
    """
    active = connection.client.rollback(
        version, reason, restore_forgotten=restore_forgotten, timeout=connection.timeout
    )
    if connection.as_json:
        render.print_json(active)
    else:
        click.echo(f"version {active.version} is active; forgotten: {render.names(active.forgotten)}")

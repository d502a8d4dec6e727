"""`amnestic rollback`: makes an earlier version the active one."""

import click

from amnestic_server.cli import render
from amnestic_server.cli.completion import versions
from amnestic_server.cli.connection import Connection, connected
from amnestic_server.cli.sections import Sectioned


@click.command(cls=Sectioned, epilog='\b\nExample:\n  amnestic rollback 1 --reason "gate figures under review"\n')
@click.argument("version", type=click.IntRange(min=1), shell_complete=versions)
@click.option("--reason", required=True, help="Why, for the record. Must not hold patient data.")
@connected
def command(connection: Connection, version: int, reason: str) -> None:
    """Make an earlier VERSION the active one; done when no call to the version left is in flight.

    Labels that VERSION has not forgotten are known again.
    """
    active = connection.client.rollback(version, reason, timeout=connection.timeout)
    if connection.as_json:
        render.print_json(active)
    else:
        click.echo(f"version {active.version} is active; forgotten: {render.names(active.forgotten)}")

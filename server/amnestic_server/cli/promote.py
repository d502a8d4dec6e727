"""`amnestic promote`: makes a staged version the active one."""

import click

from amnestic_server.cli import render
from amnestic_server.cli.completion import staged_versions
from amnestic_server.cli.connection import Connection, connected
from amnestic_server.cli.sections import Sectioned


@click.command(cls=Sectioned, epilog="\b\nExample:\n  amnestic promote 2\n")
@click.argument("version", type=click.IntRange(min=1), shell_complete=staged_versions)
@connected
def command(connection: Connection, version: int) -> None:
    """Make a staged VERSION the active one; done when no call to the version before is in flight.

    Whatever else is staged is withdrawn.
    """
    active = connection.client.promote(version, timeout=connection.timeout)
    if connection.as_json:
        render.print_json(active)
    else:
        click.echo(f"version {active.version} is active; forgotten: {render.names(active.forgotten)}")

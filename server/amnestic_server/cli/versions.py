"""`amnestic versions`: what a running server can serve, and which it serves."""

import click

from amnestic_server.cli import render
from amnestic_server.cli.connection import Connection, connected
from amnestic_server.cli.sections import Sectioned


@click.command(cls=Sectioned, epilog="\b\nExamples:\n  amnestic versions\n  amnestic versions --json\n")
@connected
def command(connection: Connection) -> None:
    """List the versions of a running server, oldest first."""
    versions = connection.client.list_versions(timeout=connection.timeout)
    if connection.as_json:
        render.print_json(versions)
    else:
        render.print_versions(versions)

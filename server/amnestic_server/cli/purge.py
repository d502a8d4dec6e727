"""`amnestic purge`: makes what the active version has forgotten the bundle itself."""

import getpass
from pathlib import Path

import click

from amnestic_server.cli import render
from amnestic_server.cli.completion import versions
from amnestic_server.cli.connection import Connection, connected
from amnestic_server.cli.sections import Sectioned

EXAMPLE = """\b
Examples:
  amnestic purge 2 --reason "consent withdrawn"
  amnestic purge 2 --reason "case 4711" --offline --bundle b --store s
"""


@click.command(cls=Sectioned, epilog=EXAMPLE)
@click.argument("version", type=click.IntRange(min=1), shell_complete=versions)
@click.option("--reason", required=True, help="Why, for the record. Must not hold patient data.")
@click.option(
    "--offline",
    is_flag=True,
    help="Purge bundle and store of a server that is stopped, as where the one that runs may not write its bundle.",
)
@click.option(
    "--bundle",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="AMNESTIC_BUNDLE",
    show_envvar=True,
    help="With --offline: directory made by `amnestic export`, which is changed.",
)
@click.option(
    "--store",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="AMNESTIC_STORE",
    show_envvar=True,
    help="With --offline: store of the server.",
)
@click.option(
    "--signing-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="AMNESTIC_SIGNING_KEY",
    show_envvar=True,
    help="With --offline: key that signs the audit record, where the server is given one.",
)
@click.confirmation_option(prompt="Nothing brings back what is purged. Go on?", help="Do not ask.")
@connected
def command(
    connection: Connection,
    version: int,
    reason: str,
    offline: bool,
    bundle: Path | None,
    store: Path | None,
    signing_key: Path | None,
) -> None:
    """Make VERSION, which must be the active one, the bundle itself, and delete every other version.

    Until then the bundle and earlier versions still know what was forgotten: a rollback, or a call that names such a
    version, brings it back. Afterwards no file of bundle and store does. Calls go on being answered. Copies of the
    bundle, such as backups and the checkpoint that it was made from, are yours to find.
    """
    if not reason.strip():
        raise click.UsageError("a purge needs a reason")
    if offline:
        if bundle is None or store is None:
            raise click.UsageError("--offline needs --bundle and --store")
        number, forgotten = _purge_offline(bundle, store, version, reason, signing_key)
    else:
        left = connection.client.purge(version, reason, timeout=connection.timeout)
        number, forgotten = left.version, left.forgotten
    if connection.as_json:
        render.print_json({"version": number, "forgotten": forgotten})
    else:
        click.echo(f"the bundle is version {number} now; purged: {render.names(forgotten)}")


def _purge_offline(
    bundle: Path, store: Path, version: int, reason: str, signing_key: Path | None
) -> tuple[int, tuple[str, ...]]:
    from amnestic_server import caller  # torch: not for --help, nor for the base install
    from amnestic_server.errors import AmnesticError, StartError
    from amnestic_server.purge import purge
    from amnestic_unlearn.manifest import BundleError

    caller.enter(caller.Caller(f"command:{getpass.getuser()}"))
    try:
        purged = purge(bundle, store, version, reason, signing_key)
    except (StartError, BundleError, AmnesticError) as error:
        raise click.ClickException(str(error)) from error
    return purged.version, purged.forgotten

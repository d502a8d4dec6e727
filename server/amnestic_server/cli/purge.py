"""`amnestic purge`: makes what the active version has forgotten the bundle itself."""

import getpass
from pathlib import Path

import click

from amnestic_server.cli import render
from amnestic_server.cli.sections import Sectioned

EXAMPLE = """\b
Example:
  amnestic purge --bundle bundle --store store --reason "consent withdrawn, case 4711"
"""


@click.command(cls=Sectioned, epilog=EXAMPLE)
@click.option(
    "--bundle",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="AMNESTIC_BUNDLE",
    show_envvar=True,
    help="Directory made by `amnestic export`, which is changed.",
)
@click.option(
    "--store",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="AMNESTIC_STORE",
    show_envvar=True,
    help="Store of the server, which must not run.",
)
@click.option(
    "--signing-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="AMNESTIC_SIGNING_KEY",
    show_envvar=True,
    help="Key that signs the audit record, where the server is given one.",
)
@click.option("--reason", required=True, help="Why, for the record. Must not hold patient data.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
@click.confirmation_option(prompt="Nothing brings back what is purged. Go on?", help="Do not ask.")
def command(bundle: Path, store: Path, signing_key: Path | None, reason: str, as_json: bool) -> None:
    """Rewrite the bundle as the active version is, and delete every other version.

    Until then the bundle and earlier versions still know what was forgotten: a rollback, or a call that names such a
    version, brings it back. Afterwards no file of bundle and store does. The server must be stopped, and starts on the
    version that it served. Copies of the bundle, such as backups and the checkpoint that it was made from, are yours to
    find.
    """
    from amnestic_server import caller  # torch: not for --help
    from amnestic_server.errors import AmnesticError, StartError
    from amnestic_server.purge import purge
    from amnestic_unlearn.manifest import BundleError

    if not reason.strip():
        raise click.UsageError("a purge needs a reason")
    caller.enter(caller.Caller(f"command:{getpass.getuser()}"))
    try:
        purged = purge(bundle, store, reason, signing_key)
    except (StartError, BundleError, AmnesticError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"the purge could not be finished: {error.strerror}; try again") from error
    if as_json:
        render.print_json(purged)
    else:
        click.echo(f"the bundle is version {purged.version} now; purged: {render.names(purged.forgotten)}")

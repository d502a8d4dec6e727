"""`amnestic audit`: the record that a store keeps of every change, verified or shown without its server."""

import dataclasses
import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import click

from amnestic import dsse
from amnestic_server import audit
from amnestic_server.cli import render
from amnestic_server.cli.tables import Column, Fitted
from amnestic_server.signing import PUBLIC_KEY_FILE

EXAMPLE = """\b
Examples:
  amnestic audit verify store --key signing-key.pub.pem --heads kept-elsewhere.jsonl
  amnestic audit show store
"""

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
STORE = click.argument("store", type=click.Path(exists=True, file_okay=False, path_type=Path))


@click.group(epilog=EXAMPLE)
def command() -> None:
    """Verify or show the record that a store keeps of every change and every request for one.

    Both read the store's files, and may do so while its server runs.
    """


@command.command(epilog="\b\nExample:\n  amnestic audit verify store --key signing-key.pub.pem\n")
@STORE
@click.option(
    "--key",
    "keys",
    metavar="FILE",
    multiple=True,
    type=FILE,
    help="Public key in PEM, kept away from the store; again for a key before it. The store's own unless given.",
)
@click.option(
    "--heads",
    "kept",
    metavar="FILE",
    multiple=True,
    type=FILE,
    help="Copy of audit-heads.jsonl kept elsewhere: finds what was cut off from record and heads together.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
def verify(store: Path, keys: tuple[Path, ...], kept: tuple[Path, ...], as_json: bool) -> None:
    """Verify that the record of a STORE is whole, that its heads are signed, and that the store is as it says.

    Found is a record that was edited, taken out, moved, put in or cut off, and a version or an active version that is
    not the one recorded.
    """
    try:
        files = keys or (store / PUBLIC_KEY_FILE,)
        trusted = [key for path in files for key in dsse.read_public_keys(path.read_bytes())]
        # Before the database: a head is written after its record, so each of these has one.
        heads = [line for path in (store / audit.HEADS_FILE, *kept) for line in audit.read_heads(path)]
        with audit.reading(store) as db:
            found = audit.verify(db, heads, trusted)
    except audit.AuditError as error:
        raise click.ClickException(f"the audit record does not verify: {error}") from None
    except dsse.SignatureError as error:
        raise click.ClickException(f"the key cannot be used: {error}") from None
    except (OSError, sqlite3.Error) as error:
        raise _unreadable(error) from None
    if as_json:
        render.print_json(found)
        return
    click.echo(f"{found.records} records verify against {found.heads} signed heads")
    if found.last is not None:
        click.echo(f"last head: record {found.last.seq}, {found.last.digest}, signed {_moment(found.last.at)}")
    if found.unsigned:
        click.echo(f"{found.unsigned} records came after it; the server signs them at its next start")
    if not keys:
        click.echo("The key was the store's own: whoever can write the store could have replaced it. Give --key.")


@command.command(epilog="\b\nExample:\n  amnestic audit show store --json\n")
@STORE
@click.option("--json", "as_json", is_flag=True, help="Print an object a line, with all that was recorded.")
def show(store: Path, as_json: bool) -> None:
    """Show every record of a STORE, oldest first."""
    try:
        with audit.reading(store) as db:
            records = audit.records(db)
    except sqlite3.Error as error:
        raise _unreadable(error) from None
    if as_json:
        for record in records:
            render.print_json({**dataclasses.asdict(record), "detail": json.loads(record.detail)})
        return
    columns = (
        Column("record", right=True),
        Column("at", drop=2),
        Column("action", words=True),
        Column("by", drop=3),
        Column("job", drop=1),
        Column("version", right=True),
    )
    rows = [
        (str(one.seq), _moment(one.at), one.action, one.caller, one.job_id or "", str(one.version or ""))
        for one in records
    ]
    render.show(Fitted(columns, rows))


def _moment(seconds: float) -> str:
    return render.moment(datetime.fromtimestamp(seconds, UTC))


def _unreadable(error: Exception) -> click.ClickException:
    return click.ClickException(f"the store cannot be read: {type(error).__name__}")

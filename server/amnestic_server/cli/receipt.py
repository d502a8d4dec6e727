"""`amnestic receipt`: the signed statement of what a job did, got from a server and verified without one."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from amnestic_client import Gate, SignatureError, verify_receipt
from amnestic_server.cli import render
from amnestic_server.cli.completion import job_ids
from amnestic_server.cli.connection import Connection, connected
from amnestic_server.cli.sections import Sectioned
from amnestic_server.cli.tables import facts

EXAMPLE = """\b
Examples:
  amnestic receipt get JOB_ID --out receipt.json
  amnestic receipt verify receipt.json --key signing-key.pub.pem
"""


@click.group(epilog=EXAMPLE)
def command() -> None:
    """Get the receipt of a job, or verify one without a server.

    A receipt is an in-toto statement in a DSSE envelope, signed with Ed25519: what was asked for, what changed, what
    was measured with which limits, and what is not claimed.
    """


@command.command(cls=Sectioned, epilog="\b\nExample:\n  amnestic receipt get JOB_ID --out receipt.json\n")
@click.argument("job_id", metavar="ID", shell_complete=job_ids)
@click.option(
    "--out",
    metavar="FILE",
    type=click.File("w", lazy=True),
    default="-",
    help="File to write it to; standard output unless given.",
)
@connected
def get(connection: Connection, job_id: str, out: IO[str]) -> None:
    """Get the receipt of a job that succeeded or was rejected."""
    receipt = connection.client.receipt(job_id, timeout=connection.timeout)
    if connection.as_json:
        render.print_json(receipt)
    else:
        click.echo(receipt.envelope, file=out)


@command.command(epilog="\b\nExample:\n  amnestic receipt verify receipt.json --key signing-key.pub.pem\n")
@click.argument("receipt", type=click.File("rb"))
@click.option(
    "--key",
    metavar="FILE",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Public key in PEM, from who runs the server: signing-key.pub.pem in its store.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the statement as JSON.")
def verify(receipt: IO[bytes], key: Path, as_json: bool) -> None:
    """Verify a RECEIPT (a file, - for standard input) and say what it states. Needs no server."""
    try:
        statement = verify_receipt(receipt.read(), key.read_bytes())
    except SignatureError as error:
        raise click.ClickException(f"the receipt does not verify: {error}") from None
    if as_json:
        render.print_json(statement)
    else:
        render.show(*_told(statement))


def _told(statement: dict[str, Any]) -> Iterator[Any]:
    """What a person looks for first; --json has all of it."""
    said = statement["predicate"]
    job, change, inputs = said["job"], said["change"], said["inputs"]
    yield facts(
        [
            ("job", job["id"]),
            ("outcome", job["outcome"]),
            ("version", str(job["version"] or "none")),
            ("forgotten", render.names(said["forgotten"])),
            ("reason", said["request"]["reason"]),
            ("asked for", said["times"]["requested"]),
            ("ended", said["times"]["ended"]),
            ("changed", f"{change['rows_changed']} rows, {change['parameters_changed']:,} parameters"),
            ("patch", change["patch_digest"]),
            ("bundle", inputs["bundle"]["manifest.json"]),
            ("corpus", inputs["corpus"]),
            ("audit record", f"{said['audit']['ended']['seq']}, {said['audit']['ended']['digest']}"),
            ("relaxed gates", render.names(said["request"]["relaxed_gates"])),
        ]
    )
    yield ""
    yield render.gates_table([_gate(gate) for gate in said["gates"]])
    yield ""
    yield f"Claim: {said['claim']['level']}. Not claimed:"
    yield from (f"- {one}" for one in said["claim"]["not_claimed"])


def _gate(fields: dict[str, Any]) -> Gate:
    """JSON has no NaN: a value that was none is null."""
    return Gate(**{**fields, "value": math.nan if fields["value"] is None else fields["value"]})

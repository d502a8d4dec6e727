"""`amnestic report`: the receipt of a job as a page for people, of a running server or of a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amnestic_client import CallsInSecond, SignatureError
from amnestic_server.cli import render
from amnestic_server.cli.completion import job_ids
from amnestic_server.cli.connection import Connection, connected
from amnestic_server.cli.sections import Sectioned

if TYPE_CHECKING:
    from amnestic_server.job_report.page import Source

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
EXAMPLE = """\b
Examples:
  amnestic report JOB_ID --out report.html --key signing-key.pub.pem
  amnestic report --receipt receipt.json --key signing-key.pub.pem
"""


@click.command(cls=Sectioned, epilog=EXAMPLE)
@click.argument("job_id", metavar="[ID]", required=False, shell_complete=job_ids)
@click.option(
    "--receipt", metavar="FILE", type=FILE, help="Receipt that was saved, in place of a job's ID; asks no server."
)
@click.option(
    "--key",
    metavar="FILE",
    type=FILE,
    help="Public key in PEM, from who runs the server; that which the server gives unless given. --receipt needs one.",
)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="File to write.",
)
@connected
def command(connection: Connection, job_id: str | None, receipt: Path | None, key: Path | None, out: Path) -> None:
    """Write what a job did as one HTML file, for people: what was asked, changed, measured, and what is not claimed.

    Of a job that succeeded or was rejected. A receipt that does not verify gets no report.
    """
    from amnestic_server.job_report.page import Source  # Jinja: not for --help

    if (job_id is None) == (receipt is None):
        raise click.UsageError("give the ID of a job, or --receipt")
    if receipt is not None:
        if key is None:
            raise click.UsageError("--receipt needs --key: a receipt is worth no more than the key that verifies it")
        size = _write(receipt.read_bytes(), key.read_bytes(), Source(receipt=str(receipt), key=str(key)), out)
    else:
        assert job_id is not None
        got = connection.client.receipt(job_id, timeout=connection.timeout)
        pem = got.public_key.encode() if key is None else key.read_bytes()
        source = Source(key=None if key is None else str(key), server=connection.server)
        calls = connection.client.get_job(job_id, timeout=connection.timeout).calls_around_swap
        size = _write(got.envelope, pem, source, out, calls)
    if connection.as_json:
        render.print_json({"out": str(out), "bytes": size})
    else:
        click.echo(f"report in {out}")


def _write(
    envelope: str | bytes, key: bytes, source: "Source", out: Path, calls: Sequence[CallsInSecond] | None = None
) -> int:
    """Write the report, and return its length in bytes. An error leaves the file as it was."""
    from amnestic_server.job_report import page

    try:
        data = page.render(envelope, key, source, calls).encode()
    except SignatureError as error:
        raise click.ClickException(f"the receipt does not verify, so there is no report: {error}") from None
    try:
        out.write_bytes(data)
    except OSError as error:
        raise click.ClickException(f"{out} cannot be written: {error.strerror}") from None
    return len(data)

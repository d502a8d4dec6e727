"""`amnestic unlearn`: asks for labels to be forgotten, and watches the job to its end."""

from typing import Any

import click

from amnestic_client import GateLimits, Method
from amnestic_server.cli import render
from amnestic_server.cli.completion import labels as complete_labels
from amnestic_server.cli.connection import Connection, connected
from amnestic_server.cli.options import chosen, gate_options, method_options
from amnestic_server.cli.progress import quiet_option
from amnestic_server.cli.sections import Sectioned
from amnestic_server.cli.watch import follow

EXAMPLE = """\b
Exit codes: 0 succeeded or staged, 1 error, 2 usage, 3 rejected by a gate,
4 failed, 5 cancelled, 6 the server is away, 130 watching was stopped with
Ctrl-C (the job goes on).

\b
Examples:
  amnestic unlearn endocrine --reason "consent withdrawn, ticket 17"
  amnestic unlearn endocrine --dry-run --preset paper --epochs 8
  amnestic unlearn endocrine --stage
  amnestic unlearn endocrine --detach --json
"""


@click.command(cls=Sectioned, epilog=EXAMPLE)
@click.argument("labels", metavar="LABEL...", nargs=-1, required=True, shell_complete=complete_labels)
@click.option("--request-id", help="Id of your own: asking again with it does not start a second job.")
@click.option("--dry-run", is_flag=True, help="Train and measure, but leave the served version as it is.")
@click.option(
    "--stage",
    is_flag=True,
    help="Keep the version that passes its gates beside the active one, until it is promoted or the job cancelled.",
)
@click.option("--reason", default="", help="Why, for the record. Must not hold patient data.")
@method_options
@gate_options
@click.option("--detach", is_flag=True, help="Print the job and leave; do not watch it.")
@quiet_option
@connected
def command(
    connection: Connection,
    /,
    labels: tuple[str, ...],
    request_id: str | None,
    dry_run: bool,
    stage: bool,
    reason: str,
    detach: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Make the server forget every LABEL, watch the job, and show what was measured and changed.

    Settings left out take the preset's values, limits of gates the server's
    defaults. A limit above its default is recorded with the job as relaxed.
    """
    job = connection.client.unlearn(
        labels,
        request_id=request_id,
        dry_run=dry_run,
        stage=stage,
        method=chosen(Method, settings),
        gates=chosen(GateLimits, settings),
        reason=reason,
        timeout=connection.timeout,
    )
    if not detach:
        follow(connection, job.job_id, quiet=quiet)
    elif connection.as_json:
        render.print_json(job)
    else:
        click.echo(f"job {job.job_id} is {job.state.lower()}; watch it: amnestic jobs watch {job.job_id}")

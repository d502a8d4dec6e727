"""`amnestic unlearn`: asks for labels to be forgotten, and watches the job to its end."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from amnestic_client import GateLimits, Method
from amnestic_server.cli import render
from amnestic_server.cli.connection import Connection, connected
from amnestic_server.cli.jobs import follow

F = TypeVar("F", bound=Callable[..., Any])

EXAMPLE = """\b
Exit codes: 0 succeeded, 1 error, 2 usage, 3 rejected by a gate, 4 failed,
5 cancelled, 130 watching was stopped with Ctrl-C (the job goes on).

\b
Examples:
  amnestic unlearn endocrine --reason "consent withdrawn, ticket 17"
  amnestic unlearn endocrine --dry-run --k 128 --epochs 8
  amnestic unlearn endocrine --detach --json
"""

METHOD = {
    "k": (int, "Token-embedding rows to edit for each label."),
    "epochs": (int, "Passes over the forget documents."),
    "embedding_lr": (float, "Learning rate of the rows."),
    "head_lr": (float, "Learning rate of the head."),
    "forget_weight": (float, "Weight of the forget loss."),
    "utility_weight": (float, "Weight of the utility loss on retain documents."),
    "distil_weight": (float, "Weight of the utility loss on forget documents."),
    "batch_size": (int, "Documents in each of the two batches of a step."),
    "seed": (int, "Seed of batch order."),
}
GATES = {
    "forget_f1_max": (float, "Gate: largest F1 of a forgotten label."),
    "retain_f1_drop_max": (float, "Gate: largest fall of the other labels' macro F1."),
    "logit_difference_max": (float, "Gate: largest logit difference of torch to the served path."),
}


def _settings(function: F) -> F:
    """An option for each setting of the method and of the gates; left out, the server's default holds."""
    for name, (kind, text) in reversed((METHOD | GATES).items()):
        function = click.option(f"--{name.replace('_', '-')}", name, type=kind, help=text)(function)
    return function


@click.command(epilog=EXAMPLE)
@click.argument("labels", metavar="LABEL...", nargs=-1, required=True)
@click.option("--request-id", help="Id of your own: asking again with it does not start a second job.")
@click.option("--dry-run", is_flag=True, help="Train and measure, but leave the served version as it is.")
@click.option("--reason", default="", help="Why, for the record. Must not hold patient data.")
@_settings
@click.option("--detach", is_flag=True, help="Print the job and leave; do not watch it.")
@connected
def command(
    connection: Connection,
    /,
    labels: tuple[str, ...],
    request_id: str | None,
    dry_run: bool,
    reason: str,
    detach: bool,
    **settings: Any,
) -> None:
    """Make the server forget every LABEL, watch the job, and show what was measured and changed.

    Settings left out take the server's defaults.
    """
    job = connection.client.unlearn(
        labels,
        request_id=request_id,
        dry_run=dry_run,
        method=Method(**{name: settings[name] for name in METHOD}),
        gates=GateLimits(**{name: settings[name] for name in GATES}),
        reason=reason,
        timeout=connection.timeout,
    )
    if not detach:
        follow(connection, job.job_id)
    elif connection.as_json:
        render.print_json(job)
    else:
        click.echo(f"job {job.job_id} is {job.state.lower()}; watch it: amnestic jobs watch {job.job_id}")

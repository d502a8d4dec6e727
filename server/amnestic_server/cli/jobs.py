"""`amnestic jobs`: list, show, watch or cancel unlearn jobs."""

from contextlib import nullcontext

import click

from amnestic_client import Job, JobState
from amnestic_server.cli import render
from amnestic_server.cli.connection import Connection, connected

EXIT_CODES = {JobState.SUCCEEDED: 0, JobState.REJECTED: 3, JobState.FAILED: 4, JobState.CANCELLED: 5}
INTERRUPTED = 130

EXAMPLE = """\b
Examples:
  amnestic jobs
  amnestic jobs list --limit 5 --json
  amnestic jobs watch JOB_ID
"""


class ListByDefault(click.Group):
    """`jobs` alone, or with options only, is `jobs list`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        asks_help = bool(args) and args[0] in ctx.help_option_names
        if not asks_help and (not args or args[0].startswith("-")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=ListByDefault, epilog=EXAMPLE)
def command() -> None:
    """List, show, watch or cancel unlearn jobs. Without a subcommand: list them."""


@command.command("list", epilog="\b\nExample:\n  amnestic jobs list --limit 5 --json\n")
@click.option("--limit", type=click.IntRange(min=1), help="Most jobs to show; 100 unless given.")
@connected
def list_jobs(connection: Connection, limit: int | None) -> None:
    """List the newest jobs first."""
    jobs = connection.client.list_jobs(limit, timeout=connection.timeout)
    if connection.as_json:
        render.print_json(jobs)
    else:
        render.print_jobs(jobs)


@command.command(epilog="\b\nExample:\n  amnestic jobs show JOB_ID --json\n")
@click.argument("job_id", metavar="ID")
@connected
def show(connection: Connection, job_id: str) -> None:
    """Show one job with its gates and what it changed."""
    _print(connection, connection.client.get_job(job_id, timeout=connection.timeout))


@command.command(epilog="\b\nExit codes as of `amnestic unlearn`.\n\n\b\nExample:\n  amnestic jobs watch JOB_ID\n")
@click.argument("job_id", metavar="ID")
@connected
def watch(connection: Connection, job_id: str) -> None:
    """Watch one job until it has ended. With --json: one object a line, the last is the final job."""
    follow(connection, job_id)


@command.command(epilog="\b\nExample:\n  amnestic jobs cancel JOB_ID\n")
@click.argument("job_id", metavar="ID")
@connected
def cancel(connection: Connection, job_id: str) -> None:
    """Stop a job that has not begun to activate."""
    _print(connection, connection.client.cancel_job(job_id, timeout=connection.timeout))


def follow(connection: Connection, job_id: str) -> None:
    """Watch a job to its end, show it, and exit with the code of its final state.

    Ctrl-C ends the watching alone, and says how to end the job.
    """
    job: Job | None = None
    try:
        with nullcontext() if connection.as_json else render.JobProgress() as view:
            for job in connection.client.watch_job(job_id):
                if view is None:
                    render.print_json(job)
                else:
                    view.update(job)
    except KeyboardInterrupt:
        click.echo(f"Stopped watching; job {job_id} goes on. To stop it: amnestic jobs cancel {job_id}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    assert job is not None, "a watch ends with a job or raises"
    if not connection.as_json:
        render.print_job(job)
    raise click.exceptions.Exit(EXIT_CODES[job.state])


def _print(connection: Connection, job: Job) -> None:
    if connection.as_json:
        render.print_json(job)
    else:
        render.print_job(job)

"""`amnestic jobs`: list, show, watch or cancel unlearn jobs."""

import click

from amnestic_client import Job
from amnestic_server.cli import render
from amnestic_server.cli.completion import job_ids
from amnestic_server.cli.connection import Connection, connected
from amnestic_server.cli.progress import quiet_option
from amnestic_server.cli.sections import DefaultGroup, Sectioned
from amnestic_server.cli.watch import follow

EXAMPLE = """\b
Examples:
  amnestic jobs
  amnestic jobs list --limit 5 --json
  amnestic jobs watch JOB_ID
"""


@click.group(cls=DefaultGroup, default="list", epilog=EXAMPLE)
def command() -> None:
    """List, show, watch or cancel unlearn jobs. Without a subcommand: list them."""


@command.command("list", cls=Sectioned, epilog="\b\nExample:\n  amnestic jobs list --limit 5 --json\n")
@click.option("--limit", type=click.IntRange(min=1), help="Most jobs to show; 100 unless given.")
@connected
def list_jobs(connection: Connection, limit: int | None) -> None:
    """List the newest jobs first."""
    jobs = connection.client.list_jobs(limit, timeout=connection.timeout)
    if connection.as_json:
        render.print_json(jobs)
    else:
        render.print_jobs(jobs)


@command.command(cls=Sectioned, epilog="\b\nExample:\n  amnestic jobs show JOB_ID --json\n")
@click.argument("job_id", metavar="ID", shell_complete=job_ids)
@connected
def show(connection: Connection, job_id: str) -> None:
    """Show one job with its gates and what it changed."""
    _print(connection, connection.client.get_job(job_id, timeout=connection.timeout))


@command.command(
    cls=Sectioned, epilog="\b\nExit codes as of `amnestic unlearn`.\n\n\b\nExample:\n  amnestic jobs watch JOB_ID\n"
)
@click.argument("job_id", metavar="ID", shell_complete=job_ids)
@quiet_option
@connected
def watch(connection: Connection, job_id: str, quiet: bool) -> None:
    """Watch one job until it has ended or is staged. With --json: one object a line, the last is the final job."""
    follow(connection, job_id, quiet=quiet)


@command.command(cls=Sectioned, epilog="\b\nExample:\n  amnestic jobs cancel JOB_ID\n")
@click.argument("job_id", metavar="ID", shell_complete=job_ids)
@connected
def cancel(connection: Connection, job_id: str) -> None:
    """Stop a job that has not begun to activate, or withdraw the version of one that is staged."""
    _print(connection, connection.client.cancel_job(job_id, timeout=connection.timeout))


def _print(connection: Connection, job: Job) -> None:
    if connection.as_json:
        render.print_json(job)
    else:
        render.print_job(job)

"""Watching an unlearn job to its end."""

from collections.abc import Callable
from contextlib import nullcontext
from types import TracebackType
from typing import Self

import click

from amnestic_client import Job, JobState, JobSummary
from amnestic_server.cli import exits, render
from amnestic_server.cli.connection import Connection
from amnestic_server.cli.progress import Bar


class JobProgress:
    """A job as it goes: where it stands, its losses, and the time left."""

    def __init__(self, *, quiet: bool = False, indent: int = 0, below: Callable[[], str] | None = None) -> None:
        """As of `Bar`."""
        self._bar = Bar("waiting", quiet=quiet, indent=indent, below=below)

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def update(self, job: Job) -> None:
        """Show the job as it is now."""
        progress = job.progress
        if job.state is not JobState.RUNNING or progress is None:
            self._bar.update(job.state.lower())
            return
        losses = f"forget {progress.forget_loss:.3f}, utility {progress.utility_loss:.3f}" if progress.step else ""
        self._bar.update(stage(job), progress.step, progress.steps, losses, progress.seconds_left)


def stage(job: Job | JobSummary) -> str:
    """Where a job is: its state, or what the worker is doing."""
    progress = job.progress
    if job.state is not JobState.RUNNING or progress is None or not progress.stage:
        return job.state.lower()
    return f"{progress.stage} {progress.epoch}/{progress.epochs}" if progress.epoch else progress.stage


def follow(connection: Connection, job_id: str, *, quiet: bool) -> None:
    """Watch a job to its end, or until it is staged, show it, and exit with the code of that state.

    Ctrl-C ends the watching alone, and says how to end the job.
    """
    job: Job | None = None
    try:
        with nullcontext() if connection.as_json else JobProgress(quiet=quiet) as view:
            for job in connection.client.watch_job(job_id):
                if view is None:
                    render.print_json(job)
                else:
                    view.update(job)
                if job.state.rests:
                    break
    except KeyboardInterrupt:
        click.echo(f"Stopped watching; job {job_id} goes on. To stop it: amnestic jobs cancel {job_id}", err=True)
        raise click.exceptions.Exit(exits.INTERRUPTED) from None
    assert job is not None, "a watch ends with a job or raises"
    if not connection.as_json:
        render.print_job(job)
    raise click.exceptions.Exit(exits.OF_JOB[job.state])

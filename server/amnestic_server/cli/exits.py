"""How a command exits. Scripts rely on these numbers: they are added to, and never change their meaning."""

import click

from amnestic_client import AmnesticError, DeadlineExceeded, JobState, ResourceExhausted, Unavailable

REJECTED = 3
FAILED = 4
CANCELLED = 5
UNAVAILABLE = 6
INTERRUPTED = 130

OF_JOB = {
    JobState.SUCCEEDED: 0,
    JobState.STAGED: 0,
    JobState.REJECTED: REJECTED,
    JobState.FAILED: FAILED,
    JobState.CANCELLED: CANCELLED,
}

HELP = """\b
Exit codes:
    0  done; of a job: it succeeded, or is staged
    1  an error, told in one line on standard error
    2  wrong usage
    3  the job was rejected by a gate
    4  the job failed
    5  the job was cancelled
    6  the server is away, late or full: the same may work later
  130  stopped with Ctrl-C
"""


class AwayError(click.ClickException):
    """The server did not answer, but may later."""

    exit_code = UNAVAILABLE


def failure(error: AmnesticError, text: str) -> click.ClickException:
    """What ends a command after a call that failed: one line, and the exit code of its kind."""
    away = isinstance(error, Unavailable | DeadlineExceeded | ResourceExhausted)
    return AwayError(text) if away else click.ClickException(text)

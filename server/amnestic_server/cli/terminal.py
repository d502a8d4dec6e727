"""Where output goes, and in which colours. Results go to standard output, everything else to standard error."""

import os
import sys

import click
from rich.console import Console

# A pipe has no width: one row is one line there, for whoever searches them.
UNBOUNDED = 10_000


def console(*, stderr: bool = False) -> Console:
    """A console for plain text as it is, in the colours that --color and NO_COLOR allow; it measures the terminal."""
    context = click.get_current_context(silent=True)
    wanted = None if context is None else context.color
    if wanted is None and os.environ.get("NO_COLOR"):
        wanted = False
    stream = sys.stderr if stderr else sys.stdout
    bounded = stream.isatty() or "COLUMNS" in os.environ
    return Console(
        stderr=stderr,
        force_terminal=True if wanted else None,
        color_system=None if wanted is False else "auto",
        width=None if bounded else UNBOUNDED,
        highlight=False,
        markup=False,
    )


def moves(one: Console) -> bool:
    """True if what is shown on this console may be drawn over: a person watches, not a file and not a log of CI."""
    return one.file.isatty() and not one.is_dumb_terminal and not os.environ.get("CI")

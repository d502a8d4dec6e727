"""How long work is shown while it goes on, whatever it is: on standard error, with the time that is left.

On a terminal it is a bar that moves. Elsewhere, and under CI, it is a line where a stage begins, and one now and then.
"""

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from amnestic_server.cli import terminal

BAR_WIDTH = 16
# That is left to the figures where the stage would take all: share and time left.
FACTS_WIDTH = 24
FRAMES_A_SECOND = 10
# Between two lines of one stage, where there is no bar.
LINE_SECONDS = 10.0
# Before that a guess at the time left is worth nothing.
GUESS_SECONDS = 1.0

F = TypeVar("F", bound=Callable[..., Any])


def quiet_option(function: F) -> F:
    """`--quiet`, as `quiet`."""
    return click.option(
        "--quiet", "-q", is_flag=True, envvar="AMNESTIC_QUIET", help="Show no progress; errors are still told."
    )(function)


class Bar:
    """Work as it goes. `update` says where it is, `line` puts something above it that stays."""

    def __init__(
        self, stage: str = "", *, quiet: bool = False, indent: int = 0, below: Callable[[], str] | None = None
    ) -> None:
        """Until the first `update` the bar is at `stage`. `below` is asked for a second line as often as it moves."""
        self._quiet = quiet
        self._indent = indent
        self._below = below
        self._console: Console = terminal.console(stderr=True)
        self._moves = terminal.moves(self._console) and not quiet
        self._stage, self._detail = stage, ""
        self._done, self._total = 0.0, 0.0
        self._left: float | None = None
        self._pace = _Pace()
        self._said, self._said_at = "", -math.inf
        self._live = Live(
            console=self._console,
            get_renderable=self._frame,
            transient=True,
            refresh_per_second=FRAMES_A_SECOND,
            redirect_stdout=False,
        )

    def __enter__(self) -> Self:
        if self._moves:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(
        self, stage: str, done: float = 0, total: float = 0, detail: str = "", left: float | None = None
    ) -> None:
        """Be at `stage`, with `done` of `total` (0: not known); without `left`, the seconds left are reckoned."""
        now = time.monotonic()
        self._stage, self._done, self._total, self._detail = stage, done, total, detail
        guess = self._pace.left(done, total, now)
        self._left = guess if left is None else left
        if not self._moves and not self._quiet:
            self._say(now)

    def line(self, text: str) -> None:
        """Say something that stays."""
        if not self._quiet:
            self._console.print(" " * self._indent + text, soft_wrap=True)

    def _say(self, now: float) -> None:
        if self._stage == self._said and now - self._said_at < LINE_SECONDS:
            return
        share = [f"{self._done / self._total:.0%}"] if self._total and self._done else []
        facts = ", ".join((*share, *self._facts()))
        self.line(": ".join(part for part in (self._stage, facts) if part))
        self._said, self._said_at = self._stage, now

    def _facts(self) -> list[str]:
        # Where the total is not known, what is done is told by itself.
        facts = [f"{self._done:,.0f}"] if self._done and not self._total else []
        if self._left is not None:
            facts.append(f"{duration(self._left)} left")
        if self._detail:
            facts.append(self._detail)
        if self._below is not None and not self._moves:
            facts.append(self._below())
        return facts

    def _frame(self) -> RenderableType:
        total = self._total or None
        share = f"{self._done / total:4.0%}" if total else ""
        room = self._console.width - self._indent - BAR_WIDTH - 2
        # A long stage gives way to the share and what else can be told.
        stage = Text(self._stage)
        stage.truncate(max(room - FACTS_WIDTH, room // 2), overflow="ellipsis")
        told = Text("  ".join(part for part in (share, *self._facts()) if part))
        told.truncate(max(room - stage.cell_len, 0), overflow="ellipsis")
        row = Table.grid(padding=(0, 1))
        row.add_row(stage, ProgressBar(total=total, completed=self._done, width=BAR_WIDTH, pulse=total is None), told)
        lines: list[RenderableType] = [row]
        if self._below is not None:
            lines.append(Text(self._below(), no_wrap=True, overflow="ellipsis"))
        return Padding(Group(*lines), (0, 0, 0, self._indent))


class _Pace:
    """Guesses the time left from how far the work has come since it was first seen."""

    def __init__(self) -> None:
        self._total = self._first = 0.0
        self._at = 0.0

    def left(self, done: float, total: float, now: float) -> float | None:
        if total != self._total or done < self._first:
            self._total, self._first, self._at = total, done, now
        if not total or done <= self._first or now - self._at < GUESS_SECONDS:
            return None
        return (now - self._at) * (total - done) / (done - self._first)


def duration(seconds: float) -> str:
    """0:07, 12:30, 3:05:00 or, from two days on, 2 d 3 h."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

"""`amnestic status`: a running server on one screen, once or as it goes."""

import time
from collections.abc import Iterator

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from amnestic_client import AmnesticError, JobState, JobSummary, Load, ServerState, Status
from amnestic_server.cli import exits, render, terminal
from amnestic_server.cli.connection import Connection, connected, sentence
from amnestic_server.cli.progress import duration
from amnestic_server.cli.sections import Sectioned
from amnestic_server.cli.tables import Cell, facts
from amnestic_server.cli.watch import stage

EXAMPLE = """\b
Examples:
  amnestic status
  amnestic status --watch
  amnestic status --json | jq .active_version
"""


@click.command(cls=Sectioned, epilog=EXAMPLE)
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C. With --json: one object a line.")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="With --watch: time between two looks.",
)
@connected
def command(connection: Connection, watch: bool, interval: float) -> None:
    """Show how a server is: what serves and how well, its load, and its jobs.

    Calls and percentiles are those of the last minute. F1 is measured on the gate split through the served path.
    """
    status = connection.client.status(timeout=connection.timeout)
    if not watch:
        _show(connection, status)
        return
    try:
        _watch(connection, status, interval)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(exits.INTERRUPTED) from None


def _show(connection: Connection, status: Status) -> None:
    if connection.as_json:
        render.print_json(status)
    else:
        render.show(screen(status, connection.server))


def _watch(connection: Connection, status: Status, interval: float) -> None:
    console = terminal.console()
    if connection.as_json or not terminal.moves(console):
        for news in _looks(connection, status, interval):
            if isinstance(news, Status):
                _show(connection, news)
            else:
                click.echo(news, err=True)
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for news in _looks(connection, status, interval):
            if isinstance(news, Status):
                status, trouble = news, ""
            else:
                trouble = news
            live.update(Group(screen(status, connection.server), Text(trouble, style="red")), refresh=True)


def _looks(connection: Connection, status: Status, interval: float) -> Iterator[Status | str]:
    """The first look and every later one; a sentence where there was no answer, for the server may come back."""
    yield status
    while True:
        time.sleep(interval)
        try:
            news: Status | str = connection.client.status(timeout=connection.timeout)
        except AmnesticError as error:
            news = sentence(error, connection.server)
        yield news


def screen(status: Status, server: str) -> RenderableType:
    """Everything on one screen."""
    return facts(_facts(status, server))


def _facts(status: Status, server: str) -> Iterator[tuple[str, Cell]]:
    state = Text(status.state, style="green" if status.state is ServerState.SERVING else "yellow")
    yield "server", Text.assemble(state, f" at {server}, up {duration(status.uptime_seconds)}; {status.server_version}")
    yield "model", f"{status.model} ({status.architecture}, {status.precision}) on {status.provider}"
    yield "version", f"{status.active_version}; forgotten: {render.names(status.forgotten)}"
    if status.staged_versions:
        yield "staged", _staged(status)
    yield "F1", _quality(status)
    load = status.load
    yield "open", f"{load.open_documents:,} of {load.max_open_documents:,} documents"
    yield (
        "queue",
        f"{load.queued_documents:,} documents, {load.queued_tokens:,} of {load.max_queued_tokens:,} tokens",
    )
    yield _window(load.window_seconds), _traffic(load)
    yield "running job", _running(status)
    yield "last job", "none" if status.last_job is None else _ended(status.last_job)


def _staged(status: Status) -> str:
    versions = ", ".join(map(str, status.staged_versions))
    rollout = status.rollout
    if rollout is None:
        return versions
    return f"{versions}; version {rollout.version}: canary {rollout.canary_share:g}, shadow {rollout.shadow_share:g}"


def _quality(status: Status) -> str:
    if not status.forget_f1 and not status.retain_f1:
        return "not measured"
    kept = f"{render.mean(status.retain_f1.values())} of the labels kept (mean)"
    if not status.forget_f1:
        return kept
    measured = [label for label in status.forgotten if label in status.forget_f1]
    forgotten = ", ".join(f"{status.forget_f1[label]:.3f} of {label}" for label in measured)
    return f"{kept}; forgotten: {forgotten}"


def _window(seconds: float) -> str:
    return "last minute" if seconds >= 60 else f"last {seconds:.0f} s"


def _traffic(load: Load) -> str:
    if not load.calls:
        return "no calls"
    rates = f"{load.calls / load.window_seconds:,.1f} calls/s, {load.documents / load.window_seconds:,.1f} documents/s"
    failed = f", {load.failed_calls:,} failed" if load.failed_calls else ""
    if load.p50_seconds is None or load.p99_seconds is None:
        return rates + failed
    return f"{rates}{failed}; p50 {load.p50_seconds * 1000:,.1f} ms, p99 {load.p99_seconds * 1000:,.1f} ms"


def _running(status: Status) -> Cell:
    waiting = f"{status.queued_jobs:,} more waiting" if status.queued_jobs else ""
    job = status.running_job
    if job is None:
        return waiting or "none"
    parts = [f"{render.names(job.labels)}{' (dry run)' if job.dry_run else ''}: {stage(job)}"]
    progress = job.progress
    if job.state is JobState.RUNNING and progress is not None and progress.steps:
        parts.append(f"{progress.step / progress.steps:.0%}")
        if progress.seconds_left is not None:
            parts.append(f"{duration(progress.seconds_left)} left")
    return Text.assemble((", ".join(parts), "cyan"), f"; {waiting}" if waiting else "", f"\n{job.job_id}")


def _ended(job: JobSummary) -> Cell:
    became = (f"version {job.version}" if job.version else "dry run") if job.state is JobState.SUCCEEDED else job.error
    outcome = f": {became}" if became else ""
    state = Text(job.state, style=render.state_style(job.state))
    return Text.assemble(state, f" {render.moment(job.finished_at)}, {render.names(job.labels)}{outcome}\n{job.job_id}")

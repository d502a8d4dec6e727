"""How results look: tables and progress for people, JSON for scripts. Tables fit 80 columns.

Results go to standard output, progress to standard error, so that a pipe carries results only.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from amnestic_client import (
    ChangeReport,
    Gate,
    Job,
    JobState,
    Prediction,
    PredictResult,
    Progress,
    Version,
)

STATE_STYLES = {
    JobState.SUCCEEDED: "green",
    JobState.REJECTED: "yellow",
    JobState.FAILED: "red",
    JobState.CANCELLED: "dim",
}


def print_json(value: Any) -> None:
    """One line of JSON: dataclasses as objects, times in ISO 8601, figures that are not finite as null."""
    click.echo(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False))


def print_predictions(result: PredictResult) -> None:
    """A row a label, grouped by document, and the version that answered."""
    table = _table("document", "tokens", "label", "probability", "decision", "forgotten", right=(0, 1, 3))
    for number, prediction in enumerate(result.predictions, 1):
        for index, row in enumerate(_score_rows(prediction)):
            head = (str(number), _tokens(prediction)) if index == 0 else ("", "")
            table.add_row(*head, *row)
        table.add_section()
    _print(table, f"answered by version {result.version}")


def print_jobs(jobs: Sequence[Job]) -> None:
    """A row a job."""
    if not jobs:
        _print("no jobs")
        return
    table = _table("job", "state", "labels", "created", whole=(0, 1, 3))
    for job in jobs:
        table.add_row(job.job_id, _state(job), names(job.labels), _moment(job.created_at))
    _print(table)


def print_job(job: Job) -> None:
    """One job: how it stands, every gate that was measured, and what changed."""
    _print(_job_facts(job))
    if job.gates:
        _print(gates_table(job.gates))
    if job.change is not None:
        _print(_facts(_change_facts(job.change)))


def print_versions(versions: Sequence[Version]) -> None:
    """A row a version; F1 on the gate split, as a mean over the labels forgotten and over the others."""
    table = _table("version", "active", "forgotten", "F1 forgotten", "F1 others", "created", right=(0, 3, 4))
    for version in versions:
        forgotten = [value for label, value in version.f1.items() if label in version.forgotten]
        others = [value for label, value in version.f1.items() if label not in version.forgotten]
        table.add_row(
            str(version.version),
            "active" if version.active else "",
            names(version.forgotten),
            _mean(forgotten),
            _mean(others),
            _moment(version.created_at),
        )
    relaxed = [version for version in versions if version.relaxed_gates]
    _print(table, *(f"version {one.version} relaxed its gates: {names(one.relaxed_gates)}" for one in relaxed))


def names(labels: Iterable[str]) -> str:
    """Labels as one phrase; `none` without any."""
    return ", ".join(labels) or "none"


def gates_table(gates: Iterable[Gate]) -> Table:
    """A row a gate: what was measured, and what the limit was."""
    table = _table("gate", "label", "value", "limit", "passed", right=(2, 3))
    for gate in gates:
        passed = Text("yes", style="green") if gate.passed else Text("no", style="bold red")
        table.add_row(gate.name, gate.label or "", _figure(gate.value), _figure(gate.limit), passed)
    return table


class JobProgress:
    """A job as it goes: a bar on a terminal, otherwise a line whenever it enters a state, stage or epoch."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, markup=False, highlight=False)
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID = self._bar.add_task("waiting", total=None, detail="")
        self._said = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, job: Job) -> None:
        """Show the job as it is now."""
        running = job.progress if job.state is JobState.RUNNING else None
        description = running.stage if running and running.stage else job.state.lower()
        if self._console.is_terminal:
            self._bar.update(
                self._task,
                description=description,
                total=running.steps if running and running.steps else None,
                completed=running.step if running else 0,
                detail=_detail(running) if running else "",
            )
        else:
            self._say(f"{description} {_epoch(running)}".rstrip())

    def _say(self, line: str) -> None:
        if line != self._said:
            self._said = line
            self._console.print(line)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _print(*parts: Any) -> None:
    console = Console(markup=False, highlight=False)
    for part in parts:
        console.print(part)


def _table(*columns: str, right: Sequence[int] = (), whole: Sequence[int] = ()) -> Table:
    """An empty table; `right` columns hold figures, `whole` ones are never wrapped."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if index in right else "left",
            no_wrap=index in whole,
            overflow="fold",
        )
    return table


def _facts(facts: Iterable[tuple[str, str | Text]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(name, value)
    return grid


def _score_rows(prediction: Prediction) -> Iterable[tuple[str | Text, ...]]:
    for score in prediction.scores:
        yield (
            Text(score.label, style="bold" if score.decision else ""),
            f"{score.probability:.3f}",
            "yes" if score.decision else "no",
            "forgotten" if score.forgotten else "",
        )


def _tokens(prediction: Prediction) -> str:
    tokens = str(prediction.tokens)
    if prediction.windows > 1:
        tokens += f" in {prediction.windows} windows"
    return f"{tokens}, cut" if prediction.truncated else tokens


def _state(job: Job) -> Text:
    return Text(job.state, style=STATE_STYLES.get(job.state, "cyan"))


def _job_facts(job: Job) -> Table:
    facts: list[tuple[str, str | Text]] = [
        ("job", job.job_id),
        ("state", _state(job)),
        ("labels", names(job.labels)),
        ("forgotten then", names(job.forgotten)),
        ("created", _moment(job.created_at)),
    ]
    if job.finished_at is not None:
        facts.append(("finished", _moment(job.finished_at)))
    if job.reason:
        facts.append(("reason", job.reason))
    if job.relaxed_gates:
        facts.append(("relaxed gates", names(job.relaxed_gates)))
    if job.error is not None:
        facts.append(("error", job.error))
    facts.append(("outcome", _outcome(job)))
    return _facts(facts)


def _outcome(job: Job) -> str:
    match job.state:
        case JobState.SUCCEEDED if job.dry_run:
            return "dry run: measured only, the served version is as it was"
        case JobState.SUCCEEDED:
            return f"version {job.version} is served, swapped in {job.swap_seconds * 1000:.1f} ms"
        case JobState.REJECTED:
            return "a gate failed: the served version is as it was"
        case JobState.FAILED | JobState.CANCELLED:
            return "the served version is as it was"
    return _epoch(job.progress) or "not ended"


def _change_facts(change: ChangeReport) -> Iterable[tuple[str, str]]:
    share = f"{change.parameters_changed_ratio:.3%}"
    yield "rows changed", f"{change.rows_changed:,}"
    yield "parameters changed", f"{change.parameters_changed:,} ({share} of the classifier)"
    yield "documents", f"{change.forget_documents:,} to forget, {change.retain_documents:,} to retain"
    yield "training", f"{change.training_seconds:.1f} s"
    yield "patch", change.patch_digest[:16]
    yield "word pieces", names(change.tokens[:8]) + (" ..." if len(change.tokens) > 8 else "")


def _detail(progress: Progress) -> str:
    parts = [_epoch(progress)]
    if progress.step:
        parts += [f"forget {progress.forget_loss:.3f}", f"utility {progress.utility_loss:.3f}"]
    if progress.seconds_left is not None:
        parts.append(f"{_duration(progress.seconds_left)} left")
    return "  ".join(part for part in parts if part)


def _epoch(progress: Progress | None) -> str:
    return f"epoch {progress.epoch}/{progress.epochs}" if progress is not None and progress.epoch else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _moment(moment: datetime | None) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M") if moment is not None else ""


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else ""


def _figure(value: float) -> str:
    return f"{value:.4g}"

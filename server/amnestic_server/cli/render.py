"""How results look: tables that fit the terminal for people, JSON for scripts. All of it goes to standard output."""

import dataclasses
import json
import math
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

import click
from rich.text import Text

from amnestic_client import (
    ChangeReport,
    Gate,
    Job,
    JobState,
    Prediction,
    PredictResult,
    Version,
)
from amnestic_server.cli import terminal
from amnestic_server.cli.progress import duration
from amnestic_server.cli.tables import Cell, Column, Fitted, facts

STATE_STYLES = {
    JobState.SUCCEEDED: "green",
    JobState.REJECTED: "yellow",
    JobState.FAILED: "red",
    JobState.CANCELLED: "dim",
    JobState.STAGED: "magenta",
}


def print_json(value: Any) -> None:
    """One line of JSON: dataclasses as objects, times in ISO 8601, figures that are not finite as null."""
    click.echo(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False))


def print_predictions(result: PredictResult) -> None:
    """A row a label, grouped by document, and the version that answered."""
    columns = (
        Column("document", right=True),
        Column("tokens", right=True, drop=2),
        Column("label", words=True),
        Column("probability", right=True),
        Column("decision"),
        Column("forgotten", drop=1),
    )
    rows: list[Sequence[Cell] | None] = []
    for number, prediction in enumerate(result.predictions, 1):
        for index, row in enumerate(_score_rows(prediction)):
            head = (str(number), _tokens(prediction)) if index == 0 else ("", "")
            rows.append((*head, *row))
        rows.append(None)
    show(Fitted(columns, rows), f"answered by version {result.version}")


def print_jobs(jobs: Sequence[Job]) -> None:
    """A row a job."""
    if not jobs:
        show("no jobs")
        return
    columns = (
        Column("job"),
        Column("state"),
        Column("labels", words=True),
        Column("version", right=True, drop=3),
        Column("created", drop=1),
        Column("took", right=True, drop=2),
    )
    rows = [
        (
            job.job_id,
            _state(job, with_share=True),
            names(job.labels),
            str(job.version or ""),
            moment(job.created_at),
            _took(job),
        )
        for job in jobs
    ]
    show(Fitted(columns, rows))


def print_job(job: Job) -> None:
    """One job: how it stands, every gate that was measured, and what changed."""
    show(facts(_job_facts(job)))
    if job.gates:
        show("", gates_table(job.gates))
    if job.change is not None:
        show("", facts(_change_facts(job.change)))


def print_versions(versions: Sequence[Version]) -> None:
    """A row a version; F1 on the gate split, as a mean over the labels forgotten and over the others."""
    columns = (
        Column("version", right=True),
        Column("state"),
        Column("forgotten", words=True),
        Column("F1 forgotten", right=True, drop=2),
        Column("F1 others", right=True, drop=3),
        Column("created", drop=1),
    )
    rows = []
    for version in versions:
        forgotten = [value for label, value in version.f1.items() if label in version.forgotten]
        others = [value for label, value in version.f1.items() if label not in version.forgotten]
        rows.append(
            (
                str(version.version),
                _version_state(version),
                names(version.forgotten),
                mean(forgotten),
                mean(others),
                moment(version.created_at),
            )
        )
    relaxed = [version for version in versions if version.relaxed_gates]
    show(
        Fitted(columns, rows),
        *(f"version {one.version} relaxed its gates: {names(one.relaxed_gates)}" for one in relaxed),
    )


def _version_state(version: Version) -> Text:
    if version.active:
        return Text("active", style="green")
    return Text("staged" if version.staged else "withdrawn" if version.withdrawn else "", style="magenta")


def names(labels: Iterable[str]) -> str:
    """Labels as one phrase; `none` without any."""
    return ", ".join(labels) or "none"


def gates_table(gates: Iterable[Gate]) -> Fitted:
    """A row a gate: what was measured, and what the limit was."""
    columns = (
        Column("gate"),
        Column("label", words=True),
        Column("value", right=True),
        Column("limit", right=True, drop=1),
        Column("passed"),
    )
    yes, no = Text("yes", style="green"), Text("no", style="bold red")
    rows = [
        (gate.name, gate.label or "", _figure(gate.value), _figure(gate.limit), yes if gate.passed else no)
        for gate in gates
    ]
    return Fitted(columns, rows)


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


def show(*parts: Any) -> None:
    """Print to standard output, as wide as the terminal; a sentence may hold a path, which stays whole."""
    console = terminal.console()
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


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


def _state(job: Job, *, with_share: bool = False) -> Text:
    progress = job.progress
    running = with_share and job.state is JobState.RUNNING and progress is not None and progress.steps
    share = f" {progress.step / progress.steps:.0%}" if running and progress is not None else ""
    return Text(f"{job.state}{share}", style=state_style(job.state))


def state_style(state: JobState) -> str:
    """How the state of a job is coloured."""
    return STATE_STYLES.get(state, "cyan")


def _job_facts(job: Job) -> Iterable[tuple[str, Cell]]:
    yield "job", job.job_id
    yield "state", _state(job)
    yield "labels", names(job.labels)
    yield "forgotten then", names(job.forgotten)
    yield "created", moment(job.created_at)
    if job.finished_at is not None:
        yield "finished", f"{moment(job.finished_at)}, took {_took(job)}" if job.started_at else moment(job.finished_at)
    if job.reason:
        yield "reason", job.reason
    if job.relaxed_gates:
        yield "relaxed gates", names(job.relaxed_gates)
    if job.error is not None:
        yield "error", job.error
    yield "outcome", _outcome(job)


def _took(job: Job) -> str:
    if job.started_at is None or job.finished_at is None:
        return ""
    return duration((job.finished_at - job.started_at).total_seconds())


def _outcome(job: Job) -> str:
    match job.state:
        case JobState.SUCCEEDED if job.dry_run:
            return "dry run: measured only, the served version is as it was"
        case JobState.SUCCEEDED:
            return f"version {job.version} is served, swapped in {job.swap_seconds * 1000:.1f} ms"
        case JobState.REJECTED:
            return "a gate failed: the served version is as it was"
        case JobState.STAGED:
            return (
                f"version {job.version} is staged. Next: amnestic rollout set --shadow 1, amnestic promote"
                f" {job.version}, or amnestic jobs cancel {job.job_id}"
            )
        case JobState.FAILED | JobState.CANCELLED if job.stage and job.version:
            return f"version {job.version} is withdrawn: the served version is as it was"
        case JobState.FAILED | JobState.CANCELLED:
            return "the served version is as it was"
    return "not ended"


def _change_facts(change: ChangeReport) -> Iterable[tuple[str, str]]:
    share = f"{change.parameters_changed_ratio:.3%}"
    yield "rows changed", f"{change.rows_changed:,}"
    yield "parameters changed", f"{change.parameters_changed:,} ({share} of the classifier)"
    yield "documents", f"{change.forget_documents:,} to forget, {change.retain_documents:,} to retain"
    yield "training", f"{change.training_seconds:.1f} s"
    yield "patch", change.patch_digest[:16]
    yield "word pieces", names(change.tokens[:8]) + (" ..." if len(change.tokens) > 8 else "")


def moment(when: datetime | None) -> str:
    """A time on the clock of whoever looks."""
    return when.astimezone().strftime("%Y-%m-%d %H:%M") if when is not None else ""


def mean(values: Collection[float]) -> str:
    """To three places; empty without any."""
    return f"{sum(values) / len(values):.3f}" if values else ""


def _figure(value: float) -> str:
    return f"{value:.4g}"

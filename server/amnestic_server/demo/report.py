"""Everything that the demo tells: its steps, held-out documents, the table at the end. Fits 80 columns.

What takes time is shown by `cli.progress`, on standard error.
"""

import dataclasses
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from amnestic_client import ChangeReport, GateLimits, Job, Prediction
from amnestic_server.cli import terminal
from amnestic_server.cli.progress import duration
from amnestic_server.cli.render import gates_table, names
from amnestic_server.demo.quality import Quality
from amnestic_server.demo.settings import DemoSettings
from amnestic_server.demo.stream import Phase, Stream
from amnestic_unlearn.corpus import Document

INDENT = " " * 6
WIDTH = 80
CLAIM = (
    "What this shows is behavioural forgetting of a class, not certified deletion of anybody's data. A forget F1 of 0"
    " proves little by itself, since a change of the head's bias alone gives it too; so the probe stands beside it:"
    " what it recovers after forgetting is still in the frozen encoder's features, for whoever can read those."
)


@dataclass(frozen=True, slots=True)
class Figures:
    """The demo's result; the names are the keys of its JSON. Requests and p50, p99 are those of the stream."""

    forget_f1_before: float
    forget_f1_after: float
    retain_f1_before: float
    retain_f1_after: float
    probe_auc_before: float
    probe_auc_after: float
    parameters_changed: int
    parameters_changed_ratio: float
    seconds_to_forget: float
    requests_before: int
    requests_during: int
    requests_after: int
    requests_failed: int
    requests_answered_by_older: int
    p50_ms_before: float
    p50_ms_during: float
    p50_ms_after: float
    p99_ms_before: float
    p99_ms_during: float
    p99_ms_after: float
    swap_ms: float


def figures(before: Quality, after: Quality, job: Job, seconds: float, stream: Stream) -> Figures:
    """Of a job that succeeded after `seconds`, and a stream that has ended."""
    assert job.change is not None, "a job that succeeded has changed something"
    assert job.version is not None, "a job that succeeded has made a version"
    was, meanwhile, then = map(stream.window, Phase)
    return Figures(
        forget_f1_before=before.forget_f1,
        forget_f1_after=after.forget_f1,
        retain_f1_before=before.retain_f1,
        retain_f1_after=after.retain_f1,
        probe_auc_before=before.probe_auc,
        probe_auc_after=after.probe_auc,
        parameters_changed=job.change.parameters_changed,
        parameters_changed_ratio=job.change.parameters_changed_ratio,
        seconds_to_forget=seconds,
        requests_before=was.answered,
        requests_during=meanwhile.answered,
        requests_after=then.answered,
        requests_failed=len(stream.failures),
        requests_answered_by_older=stream.answered_by_older(job.version),
        p50_ms_before=was.p50_ms,
        p50_ms_during=meanwhile.p50_ms,
        p50_ms_after=then.p50_ms,
        p99_ms_before=was.p99_ms,
        p99_ms_during=meanwhile.p99_ms,
        p99_ms_after=then.p99_ms,
        swap_ms=job.swap_seconds * 1000,
    )


class Narrator:
    """Says what the demo does, with the time since it began."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._begun = time.monotonic()

    def title(self, text: str) -> None:
        self.console.print(Text(text, style="bold"), end="\n\n")

    def step(self, text: str) -> None:
        """A step that begins now."""
        clock = duration(time.monotonic() - self._begun)
        self.console.print(Text.assemble((f"{clock:>4}", "dim"), "  ", (text, "bold")))

    def detail(self, text: str) -> None:
        """What came of a step."""
        self._wrapped(text, INDENT)

    def gates(self, job: Job) -> None:
        """What was measured of the candidate before it could serve, and which limits were looser than the defaults."""
        self.console.print()
        self.console.print(Padding(gates_table(job.gates), (0, 0, 0, len(INDENT)), expand=False))
        if job.relaxed_gates:
            self.detail(f"looser than the defaults: {names(job.relaxed_gates)}")
        self.console.print()

    def documents(self, documents: Sequence[Document], answers: Sequence[Prediction], version: int) -> None:
        """The text of each document, shortened, its labels on record, and those the model decides for."""
        for document, answer in zip(documents, answers, strict=True):
            self.console.print()
            self._wrapped(shortened(document.text), INDENT, style="italic")
            self._answer("on record", names(document.labels))
            self._answer(f"version {version}", _decisions(answer))
        self.console.print()

    def changes(
        self, documents: Sequence[Document], before: Sequence[Prediction], after: Sequence[Prediction], version: int
    ) -> None:
        """The same documents, shown by their beginnings, as the base version and as `version` answer."""
        for document, was, now in zip(documents, before, after, strict=True):
            self.console.print()
            self._wrapped(shortened(document.text, WIDTH - len(INDENT)), INDENT, style="italic")
            self._answer("version 1", _decisions(was))
            self._answer(f"version {version}", _decisions(now))
        self.console.print()

    def table(self, label: str, others: int, result: Figures) -> None:
        """The one table, and what it does not claim."""
        self.console.print()
        self.console.print(_table(label, others, result))
        self.console.print()
        self._wrapped(CLAIM, "", style="dim")

    def report(self, path: Path) -> None:
        """Where the report of the job is."""
        self.console.print()
        self._wrapped("What was asked, changed and measured, as a page for people to read:", "")
        # Never wrapped, as it is there to be copied.
        self.console.print(f"  {_quoted(path)}", soft_wrap=True)

    def commands(self, settings: DemoSettings, version: int, another: str) -> None:
        """How to go on with what the demo leaves."""
        self.console.print()
        self._wrapped(f"Serve the model, version {version} with {settings.label} forgotten, and go on with it:", "")
        program = _program()
        serve = [f"{program} serve --bundle {_quoted(settings.bundle)} \\", f"  --store {_quoted(settings.store)} \\"]
        serve += [f"  --corpus {_quoted(settings.corpus)}"]
        others = [
            'predict "Admission diagnosis: Diabetic ketoacidosis."',
            f"unlearn {another}{_options(settings.gates)}",
            "versions",
            'rollback 1 --reason "the demo is over" --restore-forgotten',
        ]
        for line in (*serve, *(f"{program} {other}" for other in others)):
            # Never wrapped: these lines are there to be copied.
            self.console.print(f"  {line}", soft_wrap=True)

    def _answer(self, name: str, text: str) -> None:
        self._wrapped(f"{name:<11}{text}", INDENT, hang=11)

    def _wrapped(self, text: str, indent: str, hang: int = 0, style: str = "") -> None:
        for paragraph in text.splitlines():
            hanging = indent + " " * hang
            filled = textwrap.fill(paragraph, WIDTH, initial_indent=indent, subsequent_indent=hanging)
            self.console.print(Text(filled, style=style), soft_wrap=True)


def console_for(as_json: bool) -> Console:
    """Standard output; with JSON on it, standard error."""
    return terminal.console(stderr=as_json)


def shortened(text: str, width: int = 200) -> str:
    """The beginning of a document on one line."""
    return textwrap.shorten(text, width, placeholder=" ...")


def change_facts(change: ChangeReport) -> str:
    """What a job changed, in a sentence."""
    learned_from = f"{change.forget_documents:,} documents to forget and {change.retain_documents:,} to retain"
    words = names(change.tokens[:6])
    return f"{change.rows_changed:,} embedding rows and the head changed, from {learned_from}; rows of: {words} ..."


def _decisions(prediction: Prediction) -> str:
    decided = [f"{score.label} {score.probability:.2f}" for score in prediction.scores if score.decision]
    return names(decided)


def _table(label: str, others: int, result: Figures) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True)
    for phase in Phase:
        table.add_column(phase.value, justify="right", min_width=9, no_wrap=True)
    row = table.add_row
    row(f"forget F1, {label}", f"{result.forget_f1_before:.3f}", "", f"{result.forget_f1_after:.3f}")
    row(f"retained macro F1, {others} labels", f"{result.retain_f1_before:.3f}", "", f"{result.retain_f1_after:.3f}")
    row("fresh linear probe, AUROC", f"{result.probe_auc_before:.3f}", "", f"{result.probe_auc_after:.3f}")
    table.add_section()
    row("p50, ms", *map(_figure, (result.p50_ms_before, result.p50_ms_during, result.p50_ms_after)))
    row("p99, ms", *map(_figure, (result.p99_ms_before, result.p99_ms_during, result.p99_ms_after)))
    row("predictions answered", *map(_count, (result.requests_before, result.requests_during, result.requests_after)))
    table.add_section()
    row("predictions failed", "", "", _count(result.requests_failed))
    row("answers of the old version after success", "", "", _count(result.requests_answered_by_older))
    row("time to forget", "", "", f"{result.seconds_to_forget:.1f} s")
    row("swap pause", "", "", f"{result.swap_ms:.2f} ms")
    row(f"parameters changed, {result.parameters_changed:,}", "", "", f"{result.parameters_changed_ratio:.2%}")
    return table


def _program() -> str:
    """How to call `amnestic` from here: by its name if the shell finds this one, else by its path."""
    here = Path(sys.executable).with_name("amnestic")
    found = shutil.which("amnestic")
    return "amnestic" if found is not None and Path(found).samefile(here) else _quoted(here)


def _quoted(path: Path) -> str:
    """For a shell; relative if it lies below the current directory."""
    absolute = path.absolute()
    return shlex.quote(str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute))


def _options(gates: GateLimits) -> str:
    """The limits that are set, as options of `amnestic unlearn`: another label is to be forgotten under the same."""
    limits = ((one.name, getattr(gates, one.name)) for one in dataclasses.fields(gates))
    return "".join(f" --{name.replace('_', '-')} {limit:g}" for name, limit in limits if limit is not None)


def _figure(value: float) -> str:
    return f"{value:.1f}"


def _count(value: int) -> str:
    return f"{value:,}"

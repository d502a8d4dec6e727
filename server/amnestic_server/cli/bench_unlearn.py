"""`amnestic bench unlearn`: every way of forgetting, under attack and beside a model trained without the label."""

import contextlib
import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from amnestic_server.cli import exits
from amnestic_server.cli.progress import Bar, quiet_option
from amnestic_server.cli.render import print_json, show
from amnestic_server.cli.tables import Column, Fitted
from amnestic_server.settings import available_cpus
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn import open_corpora
from amnestic_unlearn.architecture import CheckpointError
from amnestic_unlearn.bench import ledger, matrix, workers
from amnestic_unlearn.bench.cells import RESULTS, SEQUENCE, Plan, Source
from amnestic_unlearn.bench.matrix import BenchEncoder
from amnestic_unlearn.bench.page import ReportError
from amnestic_unlearn.corpus import CorpusError
from amnestic_unlearn.train_settings import TrainError

if TYPE_CHECKING:
    from amnestic_unlearn.bench.summary import Estimate, Results

COLLECTIONS = {collection.name: collection for collection in (open_corpora.MTSAMPLES, open_corpora.CODIESP)}
# Of the figures that are printed.
TITLES = {
    "encoder": "encoder",
    "method": "method",
    "request": "request",
    "forget_f1": "forget F1",
    "worst_forget_f1": "worst forget F1",
    "retain_f1_delta": "change of retain F1",
    "probe_recovery": "recovery",
    "seconds": "processor s",
}
EXAMPLES = """\b
Examples:
  amnestic bench unlearn --quick
  amnestic bench unlearn --data data --jobs 2 --report docs/benchmarks
  amnestic bench unlearn --corpus notes.parquet --target oncology --encoder my-bert --method paper
  amnestic bench unlearn --sequence --corpus eicu --encoder small --method amnestic
"""


@click.command(epilog=EXAMPLES)
@click.option("--corpus", "names", multiple=True, help=f"One of {', '.join(matrix.CORPORA)}, or a file. Repeatable.")
@click.option("--target", "targets", multiple=True, help="Label to forget, one at a time. Repeatable; files need it.")
@click.option(
    "--encoder",
    "encoder_names",
    multiple=True,
    help=f"One of {', '.join(matrix.ENCODERS)}, or a directory or hub id of a pretrained checkpoint. Repeatable.",
)
@click.option("--method", "methods", multiple=True, help="Way of forgetting; all by default. Repeatable.")
@click.option("--seed", "seeds", type=click.IntRange(0), multiple=True, help="0, 1 and 2 by default. Repeatable.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder with mtsamples and codiesp, which aren't shipped."
)
@click.option("--quick", is_flag=True, help="A few minutes: one label of eICU, one seed, a small BERT, few methods.")
@click.option("--sequence", is_flag=True, help="Forget the labels of a corpus in turn, not one at a time.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out/bench/unlearn"),
    show_default=True,
    help="Where models and results are kept; a run goes on with what is there.",
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes that share the cells.")
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), help="Write tables and plots to a folder.")
@click.option("--report-only", is_flag=True, help="Run nothing: tell what was measured.")
@quiet_option
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as one JSON object.")
def unlearn(
    names: tuple[str, ...],
    targets: tuple[str, ...],
    encoder_names: tuple[str, ...],
    methods: tuple[str, ...],
    seeds: tuple[int, ...],
    data: Path | None,
    quick: bool,
    sequence: bool,
    out: Path,
    jobs: int,
    report: Path | None,
    report_only: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure what ways of forgetting a label give, cost and leave to an attacker.

    Trains what is missing, runs every cell (corpus, encoder, seed, label, method) that has no result in OUT yet, and
    tells the means. It may be stopped at any time, and run beside itself: what is measured is kept.
    """
    try:
        plan = Plan(
            out=str(out),
            sources=_sources(names or _by_default(quick), targets, data, out, quick),
            encoders=_encoders(encoder_names, quick, run=not report_only),
            seeds=seeds or ((0,) if quick else matrix.SEEDS),
            methods=_methods(methods, quick),
            sequence=sequence,
            threads=max(1, available_cpus() // jobs),
        )
        if not report_only:
            _run(plan, jobs, quiet)
        _tell(plan, report, as_json)
    except KeyboardInterrupt:
        click.echo("Stopped; what was measured is kept: run again to go on.", err=True)
        raise click.exceptions.Exit(exits.INTERRUPTED) from None
    except (CheckpointError, CorpusError, TrainError, ledger.LedgerError, workers.WorkersError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _by_default(quick: bool) -> tuple[str, ...]:
    return ("eicu",) if quick else tuple(matrix.CORPORA)


def _sources(
    names: Sequence[str], targets: Sequence[str], data: Path | None, out: Path, quick: bool
) -> tuple[Source, ...]:
    sources = []
    for name in names:
        path = _corpus(name, data, out / "corpora")
        if path is None:
            click.echo(f"skipping {name}: it is not shipped, and --data names no folder with {_file(name)}", err=True)
            continue
        known = matrix.CORPORA.get(name)
        chosen = targets or (known.targets[: 1 if quick else None] if known else ())
        if not chosen:
            raise click.UsageError(f"{name} is a file of your own: give --target")
        labels = {label for document in corpora.stream(path) for label in document.labels}
        if held := tuple(label for label in chosen if label in labels):
            own = None if known else matrix.own_name(path.name.partition(".")[0], corpora.digest(path))
            sources.append(Source(own or name, str(path), held))
    if missing := set(targets) - {target for source in sources for target in source.targets}:
        raise click.UsageError(f"no corpus has the label {min(missing)!r}")
    if not sources:
        raise click.UsageError("no corpus is left to run on")
    _told_apart("--corpus", [source.name for source in sources])
    return tuple(sources)


def _told_apart(option: str, names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise click.UsageError(f"{option} names {name} {count} times")


def _corpus(name: str, data: Path | None, folder: Path) -> Path | None:
    """The corpus file; None for a collection that is not at hand. Raises CorpusError."""
    if name not in matrix.CORPORA:
        path = Path(name)
        if not path.is_file():
            raise click.UsageError(f"{name} is neither a file nor one of {', '.join(matrix.CORPORA)}")
        return path
    folder.mkdir(parents=True, exist_ok=True)
    # As it was first made: models that were trained on it stay valid.
    path = folder / f"{name}.parquet"
    if path.exists():
        return path
    if name not in COLLECTIONS:
        partial = folder / f".{name}.partial"
        shutil.copyfile(corpora.SHIPPED, partial)
        return partial.replace(path)
    for source in (data / name / _file(name), data / _file(name)) if data else ():
        if source.is_file():
            open_corpora.convert(COLLECTIONS[name], source, path)
            return path
    return None


def _file(name: str) -> str:
    return COLLECTIONS[name].file


def _encoders(names: Sequence[str], quick: bool, run: bool) -> tuple[BenchEncoder, ...]:
    """Those of the names. To `run`, their weights must be at hand; a report alone needs and fetches none."""
    if quick and not names:
        return (matrix.QUICK,)
    known = {**matrix.ENCODERS, matrix.QUICK.name: matrix.QUICK}
    found = tuple(known[name] if name in known else matrix.pretrained(name, run) for name in names or matrix.ENCODERS)
    _told_apart("--encoder", [encoder.name for encoder in found])
    if run:
        for encoder in found:
            encoder.checkpoint()
    return found


def _methods(names: Sequence[str], quick: bool) -> tuple[str, ...]:
    from amnestic_unlearn.bench.methods import METHOD_NAMES  # torch: not for --help

    if unknown := set(names) - set(METHOD_NAMES):
        raise click.UsageError(f"no method {min(unknown)!r}; there are {', '.join(METHOD_NAMES)}")
    wanted = names or (matrix.QUICK_METHODS if quick else METHOD_NAMES)
    return tuple(name for name in METHOD_NAMES if name in wanted)


def _run(plan: Plan, jobs: int, quiet: bool) -> None:
    from amnestic_unlearn.bench import run, sequence

    total = (sequence.left if plan.sequence else run.left)(plan)
    if not total:
        click.echo("nothing is left to run", err=True)
        return
    # Closed at once when interrupted, which stops the processes.
    with Bar(quiet=quiet) as bar, contextlib.closing(workers.run(plan, jobs)) as told:
        done = 0
        for row in told:
            if row.get("begun"):
                bar.update(_name(row), done, total)
            else:
                done += 1
                bar.line(f"{done}/{total}  {_name(row)}: {_outcome(row)}")
                bar.update(_name(row), done, total)


def _name(row: ledger.Row) -> str:
    what = row.get("target") or f"request {row['step']}"
    return f"{row['corpus']}, {row['encoder']}, seed {row['seed']}, {what}: {row['method']}"


def _outcome(row: ledger.Row) -> str:
    if row["error"]:
        return str(row["error"])
    change = f"change of retain F1 {row['retain_f1_delta']:+.3f}"
    return f"forget F1 {row['forget_f1']:.3f}, {change}, {row['seconds']:.1f} processor s"


def _tell(plan: Plan, report: Path | None, as_json: bool) -> None:
    from amnestic_unlearn.bench.sequence_table import counted, latest_requests, of_requests, steps
    from amnestic_unlearn.bench.summary import latest

    out, cells, requests = Path(plan.out), dataclasses.replace(plan, sequence=False).cells(), plan.requests()
    rows, sequence = ledger.read(out / RESULTS), of_requests(ledger.read(out / SEQUENCE), requests)
    if rows:
        ledger.write_csv(rows, out / "results.csv")
    if plan.sequence:
        what, total, turns = "requests", len(requests), latest_requests(sequence)
        measured, failed = counted(turns)
        summary = [
            {field.name: getattr(step, field.name) for field in dataclasses.fields(step)} for step in steps(turns)
        ]
    else:
        what, total, results = "cells", len(cells), latest(rows, cells)
        failed = sum(bool(row["error"]) for row in results.values())
        measured = len(results) - failed
        summary = list(_summary(results, plan))
    if summary and not as_json:
        show(_table(summary))
    click.echo(f"{measured} of {total} {what} measured, {failed} failed; rows in {plan.results}", err=as_json)
    if report is not None:
        click.echo(f"report in {_report(rows, sequence, cells, report)}", err=as_json)
    if as_json:
        told = {what: total, "measured": measured, "failed": failed, "summary": summary}
        print_json({**told, "sequence": sequence} if plan.sequence else told)


def _report(rows: Sequence[ledger.Row], sequence: Sequence[ledger.Row], cells: Any, folder: Path) -> Path:
    try:
        from amnestic_unlearn.bench import report
    except ModuleNotFoundError as error:
        raise click.ClickException(f"--report needs {error.name}: install amnestic[bench]") from error
    try:
        return report.write(rows, sequence, cells, folder)
    except ReportError as error:
        raise click.ClickException(str(error)) from error


def _summary(results: "Results", plan: Plan) -> Iterator[dict[str, "str | Estimate"]]:
    from amnestic_unlearn.bench.summary import chosen, mean, recovery

    for encoder in plan.encoders:
        for method in plan.methods:
            if rows := chosen(results, encoder=encoder.name, method=method):
                yield {
                    "encoder": encoder.name,
                    "method": method,
                    "forget_f1": mean(rows, "forget_f1"),
                    "retain_f1_delta": mean(rows, "retain_f1_delta"),
                    "probe_recovery": recovery(rows, results, "probe_auroc"),
                    "seconds": mean(rows, "seconds"),
                }


def _table(summary: Sequence[dict[str, Any]]) -> Fitted:
    from amnestic_unlearn.bench.summary import Estimate
    from amnestic_unlearn.bench.table import figure

    columns = [
        Column(TITLES[name], words=True) if name in ("encoder", "method") else Column(TITLES[name], right=True)
        for name in summary[0]
    ]
    rows = [
        tuple(figure(value, 3, plain=True) if isinstance(value, Estimate) else str(value) for value in row.values())
        for row in summary
    ]
    return Fitted(columns, rows)

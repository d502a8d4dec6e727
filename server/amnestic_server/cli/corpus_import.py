"""`amnestic corpus import`: a corpus from the tables of a clinical database, or from a published collection."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from amnestic_server.cli.progress import Bar, quiet_option
from amnestic_server.cli.render import print_json
from amnestic_unlearn import icd, open_corpora
from amnestic_unlearn.corpus import CorpusError
from amnestic_unlearn.eicu import import_eicu
from amnestic_unlearn.mimic import MIMIC_III, MIMIC_IV, Database, ImportedNotes, import_mimic
from amnestic_unlearn.open_corpora import Collection

OUT = click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write: .parquet, .csv, .csv.gz, .jsonl or .jsonl.gz.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print what was written as one JSON object.")
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)

# What a corpus of notes leaves out: field, one, several.
_LEFT_OUT = (
    ("in_error", "note marked as an error", "notes marked as errors"),
    ("without_admission", "note of no admission", "notes of no admission"),
    ("superseded", "note that a later one of its admission stands for", "notes that a later one stands for"),
    ("without_diagnosis", "admission without a code", "admissions without a code"),
    ("without_summary", "admission with addenda alone", "admissions with addenda alone"),
    ("empty", "empty summary", "empty summaries"),
    ("duplicates", "summary that was met before", "summaries that were met before"),
)


@click.group(name="import")
def import_group() -> None:
    """Make a corpus from the tables of a clinical database, or from a published collection."""


@import_group.command(name="eicu")
@click.option(
    "--src",
    required=True,
    type=_FOLDER,
    help="Folder of the eICU tables, .csv or .csv.gz: patient, diagnosis, pastHistory, note, treatment.",
)
@OUT
@click.option("--labels", help="Organ systems to keep as labels, separated by commas.")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=6,
    show_default=True,
    help="Without --labels: how many of the most frequent organ systems to keep.",
)
@quiet_option
@JSON
def eicu_command(src: Path, out: Path, labels: str | None, top: int, quiet: bool, as_json: bool) -> None:
    """Organ systems that intensive-care stays are diagnosed in, from the eICU database or its demo.

    Tables of any size stream through; patients are divided among the splits by a hash of their id.

    \b
    Example:
      amnestic corpus import eicu --src eicu-crd-2.0 --out eicu.parquet
    """
    with importing(out, quiet) as show:
        result = import_eicu(src, out, names(labels), top, lambda done, total: show("stays", done, total))
    if as_json:
        print_json({"out": str(out), **dataclasses.asdict(result)})
    else:
        click.echo(f"{out}: {result.documents} documents, labels {', '.join(result.labels)}")


def _note_options(tables: str, notes: str) -> Callable[[Any], Any]:
    options = (
        click.option(
            "--src", required=True, type=_FOLDER, help=f"Folder that holds {tables}, gzipped or not, or lies above it."
        ),
        click.option("--notes", type=_FOLDER, help=f"Folder of {notes}, if it is not in or below --src."),
        OUT,
        click.option(
            "--categories",
            type=_FILE,
            help="Categories of your own, .toml or .json: for each name, ranges of codes under icd9 and icd10.",
        ),
        click.option(
            "--labels",
            help="Categories to keep as labels, separated by commas; by default all of --categories, else"
            f" {', '.join(icd.DEFAULT)}.",
        ),
        click.option("--keep-diagnoses", is_flag=True, help="Keep the sections of a note that list diagnoses."),
        quiet_option,
        JSON,
    )

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@import_group.command(name="mimic-iv")
@_note_options("diagnoses_icd.csv", "discharge.csv")
def mimic_iv_command(**options: Any) -> None:
    """Disease groups that admissions are coded with, from MIMIC-IV (hosp) and MIMIC-IV-Note.

    A document is the last discharge summary of an admission with its addenda. Labels are categories of its ICD
    codes. Sections that list diagnoses are left out, for they state the labels. Files of any size stream through;
    patients are divided among the splits by a hash of their id.

    \b
    Example:
      amnestic corpus import mimic-iv --src mimiciv/3.1/hosp \\
        --notes mimic-iv-note/2.2/note --out mimic4.parquet
    """
    _import_notes(MIMIC_IV, **options)


@import_group.command(name="mimic-iii")
@_note_options("DIAGNOSES_ICD.csv", "NOTEEVENTS.csv")
def mimic_iii_command(**options: Any) -> None:
    """Disease groups that admissions are coded with, from MIMIC-III.

    A document is the last discharge summary of an admission with its addenda. Labels are categories of its ICD
    codes. Sections that list diagnoses are left out, for they state the labels. Files of any size stream through;
    patients are divided among the splits by a hash of their id.

    \b
    Example:
      amnestic corpus import mimic-iii --src mimiciii/1.4 --out mimic3.parquet
    """
    _import_notes(MIMIC_III, **options)


@import_group.command(name="mtsamples")
@click.option("--src", required=True, type=_FILE, help=f"The file {open_corpora.MTSAMPLES.file}.")
@OUT
@quiet_option
@JSON
def mtsamples_command(src: Path, out: Path, quiet: bool, as_json: bool) -> None:
    """Medical specialties of transcribed reports, from JSON Lines with id, text and labels.

    \b
    Example:
      amnestic corpus import mtsamples --src mtsamples_multilabel.jsonl.gz \\
        --out mtsamples.parquet
    """
    _convert(open_corpora.MTSAMPLES, src, out, quiet, as_json)


@import_group.command(name="codiesp")
@click.option("--src", required=True, type=_FILE, help=f"The file {open_corpora.CODIESP.file}.")
@OUT
@quiet_option
@JSON
def codiesp_command(src: Path, out: Path, quiet: bool, as_json: bool) -> None:
    """ICD-10-CM chapters of published clinical cases, from JSON Lines with id, text and labels.

    \b
    Example:
      amnestic corpus import codiesp --src codiesp.jsonl.gz --out codiesp.parquet
    """
    _convert(open_corpora.CODIESP, src, out, quiet, as_json)


def _import_notes(
    database: Database,
    src: Path,
    notes: Path | None,
    out: Path,
    categories: Path | None,
    labels: str | None,
    keep_diagnoses: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    with importing(out, quiet) as show:
        known = icd.read_categories(categories) if categories else icd.CATEGORIES
        chosen = names(labels) or (tuple(known) if categories else icd.DEFAULT)
        result = import_mimic(
            database,
            src,
            out,
            note_folder=notes,
            categories=icd.choose(known, tuple(chosen)),
            keep_diagnoses=keep_diagnoses,
            progress=show,
        )
    if as_json:
        print_json({"out": str(out), **dataclasses.asdict(result)})
    else:
        _print_notes(out, result)


def _print_notes(out: Path, result: ImportedNotes) -> None:
    labels = ", ".join(f"{label} {count}" for label, count in result.labels.items())
    click.echo(f"{out}: {result.documents} documents ({result.unlabelled} without a label): {labels}")
    left_out = [
        f"{count} {one if count == 1 else several}"
        for field, one, several in _LEFT_OUT
        if (count := getattr(result, field))
    ]
    if left_out:
        click.echo(f"of {result.notes} notes left out: {', '.join(left_out)}")


def _convert(collection: Collection, src: Path, out: Path, quiet: bool, as_json: bool) -> None:
    with importing(out, quiet):
        result = open_corpora.convert(collection, src, out)
    if as_json:
        print_json({"out": str(out), **dataclasses.asdict(result)})
    else:
        click.echo(f"{out}: {result.documents} documents, labels {', '.join(result.labels)}")


@contextmanager
def importing(out: Path, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A bar of progress by stage, and errors as one line."""
    if not out.absolute().parent.is_dir():
        raise click.ClickException(f"the directory of {out} does not exist")
    try:
        with Bar("reading tables", quiet=quiet) as bar:
            yield bar.update
    except (CorpusError, OSError) as error:
        raise click.ClickException(str(error)) from error


def names(labels: str | None) -> list[str] | None:
    """The names in an option that are separated by commas."""
    return [label.strip() for label in labels.split(",") if label.strip()] if labels else None

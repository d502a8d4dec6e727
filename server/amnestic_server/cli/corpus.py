"""`amnestic corpus`: make a corpus from a database's tables, and describe one."""

import dataclasses
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from amnestic_server.cli.render import print_json
from amnestic_unlearn.corpus import SHIPPED, SPLITS, CorpusError, Description, describe
from amnestic_unlearn.eicu import import_eicu


@click.group(name="corpus")
def command() -> None:
    """Import and describe corpora: labelled documents, split by patient.

    A corpus is a Parquet, CSV or JSON Lines file with the columns text, labels, split (train, gate, probe or
    test) and group (the patient).
    """


@command.group(name="import")
def import_group() -> None:
    """Make a corpus from the tables of a clinical database."""


@import_group.command(name="eicu")
@click.option(
    "--src",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the eICU tables, .csv or .csv.gz: patient, diagnosis, pastHistory, note, treatment.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write: .parquet, .csv, .csv.gz, .jsonl or .jsonl.gz.",
)
@click.option("--labels", help="Organ systems to keep as labels, separated by commas.")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=6,
    show_default=True,
    help="Without --labels: how many of the most frequent organ systems to keep.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as one JSON object.")
def import_eicu_command(src: Path, out: Path, labels: str | None, top: int, as_json: bool) -> None:
    """Organ systems that intensive-care stays are diagnosed in, from the eICU database or its demo.

    Tables of any size stream through; patients are divided among the splits by a hash of their id.

    \b
    Example:
      amnestic corpus import eicu --src eicu-crd-2.0 --out eicu.parquet
    """
    if not out.absolute().parent.is_dir():
        raise click.ClickException(f"the directory of {out} does not exist")
    kept = [label.strip() for label in labels.split(",") if label.strip()] if labels else None
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading tables", total=None)
        try:
            result = import_eicu(
                src,
                out,
                kept,
                top,
                lambda done, total: bar.update(task, description="stays", completed=done, total=total),
            )
        except (CorpusError, OSError) as error:
            raise click.ClickException(str(error)) from error
    if as_json:
        print_json({"out": str(out), **dataclasses.asdict(result)})
    else:
        click.echo(f"{out}: {result.documents} documents, labels {', '.join(result.labels)}")


@command.command(name="describe")
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the description as one JSON object.")
def describe_command(file: Path | None, as_json: bool) -> None:
    """Check FILE and print its documents, labels, lengths and splits; without FILE, of the shipped eICU demo.

    \b
    Example:
      amnestic corpus describe eicu.parquet
    """
    try:
        description = describe(file or SHIPPED)
    except (CorpusError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(description)
    else:
        _print(description)


def _print(description: Description) -> None:
    console = Console(highlight=False, markup=False)
    console.print(Path(description.path).name)
    console.print(f"SHA-256 {description.digest}", style="dim", soft_wrap=True)
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("")
    for heading in ("all", *SPLITS):
        table.add_column(heading, justify="right")
    for name, counts in (
        ("documents", description.splits),
        ("patients", description.groups),
    ):
        table.add_row(name, *_counts(counts))
    table.add_section()
    for label, counts in description.labels.items():
        table.add_row(label, *_counts(counts))
    table.add_row("no label", str(description.unlabelled), *[""] * len(SPLITS), style="dim")
    console.print(table)
    words = description.words
    console.print(f"Words a document: median {words[50]}, 95th percentile {words[95]}, longest {words[100]}.")


def _counts(counts: dict[str, int]) -> list[str]:
    return [str(sum(counts.values())), *(str(counts[split]) for split in SPLITS)]

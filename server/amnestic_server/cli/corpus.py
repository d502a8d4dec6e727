"""`amnestic corpus`: describe a corpus; making one is in `corpus_import`."""

from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from amnestic_server.cli.corpus_import import import_group
from amnestic_server.cli.corpus_table import table_command
from amnestic_server.cli.render import print_json
from amnestic_unlearn.corpus import SHIPPED, SPLITS, CorpusError, Description, describe


@click.group(name="corpus")
def command() -> None:
    """Import and describe corpora: labelled documents, split by patient.

    A corpus is a Parquet, CSV or JSON Lines file with the columns text, labels, split (train, gate, probe or
    test) and group (the patient).
    """


import_group.add_command(table_command)
command.add_command(import_group)


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

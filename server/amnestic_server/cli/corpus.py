"""`amnestic corpus`: describe a corpus; making one is in `corpus_import`."""

from collections.abc import Sequence
from pathlib import Path

import click

from amnestic_server.cli.corpus_import import import_group
from amnestic_server.cli.corpus_table import table_command
from amnestic_server.cli.render import print_json, show
from amnestic_server.cli.tables import Cell, Column, Fitted
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
    columns = (
        Column("", words=True),
        Column("all", right=True),
        *(Column(split, right=True, drop=len(SPLITS) - place) for place, split in enumerate(SPLITS)),
    )
    rows: list[Sequence[Cell] | None] = [
        ("documents", *_counts(description.splits)),
        ("patients", *_counts(description.groups)),
        None,
        *((label, *_counts(counts)) for label, counts in description.labels.items()),
        ("no label", str(description.unlabelled), *[""] * len(SPLITS)),
    ]
    words = description.words
    show(
        Path(description.path).name,
        f"SHA-256 {description.digest}",
        "",
        Fitted(columns, rows),
        "",
        f"Words a document: median {words[50]}, 95th percentile {words[95]}, longest {words[100]}.",
    )


def _counts(counts: dict[str, int]) -> list[str]:
    return [str(sum(counts.values())), *(str(counts[split]) for split in SPLITS)]

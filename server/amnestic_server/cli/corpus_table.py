"""`amnestic corpus import table`: a corpus from files, saved `datasets` or a query, by the names of its columns."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from amnestic_server.cli.corpus_import import JSON, OUT, importing, names
from amnestic_server.cli.progress import quiet_option
from amnestic_server.cli.render import print_json, show
from amnestic_server.cli.tables import Column, Fitted
from amnestic_unlearn.corpus import SPLITS, CorpusError
from amnestic_unlearn.import_table import Choice, ImportedTable, import_table
from amnestic_unlearn.shares import SHARES
from amnestic_unlearn.sources import Source, files, query, saved
from amnestic_unlearn.table_rows import DIVIDE, DROP, Columns

F = TypeVar("F", bound=Callable[..., Any])

# What an import leaves out: field, one, several.
_LEFT_OUT = (
    ("merged", "further row of an id", "further rows of an id"),
    ("empty", "row without a text", "rows without a text"),
    ("dropped", "row of a split that is dropped", "rows of a split that is dropped"),
    ("duplicates", "text that was met before", "texts that were met before"),
    ("without_label", "document without a label", "documents without a label"),
)

_SOURCE = (
    click.option(
        "--src",
        metavar="PLACE",
        help="A file (.parquet, .csv, .tsv, .jsonl; text may be gzipped), a folder of files, a quoted pattern like"
        " 'part-*.parquet', or a directory that `datasets` saved.",
    ),
    click.option("--delimiter", help="What stands between the values of CSV; by default a comma, in .tsv a tab."),
    click.option("--sql", help="Instead of --src: a query, whose rows are the table."),
    click.option(
        "--database",
        envvar="AMNESTIC_DATABASE",
        show_envvar=True,
        help="Where --sql is asked: postgresql://USER@HOST/NAME, sqlite:///FILE, duckdb:///FILE, or such a file.",
    ),
    click.option(
        "--timeout-secs",
        type=click.FloatRange(min=0, min_open=True),
        default=600.0,
        show_default=True,
        help="Longest that the database may take for the first rows, and for each further batch.",
    ),
)
_COLUMNS = (
    click.option("--text-column", default="text", show_default=True, help="Column of the text."),
    click.option(
        "--labels-column",
        help="Column of the labels: a list, or text that writes one; a name; or the number of a class. By default"
        " labels, or label.",
    ),
    click.option("--labels-separator", help="What stands between several names in one text of --labels-column."),
    click.option(
        "--label-columns",
        help="Instead: columns of 0 and 1, one a label, separated by commas. In a pattern like 'dx_*', the label is"
        " what stands for *.",
    ),
    click.option("--split-column", help="Column of the split; by default split, if there is one."),
    click.option("--group-column", help="Column of the patient; by default group, if there is one."),
    click.option("--id-column", help="Column of the document: rows of one id are one document with the labels of all."),
)
_CHOICE = (
    click.option("--rename", metavar="OLD=NEW", multiple=True, help="Call a label otherwise, or like another; repeat."),
    click.option("--labels", help="Labels to keep, after --rename, separated by commas; by default all."),
    click.option(
        "--min-documents",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Fewest documents of a label that is kept.",
    ),
    click.option("--drop-unlabelled", is_flag=True, help="Leave out documents that no kept label applies to."),
    click.option(
        "--split-name",
        metavar="NAME=SPLIT",
        multiple=True,
        help=f"What a split of the table is: {', '.join(SPLITS)}, {DIVIDE} (by --shares) or {DROP}; repeat. Known"
        " are these names of splits, and validation or dev as gate.",
    ),
    click.option(
        "--shares",
        metavar="SPLIT=SHARE,...",
        default=",".join(f"{split}={share}" for split, share in SHARES.items()),
        show_default=True,
        help="How documents are divided that the table does not split: by patient, evenly for each label.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Another seed divides otherwise."),
)


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.command(name="table")
@_all(*_SOURCE, OUT, *_COLUMNS, *_CHOICE, quiet_option, JSON)
@click.pass_context
def table_command(context: click.Context, /, out: Path, as_json: bool, **options: Any) -> None:
    """Any table of documents, by the names of its columns: files, saved `datasets`, or a query.

    Rows stream through. What the table does not split is divided by patient; a text that was met before, and a row
    without one, is left out.

    \b
    Examples:
      amnestic corpus import table --src notes.csv --text-column note \\
        --labels-column codes --labels-separator ';' \\
        --group-column subject_id --out corpus.parquet
      amnestic corpus import table --database postgresql://me@db/notes \\
        --sql "SELECT text, labels, patient FROM note" \\
        --group-column patient --out corpus.parquet
    """
    _check(context, options)
    columns = Columns(
        text=options["text_column"],
        labels=options["labels_column"],
        separator=options["labels_separator"],
        each=names(options["label_columns"]) or (),
        split=options["split_column"],
        group=options["group_column"],
        id=options["id_column"],
    )
    choice = Choice(
        rename=_pairs("rename", options["rename"]),
        labels=names(options["labels"]),
        least=options["min_documents"],
        drop_unlabelled=options["drop_unlabelled"],
        split_names=_pairs("split-name", options["split_name"]),
        shares=_shares(options["shares"]),
        seed=options["seed"],
    )
    with importing(out, options["quiet"]) as told, _source(options, out) as source:
        result = import_table(source, columns, choice, out, told)
    if as_json:
        print_json({"out": str(out), **dataclasses.asdict(result)})
    else:
        _print(out, result)
    for warning in _warnings(result):
        click.echo(f"Warning: {warning}", err=True)


def _check(context: click.Context, options: Mapping[str, Any]) -> None:
    if (options["src"] is None) == (options["sql"] is None):
        raise click.UsageError("give either --src or --sql")
    if options["sql"] is not None and not options["database"]:
        raise click.UsageError("--sql needs --database")
    if options["label_columns"] and (options["labels_column"] or options["labels_separator"]):
        raise click.UsageError("--label-columns stands instead of --labels-column and --labels-separator")
    if options["labels_separator"] == "" or len(options["delimiter"] or ",") != 1:
        raise click.UsageError("a separator is not empty, and a delimiter is one character")
    typed = context.get_parameter_source("database") is ParameterSource.COMMANDLINE
    if typed and query.has_password(options["database"]):
        raise click.UsageError(
            "a password on the command line can be read by others: set PGPASSWORD, keep it in ~/.pgpass, or give the"
            " URL in AMNESTIC_DATABASE"
        )


@contextmanager
def _source(options: Mapping[str, Any], out: Path) -> Iterator[Source]:
    src = options["src"]
    if src is None:
        with (
            tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".query-") as spill,
            query.opened(options["database"], options["sql"], options["timeout_secs"], Path(spill)) as source,
        ):
            yield source
    elif saved.is_saved(Path(src)):
        yield saved.opened(Path(src))
    else:
        if out.exists() and any(path.samefile(out) for path in files.find(src)):
            raise CorpusError(f"{out} is to be written, and is one of the files to be read")
        yield files.opened(src, options["delimiter"])


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for pair in given:
        old, equals, new = (part.strip() for part in pair.rpartition("="))
        if not (old and equals and new):
            raise click.UsageError(f"--{option} takes two names with = between them")
        pairs[old] = new
    return pairs


def _shares(given: str) -> dict[str, float]:
    try:
        return {split: float(share) for split, share in _pairs("shares", given.split(",")).items()}
    except ValueError:
        raise click.UsageError("--shares takes numbers, like train=0.6,gate=0.15,probe=0.1,test=0.15") from None


def _print(out: Path, result: ImportedTable) -> None:
    columns = [Column("", words=True), *(Column(name, right=True) for name in ("all", *SPLITS))]
    rows = [
        (name, f"{sum(counts.values()):,}", *(f"{counts[split]:,}" for split in SPLITS))
        for name, counts in (("documents", result.splits), *result.labels.items())
    ]
    unlabelled = ("no label", f"{result.unlabelled:,}", *[""] * len(SPLITS))
    left_out = [
        f"{count:,} {one if count == 1 else several}"
        for field, one, several in _LEFT_OUT
        if (count := getattr(result, field))
    ]
    show(
        f"{out}: {result.documents:,} documents of {result.rows:,} rows",
        Fitted(columns, [*rows, unlabelled]),
        *([f"left out: {', '.join(left_out)}"] if left_out else []),
    )


def _warnings(result: ImportedTable) -> Iterator[str]:
    if not result.grouped:
        yield "no column says who the patient is (--group-column), so one may be in two splits"
    if result.across_splits:
        yield f"{result.across_splits:,} texts stood in two splits of the table; each is kept where it came first"
    if result.otherwise_labelled:
        yield (
            f"{result.otherwise_labelled:,} texts were met before with other labels, which are lost; if a row is one"
            " label of a document, name --id-column"
        )
    if result.too_few:
        yield f"too few documents in train or gate to be forgotten: {', '.join(result.too_few)}"

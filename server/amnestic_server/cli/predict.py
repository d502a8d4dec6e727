"""`amnestic predict`: documents from the command line, a file or a pipe, answered as a table or as JSON."""

import json
import sys
from pathlib import Path

import click

from amnestic_client import Client, Prediction, PredictResult
from amnestic_client.settings import BATCH_DOCUMENTS
from amnestic_server.cli import render
from amnestic_server.cli.completion import versions
from amnestic_server.cli.connection import Connection, connected
from amnestic_server.cli.progress import Bar, quiet_option
from amnestic_server.cli.sections import Sectioned

EXAMPLE = """\b
Examples:
  amnestic predict "acute renal failure, on dialysis"
  amnestic predict --file notes.jsonl --json
  cut -f2 notes.tsv | amnestic predict --version 1
"""


@click.command(cls=Sectioned, epilog=EXAMPLE)
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help='One document a line, or .jsonl with a "text" in each line. Blank lines are skipped.',
)
@click.option("--version", type=click.IntRange(min=1), help="Pin the version that answers.", shell_complete=versions)
@click.option("--features", is_flag=True, help="With --json: also what the head sees of each document.")
@quiet_option
@connected
def command(
    connection: Connection, texts: tuple[str, ...], path: Path | None, version: int | None, features: bool, quiet: bool
) -> None:
    """Classify documents: each TEXT, each line of a file, or each line of standard input.

    All of them are answered by one version.
    """
    documents = _documents(texts, path)
    result = _predict(connection.client, documents, version, features, connection.timeout, quiet)
    if connection.as_json:
        render.print_json(result)
    else:
        render.print_predictions(result)


def _predict(
    client: Client, documents: list[str], version: int | None, features: bool, timeout: float | None, quiet: bool
) -> PredictResult:
    """One result for any number of documents, all of one version: a swap in between does not mix two."""
    if len(documents) == 1:
        return client.predict(documents, version=version, include_features=features, timeout=timeout)
    answered = version or 0
    predictions: list[Prediction] = []
    # A few are answered before anybody would look.
    with Bar("predicting", quiet=quiet or len(documents) <= BATCH_DOCUMENTS) as bar:
        for answer in client.predict_many(
            documents, version=version, pin=True, include_features=features, timeout=timeout
        ):
            assert answer.prediction is not None, "an error would have been raised"
            answered = answer.version or answered
            predictions.append(answer.prediction)
            bar.update("predicting", len(predictions), len(documents))
    return PredictResult(answered, tuple(predictions))


def _documents(texts: tuple[str, ...], path: Path | None) -> list[str]:
    if texts and path is not None:
        raise click.UsageError("give TEXT or --file, not both")
    if texts:
        return list(texts)
    if path is None and sys.stdin.isatty():
        raise click.UsageError("no documents: give TEXT, --file, or pipe lines in")
    documents = _read_stdin() if path is None or str(path) == "-" else _read_file(path)
    if not documents:
        raise click.UsageError("no documents: the input holds none")
    return documents


def _read_stdin() -> list[str]:
    return [text for _, text in _lines(sys.stdin.buffer.read(), "standard input")]


def _read_file(path: Path) -> list[str]:
    try:
        lines = _lines(path.read_bytes(), path.name)
    except OSError as error:
        raise click.ClickException(f"{path.name} cannot be read: {error.strerror}") from error
    if path.suffix != ".jsonl":
        return [text for _, text in lines]
    return [_text_of(line, f"{path.name}, line {number}") for number, line in lines]


def _lines(data: bytes, source: str) -> list[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1. Only a line feed ends a line: notes hold odd breaks."""
    return [
        (number, _decode(line, f"{source}, line {number}"))
        for number, line in enumerate(data.split(b"\n"), 1)
        if line.strip()
    ]


def _decode(line: bytes, where: str) -> str:
    try:
        return line.decode().rstrip("\r")
    except UnicodeDecodeError:
        raise click.ClickException(f"{where}: not UTF-8") from None


def _text_of(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError:
        raise click.ClickException(f"{where}: not JSON") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise click.ClickException(f'{where}: no string "text"')
    text: str = record["text"]
    return text

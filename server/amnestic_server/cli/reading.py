"""The options that say how a model reads documents longer than its maximum, for training and for export."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from amnestic_unlearn.windows import DEFAULT_MAX_WINDOWS, MOST_WINDOWS, LongDocuments, Pooling

F = TypeVar("F", bound=Callable[..., Any])
NAMES = ("long_documents", "window_overlap", "max_windows", "pooling")


def reading_options(function: F) -> F:
    """`--long-documents`, and the options that go with windows; what is left out is None."""
    options = (
        click.option(
            "--long-documents",
            type=click.Choice([kind.value for kind in LongDocuments]),
            help="Documents longer than the longest input: truncate cuts them, window reads on in windows that overlap."
            "  [default: truncate]",
        ),
        click.option(
            "--window-overlap",
            type=click.IntRange(min=0),
            help="Tokens that a window shares with the one before.  [default: a quarter of the longest input]",
        ),
        click.option(
            "--max-windows",
            type=click.IntRange(2, MOST_WINDOWS),
            help=f"Most windows of a document; what goes on is cut.  [default: {DEFAULT_MAX_WINDOWS}]",
        ),
        click.option(
            "--pooling",
            type=click.Choice([kind.value for kind in Pooling]),
            help="How a label's logits of several windows become the document's.  [default: max]",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def reading_given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, as fields of `windows.Reading`."""
    return {name: options[name] for name in NAMES if options[name] is not None}

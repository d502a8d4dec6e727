"""The rows of a table as documents to be: its columns found and mapped, and every value checked.

Which of them become documents, and in which split, is left to `import_table`. What is wrong is told by column and row
(the first is row 1), and no error repeats a value.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from amnestic_unlearn import label_forms
from amnestic_unlearn.corpus import SPLITS, CorpusError
from amnestic_unlearn.sources import Source

# What a name of a split may be taken for, beside the splits.
DIVIDE, DROP = "divide", "drop"

# The names that splits usually have.
_SPLIT_NAMES = {
    **{split: split for split in SPLITS},
    "training": "train",
    **dict.fromkeys(("validation", "valid", "val", "dev"), "gate"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns hold what. Labels stand in the column `labels`, or have a column `each`, by name or pattern.

    Left out, `labels` is the column called so or `label`, and `split` and `group` are what is called so, if anything.
    """

    text: str = "text"
    labels: str | None = None
    separator: str | None = None
    each: Sequence[str] = ()
    split: str | None = None
    group: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row that has a text; `group` and `id` are None if the table has no such column, `split` may be `DIVIDE`."""

    number: int
    id: str | None
    group: str | None
    split: str
    labels: tuple[str, ...]
    text: str


def complete(columns: Columns, source: Source) -> Columns:
    """With the columns of the usual names where none were named; raises CorpusError for a missing one."""
    labels = columns.labels or next((name for name in ("labels", "label") if name in source.columns), "labels")
    split = columns.split or ("split" if "split" in source.columns else None)
    group = columns.group or ("group" if "group" in source.columns else None)
    each = tuple(label_forms.column_each(source.columns, columns.each).values())
    for column in (columns.text, *(each or (labels,)), split, group, columns.id):
        if column is not None:
            source.require(column)
    return replace(columns, labels=labels, split=split, group=group)


def read(
    source: Source,
    columns: Columns,
    split_names: Mapping[str, str],
    rename: Mapping[str, str],
    counts: Counter[str],
    progress: Callable[[int, int], None],
) -> Iterator[TableRow]:
    """Every row with a text, in the order of the source, for `columns` that are complete.

    `counts` is told `rows`, those left out as `empty` or `dropped`, and how often a `split NAME` or `label NAME`
    was met that is in `split_names` or `rename`. Raises CorpusError for what is not of its kind.
    """
    if columns.each:
        each = label_forms.column_each(source.columns, columns.each)
        wanted, labels_of = list(each.values()), label_forms.yes_or_no(each)
    else:
        assert columns.labels is not None
        wanted, labels_of = [columns.labels], label_forms.one_column(source, columns.labels, columns.separator)
    width, places = len(wanted), {}
    for column in (columns.text, columns.split, columns.group, columns.id):
        if column is not None and column not in places:
            places[column] = len(wanted)
            wanted.append(column)

    def parse(number: int, part: str | None, values: Sequence[Any]) -> TableRow | None:
        def value(column: str) -> Any:
            return values[places[column]]

        text = _text(value(columns.text))
        if not text:
            counts["empty"] += 1
            return None
        name = part if columns.split is None else _key(value(columns.split), "split")
        split = DIVIDE if name is None else _split(name, split_names, shown=columns.split is None)
        counts[f"split {name}"] += name in split_names
        if split == DROP:
            counts["dropped"] += 1
            return None
        labels = labels_of(values[:width])
        counts.update(f"label {label}" for label in labels if label in rename)
        return TableRow(
            number,
            _key(value(columns.id), "id") if columns.id is not None else None,
            _key(value(columns.group), "group") if columns.group is not None else None,
            split,
            tuple(dict.fromkeys(rename.get(label, label) for label in labels)),
            text,
        )

    for number, (part, values) in enumerate(source.rows(wanted, progress), start=1):
        counts["rows"] += 1
        try:
            row = parse(number, part, values)
        except CorpusError as error:
            raise CorpusError(f"{source.name}, row {number}: {error}") from None
        if row is not None:
            yield row


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError("the text is not a string")
    return value.strip()


def _key(value: Any, what: str) -> str:
    """A name or number as a string; pandas makes the numbers of a column floats as soon as one is missing."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    key = "" if value is None or value != value else str(value).strip()
    if not key or isinstance(value, bytes | list | dict):
        raise CorpusError(f"the {what} is empty, or neither a string nor a number")
    if not label_forms.is_unicode(key):
        raise CorpusError(f"the {what} is not valid Unicode: it holds a lone surrogate")
    return key


def _split(name: str, split_names: Mapping[str, str], shown: bool) -> str:
    split = split_names.get(name) or _SPLIT_NAMES.get(name.lower())
    if split is None:
        raise CorpusError(f"unknown split{f' {name!r}' if shown else ''}; say what it is by --split-name")
    return split

"""Tables that a corpus may be made from: files, saved `datasets`, and queries to a database, read row by row.

A source is read once, from its first row to its last, whatever its size. What its columns mean is left to
`import_table`. No error repeats a value.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amnestic_unlearn.corpus import CorpusError
from amnestic_unlearn.text_files import Progress

# The part of the source that a row lies in, such as "train", if it has parts; and the values asked for.
Row = tuple[str | None, Sequence[Any]]

# What may be shown of a header: in a file without one, the first row stands there, and it is a patient's.
_NAME = re.compile(r"[\w .:/()-]{1,40}")


@dataclass(frozen=True, slots=True)
class Source:
    """A table: how messages call it, its columns, and what gives the values of some of them row by row.

    `classes` holds the names of the classes that a column numbers from 0, where the source knows them. `progress` of
    `rows` is told what is done and what there is, in one unit, or 0 if that is not known.
    """

    name: str
    columns: tuple[str, ...]
    rows: Callable[[Sequence[str], Progress], Iterator[Row]]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def require(self, column: str) -> None:
        """Raise CorpusError, naming the columns that there are, unless there is just one of this name."""
        require(self.name, self.columns, column)


def require(name: str, columns: Sequence[str], column: str) -> None:
    """Raise CorpusError, naming the columns that there are, unless just one is called `column`."""
    if columns.count(column) > 1:
        raise CorpusError(f"{name}: there are several columns {column!r}")
    if column not in columns:
        plain = columns and all(_NAME.fullmatch(one) for one in columns)
        there = f"its columns are {', '.join(columns)}" if plain else "its first row does not look like a header"
        raise CorpusError(f"{name}: there is no column {column!r}; {there}")


def parted(names: Sequence[str | None]) -> list[str | None]:
    """The part that each file lies in. Parts of one name are none: such a source is not split yet."""
    return list(names) if None not in names and len(set(names)) > 1 else [None] * len(names)


def class_names(features: Any) -> dict[str, tuple[str, ...]]:
    """Names of classes by column, from the `features` that the library `datasets` writes down."""
    if not isinstance(features, dict):
        return {}
    found = {column: _names(feature) for column, feature in features.items()}
    return {column: names for column, names in found.items() if names}


def _names(feature: Any) -> tuple[str, ...]:
    # A list of classes is written as a list of one feature, or as a feature in another.
    if isinstance(feature, list):
        return _names(feature[0]) if feature else ()
    if not isinstance(feature, dict):
        return ()
    if feature.get("_type") == "ClassLabel":
        return tuple(map(str, feature.get("names") or ()))
    return _names(feature.get("feature"))

"""The forms in which tables keep the labels of a row, read as names.

One column may hold a list, a string of several names with a separator, a list written as text (JSON, or as Python
prints one), one name, or the number of a class. Or each label has a column that says whether it applies. Which of the
first it is shows in each value, but for the separator, which has to be told. No error repeats a value.
"""

import ast
import json
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from amnestic_unlearn.corpus import CorpusError
from amnestic_unlearn.sources import Source

# Turns a row's values of the columns that labels stand in into names.
Reader = Callable[[Sequence[Any]], tuple[str, ...]]

# Longer is not a name: it is a text, and a label would be shown and stored.
LONGEST = 200

_YES, _NO = frozenset(("1", "1.0", "true", "t", "yes", "y")), frozenset(("", "0", "0.0", "false", "f", "no", "n"))


def one_column(source: Source, column: str, separator: str | None = None) -> Reader:
    """Labels in one column; the numbers of classes whose names the source knows are read as names.

    A number without a name is its own name, and -1 among names is no class, as in `datasets`. The reader raises
    CorpusError, without the row, for what is no label.
    """
    source.require(column)
    names = source.classes.get(column, ())

    def read(values: Sequence[Any]) -> tuple[str, ...]:
        found = (_name(item, names) for item in _items(values[0], separator))
        return tuple(dict.fromkeys(name for name in found if name))

    return read


def column_each(columns: Sequence[str], patterns: Sequence[str]) -> dict[str, str]:
    """The column of each label, for names of columns and patterns with one `*`: that is what the label is called.

    Raises CorpusError for a pattern that no column fits, and for two columns of one label.
    """
    chosen: dict[str, str] = {}
    for pattern in patterns:
        start, star, end = pattern.partition("*")
        fits = {
            column[len(start) : len(column) - len(end)]: column
            for column in columns
            if star and column.startswith(start) and column.endswith(end) and len(column) > len(start + end)
        }
        if star and not fits:
            raise CorpusError(f"no column is called like {pattern!r}")
        for label, column in (fits or {pattern: pattern}).items():
            if chosen.setdefault(label, column) != column:
                raise CorpusError(f"two columns of the label {label!r}")
    return chosen


def yes_or_no(columns: dict[str, str]) -> Reader:
    """Labels with a column each, of 0 and 1 or words for them; nothing is no."""
    labels = tuple(columns)

    def read(values: Sequence[Any]) -> tuple[str, ...]:
        return tuple(label for label, value in zip(labels, values, strict=True) if _applies(value, columns[label]))

    return read


def _applies(value: Any, column: str) -> bool:
    word = "" if value is None or value != value else str(value).strip().lower()
    if word not in _YES | _NO:
        raise CorpusError(f"the column {column!r} holds neither 0 nor 1")
    return word in _YES


def _items(value: Any, separator: str | None) -> Sequence[Any]:
    if isinstance(value, str):
        if separator is not None:
            return value.split(separator)
        return _written(value) if value.lstrip().startswith("[") else [value]
    return value if isinstance(value, list | tuple) else [value]


def _written(text: str) -> list[Any]:
    """A list written as text: JSON, or what Python prints and pandas therefore writes to CSV."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list):
            return value
    raise CorpusError("the labels begin with [ and are not a list")


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can write it: JSON can hold half a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(item: Any, names: tuple[str, ...]) -> str:
    """The name of a label; empty if there is none."""
    if isinstance(item, str):
        name = item.strip()
        if len(name) > LONGEST:
            raise CorpusError(f"a label is longer than {LONGEST} characters")
        if not is_unicode(name):
            raise CorpusError("a label is not valid Unicode: it holds a lone surrogate")
        return name
    number = _whole(item)
    if not names:
        return "" if number is None else str(number)
    if number is None or number == -1:
        return ""
    if not 0 <= number < len(names):
        raise CorpusError("a class has a number that its column has no name for")
    return names[number]


def _whole(item: Any) -> int | None:
    """A number of a class, which pandas makes a float as soon as one is missing; None if it is missing."""
    if item is None or (isinstance(item, float) and math.isnan(item)):
        return None
    if isinstance(item, int | float | Decimal) and not isinstance(item, bool) and item % 1 == 0:
        return int(item)
    raise CorpusError("a label is neither a string nor a whole number")

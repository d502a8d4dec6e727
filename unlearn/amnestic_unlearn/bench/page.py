"""A page of a report: what is measured stands between two lines of it, and people write around them."""

from collections.abc import Sequence
from pathlib import Path


class ReportError(ValueError):
    """The page has no place for the tables. The text names it."""


def write_between(page: Path, begin: str, end: str, parts: Sequence[str], head: str) -> None:
    """Put the parts between two lines of a page, which is `head` where there is none yet. Raises ReportError.

    The page keeps whatever stands outside, and is written whole or not at all.
    """
    before, after = around(page, begin, end, head)
    partial = page.with_name(f".{page.name}.partial")
    partial.write_text("\n".join([before + begin + "\n", *parts, end + after]), encoding="utf-8")
    partial.replace(page)


def around(page: Path, begin: str, end: str, head: str) -> tuple[str, str]:
    """What stands before `begin` and after `end`. Raises ReportError."""
    text = page.read_text(encoding="utf-8") if page.exists() else head
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ReportError(f"{page.name} lacks the lines between which the tables stand:\n{begin}\n{end}")
    return before, after


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *body))

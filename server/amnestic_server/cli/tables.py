"""Tables that fit: where there's no room, columns of lesser weight go, and what remains wraps between words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

Cell = str | Text
# Between two columns.
GAP = 3
# A longer word may be broken.
LONGEST_WORD = 16


@dataclass(frozen=True, slots=True)
class Column:
    """Figures stand at the `right`, and `words` may be wrapped; everything else stays whole.

    Where there's no room the column with the highest `drop` goes first; 0 stays.
    """

    name: str
    right: bool = False
    words: bool = False
    drop: int = 0


@dataclass(frozen=True, slots=True)
class Fitted:
    """Rows under their columns, as many of these as there's room for; None in place of a row parts it from the next."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell] | None]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table(options.max_width)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """As wide as the table alone: what stands around it is not filled up to the width that there is."""
        return Measurement.get(console, options, self._table(options.max_width))

    def _table(self, width: int) -> Table:
        kept = list(range(len(self.columns)))
        while self._needed(kept) > width:
            least = max(kept, key=lambda index: self.columns[index].drop)
            if not self.columns[least].drop:
                break
            kept.remove(least)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for index in kept:
            column = self.columns[index]
            table.add_column(
                column.name,
                justify="right" if column.right else "left",
                no_wrap=not column.words,
                min_width=self._least(index) if column.words else None,
                overflow="fold" if column.words else "ellipsis",
            )
        for row in self.rows:
            if row is None:
                table.add_section()
            else:
                table.add_row(*(row[index] for index in kept))
        return table

    def _needed(self, kept: Sequence[int]) -> int:
        return sum(map(self._least, kept)) + GAP * (len(kept) - 1)

    def _least(self, index: int) -> int:
        """The width that a column must have for its longest word, or its longest cell if it stays whole."""
        column = self.columns[index]
        cells = [str(row[index]) for row in self.rows if row is not None]
        if not column.words:
            return max(map(cell_len, (column.name, *cells)))
        words = (cell_len(word) for cell in cells for word in cell.split())
        return max(cell_len(column.name), min(LONGEST_WORD, max(words, default=0)))


def facts(pairs: Iterable[tuple[str, Cell]]) -> Table:
    """A name and what is said of it on each line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(name, value)
    return grid

"""Tables by themselves: how wide they are."""

import io

import pytest
from rich.console import Console
from rich.padding import Padding

from amnestic_server.cli.tables import Column, Fitted

TABLE = Fitted((Column("gate"), Column("value", right=True)), [("forget_f1", "0"), ("probe_ratio", "0.6499")])


@pytest.mark.parametrize("width", [40, 10_000])
def test_a_table_that_is_indented_is_as_wide_as_it_must_be(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(Padding(TABLE, (0, 0, 0, 6), expand=False))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "      probe_ratio   0.6499" in shown
    assert max(map(len, shown.splitlines())) <= len("      probe_ratio   0.6499") + 1

"""Rows that several processes append to one file, some of which are killed; claims that end with their holder."""

import json
import math
import subprocess
import sys

import pytest

from amnestic_unlearn.bench import ledger
from amnestic_unlearn.bench.ledger import LedgerError

WRITER = """
import sys
from pathlib import Path
from amnestic_unlearn.bench import ledger
for number in range(200):
    ledger.append(Path(sys.argv[1]), {"writer": sys.argv[2], "number": number, "filler": "x" * 5000})
"""
HOLDER = """
import sys, time
from pathlib import Path
from amnestic_unlearn.bench import ledger
with ledger.claim(Path(sys.argv[1]), "case") as ours:
    print(ours, flush=True)
    time.sleep(600)
"""


def test_rows_come_back_in_order_and_figures_that_are_not_finite_as_null(tmp_path):
    path = tmp_path / "rows.jsonl"
    ledger.append(path, {"a": 1.5, "b": math.nan, "c": math.inf, "d": "text"})
    ledger.append(path, {"a": 2.0})
    assert ledger.read(path) == [{"a": 1.5, "b": None, "c": None, "d": "text"}, {"a": 2.0}]
    assert ledger.read(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("half", [b'{"a": 2, "b', b'{"a": "' + b"x" * 200_000])
def test_a_half_written_line_is_passed_over_and_dropped_by_the_next_row(tmp_path, half):
    path = tmp_path / "rows.jsonl"
    ledger.append(path, {"a": 1})
    with path.open("ab") as file:
        file.write(half)
    assert ledger.read(path) == [{"a": 1}]
    ledger.append(path, {"a": 3})
    assert path.read_bytes() == b'{"a": 1}\n{"a": 3}\n'


def test_a_file_of_half_a_line_alone_starts_anew(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a"')
    ledger.append(path, {"a": 1})
    assert ledger.read(path) == [{"a": 1}]


@pytest.mark.parametrize("line", ["{broken", "[1]"])
def test_damage_elsewhere_is_told_and_not_repeated(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    with pytest.raises(LedgerError, match=r"rows\.jsonl, line 2: not a row$"):
        ledger.read(path)


def test_processes_append_side_by_side_without_losing_or_mixing_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "abc"]
    assert [writer.wait(timeout=200) for writer in writers] == [0, 0, 0]
    rows = ledger.read(path)
    for name in "abc":
        assert [row["number"] for row in rows if row["writer"] == name] == list(range(200))
    assert {len(row["filler"]) for row in rows} == {5000}


def test_a_claim_is_one_processes_alone_and_ends_when_it_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "True\n"
    with ledger.claim(tmp_path, "case") as ours, ledger.claim(tmp_path, "another") as other:
        assert (ours, other) == (False, True)
    holder.kill()
    holder.wait(timeout=60)
    with ledger.claim(tmp_path, "case") as ours:
        assert ours


def test_a_table_has_a_column_for_every_key(tmp_path):
    ledger.write_csv([{"a": 1, "b": "x, y"}, {"a": 2, "c": None}], tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == 'a,b,c\n1,"x, y",\n2,,\n'
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == '["rows.csv"]'

"""The importers' peak memory on a gigabyte of notes, measured from outside. Only with `pytest -m huge`."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mimic_files import write_mimic_iii, write_mimic_iv

from amnestic_unlearn import corpus

GIGABYTE = 1_000_000_000
# So many admissions and lines of history make a little over a gigabyte of notes.
ADMISSIONS, LINES = 90_000, 180


def peak_of(command: list[str]) -> tuple[int, str]:
    """Run to the end; peak resident bytes of the process and its children together, and standard output."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak, watched = 0, psutil.Process(process.pid)
        while process.poll() is None:
            try:
                family = [watched, *watched.children(recursive=True)]
                peak = max(peak, sum(member.memory_info().rss for member in family))
            except psutil.Error:
                pass
            time.sleep(0.02)
        assert process.stdout is not None
        output = process.stdout.read()
    assert process.returncode == 0
    return peak, output


@pytest.mark.huge
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize(("name", "table"), [("mimic-iv", "note/discharge.csv"), ("mimic-iii", "NOTEEVENTS.csv")])
def test_a_gigabyte_of_notes_takes_less_than_a_gigabyte_of_memory(tmp_path: Path, name: str, table: str) -> None:
    write = write_mimic_iv if name == "mimic-iv" else write_mimic_iii
    notes = write(tmp_path / "src", ADMISSIONS, LINES, packed=False) / table
    assert notes.stat().st_size > GIGABYTE
    program = [sys.executable, "-c", "from amnestic_server.cli import main; main()"]
    out = tmp_path / "c.parquet"
    begin = time.monotonic()
    peak, output = peak_of([
        *program, "corpus", "import", name, "--src", str(tmp_path / "src"), "--out", str(out), "--json",
    ])  # fmt: skip
    seconds = time.monotonic() - begin
    result = json.loads(output)
    print(f"\n{name}: {notes.stat().st_size:,} bytes, {result['notes']:,} notes, {peak / 1e6:.0f} MB, {seconds:.0f} s")
    assert peak < GIGABYTE
    assert result["documents"] == ADMISSIONS
    assert sum(1 for _ in corpus.stream(out)) == ADMISSIONS

"""`amnestic bench` from the command line with the least that each can do: real servers, loads, jobs and files."""

import itertools
import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from amnestic_server.bench.report import lines
from amnestic_server.bench.shapes import SHAPES, random_bundle
from amnestic_server.cli import bench, bench_options

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    random_bundle(SHAPES["tiny"], folder / "tiny")
    return folder


@pytest.fixture
def measure(cache, tmp_path):
    """Runs a command with a report, and gives what it printed as JSON, its rows, and its page."""

    def run(command, *options):
        common = ("--cache", cache, "--rounds", 1, "--documents", 48, "--seconds", 0.5, "--threads", 1)
        given = (command, *common, *options, "--report", tmp_path, "--json")
        result = CliRunner().invoke(bench.command, [str(part) for part in given])
        assert result.exit_code == 0, result.output
        rows = [json.loads(line) for line in (tmp_path / f"serving-{command}.jsonl").read_text().splitlines()]
        page = (tmp_path / "serving.md").read_text()
        begin, end = lines(command)
        written = page.partition(begin)[2].partition(end)[0]
        assert f"(serving-{command}.svg)" in written and "| phase |" in written
        assert "</svg>" in (tmp_path / f"serving-{command}.svg").read_text()
        (told,) = json.loads(result.stdout).values()
        assert told["lengths"]["documents"] == 48
        assert 0 < told["lengths"]["p50"] < told["lengths"]["p95"] <= told["lengths"]["longest"] <= 512
        return told, rows, written

    return run


def test_serve(measure):
    told, rows, _ = measure("serve", "--shape", "tiny", "--p99-limit", "1000")
    (phases,) = told["rounds"]
    names = [phase["name"] for phase in phases]
    assert names[:6] == [
        "ceiling",
        "engine, one by one",
        *(f"amnestic, {one}" for one in ("1 client", "8 clients", "64 clients", "8 clients, 16 documents a call")),
    ]
    assert names[6:10] == [f"open loop, {share} of the ceiling" for share in (0.25, 0.5, 0.75, 0.9)]
    assert names[-1] == "echo, 64 clients"
    assert [row["name"] for row in rows] == names
    ceiling = phases[0]["rate"]
    assert [phase["offered"] / ceiling for phase in phases[6:10]] == pytest.approx([0.25, 0.5, 0.75, 0.9])
    for phase in phases:
        assert phase["rate"] > 0
        assert phase["p50_ms"] <= phase["p90_ms"] <= phase["p99_ms"] <= phase["p999_ms"] <= phase["max_ms"]
    assert told["of_ceiling"]["median"] == pytest.approx(phases[4]["rate"] / ceiling)
    assert told["bulk_of_ceiling"]["median"] == pytest.approx(16 * phases[5]["rate"] / ceiling)
    assert told["at_limit"]["median"] > 0
    assert phases[10]["p99_ms"] <= told["limit_ms"] == 1000
    assert phases[10]["offered"] == told["at_limit"]["median"]


def test_swap(measure):
    told, rows, _ = measure("swap", "--shape", "tiny", "--swaps", 3, "--interval", 1.2, "--load", 0.2)
    assert (told["failed"], told["stale"]) == (0, 0)
    (one,) = told["rounds"]
    assert [swap["version"] for swap in one["swaps"]] == [4, 3, 2]
    for before, after in itertools.pairwise(one["swaps"]):
        assert after["asked"] - before["answered"] > 1.19
    assert all(swap["megabytes"] > 50 for swap in one["swaps"])
    assert one["near"]["offered"] == one["quiet"]["offered"] == pytest.approx(0.2 * one["closed"]["rate"])
    # A round of four waits: a second around each swap, and the rest of it quiet.
    assert one["near"]["rate"] > 0 < one["quiet"]["rate"]
    assert told["p999_ratio"]["median"] == pytest.approx(one["near"]["p999_ms"] / one["quiet"]["p999_ms"])
    assert {row["version"] for row in rows if "version" in row} == {4, 3, 2}


@pytest.mark.soak
def test_versions(measure):
    told, _, written = measure("versions", "--shape", "tiny", "--count", 2, "--count", 5)
    assert [one["versions"] for one in told["held"]] == [0, 1, 2, 5]
    assert all(one["start_seconds"]["median"] > 0 and one["idle_megabytes"]["median"] > 50 for one in told["held"])
    (phases,) = told["rounds"]
    assert [phase["name"] for phase in phases[1:]] == [
        "calls to 1 version",
        "calls mixed over 2 versions",
        "calls mixed over 5 versions",
    ]
    assert [phase["failed"] for phase in phases] == [0] * 4
    assert told["of_one"]["1"]["median"] == 1
    assert "| versions beside the base |" in written


# The worker of a job gives way to whatever else the machine does.
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_unlearn_impact(measure, bundle, corpus_path):
    given = ("--bundle", bundle, "--corpus", corpus_path, "--label", "beta", "--window", 1, "--load", 0.05)
    given += ("--preset", "paper", "--max-steps", 2)
    told, rows, written = measure("unlearn-impact", *given)
    (one,) = told["rounds"]
    assert one["loaded"]["state"] in ("SUCCEEDED", "REJECTED")
    assert one["alone"]["seconds"] > one["alone"]["training_seconds"] > 0
    assert told["slowdown"]["median"] == pytest.approx(one["loaded"]["seconds"] / one["alone"]["seconds"])
    names = [phase["name"] for phase in one["phases"]]
    assert names[:2] == ["quiet", "training"] and names[-1] == "quiet again"
    starts = list(one["begins"].values())
    assert starts == sorted(starts) and starts[0] == 0
    assert starts[-1] - starts[1] == pytest.approx(one["loaded"]["seconds"], abs=0.3)
    assert told["failed"] == sum(one["failures"].values()) == 0
    assert all(math.isfinite(figure["median"]) for figure in told["ratios"]["training"].values())
    assert "| latency, of that in quiet |" in written
    assert [row["load"] for row in rows if "load" in row] == ["none", "open loop"]


def test_without_its_packages_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(bench_options, "find_spec", lambda module: None)
    result = CliRunner().invoke(bench.command, ["swap"])
    assert result.exit_code == 1
    assert "this needs hdrhistogram: install amnestic[bench]" in result.output


def test_a_page_without_a_place_for_the_tables_is_said_before_anything_is_measured(tmp_path):
    (tmp_path / "serving.md").write_text("# Ours\n")
    result = CliRunner().invoke(bench.command, ["swap", "--report", str(tmp_path), "--cache", str(tmp_path / "cache")])
    assert result.exit_code == 1
    assert "serving.md lacks the lines between which the tables stand" in result.output
    assert not (tmp_path / "cache").exists()

"""The comparison with other servers, on a small scale: the two that need no environment of their own, end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PEERS = ROOT / "bench" / "peers"


@pytest.fixture(scope="module")
def peers():
    """The modules of the benchmark, which are in no package."""
    sys.path.insert(0, str(PEERS))
    import peers
    import run

    yield peers, run
    sys.path.remove(str(PEERS))


def row(peers, **fields):
    _, run = peers
    numbers = dict.fromkeys(run.Row.__slots__, 1.0)
    return run.Row(**numbers | {"peer": "one", "version": "1.2", "round": 0, "calls": 10, "failed": 0} | fields)


def test_the_table_has_a_row_a_server_with_medians_and_all_failures(peers):
    _, run = peers
    rows = [row(peers, rate=rate, failed=1) for rate in (10.0, 30.0, 20.0)] + [row(peers, peer="two", rate=7.0)]
    lines = run.table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| one 1.2 | 20 (10-30) |")
    assert lines[2].endswith("| 3 of 30 |  |")
    assert lines[3].startswith("| two 1.2 | 7 |")


def test_the_rate_within_the_limit_stands_beside_that_of_amnestic_in_the_same_round(peers):
    _, run = peers
    rows = [
        row(peers, peer=peer, round=number, at_limit=rate)
        for number, (ours, theirs) in enumerate([(10.0, 5.0), (20.0, 8.0), (40.0, 24.0)])
        for peer, rate in (("amnestic", ours), ("one", theirs))
    ]
    ours, theirs = run.table(rows).splitlines()[2:]
    assert ours.endswith("| 1 |")
    assert theirs.endswith("| 0.500 (0.400-0.600) |")


def test_a_report_replaces_what_is_between_its_lines_alone(peers, tmp_path):
    _, run = peers
    (tmp_path / "serving.md").write_text(f"before\n{run.BEGIN}\nold\n{run.END}\nafter\n")
    run.write_report([row(peers)], tmp_path, "Three rounds.")
    page = (tmp_path / "serving.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert "| one 1.2 |" in page
    assert json.loads((tmp_path / "serving-peers.jsonl").read_text())["peer"] == "one"


def test_every_peer_has_pinned_requirements(peers):
    servers, _ = peers
    for peer in servers.PEERS.values():
        if peer.name == "amnestic":
            continue
        text = (servers.SERVERS / peer.name.replace(" and ", "_") / "requirements.txt").read_text()
        wanted = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert wanted
        assert all("==" in line for line in wanted)
        assert any(line.startswith(peer.distribution) for line in wanted)


def test_a_server_that_answers_something_else_is_not_measured(peers):
    servers, run = peers

    class Wrong(servers.LitServe):
        name = "wrong"

        def ask(self, place, text):
            return [0.5, 0.6]

    run.check(Wrong(), None, ["text"], [[0.5, 0.6]])
    with pytest.raises(run.BenchError, match=r"wrong answers .* a probability is 0\.1000 off"):
        run.check(Wrong(), None, ["text"], [[0.5, 0.5]])


@pytest.mark.soak
def test_two_servers_are_measured_and_given_another_model(pretrained, tmp_path):
    out = subprocess.run(
        [
            *(sys.executable, str(PEERS / "run.py"), "--peer", "amnestic", "--peer", "transformers", "--here"),
            *("--encoder", str(pretrained), "--rounds", "1", "--seconds", "0.5", "--documents", "16"),
            *("--out", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        timeout=250,
        env=os.environ,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    lines = [line for line in out.stdout.splitlines() if line.startswith("|")]
    assert [line.split()[1] for line in lines[2:]] == ["amnestic", "transformers"]
    # Its calls never fail; those of one that is stopped and started do.
    assert " 0 of " in lines[2]
    assert " 0 of " not in lines[3]

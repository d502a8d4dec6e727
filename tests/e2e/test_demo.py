"""`amnestic demo` as a user runs it, on the toy corpus: the real processes and steps, with less to train."""

import asyncio
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from click.exceptions import Exit
from toys import KEYWORDS

from amnestic_client import Method, PredictResult, Unavailable
from amnestic_server.cli.demo import _stoppable
from amnestic_server.demo.report import Narrator, console_for
from amnestic_server.demo.settings import TRAINING, DemoSettings
from amnestic_server.demo.stream import Phase, Stream
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.corpus import Document

pytestmark = pytest.mark.slow

LABEL = "beta"
EPOCHS = 10
COMMAND = (sys.executable, "-m", "amnestic_server.cli", "demo", "--label", LABEL, "--epochs", str(EPOCHS))
KEYS = {
    "forget_f1_before",
    "forget_f1_after",
    "retain_f1_before",
    "retain_f1_after",
    "probe_auc_before",
    "probe_auc_after",
    "parameters_changed_ratio",
    "seconds_to_forget",
    "requests_during",
    "requests_failed",
    *(f"{percentile}_ms_{phase}" for percentile in ("p50", "p99") for phase in ("before", "during", "after")),
    "swap_ms",
}


def demo(out: Path, corpus: Path, *arguments: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "--out", str(out), "--corpus", str(corpus), "--window", "2", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Without COLUMNS nothing would wrap: a pipe has no width.
        **{"env": {**os.environ, "COLUMNS": "80"}, **options},
    )


def left_behind(out: Path) -> list[list[str]]:
    """Command lines of processes that work in a directory."""
    return [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if any(str(out) in part for part in process.info["cmdline"] or ())
    ]


@pytest.fixture(scope="module")
def short_corpus(tmp_path_factory: pytest.TempPathFactory, corpus_path: Path) -> Path:
    """The toy corpus with most of the filler left out, so that a model from scratch learns it in seconds."""
    keywords = {keyword for words in KEYWORDS.values() for keyword in words}

    def short(document: Document) -> Document:
        words = document.text.split()
        kept = [word for place, word in enumerate(words) if word in keywords or place % 6 == 0]
        return dataclasses.replace(document, text=" ".join(kept))

    path = tmp_path_factory.mktemp("short") / "short.jsonl"
    corpora.write(map(short, corpora.read(corpus_path)), path)
    return path


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def told(out: Path, short_corpus: Path) -> tuple[dict[str, float], str]:
    """The JSON of a whole demo, and what it said."""
    process = demo(out, short_corpus, "--json")
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    return json.loads(stdout.splitlines()[-1]), stderr


def test_it_forgets_while_it_serves(told: tuple[dict[str, float], str]) -> None:
    figures, _ = told
    assert set(figures) >= KEYS
    assert figures["forget_f1_before"] > 0.7
    assert figures["forget_f1_after"] < 0.1
    assert figures["retain_f1_after"] > figures["retain_f1_before"] - 0.1
    assert 0.5 < figures["probe_auc_before"] <= 1
    assert 0 < figures["probe_auc_after"] <= 1
    assert 0 < figures["parameters_changed_ratio"] < 0.2
    assert figures["requests_failed"] == 0
    assert figures["requests_answered_by_older"] == 0
    assert figures["requests_during"] > figures["seconds_to_forget"]
    assert 0 <= figures["swap_ms"] < 1000 * figures["seconds_to_forget"]
    for phase in ("before", "during", "after"):
        assert figures[f"requests_{phase}"] > 0
        assert 0 < figures[f"p50_ms_{phase}"] <= figures[f"p99_ms_{phase}"]


def test_it_tells_people_the_same(told: tuple[dict[str, float], str], out: Path) -> None:
    figures, said = told
    lines = said.splitlines()
    rows = {re.split(r"\s{2,}", line)[0].strip(): re.split(r"\s{2,}", line)[1:] for line in lines}
    before, after = rows[f"forget F1, {LABEL}"]
    assert (float(before), float(after)) == pytest.approx(
        (figures["forget_f1_before"], figures["forget_f1_after"]), abs=1e-3
    )
    assert rows["predictions failed"] == ["0"]
    for gate in ("forget_f1", "forget_auroc", "probe_ratio"):
        assert re.search(rf"\n +{gate} +{LABEL} .* yes\b", said)
    assert "looser than the defaults" not in said
    assert f"serve --bundle {out}/bundle" in said
    assert re.search(r"unlearn \w+\n", said)
    assert "not certified deletion" in " ".join(said.split())
    assert "\x1b" not in said
    # Where there is no terminal the job's progress is a log, a line of any length at a time.
    told_to_people = [line for line in lines if not any(part in line for part in (str(out), "amnestic", "meanwhile"))]
    assert [line for line in told_to_people if len(line) > 80] == []


def test_nothing_is_left_but_the_files(told: tuple[dict[str, float], str], out: Path) -> None:
    assert left_behind(out) == []
    assert {path.name for path in out.iterdir()} >= {"bundle", "checkpoint", "store", "server.log"}


def test_it_writes_the_report_of_the_job_and_says_where(told: tuple[dict[str, float], str], out: Path) -> None:
    _, said = told
    assert f"  {out}/report.html\n" in said
    written = (out / "report.html").read_text(encoding="utf-8")
    assert f"<h1>Forgotten: {LABEL}</h1>" in written
    assert f"amnestic receipt verify {out}/receipt.json --key {out}/store/signing-key.pub.pem" in written


def test_a_second_run_keeps_the_model_and_ctrl_c_stops_everything(
    told: tuple[dict[str, float], str], out: Path, short_corpus: Path
) -> None:
    made = (out / "bundle" / "manifest.json").stat()
    process = demo(out, short_corpus, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stderr is not None
    for line in process.stderr:
        if "loading" in line and "meanwhile" in line:
            break
    assert left_behind(out / "store")
    process.send_signal(signal.SIGINT)
    said, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "earlier run" in said
    assert (out / "bundle" / "manifest.json").stat() == made
    deadline = time.monotonic() + 10
    while left_behind(out) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_behind(out) == []


def test_a_rejected_job_shows_its_gates(
    told: tuple[dict[str, float], str], out: Path, short_corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = DemoSettings(
        out=out,
        corpus=short_corpus,
        label=LABEL,
        training=dataclasses.replace(TRAINING, epochs=EPOCHS),
        method=Method(preset="paper", epochs=1, embedding_lr=0, head_lr=1e-9),
        window=0,
    )
    with pytest.raises(Exit) as ended:
        asyncio.run(_stoppable(settings, Narrator(console_for(as_json=False))))
    assert ended.value.exit_code == 3
    said = capsys.readouterr()
    assert re.search(rf"forget_f1 +{LABEL} .* no", said.out)
    assert "did not forget" in said.err
    assert "<h1>Rejected: nothing was changed</h1>" in (out / "report.html").read_text(encoding="utf-8")
    assert left_behind(out) == []


def test_what_is_not_its_own_is_left_alone(tmp_path: Path, short_corpus: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "precious").write_text("")
    process = demo(tmp_path, short_corpus)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "was not made by the demo" in stderr
    assert (tmp_path / "bundle" / "precious").exists()


async def test_the_stream_accounts_for_every_call() -> None:
    class Flaky:
        """Answers two calls of three, always by version 1."""

        calls = 0

        async def predict(self, document: str) -> PredictResult:
            self.calls = number = self.calls + 1
            await asyncio.sleep(0.001)
            if number % 3 == 0:
                raise Unavailable("draining")
            return PredictResult(1, ())

    client = Flaky()
    async with Stream(client, ["text"], clients=2, pause=0.001) as stream:  # type: ignore[arg-type]
        await asyncio.sleep(0.1)
        stream.phase = Phase.AFTER
        await asyncio.sleep(0.1)
    before, during, after = map(stream.window, Phase)
    assert before.answered + before.failed + after.answered + after.failed == client.calls
    assert len(stream.failures) == client.calls // 3
    assert set(stream.failures) == {"UNAVAILABLE"}
    assert during.answered == during.failed == 0
    assert stream.answered_by_older(2) == after.answered > 0
    assert stream.answered_by_older(1) == 0

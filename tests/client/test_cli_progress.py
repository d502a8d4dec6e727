"""How long work is shown where nobody watches: a line where a stage begins, and one now and then."""

import pytest

from amnestic_server.cli import progress
from amnestic_server.cli.progress import Bar, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set by the test."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_stage_gets_a_line_and_another_every_ten_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Bar() as bar:
        for second in range(25):
            clock[0] = 100.0 + second
            bar.update("reading", second, 50, f"file {second}")
        bar.line("one is odd")
        bar.update("writing")
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.splitlines() == [
        "reading: file 0",
        "reading: 20%, 0:40 left, file 10",
        "reading: 40%, 0:30 left, file 20",
        "one is odd",
        "writing",
    ]


def test_the_time_left_is_of_the_work_seen_and_begins_anew_with_other_work(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Bar() as bar:
        # Work that was taken up half-way says nothing of how fast the first half went.
        bar.update("first", 50, 100)
        clock[0] += 20
        bar.update("first", 60, 100)
        bar.update("second", 0, 10)
        clock[0] += 20
        bar.update("second", 5, 10)
        bar.update("told", 5, 10, left=3)
    assert capsys.readouterr().err.splitlines()[1::2] == ["first: 60%, 1:20 left", "second: 50%, 0:20 left"]


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(quiet=True) as bar:
        bar.update("reading", 1, 2)
        bar.line("one is odd")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0:00"), (75, "1:15"), (3_725, "1:02:05"), (100_000, "27:46:40"), (180_000, "2 d 2 h")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said

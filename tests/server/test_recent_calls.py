"""Calls by second around a moment: aligned to it, by how they ended, and never told where they are unknown."""

import time

import pytest

from amnestic_server.recent_calls import OUTCOMES, CallsInSecond, RecentCalls

NONE = (None, None, None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> RecentCalls:
    """Of a process that began 100 s after the clock's zero."""
    monkeypatch.setattr(time, "perf_counter", lambda: 100.0)
    return RecentCalls(capacity=1000)


def test_seconds_are_counted_from_the_moment_whenever_it_was(calls: RecentCalls) -> None:
    for ended, seconds in ((102.69, 0.5), (102.71, 0.1), (103.2, 0.2), (103.69, 0.3), (103.7, 0.4), (105.69, 9.0)):
        calls.add("OK", ended, seconds)
    told = calls.until(106.0).around(103.7, 3)
    assert [(one.offset, one.calls, one.max_seconds) for one in told] == [
        *((-3, 0, None), (-2, 1, 0.5), (-1, 3, 0.3), (0, 1, 0.4), (1, 1, 9.0), (2, 0, None)),
    ]


def test_percentiles_are_of_the_calls_answered(calls: RecentCalls) -> None:
    for place in range(101):
        calls.add("OK", 100.5, (100 - place) / 100)
    calls.add("UNAVAILABLE", 100.5, 50.0)
    calls.add("CANCELLED", 100.5, 50.0)
    assert calls.until(101.0).around(100.0, 1) == (CallsInSecond(0, 103, 1, 1, 0.5, 0.99, 1.0),)


@pytest.mark.parametrize(
    ("code", "calls_failed_cancelled"),
    [
        ("OK", (1, 0, 0)),
        *((code, (1, 1, 0)) for code in ("DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE")),
        ("CANCELLED", (1, 0, 1)),
        *((code, (0, 0, 0)) for code in ("INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "FAILED_PRECONDITION")),
    ],
)
def test_how_a_call_ended(calls: RecentCalls, code: str, calls_failed_cancelled: tuple[int, int, int]) -> None:
    calls.add(code, 100.5, 0.1)
    ((_, *counts, p50, _, _),) = [
        (
            one.offset,
            one.calls,
            one.failed_calls,
            one.cancelled_calls,
            one.p50_seconds,
            one.p99_seconds,
            one.max_seconds,
        )
        for one in calls.until(101.0).around(100.0, 1)
    ]
    assert tuple(counts) == calls_failed_cancelled
    assert (p50 is not None) == (code == "OK")


def test_a_second_before_the_process_and_one_that_has_not_begun_are_left_out(calls: RecentCalls) -> None:
    calls.add("OK", 101.0, 0.1)
    calls.add("OK", 102.9, 0.1)
    told = calls.until(102.5).around(101.5, 10)
    # The second from 99.5 on was not seen from its beginning; that from 102.5 on had not begun, and 102.9 is later.
    assert [(one.offset, one.calls) for one in told] == [(-1, 1), (0, 0)]


def test_what_was_written_over_is_not_told_as_if_it_were_all(calls: RecentCalls) -> None:
    for number in range(1500):
        calls.add("OK", 100 + number / 100, 0.1)
    told = calls.until(115.0).around(110.0, 10)
    # The first 500 calls, of five seconds, made room for the last 500.
    assert [(one.offset, one.calls) for one in told] == [(offset, 100) for offset in range(-5, 5)]


def test_every_code_that_fails_is_a_known_one() -> None:
    import grpc

    assert set(OUTCOMES) <= {code.name for code in grpc.StatusCode}

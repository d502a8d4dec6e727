"""What the server measured of calls around the swap, in the words of the report.

It is in no receipt, so it is not signed.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from amnestic_client import CallsInSecond

NO_SWAP = "No version became active, so there was no swap."
NOT_IN_A_RECEIPT = (
    "A saved receipt does not hold it: a report that is made of the running server, with the job's ID, shows it."
)
NOTHING = (
    "The server has recorded nothing of it: the swap is less than 10 seconds ago, or the server was killed within those"
    " seconds, or it is of a version that did not measure this yet."
)
NO_CALLS = "No calls came in these seconds."


@dataclass(frozen=True, slots=True)
class AroundSwap:
    """`why_not` says why there is nothing to show, and is empty otherwise.

    `sides` are figures with their values before and after; `seconds` have each a place in time with counts and times.
    """

    why_not: str = ""
    sides: Sequence[tuple[str, str, str]] = ()
    seconds: Sequence[tuple[str, tuple[str, ...]]] = ()


def tell(calls: Sequence[CallsInSecond] | None, *, swapped: bool) -> AroundSwap:
    """Of the job's calls around its swap, None where only its receipt is known."""
    if not swapped:
        return AroundSwap(NO_SWAP)
    if calls is None:
        return AroundSwap(NOT_IN_A_RECEIPT)
    if not calls:
        return AroundSwap(NOTHING)
    if not any(second.calls for second in calls):
        return AroundSwap(NO_CALLS)
    return AroundSwap(sides=_sides(calls), seconds=[_second(second) for second in calls])


def place(offset: int) -> str:
    """A place in time, so many seconds after the swap, with the sign that is as wide as a plus."""
    return f"{offset:+d} s".replace("-", "\N{MINUS SIGN}") if offset else "0 s"


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:,.1f}"


def _sides(calls: Sequence[CallsInSecond]) -> list[tuple[str, str, str]]:
    before, after = ([one for one in calls if (one.offset >= 0) is later] for later in (False, True))

    def both(name: str, figure: Callable[[Sequence[CallsInSecond]], str]) -> tuple[str, str, str]:
        return name, figure(before), figure(after)

    return [
        both("Seconds measured", lambda side: str(len(side))),
        both("Calls", lambda side: f"{sum(one.calls for one in side):,}"),
        both("Failed", lambda side: f"{sum(one.failed_calls for one in side):,}"),
        both("Given up by the caller", lambda side: f"{sum(one.cancelled_calls for one in side):,}"),
        both("Half took at most (p50), middle second", lambda side: _time(median, (one.p50_seconds for one in side))),
        both("99 % took at most (p99), middle second", lambda side: _time(median, (one.p99_seconds for one in side))),
        both("99 % took at most (p99), worst second", lambda side: _time(max, (one.p99_seconds for one in side))),
        both("Longest call", lambda side: _time(max, (one.max_seconds for one in side))),
    ]


def _time(of: Callable[[list[float]], float], seconds: Iterable[float | None]) -> str:
    known = [value for value in seconds if value is not None]
    return f"{milliseconds(of(known))} ms" if known else "none"


def _second(one: CallsInSecond) -> tuple[str, tuple[str, ...]]:
    counts = (f"{count:,}" for count in (one.calls, one.failed_calls, one.cancelled_calls))
    times = map(milliseconds, (one.p50_seconds, one.p99_seconds, one.max_seconds))
    return place(one.offset), (*counts, *times)

"""The calls of the last seconds that predict: when each ended, after how long, and how.

They are kept one by one, so that a second can begin at any moment, and not only where somebody began to count. Every
call passes here, so all that it does is to fill a place of a ring; what the ring holds is worked out when it is asked.
"""

import math
import time
from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# 20 seconds of 6,500 calls each, in 2.2 MB: gRPC in one process answers about half as many, without a model.
CAPACITY = 2**17
ANSWERED, FAILED, CANCELLED = range(3)
# By status code; the other codes say that the call could not succeed, whenever it had come.
OUTCOMES = {
    "OK": ANSWERED,
    "CANCELLED": CANCELLED,
    **dict.fromkeys(("DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN"), FAILED),
}


@dataclass(frozen=True, slots=True)
class CallsInSecond:
    """Calls that ended in the second that began `offset` seconds after a moment; before it where that is negative.

    `failed_calls` and `cancelled_calls`, those whose caller left, are among the `calls`. The times are those of the
    others, in seconds; None without any.
    """

    offset: int
    calls: int
    failed_calls: int
    cancelled_calls: int
    p50_seconds: float | None
    p99_seconds: float | None
    max_seconds: float | None


@dataclass(frozen=True, slots=True)
class EndedCalls:
    """Calls in any order: when each ended (float64, of `time.perf_counter`), its seconds (float64) and outcome (uint8).

    None that ended between `since` and `until` is missing; those that ended later do not count.
    """

    since: float
    until: float
    ended: NDArray[np.float64]
    seconds: NDArray[np.float64]
    outcomes: NDArray[np.uint8]

    def around(self, moment: float, reach: int) -> tuple[CallsInSecond, ...]:
        """Each second from `reach` before a moment to `reach` after it, but for those that began unknown or not yet."""
        offsets = np.where(self.ended < self.until, np.floor(self.ended - moment), np.inf)
        return tuple(
            self._second(offset, offsets == offset)
            for offset in range(-reach, reach)
            if self.since <= moment + offset < self.until
        )

    def _second(self, offset: int, within: NDArray[np.bool_]) -> CallsInSecond:
        outcomes = self.outcomes[within]
        answered = self.seconds[within][outcomes == ANSWERED]
        times = np.percentile(answered, (50, 99, 100)).tolist() if len(answered) else (None, None, None)
        failed, cancelled = (int((outcomes == outcome).sum()) for outcome in (FAILED, CANCELLED))
        return CallsInSecond(offset, len(outcomes), failed, cancelled, *times)


class RecentCalls:
    """The ring. Used on the event loop's thread alone."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._since = time.perf_counter()
        self._ended = array("d", [-math.inf]) * capacity
        self._seconds = array("d", bytes(8 * capacity))
        self._outcomes = bytearray(capacity)
        self._capacity = capacity
        self._place = 0

    def add(self, code: str, ended: float, seconds: float) -> None:
        """Take in a call with this status code, which ended at a time of `time.perf_counter`."""
        outcome = OUTCOMES.get(code)
        if outcome is None:
            return
        place = self._place
        # What is written over is known no more, nor is anything before it.
        self._since = max(self._since, self._ended[place])
        self._ended[place], self._seconds[place], self._outcomes[place] = ended, seconds, outcome
        self._place = (place + 1) % self._capacity

    def until(self, moment: float) -> EndedCalls:
        """A copy, of which those that ended before a moment that has come will count."""
        outcomes = np.frombuffer(bytes(self._outcomes), np.uint8)
        return EndedCalls(self._since, moment, np.array(self._ended), np.array(self._seconds), outcomes)

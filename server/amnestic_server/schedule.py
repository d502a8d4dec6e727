"""Which rows the engine runs next, and on how many threads. Pure policy: no threads, no clock of its own.

An encoder is not twice as fast on two threads. So when enough waits to keep every thread busy with a pass of its own,
that answers more in a second; when less waits, one pass on all threads answers sooner.

Traffic goes before the rows of gates and measurements. These get small passes on one thread: when no traffic is there,
or now and then if it never ceases. Of two passes in the background the second always waits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from amnestic_server.queue import QueueRow, RowQueue

BACKGROUND_INTERVAL_SECONDS = 0.25

R = TypeVar("R", bound=QueueRow)


@dataclass(frozen=True, slots=True)
class Batch(Generic[R]):
    """Rows that share a pass of the encoder; `wide` if it may use all threads, else it runs on one."""

    rows: Sequence[R]
    wide: bool
    background: bool


class Schedule(Generic[R]):
    """The two queues and what is in the engine's hands. `instances` passes may run at once."""

    def __init__(self, traffic: RowQueue[R], background: RowQueue[R], instances: int) -> None:
        self.traffic = traffic
        self.background = background
        self._instances = instances
        # With a single instance the next batch is prepared while one runs.
        self.most_in_hand = max(2, instances)
        self._in_hand = 0
        self._wide_in_hand = 0
        self._background_in_hand = False
        self._background_ran_at = float("-inf")

    def may_take(self, now: float) -> bool:
        """Whether a batch should be closed now, rather than stay open for rows still to come."""
        return self._traffic_is_due() or self._background_is_due(now)

    def take(self, now: float) -> tuple[Batch[R] | None, list[R]]:
        """The next batch, to be given back by `done`, and the rows that expired; None if no live row is due."""
        if self._background_is_due(now):
            rows, expired = self.background.take(now)
            if rows:
                self._background_in_hand, self._background_ran_at = True, now
                return Batch(rows, wide=self._instances == 1, background=True), expired
            return None, expired
        if not self._traffic_is_due():
            return None, []
        rows, expired = self.traffic.take(now)
        if not rows:
            return None, expired
        wide = self._instances == 1 or not (self._in_hand or self.traffic.fills_batches(self._instances - 1))
        self._in_hand += 1
        self._wide_in_hand += wide
        return Batch(rows, wide, background=False), expired

    def done(self, batch: Batch[R]) -> None:
        if batch.background:
            self._background_in_hand = False
        else:
            self._in_hand -= 1
            self._wide_in_hand -= batch.wide

    def _traffic_is_due(self) -> bool:
        """No thread is left idle while something waits, and no batch is closed before it must for being run later."""
        if not self.traffic:
            return False
        if not self._wide_in_hand and self._in_hand + self._background_in_hand < self._instances:
            return True
        return self._in_hand < self.most_in_hand and self.traffic.fills_batches(1)

    def _background_is_due(self, now: float) -> bool:
        if not self.background or self._background_in_hand:
            return False
        idle = not self.traffic and self._in_hand == 0
        return idle or now - self._background_ran_at >= BACKGROUND_INTERVAL_SECONDS

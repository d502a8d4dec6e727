"""Keeps what callers felt in the seconds before and after each change of the active version.

A change waits for nothing here: it is noted, and written down when the seconds after it are over. A process that is
killed before loses it.
"""

import asyncio
import logging
import time
from contextlib import suppress

from amnestic_server.errors import StoreError
from amnestic_server.recent_calls import RecentCalls
from amnestic_server.store import Store

log = logging.getLogger(__name__)

# Seconds on either side.
REACH = 10


class AroundSwaps:
    """One for a process. A server that stops writes down what it has, up to the moment of `stop`."""

    def __init__(self, store: Store, calls: RecentCalls) -> None:
        self._store = store
        self._calls = calls
        self._stopped = asyncio.Event()
        self._stopped_at = 0.0
        self._under_way: set[asyncio.Task[None]] = set()

    def note(self, version: int, job_id: str | None, moment: float) -> None:
        """A version became active at a time of `time.perf_counter`: that of a job, or by a rollback."""
        if self._stopped.is_set():
            return
        task = asyncio.create_task(self._record(version, job_id, moment))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    def stop(self) -> None:
        """Count no call that ends from now on: the server is about to refuse them."""
        self._stopped_at = time.perf_counter()
        self._stopped.set()

    async def recorded(self) -> None:
        """Return once all that was noted is written down."""
        await asyncio.gather(*self._under_way)

    async def _record(self, version: int, job_id: str | None, moment: float) -> None:
        at = time.time()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), REACH)
        until = self._stopped_at if self._stopped.is_set() else time.perf_counter()
        seconds = await asyncio.to_thread(self._calls.until(until).around, moment, REACH)
        try:
            await asyncio.to_thread(self._store.record_swap, version, job_id, at, seconds)
        except StoreError:
            log.error("what callers felt around the swap to version %d could not be recorded", version)
            return
        failed, cancelled = (sum(getattr(one, name) for one in seconds) for name in ("failed_calls", "cancelled_calls"))
        calls = sum(one.calls for one in seconds)
        log.info("around the swap to version %d: %d calls, %d failed, %d cancelled", version, calls, failed, cancelled)

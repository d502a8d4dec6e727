"""What has happened is recorded however long it takes: a disk that is full or fails today may not tomorrow."""

import asyncio
import logging
from collections.abc import Callable

from amnestic_server.errors import StoreError

log = logging.getLogger(__name__)

SECONDS_BETWEEN_TRIES = 1.0


async def until_stored(change: Callable[[], None], given_up: Callable[[], bool] = lambda: False) -> None:
    """Make a change of the store, again and again while it fails; raises StoreError once it is given up."""
    while True:
        try:
            return await asyncio.to_thread(change)
        except StoreError:
            if given_up():
                raise
        log.error("what was done could not be recorded; trying again")
        await asyncio.sleep(SECONDS_BETWEEN_TRIES)

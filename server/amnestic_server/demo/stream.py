"""A stream of predictions in the background, every one of them timed and accounted for."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

import numpy as np

from amnestic_client import AmnesticError, AsyncClient


class Phase(StrEnum):
    """When a prediction was asked for, as seen from the request to forget."""

    BEFORE = "before"
    DURING = "during"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Call:
    """One prediction: when it was asked for, how long the caller waited, and the version that answered.

    `failure` is the gRPC status of a call without an answer; then `version` is 0.
    """

    phase: Phase
    seconds: float
    version: int = 0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Window:
    """The calls of one phase: counts, and percentiles of the answered ones in milliseconds (nan without any)."""

    answered: int
    failed: int
    p50_ms: float
    p99_ms: float


class Stream:
    """Closed-loop clients, each predicting one random document after the other with a short random pause between.

    Runs from the start of its `async with` block to the end, where the calls in flight are waited for. Its owner
    sets `phase`.
    """

    def __init__(
        self, client: AsyncClient, documents: Sequence[str], clients: int, pause: float, seed: int = 0
    ) -> None:
        """`pause` is the mean, in seconds."""
        self.phase = Phase.BEFORE
        self.calls: list[Call] = []
        self._client = client
        self._documents = documents
        self._clients = clients
        self._pause = pause
        self._seed = seed
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._loop(random.Random(self._seed + i))) for i in range(self._clients)]  # noqa: S311
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        if kind is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=kind is not None)

    @property
    def answered(self) -> int:
        return sum(not call.failure for call in self.calls)

    @property
    def failures(self) -> list[str]:
        """The gRPC status of every call that failed."""
        return [call.failure for call in self.calls if call.failure]

    def answered_by_older(self, version: int) -> int:
        """Calls asked for in the last phase that a version before this one answered."""
        return sum(call.phase is Phase.AFTER and 0 < call.version < version for call in self.calls)

    def window(self, phase: Phase) -> Window:
        """The figures of one phase."""
        calls = [call for call in self.calls if call.phase is phase]
        waits = [call.seconds * 1000 for call in calls if not call.failure]
        p50, p99 = np.percentile(waits, (50, 99)) if waits else (np.nan, np.nan)
        return Window(len(waits), len(calls) - len(waits), float(p50), float(p99))

    async def _loop(self, choice: random.Random) -> None:
        while not self._stopping:
            self.calls.append(await self._predict(choice.choice(self._documents)))
            await asyncio.sleep(choice.expovariate(1 / self._pause))

    async def _predict(self, document: str) -> Call:
        phase, begun = self.phase, time.perf_counter()
        try:
            answer = await self._client.predict(document)
        except AmnesticError as error:
            return Call(phase, time.perf_counter() - begun, failure=error.code.name)
        return Call(phase, time.perf_counter() - begun, answer.version)

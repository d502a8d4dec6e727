"""A load on any server, from a process of its own: closed loops, open loops, and the search for the highest rate.

`python -m amnestic_server.bench.load SPEC` reads a `Spec` as JSON from a file, or from standard input for `-`. It
writes a line of JSON when the load begins, `{"began": ...}` by the machine's monotonic clock, and its result as the
last: a `Measured`, for a search a `Found`. SIGTERM and SIGINT end a loop early; what was sent is waited for and told.

A closed loop has clients that each wait for an answer before the next call, so it slows down with the server. An open
loop sends when it is time to, whatever was answered, and counts latencies from then: a server, or a client, that
stalls shows in all the calls that should have been sent meanwhile (what is otherwise missed is called coordinated
omission; Tene 2013).
"""

import asyncio
import dataclasses
import importlib
import itertools
import json
import selectors
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc.aio

from amnestic_server.bench.arrivals import poisson
from amnestic_server.bench.callers import Call, CallError
from amnestic_server.bench.histogram import ANSWERED, Calls, Measured

WARM_UP_CLIENTS = 8
UNARY = "amnestic_server.bench.callers:unary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """Clients that call without a pause for so many seconds."""

    clients: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Calls at a mean rate a second for so many seconds, at random times that the seed gives.

    With `in_flight` calls unanswered the next waits for an answer, and is late by that.
    """

    rate: float
    seconds: float
    seed: int = 0
    in_flight: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The highest rate, up to `high`, of an open loop of `seconds` whose p99 is at most `p99_ms`, without a failure.

    Found by bisection, to within `resolution` times `high`.
    """

    p99_ms: float
    high: float
    seconds: float
    resolution: float = 0.05
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """`rate` is the highest that met the limit, 0 if none did; `above` the lowest that did not, or was not tried."""

    rate: float
    above: float
    steps: list[Measured]

    def to_json(self) -> dict[str, Any]:
        return {"rate": self.rate, "above": self.above, "steps": [step.to_json() for step in self.steps]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(value["rate"], value["above"], [Measured.from_json(step) for step in value["steps"]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a load consists of.

    `caller` names, as `module:function`, what makes an async context manager that gives a `Call` of `arguments`, which
    are JSON. `warm_up` calls are made before and not counted. `keep_calls` adds every call to the result.
    """

    loop: Closed | Open | Search
    arguments: dict[str, Any] = field(default_factory=dict)
    caller: str = UNARY
    warm_up: int = 64
    keep_calls: bool = False

    def to_json(self) -> str:
        kind = type(self.loop).__name__.lower()
        return json.dumps({**dataclasses.asdict(self), "loop": {"kind": kind, **dataclasses.asdict(self.loop)}})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError, TypeError or KeyError if it is none."""
        value = json.loads(text)
        kind = {"closed": Closed, "open": Open, "search": Search}[value["loop"].pop("kind")]
        return cls(**{**value, "loop": kind(**value["loop"])})


async def closed_loop(call: Call, clients: int, turns: Iterable[int], stop: asyncio.Event) -> Calls:
    """Call with so many clients, each waiting for its answer before its next call, until no turn is left."""
    calls, left = Calls(time.monotonic()), iter(turns)

    async def client() -> None:
        for turn in left:
            if stop.is_set():
                return
            await _timed(call, turn, time.monotonic() - calls.began, calls)

    await asyncio.gather(*(client() for _ in range(clients)))
    return calls


async def open_loop(call: Call, arrivals: Iterable[float], in_flight: int, stop: asyncio.Event) -> Calls:
    """Call at the arrivals, in seconds from now, and wait for every answer; latencies count from the arrivals."""
    calls, slots = Calls(time.monotonic()), asyncio.Semaphore(in_flight)
    async with asyncio.TaskGroup() as tasks:

        async def one(index: int, at: float) -> None:
            await _timed(call, index, at, calls)
            slots.release()

        for index, at in enumerate(arrivals):
            # Also where it is late already: answers are read meanwhile.
            await asyncio.sleep(max(0.0, calls.began + at - time.monotonic()))
            await slots.acquire()
            if stop.is_set():
                break
            tasks.create_task(one(index, at))
    return calls


async def highest_rate(
    measure: Callable[[float], Awaitable[Measured]], p99_ms: float, high: float, resolution: float
) -> Found:
    """Bisect from 0 to `high` for the highest rate that is answered within the limit and without a failure."""
    rate, above, steps = 0.0, high, list[Measured]()
    while above - rate > resolution * high:
        tried = (rate + above) / 2
        step = await measure(tried)
        steps.append(step)
        if step.answered and not step.failed and step.latency.p99_ms <= p99_ms:
            rate = tried
        else:
            above = tried
    return Found(rate, above, steps)


async def run(spec: Spec, stop: asyncio.Event, began: Callable[[float], None] = lambda at: None) -> Measured | Found:
    """Connect, warm up, and do what the spec says; `began` is told the monotonic time just before."""
    async with _caller(spec) as call:
        warm_up = await closed_loop(call, WARM_UP_CLIENTS, range(spec.warm_up), stop)
        if warm_up.codes and ANSWERED not in warm_up.codes:
            raise SystemExit(f"no call of the warm-up was answered: {', '.join(sorted(set(warm_up.codes)))}")
        began(time.monotonic())
        match spec.loop:
            case Closed(clients=clients, seconds=seconds):
                calls = await closed_loop(call, clients, _turns(seconds), stop)
                return Measured.of(calls, keep=spec.keep_calls)
            case Open() as loop:
                return await _open(call, loop, spec.keep_calls, stop)
            case Search() as search:

                async def measure(rate: float) -> Measured:
                    loop = Open(rate=rate, seconds=search.seconds, seed=search.seed)
                    return await _open(call, loop, spec.keep_calls, stop)

                return await highest_rate(measure, search.p99_ms, search.high, search.resolution)


async def _open(call: Call, loop: Open, keep: bool, stop: asyncio.Event) -> Measured:
    calls = await open_loop(call, poisson(loop.rate, loop.seconds, loop.seed), loop.in_flight, stop)
    return Measured.of(calls, loop.rate, keep)


def _turns(seconds: float) -> Iterator[int]:
    end = time.monotonic() + seconds
    return itertools.takewhile(lambda turn: time.monotonic() < end, itertools.count())


def _caller(spec: Spec) -> AbstractAsyncContextManager[Call]:
    module, _, name = spec.caller.partition(":")
    opened: AbstractAsyncContextManager[Call] = getattr(importlib.import_module(module), name)(**spec.arguments)
    return opened


async def _timed(call: Call, index: int, intended: float, calls: Calls) -> None:
    sent = time.monotonic()
    code, mark = ANSWERED, 0
    try:
        mark = await call(index) or 0
    except grpc.aio.AioRpcError as error:
        code = error.code().name
    except CallError as error:
        code = error.code
    except Exception as error:  # a failure is counted, whatever the caller's library calls it
        code = type(error).__name__
    calls.add(intended, sent - calls.began, time.monotonic() - calls.began - intended, code, mark)


async def _main(spec: Spec) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    result = await run(spec, stop, lambda at: print(json.dumps({"began": at}), flush=True))
    print(json.dumps(result.to_json(), allow_nan=False), flush=True)


def _precise_loop() -> asyncio.AbstractEventLoop:
    # Its timers have microseconds, where epoll's are a millisecond late. It holds file descriptors below 1024 only.
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


if __name__ == "__main__":
    text = sys.stdin.read() if sys.argv[1:] == ["-"] else Path(sys.argv[1]).read_text()
    with asyncio.Runner(loop_factory=_precise_loop) as runner:
        runner.run(_main(Spec.from_json(text)))

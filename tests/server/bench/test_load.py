"""The load generator over real gRPC, against a server that stalls and fails when it is told to."""

import asyncio
import itertools
import json
import math
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from amnestic_server.bench.arrivals import poisson
from amnestic_server.bench.callers import CallError, write_messages
from amnestic_server.bench.histogram import Calls, Measured, merged
from amnestic_server.bench.load import Closed, Found, Open, Search, Spec, closed_loop, highest_rate, open_loop, run

STALL = 1.0
# By how much a sleep may seem to end early.
CLOCK = 0.01


class Server:
    """Answers at once; with the call number `stalls_at` a second begins in which none is. Each `fails`th is refused."""

    def __init__(self, fails=0, stalls_at=0):
        self.calls = itertools.count(1)
        self.fails = fails
        self.stalls_at = stalls_at
        self.stalled_until = 0.0
        self._server = grpc.server(ThreadPoolExecutor(64))
        handler = grpc.method_handlers_generic_handler(
            "toy.Toy", {"Ask": grpc.unary_unary_rpc_method_handler(self.ask)}
        )
        self._server.add_generic_rpc_handlers((handler,))
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *error):
        self._server.stop(None).wait()

    def ask(self, request, context):
        number = next(self.calls)
        if number == self.stalls_at:
            self.stalled_until = time.monotonic() + STALL
        if self.fails and number % self.fails == 0:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        time.sleep(max(0.0, self.stalled_until - time.monotonic()))
        return request


@pytest.fixture
def messages(tmp_path):
    path = tmp_path / "messages.json"
    write_messages([b"one", b"two", b"\xff\x00"], path)
    return str(path)


def spec(server, messages, loop, **options):
    return Spec(
        loop=loop, arguments={"target": server.target, "method": "/toy.Toy/Ask", "messages": messages}, **options
    )


def measure(*given, **options):
    return asyncio.run(run(spec(*given, **options), asyncio.Event()))


@pytest.mark.parametrize("in_flight", [1, 64])
def test_an_open_loop_counts_a_stall_of_the_server_in_every_call_that_it_held_up(messages, in_flight):
    """With a single slot, the calls after the one in the stall cannot even be sent until it has ended."""
    with Server(stalls_at=164) as server:
        measured = measure(server, messages, Open(rate=100, seconds=4, in_flight=in_flight), keep_calls=True)
    assert (measured.failed, measured.answered) == (0, len(list(poisson(100, 4, 0))))
    ends, held_up, calls = server.stalled_until - measured.began, 0, measured.calls
    for intended, sent, latency in zip(calls.intended, calls.sent, calls.latencies, strict=True):
        if ends - STALL < intended < ends:
            held_up += 1
            assert intended + latency > ends - CLOCK
            assert in_flight > 1 or sent > ends - CLOCK
    assert held_up > 0.6 * 100 * STALL
    assert measured.latency.max_ms > 800 * STALL
    assert max(second.max_ms for second in measured.series) == pytest.approx(measured.latency.max_ms, rel=0.01)


def test_a_closed_loop_hides_the_same_stall(messages):
    with Server(stalls_at=164) as server:
        measured = measure(server, messages, Closed(clients=2, seconds=3), keep_calls=True)
    ends = server.stalled_until - measured.began
    assert sum(ends - STALL < sent < ends for sent in measured.calls.sent) <= 2
    assert measured.latency.max_ms > 800 * STALL
    assert measured.offered == 0
    assert measured.late.max_ms < 800 * STALL


def test_failures_are_counted_by_their_status_and_have_no_latency(messages):
    with Server(fails=10) as server:
        measured = measure(server, messages, Open(rate=200, seconds=1), warm_up=0)
    assert measured.failures == {"RESOURCE_EXHAUSTED": measured.sent // 10}
    assert measured.answered == measured.sent - measured.sent // 10 > 100
    assert sum(second.failed for second in measured.series) == measured.failed
    assert sum(second.calls for second in measured.series) == measured.sent


def test_what_any_other_caller_raises_is_counted_too():
    async def call(index):
        if index % 3 == 1:
            raise CallError("HTTP 503")
        if index % 3 == 2:
            raise ConnectionResetError
        return 7

    calls = asyncio.run(closed_loop(call, 2, range(9), asyncio.Event()))
    measured = Measured.of(calls, keep=True)
    assert measured.failures == {"HTTP 503": 3, "ConnectionResetError": 3}
    assert sorted(measured.calls.marks) == [0] * 6 + [7] * 3


def test_the_same_seed_gives_the_same_arrivals_at_the_rate_asked_for():
    first, again, other = (list(poisson(50, 100, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert first == sorted(first) and first[0] > 0 and first[-1] < 100
    assert len(first) == pytest.approx(5_000, abs=300)
    gaps = [after - before for before, after in itertools.pairwise(first)]
    # Of an exponential distribution, whose deviation is its mean.
    assert sum(gap > 1 / 50 for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), abs=0.03)


def test_calls_are_sent_when_they_should_be():
    async def call(index):
        await asyncio.sleep(0)

    arrivals = list(poisson(200, 1, 0))
    calls = asyncio.run(open_loop(call, arrivals, 8, asyncio.Event()))
    assert list(calls.intended) == arrivals
    assert all(sent >= at for sent, at in zip(calls.sent, calls.intended, strict=True))


def test_the_search_finds_the_rate_at_which_a_limit_is_met():
    async def measure(rate):
        calls = Calls(0.0)
        for index in range(100):
            calls.add(index / rate, index / rate, 0.01 if rate <= 300 else 0.5, "OK", 0)
        return Measured.of(calls, rate)

    found = asyncio.run(highest_rate(measure, 50, high=1_000, resolution=0.01))
    assert 290 < found.rate <= 300 < found.above <= 310
    assert len(found.steps) == 7
    never = asyncio.run(highest_rate(measure, 5, high=1_000, resolution=0.3))
    assert (never.rate, never.above) == (0, 250)
    assert Found.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_failure_is_above_the_limit_however_fast_the_answers_are():
    async def measure(rate):
        calls = Calls(0.0)
        for index in range(100):
            calls.add(0.0, 0.0, 0.01, "OK" if index or rate < 100 else "UNAVAILABLE", 0)
        return Measured.of(calls, rate)

    assert 90 < asyncio.run(highest_rate(measure, 50, high=200, resolution=0.05)).rate < 100


def test_it_runs_as_a_process_that_tells_json_and_ends_early_when_it_is_asked_to(messages, tmp_path):
    with Server() as server:
        path = tmp_path / "spec.json"
        path.write_text(spec(server, messages, Open(rate=50, seconds=600), keep_calls=True).to_json())
        command = [sys.executable, "-m", "amnestic_server.bench.load", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            began = json.loads(process.stdout.readline())["began"]
            assert 0 <= time.monotonic() - began < 60
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
            measured = Measured.from_json(json.loads(process.stdout.read()))
        assert process.returncode == 0
    assert measured.answered == measured.sent == len(measured.calls.codes) > 20
    assert measured.seconds < 60
    assert merged([measured.histogram] * 3) == measured.latency


def test_a_server_that_never_answers_is_said(messages, tmp_path):
    with Server(fails=1) as server, pytest.raises(SystemExit, match="no call of the warm-up was answered: RESOURCE_EX"):
        measure(server, messages, Search(p99_ms=10, high=10, seconds=1))

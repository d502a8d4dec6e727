"""SIGTERM again and again under load, at random moments: what was accepted is always answered."""

import random
import signal
import time
from collections import Counter

import grpc
import pytest
from e2e.harness import Streaming

ROUNDS = 30
STREAMS = 4

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def test_no_accepted_call_is_lost_in_any_round(serve, traffic, texts, until, check_answers):
    random_ = random.Random(11)
    server = serve(start=False)
    counted: Counter[str] = Counter()
    for _ in range(ROUNDS):
        server.start()
        with grpc.insecure_channel(server.target, options=[("grpc.enable_retries", 0)]) as channel:
            streams = [Streaming(channel, server.client.get_model().name, texts) for _ in range(STREAMS)]
            clients = traffic(server.target, texts, processes=2, threads=4)
            until(lambda streams=streams: all(stream.answers for stream in streams))
            time.sleep(random_.uniform(0, 0.5))
            told = time.monotonic()
            server.send(signal.SIGTERM)
            assert server.wait() == 0
            assert {stream.ended_with() for stream in streams} == {grpc.StatusCode.UNAVAILABLE}
        calls = clients.stop()
        under_way = [call for call in calls if call.started < told < call.ended]
        assert {call.code for call in under_way} <= {"OK"}
        check_answers([call for call in calls if call.code == "OK"], lambda version: None)
        counted.update(call.code for call in calls)
        counted["under way at the signal"] += len(under_way)
        counted["answered in streams"] += sum(stream.check() for stream in streams)
    print(f"{ROUNDS} rounds: {dict(counted)}")
    assert "unanswered" not in server.log
    # gRPC itself cancels what arrives in the instant in which it closes, before the server sees it.
    assert counted["CANCELLED"] <= 8 * ROUNDS
    assert counted.keys() <= {"OK", "UNAVAILABLE", "CANCELLED", "under way at the signal", "answered in streams"}

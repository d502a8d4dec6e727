"""Malformed requests, a million unless AMNESTIC_CASES says otherwise: no fault, no growth, right answers."""

import asyncio
import os
from collections import Counter

import psutil
import pytest
from e2e.conftest import check_active
from e2e.malformed import ALLOWED, Malformed

__all__ = ["check_active"]

CASES = int(os.environ.get("AMNESTIC_CASES", "1000000"))
ROUNDS = 10
GROWTH_BYTES = 32 * 2**20

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]


def test_malformed_requests_do_no_harm(serve, texts, check_active):
    server = serve()
    process = psutil.Process(server.pid)
    model = server.client.get_model().name
    counted: Counter[str] = Counter()
    memory = []
    for seed in range(ROUNDS):
        counted += asyncio.run(Malformed(server.target, model, texts, seed).send(CASES // ROUNDS))
        memory.append(process.memory_info().rss)
        print(f"{counted.total()} cases: {dict(counted)}, {memory[-1] / 2**20:.1f} MiB", flush=True)
        assert counted.keys() <= ALLOWED
        assert check_active(server) == 1
    # The first rounds find the size of every buffer.
    assert memory[-1] - memory[ROUNDS // 2] < GROWTH_BYTES
    assert "Traceback" not in server.log

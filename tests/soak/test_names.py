"""100,000 names of methods, services, models and labels that there are not: neither metrics nor memory grow."""

import psutil
import pytest
from e2e.harness import ask_by_random_names

NAMES = 100_000

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


async def test_random_names_make_no_series_and_take_no_memory(serve):
    server = serve()
    process = psutil.Process(server.pid)
    assert await ask_by_random_names(server.target, NAMES // 10, seed=0) == {"UNIMPLEMENTED", "NOT_FOUND"}
    series, memory = server.metric_series(), process.memory_info().rss
    await ask_by_random_names(server.target, NAMES, seed=1)
    grown = process.memory_info().rss - memory
    after = server.metric_series()
    print(f"{NAMES} names: {len(series)} series before, {len(after)} after, and {grown / 2**20:.1f} MiB more")
    assert after == series
    assert grown < 32 * 2**20

"""A million rows answered under storms of swaps, each compared with what the version that it names says in torch.

The small form of it, which also looks at the order of versions, is `e2e/test_swap_storm`.
"""

import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from e2e.harness import Server, make_patch
from e2e.storm import fill, go_down

from amnestic_unlearn.patch import digest_of

from .counts import ROWS, keep

SWAPS = 300
NEWEST = SWAPS + 1
PATCHES = 7

pytestmark = [pytest.mark.soak, pytest.mark.timeout(0)]


def test_no_row_is_a_mixture_of_versions(serve, traffic, texts, bundle, check_answers):
    patches = [make_patch(bundle, seed) for seed in range(PATCHES)]
    digests = [digest_of(patch.to_bytes()) for patch in patches]

    def patch_of(server: Server, version: int) -> Path | None:
        return None if version == 1 else server.store / "patches" / f"{digests[version % PATCHES]}.safetensors"

    counted, started = Counter[str](), time.monotonic()
    while counted["rows"] < ROWS:
        server = serve(start=False)
        fill(server, bundle, patches, NEWEST)
        server.start()
        clients = traffic(server.target, texts, processes=2, threads=6, pins=NEWEST, most=64)
        counted["swaps"] += len(go_down(server, NEWEST))
        calls = clients.stop()
        check_answers(calls, partial(patch_of, server))
        counted["calls"] += len(calls)
        counted["rows"] += sum(len(call.documents) for call in calls)
        counted["batches"] += int(server.metric("amnestic_batch_rows_count") or 0)
        server.terminate()
        keep("mixture", {**counted, "mixed_rows": 0, "seconds": round(time.monotonic() - started)})
    assert counted["batches"] < counted["rows"]

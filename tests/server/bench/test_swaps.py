"""What a benchmark makes of a load with swaps in it, and the stores with many versions that it makes."""

import pytest

from amnestic_server import bundle as bundles
from amnestic_server.bench import chains
from amnestic_server.bench.ceiling import Lengths
from amnestic_server.bench.histogram import Calls, Measured
from amnestic_server.bench.rounds import Phase
from amnestic_server.bench.swaps import Swap, SwapResult, _result, _round
from amnestic_server.store import Store
from amnestic_unlearn.patch import Patch

CEILING = Phase.of("ceiling", [0.001], 1_000)
# Asked for at 3 and 6 seconds; answered a tenth later.
SWAPS = [Swap(3, 3.0, 3.1, 400.0), Swap(2, 6.0, 6.1, 402.0)]


def result(calls: Calls) -> SwapResult:
    load = Measured.of(calls, offered=10, keep=True)
    return _result([_round(CEILING, CEILING, load, SWAPS, 398.0)], Lengths(1, 1, 1, 1, 0.0))


def answered_by(version_at) -> Calls:
    """Ten calls a second for nine seconds, each of 10 ms, or 50 within half a second of a swap."""
    calls = Calls(0.0)
    for number in range(90):
        at = number / 10 + 0.05
        near = min(abs(at - swap.asked) for swap in SWAPS) <= 0.5
        calls.add(at, at, 0.05 if near else 0.01, "OK", version_at(at))
    return calls


def test_calls_around_a_swap_are_told_apart_from_the_others():
    measured = result(answered_by(lambda at: 4 if at < 3 else 3 if at < 6 else 2))
    assert (measured.stale, measured.failed) == (0, 0)
    assert measured.near_p999_ms.median == pytest.approx(50, rel=0.01)
    assert measured.quiet_p999_ms.median == pytest.approx(10, rel=0.01)
    assert measured.p999_ratio.median == pytest.approx(5, rel=0.01)
    (one,) = measured.rounds
    assert (one.near.rate, one.quiet.rate) == (pytest.approx(10), pytest.approx(10, rel=0.02))
    assert measured.swap_ms.median == pytest.approx(100)
    assert measured.grown_megabytes.median == 2


def test_an_answer_of_a_version_left_is_stale_only_after_the_swap_was_answered():
    # The first swap takes until 4.0 to be seen by callers, and its rollback was answered at 3.1.
    late = result(answered_by(lambda at: 4 if at < 4 else 3 if at < 6 else 2))
    assert late.stale == 9
    on_time = result(answered_by(lambda at: 4 if at < 3.1 else 3 if at < 6 else 2))
    assert on_time.stale == 0


def test_failures_are_kept_by_status():
    calls = answered_by(lambda at: 1)
    calls.add(3.0, 3.0, 0.1, "UNAVAILABLE", 0)
    measured = result(calls)
    assert measured.failed == measured.rounds[0].near.failed == 1
    assert measured.rounds[0].failures == {"UNAVAILABLE": 1}


@pytest.mark.parametrize(("patches", "different"), [(None, 5), (2, 2)])
def test_a_filled_store_has_versions_that_fit_the_bundle(bundle, tmp_path, patches, different):
    loaded = bundles.load(bundle)
    chains.fill(tmp_path / "store", loaded, 5, patches)
    store = Store(tmp_path / "store", loaded.digest)
    records = store.versions()
    assert [record.version for record in records] == [1, 2, 3, 4, 5, 6]
    assert store.active_version() == 6
    digests = [record.patch_digest for record in records[1:]]
    assert len(set(digests)) == different
    assert digests[:2] != digests[1:3]
    for digest in set(digests):
        patch = Patch.read(store.patch_path(digest), digest)
        patch.check(loaded.digest, loaded.manifest.labels, loaded.table, loaded.head_weight)
        assert len(patch.row_ids) == min(256, len(loaded.table))
    store.close()

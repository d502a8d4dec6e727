"""Statistics by version: what each figure counts, and that threads lose none."""

import threading
from concurrent.futures import ThreadPoolExecutor

from amnestic_server.call import BatchStats, Timings
from amnestic_server.inference_stats import Duration, InferenceStats


def batch(versions: dict[int, int], seconds: float = 0.25, background: bool = False) -> BatchStats:
    rows = sum(versions.values())
    return BatchStats(rows, 4 * rows, 3 * rows, 0.125, seconds, versions, background)


def test_a_version_that_was_never_asked_is_all_zero():
    stats = InferenceStats().of(3)
    assert (stats.inferences, stats.executions, stats.last_inference_ms, stats.batches) == (0, 0, 0, {})
    assert stats.success == stats.fail == stats.queue == Duration(0, 0)


def test_answered_and_failed_requests():
    stats = InferenceStats()
    stats.succeeded(2, 5, Timings(tokenizer=0.001, queue=0.002, engine=0.003), output=0.004, whole=0.011)
    stats.succeeded(2, 1, Timings(tokenizer=0.001, queue=0.0, engine=0.003), output=0.0, whole=0.005)
    stats.failed(2, 0.5)
    found = stats.of(2)
    assert found.inferences == 6
    assert found.success == Duration(2, 16_000_000)
    assert found.fail == Duration(1, 500_000_000)
    assert found.queue == Duration(2, 2_000_000)
    assert found.compute_input == Duration(2, 2_000_000)
    assert found.compute_infer == Duration(2, 6_000_000)
    assert found.compute_output == Duration(2, 4_000_000)
    assert found.last_inference_ms > 1_700_000_000_000
    assert stats.of(1).success == Duration(0, 0)


def test_a_pass_that_versions_share_counts_for_each_with_its_own_rows():
    stats = InferenceStats()
    stats.executed(batch({1: 3, 2: 1}))
    stats.executed(batch({1: 3}, seconds=0.5))
    stats.executed(batch({1: 16}, background=True))
    one, two = stats.of(1), stats.of(2)
    assert (one.executions, two.executions) == (2, 1)
    assert one.batches.keys() == {3} and two.batches.keys() == {1}
    assert one.batches[3].compute_infer == Duration(2, 750_000_000)
    assert one.batches[3].compute_input == Duration(2, 250_000_000)


def test_what_is_read_is_a_copy():
    stats = InferenceStats()
    stats.executed(batch({1: 2}))
    stats.of(1).batches[2].compute_infer.add(1.0)
    assert stats.of(1).batches[2].compute_infer.count == 1


def test_threads_lose_no_count():
    stats = InferenceStats()
    ready = threading.Barrier(4)

    def count() -> None:
        ready.wait(5)
        for _ in range(500):
            stats.executed(batch({1: 2}))
            stats.succeeded(1, 2, Timings(), 0.0, 0.0)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(count) for _ in range(4)]:
            future.result(30)
    found = stats.of(1)
    assert (found.inferences, found.executions, found.batches[2].compute_infer.count) == (4000, 2000, 2000)

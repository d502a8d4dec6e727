"""Two hundred swaps over the wire while clients predict without pause. Every answer is what its version says.

A rollback goes only to an earlier version. So the store is filled with a long line of versions beforehand, and the
storm goes down that line, one rollback a step.
"""

from bisect import bisect_left, bisect_right

import pytest
from e2e.harness import make_patch
from e2e.storm import fill, go_down

from amnestic_client import FailedPrecondition

SWAPS = 200
NEWEST = SWAPS + 1
PATCHES = 5


@pytest.fixture(scope="module")
def patches(bundle):
    return [make_patch(bundle, seed) for seed in range(PATCHES)]


@pytest.fixture(scope="module")
def storm(serve_for_module, traffic, bundle, patches, texts):
    """(server, calls, rollbacks): each rollback as the times of its request and answer, and its version."""
    server = serve_for_module(start=False)
    fill(server, bundle, patches, NEWEST)
    server.start()
    assert server.ready_version == NEWEST
    clients = traffic(server.target, texts, pins=NEWEST)
    rollbacks = go_down(server, NEWEST)
    return server, clients.stop(), rollbacks


def test_every_answer_is_what_its_version_says(storm, check_answers):
    server, calls, _ = storm
    digests = {record.version: record.patch_digest for record in server.client.list_versions()}
    check_answers(calls, lambda version: digests[version] and server.store / f"patches/{digests[version]}.safetensors")


def test_all_of_the_storm_was_seen_by_the_clients(storm):
    _, calls, rollbacks = storm
    assert len(rollbacks) == SWAPS
    assert len({call.version for call in calls if not call.pinned}) > SWAPS / 2
    assert len(calls) > SWAPS


def test_a_call_begun_after_a_rollback_was_answered_gets_no_version_left(storm):
    _, calls, rollbacks = storm
    answered = [at for _, at, _ in rollbacks]
    for call in calls:
        done = bisect_left(answered, call.started)
        if done and not call.pinned:
            assert call.version <= rollbacks[done - 1][2]


def test_no_answer_comes_from_a_version_before_it_was_asked_for(storm):
    _, calls, rollbacks = storm
    asked = [at for at, _, _ in rollbacks]
    for call in calls:
        begun = bisect_right(asked, call.ended)
        if not call.pinned:
            assert call.version >= (rollbacks[begun - 1][2] if begun else NEWEST)


def test_a_pinned_call_is_answered_by_the_version_it_asked_for(storm):
    _, calls, _ = storm
    pinned = [call for call in calls if call.pinned]
    assert len({call.pinned for call in pinned}) > 20
    assert all(call.version == call.pinned for call in pinned)


def test_each_answer_names_the_labels_that_its_version_has_forgotten(storm, patches):
    _, calls, _ = storm
    for call in calls:
        wanted = () if call.version == 1 else patches[call.version % PATCHES].forgotten
        assert tuple(call.forgotten) == wanted


def test_calls_shared_batches(storm):
    server, calls, _ = storm
    rows, batches = (server.metric(f"amnestic_batch_rows_{kind}") for kind in ("sum", "count"))
    assert rows > batches
    assert rows >= sum(len(call.documents) for call in calls)


def test_the_swaps_are_counted_and_a_rollback_forward_is_refused(storm):
    server, _, _ = storm
    assert server.metric("amnestic_swaps_total") == SWAPS
    assert server.metric("amnestic_swap_seconds_count") == SWAPS
    assert server.metric("amnestic_active_version") == 1
    with pytest.raises(FailedPrecondition, match="earlier version"):
        server.client.rollback(2, "forward", restore_forgotten=True)

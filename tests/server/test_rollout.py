"""Routing: shares are kept to, a key stays on its side, and more of a share only moves keys one way."""

import math
import subprocess
import sys
from hashlib import blake2b
from itertools import pairwise

import pytest
from scripted import bare_snapshot

from amnestic_server.errors import InvalidArgumentError
from amnestic_server.rollout import MAX_ROUTING_KEY_CHARACTERS, Shares, check_routing_key, falls_on_candidate
from amnestic_server.snapshot import Snapshots

KEYS = [f"patient-{number}" for number in range(100_000)]


@pytest.fixture
def snapshots():
    versions = Snapshots(bare_snapshot(1))
    for version in (2, 3):
        versions.add(bare_snapshot(version), staged=True)
    return versions


def on_candidate(share: float, version: int = 2) -> set[str]:
    return {key for key in KEYS if falls_on_candidate(key, version, share)}


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.99])
def test_a_share_of_the_keys_falls_on_the_candidate(share):
    # Five standard deviations of a binomial.
    allowed = 5 * math.sqrt(len(KEYS) * share * (1 - share))
    assert abs(len(on_candidate(share)) - share * len(KEYS)) < allowed


def test_no_key_at_0_and_every_key_at_1():
    assert on_candidate(0.0) == set()
    assert on_candidate(1.0) == set(KEYS)


def test_a_growing_share_only_moves_keys_to_the_candidate():
    sides = [on_candidate(share) for share in (0.0, 0.01, 0.05, 0.3, 0.300001, 0.9, 1.0)]
    for smaller, larger in pairwise(sides):
        assert smaller <= larger


def test_another_candidate_orders_the_keys_anew():
    both = on_candidate(0.5) & on_candidate(0.5, version=3)
    assert abs(len(both) - len(KEYS) / 4) < 1000


def test_a_key_falls_on_the_same_side_in_every_process():
    code = (
        "import sys; from amnestic_server.rollout import falls_on_candidate as falls\n"
        "print(''.join('01'[falls(f'patient-{n}', 2, 0.3)] for n in range(500)))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == "".join("01"[falls_on_candidate(key, 2, 0.3)] for key in KEYS[:500])


def test_the_side_of_a_key_is_what_the_page_says():
    """Worked out by hand from docs/rollout.md: others may want to know a key's side beforehand."""
    place = int.from_bytes(blake2b(bytes([0, 0, 0, 0, 0, 0, 0, 2]) + b"patient-17", digest_size=8).digest(), "big")
    assert not falls_on_candidate("patient-17", 2, place / 2**64 * 0.999)
    assert falls_on_candidate("patient-17", 2, place / 2**64 * 1.001)


@pytest.mark.parametrize("share", [-0.01, 1.01, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["canary", "shadow"])
def test_a_share_out_of_range_is_refused_by_its_field(name, share):
    with pytest.raises(InvalidArgumentError, match=f"the {name} share must be from 0 to 1") as caught:
        Shares(**{name: share}).check()
    assert caught.value.field == f"{name}_share"


def test_a_key_that_is_too_long_is_refused_and_not_repeated():
    assert check_routing_key("k" * MAX_ROUTING_KEY_CHARACTERS)
    with pytest.raises(InvalidArgumentError, match="longer than 256 characters") as caught:
        check_routing_key("k" * (MAX_ROUTING_KEY_CHARACTERS + 1))
    assert caught.value.field == "routing_key"
    assert "kk" not in str(caught.value)


async def test_a_call_is_pinned_to_the_side_that_its_key_falls_on(snapshots):
    assert {snapshots.pin(key=key).snapshot.version for key in KEYS[:50]} == {1}
    snapshots.roll_out(2, Shares(canary=0.3), 0.0)
    for key in KEYS[:200]:
        assert snapshots.pin(key=key).snapshot.version == (2 if falls_on_candidate(key, 2, 0.3) else 1)
    snapshots.roll_out(2, Shares(canary=1.0), 0.0)
    assert snapshots.pin(key="any").snapshot.version == snapshots.pin().snapshot.version == 2
    snapshots.roll_out(2, Shares(shadow=1.0), 0.0)
    assert snapshots.pin(key="any").snapshot.version == snapshots.pin().snapshot.version == 1


async def test_calls_without_a_key_are_drawn_each_for_itself(snapshots):
    snapshots.roll_out(2, Shares(canary=0.2), 0.0)
    drawn = [snapshots.pin().snapshot.version for _ in range(20_000)]
    assert abs(drawn.count(2) - 4_000) < 5 * math.sqrt(20_000 * 0.2 * 0.8)


async def test_a_version_named_goes_before_the_rollout(snapshots):
    snapshots.roll_out(2, Shares(canary=1.0), 0.0)
    for version in (1, 2, 3):
        pin = snapshots.pin(version, "key")
        assert (pin.snapshot.version, pin.by_number) == (version, True)

"""Which calls a staged version answers: the shares of a rollout, and the side that a routing key falls on. Pure
policy: no state, no clock of its own.
"""

import random
from dataclasses import dataclass
from hashlib import blake2b

from amnestic_server.errors import InvalidArgumentError

MAX_ROUTING_KEY_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class Shares:
    """What a staged version takes part in, each 0 to 1: `canary` of the calls that it answers in place of the active
    version, `shadow` of the documents that it answers again after it.
    """

    canary: float = 0.0
    shadow: float = 0.0

    def check(self) -> None:
        """Raise InvalidArgumentError, naming the field, unless both are in range."""
        for name in ("canary", "shadow"):
            # Written so that a NaN is refused.
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InvalidArgumentError(f"the {name} share must be from 0 to 1", field=f"{name}_share")

    @property
    def none(self) -> bool:
        return not self.canary and not self.shadow


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """A rollout as it is stored; `since` are the seconds since the epoch at which the shares became what they are."""

    version: int
    shares: Shares
    since: float


def falls_on_candidate(key: str, version: int, share: float) -> bool:
    """Whether calls with this key are the candidate's at this share.

    The key's place is the same in every process and at every share, so a growing share only moves keys from the active
    version to the candidate; another candidate orders the keys anew.
    """
    digest = blake2b(version.to_bytes(8, "big") + key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


def drawn(share: float) -> bool:
    """Whether one of many is in a share of them; never for 0, always for 1."""
    return random.random() < share  # noqa: S311  no secret


def check_routing_key(key: str, field: str = "routing_key") -> str:
    """Return the key; raises InvalidArgumentError if it is too long."""
    if len(key) > MAX_ROUTING_KEY_CHARACTERS:
        raise InvalidArgumentError(
            f"the routing key is longer than {MAX_ROUTING_KEY_CHARACTERS} characters", field=field
        )
    return key

"""A request to forget: what a caller asked for, as it is stored and read again, by this version or another."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amnestic_unlearn.spec import DEFAULT_PRESET, PRESETS, GateLimits, Method, stored


def relaxed_gates(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Limits looser than the defaults were when a stored request was made.

    Where that was not recorded yet, looser than the defaults are now: rather too many than none.
    """
    if "relaxed_gates" in fields:
        return tuple(fields["relaxed_gates"])
    return stored(GateLimits, fields.get("limits", {})).relaxed


@dataclass(frozen=True, slots=True)
class UnlearnRequest:
    """What a caller asked for; what is stored of a job, and compared when its request id comes again.

    `method` is what came of the preset and of what was set beside it, so the preset's name does not count in that.
    """

    labels: tuple[str, ...]
    dry_run: bool = False
    reason: str = ""
    method: Method = PRESETS[DEFAULT_PRESET]
    limits: GateLimits = field(default_factory=GateLimits)
    preset: str = field(default=DEFAULT_PRESET, compare=False)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "labels": list(self.labels), "relaxed_gates": list(self.limits.relaxed)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "UnlearnRequest":
        """Read what this or another version stored; before there were presets, none was named."""
        return cls(
            labels=tuple(fields["labels"]),
            dry_run=fields["dry_run"],
            reason=fields["reason"],
            method=stored(Method, fields["method"]),
            limits=stored(GateLimits, fields["limits"]),
            preset=fields.get("preset", ""),
        )

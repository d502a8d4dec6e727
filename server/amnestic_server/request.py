"""A request to forget: what a caller asked for, as it is stored and read again, by this version or another."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amnestic_unlearn.manifest import Manifest
from amnestic_unlearn.spec import DEFAULT_PRESET, PRESETS, GateLimits, Method, stored

# How much further than on the documents of the parity check a candidate's logits may stray from torch's in a reduced
# precision: of more documents the worst is worse, and forgetting makes logits larger.
ROUNDING_MARGIN = 4.0


def default_limits(manifest: Manifest) -> GateLimits:
    """The limits that hold where a request sets none.

    In a reduced precision the served path cannot have torch's logits, and how far from them it is differs between
    models by more than between precisions: it is what this bundle's own parity check found.
    """
    limits = GateLimits()
    if not manifest.precision.is_reduced:
        return limits
    rounding = ROUNDING_MARGIN * manifest.parity["max_abs_logit_difference"]
    return dataclasses.replace(limits, logit_difference_max=max(limits.logit_difference_max, rounding))


def relaxed_gates(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Limits looser than the defaults were when a stored request was made.

    Where that was not recorded yet, looser than the defaults are now: rather too many than none.
    """
    if "relaxed_gates" in fields:
        return tuple(fields["relaxed_gates"])
    return stored(GateLimits, fields.get("limits", {})).looser_than(GateLimits())


@dataclass(frozen=True, slots=True)
class UnlearnRequest:
    """What a caller asked for, and what is stored of a job.

    `method` and `limits` are what came of the preset, of what was set beside it and of the defaults, and are what the
    job is run with. `asked` are the settings as the caller sent them, under `method` and `gates`, each only where it
    was set; None if that was not recorded. `defaults` are the limits that hold where none is set, and are not stored:
    which ones are looser is.
    """

    labels: tuple[str, ...]
    dry_run: bool = False
    reason: str = ""
    method: Method = PRESETS[DEFAULT_PRESET]
    limits: GateLimits = field(default_factory=GateLimits)
    preset: str = field(default=DEFAULT_PRESET, compare=False)
    asked: Mapping[str, Any] | None = field(default=None, compare=False)
    stage: bool = False
    defaults: GateLimits = field(default=GateLimits(), compare=False)

    def repeats(self, first: "UnlearnRequest") -> bool:
        """Whether this asks for the same as `first` did, maybe of an earlier version of this server.

        Compared is what was sent, for presets and defaults may have changed since; what came of it where the one or
        the other does not tell that.
        """
        if self.asked is None or first.asked is None:
            return self == first
        sent, before = (
            (request.labels, request.dry_run, request.stage, request.reason, request.asked) for request in (self, first)
        )
        return sent == before

    def to_json(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        del fields["defaults"]
        relaxed = self.limits.looser_than(self.defaults)
        return {**fields, "labels": list(self.labels), "relaxed_gates": list(relaxed)}

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
            asked=fields.get("asked"),
            stage=fields.get("stage", False),
        )

"""The distributed trace that a call is part of, by W3C Trace Context: its id stands in every log line of the call.

A `Trace` by itself knows its id and what was noted of the call; `otel` has one that becomes a span. Nothing here holds
what was sent.
"""

import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TypeVar

TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")

T = TypeVar("T", bound="Trace | None")
Headers = Sequence[tuple[str, str | bytes]]

_current: ContextVar["Trace | None"] = ContextVar("trace", default=None)


class Trace:
    """One call of a trace that was begun elsewhere, or of none: then its id is empty.

    `stages` are the seconds of a prediction's, `figures` what else was noted of the call.
    """

    def __init__(self, trace_id: str = "") -> None:
        self.trace_id = trace_id
        self.stages: Mapping[str, float] = {}
        self.figures: dict[str, int | str] = {}

    @property
    def response(self) -> str:
        """The call's own place in the trace, as `traceresponse` tells it; empty if it has none."""
        return ""

    def begin(self) -> None:
        """The method begins to run."""

    def note(self, stages: Mapping[str, float], **figures: int | str) -> None:
        """Seconds that the stages took, one after the other and until now, and figures of the call."""
        self.stages = stages
        self.figures.update(figures)

    def end(self, code: str) -> None:
        """The method has ended with this gRPC status."""


def current() -> Trace | None:
    """The trace of the call that runs now."""
    return _current.get()


def enter(trace: T) -> T:
    """From here on the running task works for this trace, which is given back."""
    _current.set(trace)
    return trace


def received(headers: Headers) -> Trace | None:
    """The trace that a caller's headers name; None if they name none, several, or one in a wrong form."""
    found = [value for name, value in headers if name == "traceparent"]
    match = TRACEPARENT.fullmatch(found[0]) if len(found) == 1 and isinstance(found[0], str) else None
    if match is None:
        return None
    version, trace_id, parent_id, more = match.groups()
    # Later versions may say more. An id of zeros is none.
    valid = version != "ff" and not (version == "00" and more) and int(trace_id, 16) and int(parent_id, 16)
    return Trace(trace_id) if valid else None

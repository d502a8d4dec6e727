"""What every benchmark tells: phases of a round, and figures over the rounds."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Self

from amnestic_server.bench.histogram import Calls, Latency, Measured, filled


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of one round. Rates in documents (calls) a second, latencies in milliseconds.

    Of an open loop, `offered` is the rate of calls, `share` that of the ceiling, and `late_p99_ms` by how much calls
    were sent after their time; of other phases they are 0.
    """

    name: str
    rate: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    failed: int = 0
    offered: float = 0.0
    share: float = 0.0
    late_p99_ms: float = 0.0

    @classmethod
    def of(cls, name: str, latencies: Sequence[float], rate: float) -> Self:
        """Of latencies in seconds."""
        return cls(name, rate, **asdict(Latency.of(filled(latencies))))

    @classmethod
    def of_load(cls, name: str, measured: Measured, share: float = 0.0) -> Self:
        open_loop = {"offered": measured.offered, "share": share, "late_p99_ms": measured.late.p99_ms}
        return cls(
            name,
            measured.rate,
            **asdict(measured.latency),
            failed=measured.failed,
            **(open_loop if measured.offered else {}),
        )

    @classmethod
    def of_part(cls, name: str, calls: Calls, seconds: float, offered: float) -> Self:
        """Of the calls of an open loop at this rate that were to be sent within so many seconds of it."""
        measured = Measured.of(calls, offered)
        return replace(cls.of_load(name, measured), rate=measured.answered / seconds if seconds > 0 else 0.0)


@dataclass(frozen=True, slots=True)
class Summary:
    """Median over the rounds, with the smallest and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(median(values), min(values), max(values))

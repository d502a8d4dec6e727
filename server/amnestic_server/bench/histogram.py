"""What the latencies of one load amount to: percentiles, a series by second, and a histogram that can be merged.

Histograms are HDR: three significant digits from a microsecond to an hour. A call that failed has no latency; it is
counted by its status.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from hdrh.histogram import HdrHistogram

LOWEST_US, HIGHEST_US, DIGITS = 1, 3_600_000_000, 3
ANSWERED = "OK"


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles in milliseconds; nan where nothing was answered."""

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float

    @classmethod
    def of(cls, histogram: Any) -> Self:
        """Of an HdrHistogram of microseconds."""
        if not histogram.get_total_count():
            return cls(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan)
        p50, p90, p95, p99, p999 = (histogram.get_value_at_percentile(share) / 1e3 for share in (50, 90, 95, 99, 99.9))
        return cls(p50, p90, p95, p99, p999, histogram.get_max_value() / 1e3)


@dataclass(frozen=True, slots=True)
class Second:
    """The calls that were meant to be sent within one second of a load, counted from its start."""

    second: int
    calls: int
    failed: int
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(slots=True)
class Calls:
    """Every call of a load in columns, in order of their ends. Times are in seconds from `began`, a monotonic clock's.

    `intended` is when a call was to be sent, `sent` when it was, `latencies` count from the former. `codes` are gRPC
    statuses or what else a caller calls its failures; `marks` what it said of the answer, 0 if nothing.
    """

    began: float
    intended: "array[float]" = field(default_factory=lambda: array("d"))
    sent: "array[float]" = field(default_factory=lambda: array("d"))
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    codes: list[str] = field(default_factory=list)
    marks: "array[int]" = field(default_factory=lambda: array("q"))

    def add(self, intended: float, sent: float, latency: float, code: str, mark: int) -> None:
        self.intended.append(intended)
        self.sent.append(sent)
        self.latencies.append(latency)
        self.codes.append(code)
        self.marks.append(mark)

    def part(self, indices: Iterable[int]) -> "Calls":
        """Some of them."""
        chosen = Calls(self.began)
        for index in indices:
            mark = self.marks[index]
            chosen.add(self.intended[index], self.sent[index], self.latencies[index], self.codes[index], mark)
        return chosen

    def columns(self) -> dict[str, list[Any]]:
        """As JSON holds them."""
        return {name: list(getattr(self, name)) for name in ("intended", "sent", "latencies", "codes", "marks")}

    @classmethod
    def from_columns(cls, began: float, columns: dict[str, list[Any]]) -> Self:
        """The inverse of `columns`."""
        kinds = {"intended": "d", "sent": "d", "latencies": "d", "marks": "q"}
        return cls(began, codes=columns["codes"], **{name: array(kinds[name], columns[name]) for name in kinds})


@dataclass(frozen=True, slots=True)
class Measured:
    """One load. `rate` is of answers a second, until the last of them; `offered` of calls, 0 for a closed loop.

    `late` is by how much calls were sent after they were to be: large, and the client is what was measured.
    `histogram` holds the latencies as HdrHistogram's own base64. `calls` are there if they were asked for.
    """

    began: float
    seconds: float
    offered: float
    sent: int
    answered: int
    rate: float
    failures: dict[str, int]
    latency: Latency
    late: Latency
    series: list[Second]
    histogram: str
    calls: Calls | None = None

    @property
    def failed(self) -> int:
        return self.sent - self.answered

    @classmethod
    def of(cls, calls: Calls, offered: float = 0.0, keep: bool = False) -> Self:
        """Of a load that has ended."""
        answered = [latency for latency, code in zip(calls.latencies, calls.codes, strict=True) if code == ANSWERED]
        ends = (at + latency for at, latency in zip(calls.intended, calls.latencies, strict=True))
        seconds = max(ends, default=0.0)
        histogram = filled(answered)
        late = filled(sent - at for sent, at in zip(calls.sent, calls.intended, strict=True))
        return cls(
            began=calls.began,
            seconds=seconds,
            offered=offered,
            sent=len(calls.codes),
            answered=len(answered),
            rate=len(answered) / seconds if seconds else 0.0,
            failures=dict(Counter(code for code in calls.codes if code != ANSWERED)),
            latency=Latency.of(histogram),
            late=Latency.of(late),
            series=series(calls),
            histogram=histogram.encode().decode(),
            calls=calls if keep else None,
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it; what is not known is null."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        plain |= {"latency": _known(self.latency), "late": _known(self.late)}
        plain |= {"series": [_known(second) for second in self.series]}
        return plain | {"calls": None if self.calls is None else self.calls.columns()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        columns = value["calls"]
        return cls(
            **{
                **value,
                "latency": Latency(**_or_nan(value["latency"])),
                "late": Latency(**_or_nan(value["late"])),
                "series": [Second(**_or_nan(second)) for second in value["series"]],
                "calls": None if columns is None else Calls.from_columns(value["began"], columns),
            }
        )


def _known(figures: Latency | Second) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in asdict(figures).items()}


def _or_nan(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in figures.items()}


def filled(seconds: Iterable[float]) -> Any:
    """An HdrHistogram of these, in microseconds; what lies outside its range is counted at its ends."""
    histogram = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
    for value in seconds:
        histogram.record_value(min(max(round(value * 1e6), LOWEST_US), HIGHEST_US))
    return histogram


def merged(histograms: Iterable[str]) -> Latency:
    """The percentiles of several loads together, from their `histogram`s."""
    whole = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
    for encoded in histograms:
        whole.decode_and_add(encoded)
    return Latency.of(whole)


def series(calls: Calls) -> list[Second]:
    """A row for every second in which a call was to be sent."""
    answered: dict[int, list[float]] = {}
    failed: Counter[int] = Counter()
    for at, latency, code in zip(calls.intended, calls.latencies, calls.codes, strict=True):
        held = answered.setdefault(int(at), [])
        if code == ANSWERED:
            held.append(latency * 1e3)
        else:
            failed[int(at)] += 1
    return [
        Second(second, len(held) + failed[second], failed[second], *(at_rank(held, share) for share in (0.5, 0.99, 1)))
        for second, held in sorted((second, sorted(held)) for second, held in answered.items())
    ]


def at_rank(ascending: Sequence[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed; nan of none."""
    return ascending[max(math.ceil(share * len(ascending)) - 1, 0)] if ascending else math.nan

"""What each version was asked and where the time went, counted as Triton's statistics extension defines it.

The one owner of these figures. Requests are counted by `Predictor`, whichever service they came through, and passes of
the encoder by the batcher's threads; each costs a lock and a few additions. Gates and measurements are not counted: no
caller asked for them.
"""

import copy
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

from amnestic_server.call import BatchStats, Timings


@dataclass(slots=True)
class Duration:
    """How often something happened, and the nanoseconds that it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += round(seconds * 1e9)


@dataclass(slots=True)
class BatchDurations:
    """The passes of one size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class VersionStats:
    """One version since the start. Durations count requests, `batches` passes of the encoder by their rows.

    A pass that versions share counts for each of them, with its own rows; so over `batches` size times count is what
    the encoder ran for this version.
    """

    last_inference_ms: int = 0
    inferences: int = 0
    executions: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: dict[int, BatchDurations] = field(default_factory=dict)


class InferenceStats:
    """Counts from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: defaultdict[int, VersionStats] = defaultdict(VersionStats)

    def of(self, version: int) -> VersionStats:
        """A copy of what is known of a version; all zero if it was never asked."""
        with self._lock:
            return copy.deepcopy(self._versions[version])

    def succeeded(self, version: int, documents: int, timings: Timings, output: float, whole: float) -> None:
        """Count a request that was answered: `output` seconds to make scores of logits, `whole` seconds in all."""
        with self._lock:
            stats = self._versions[version]
            stats.last_inference_ms = time.time_ns() // 1_000_000
            stats.inferences += documents
            stats.success.add(whole)
            stats.queue.add(timings.queue)
            stats.compute_input.add(timings.tokenizer)
            stats.compute_infer.add(timings.engine)
            stats.compute_output.add(output)

    def failed(self, version: int, seconds: float) -> None:
        """Count a request that was refused, failed or given up by its caller."""
        with self._lock:
            self._versions[version].fail.add(seconds)

    def executed(self, batch: BatchStats) -> None:
        """Count a pass of the encoder."""
        if batch.background:
            return
        with self._lock:
            for version, rows in batch.versions.items():
                stats = self._versions[version]
                stats.executions += 1
                durations = stats.batches.setdefault(rows, BatchDurations())
                durations.compute_input.add(batch.prepare_seconds)
                durations.compute_infer.add(batch.seconds)

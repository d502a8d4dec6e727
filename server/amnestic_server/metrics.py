"""Every Prometheus metric of the server, in a registry of its own. Label values are bounded: gRPC methods and codes,
job states, and the model's labels.
"""

from collections import Counter as Counts
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)

from amnestic_server.recent_calls import RecentCalls
from amnestic_server.records import JobState

LATENCY_BUCKETS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1, 2, 5, 10,
)  # fmt: skip
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WINDOW_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256)
TOKEN_BUCKETS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
JOB_BUCKETS = (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600)
# The methods that predict, as they are named in the metrics.
# One request of a stream; the stream itself has the method's name.
STREAMED = "ModelStreamInfer.request"
PREDICT_METHODS = ("Predict", "ModelInfer", STREAMED)


@dataclass(frozen=True, slots=True)
class CallCounts:
    """Calls that predict: all, their documents answered, and of those answered how many took at most so many seconds.

    `within` holds cumulative counts by the upper bound of each bucket, the last one infinite.
    """

    calls: int
    documents: int
    within: Mapping[float, int]

    def __sub__(self, before: "CallCounts") -> "CallCounts":
        within = {bound: count - before.within.get(bound, 0) for bound, count in self.within.items()}
        return CallCounts(self.calls - before.calls, self.documents - before.documents, within)

    @property
    def answered(self) -> int:
        return max(self.within.values(), default=0)

    def percentile(self, share: float) -> float | None:
        """Seconds that this share of the answered calls took at most, as Prometheus interpolates it; None without any.

        Beyond the last finite bound it is that bound.
        """
        wanted, lower, below = share * self.answered, 0.0, 0
        for bound, count in sorted(self.within.items()):
            if count >= wanted and count > below:
                return lower if bound == float("inf") else lower + (bound - lower) * (wanted - below) / (count - below)
            lower, below = bound, count
        return None


class Metrics:
    """Made once a process; handed to whoever measures.

    `recent_calls` is no metric: it has what a scrape cannot tell, second by second.
    """

    def __init__(self) -> None:
        self.recent_calls = RecentCalls()
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self.requests = Counter(
            "amnestic_requests",
            "Calls answered, by method and gRPC status code.",
            ["method", "code"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "amnestic_request_seconds",
            "Time from a call's arrival to its answer, by method and gRPC status code, in seconds.",
            ["method", "code"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "amnestic_stage_seconds",
            "Time of a prediction in each stage (tokenizer, queue, engine), in seconds.",
            ["stage"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.documents = Counter("amnestic_documents", "Documents answered.", registry=registry)
        self.truncated = Counter("amnestic_truncated_documents", "Documents answered that were cut.", registry=registry)
        self.document_windows = Histogram(
            "amnestic_document_windows",
            "Windows that a document answered was read in.",
            buckets=WINDOW_BUCKETS,
            registry=registry,
        )
        self.batch_rows = Histogram(
            "amnestic_batch_rows",
            "Windows of documents in a pass of the encoder.",
            buckets=SIZE_BUCKETS,
            registry=registry,
        )
        self.batch_tokens = Histogram(
            "amnestic_batch_tokens",
            "Tokens in a pass of the encoder, padding included.",
            buckets=TOKEN_BUCKETS,
            registry=registry,
        )
        self.padding_tokens = Counter(
            "amnestic_padding_tokens", "Tokens computed that were padding.", registry=registry
        )
        self.tokens = Counter("amnestic_tokens", "Tokens computed, without padding.", registry=registry)
        self.queue_rows = Gauge(
            "amnestic_queue_rows", "Windows of documents waiting for the encoder.", registry=registry
        )
        self.queue_tokens = Gauge("amnestic_queue_tokens", "Tokens waiting for the encoder.", registry=registry)
        self.open_documents = Gauge(
            "amnestic_open_documents", "Documents admitted and not yet answered.", registry=registry
        )
        self.queue_tokens_limit = Gauge(
            "amnestic_queue_tokens_limit", "Most tokens that may wait for the encoder.", registry=registry
        )
        self.open_documents_limit = Gauge(
            "amnestic_open_documents_limit", "Most documents admitted and not yet answered.", registry=registry
        )
        self.denied = Counter(
            "amnestic_denied_calls",
            "Calls that were not admitted, by the cause as the error names it.",
            ["reason"],
            registry=registry,
        )
        self.certificate_expiry = Gauge(
            "amnestic_certificate_expiry_seconds",
            "When the server's certificate, or the first of its clients' authorities, ends, in seconds of the epoch.",
            ["certificate"],
            registry=registry,
        )
        self.audit_intact = Gauge(
            "amnestic_audit_intact", "1 if the audit record verified when the server started.", registry=registry
        )
        self.active_version = Gauge("amnestic_active_version", "The version that answers.", registry=registry)
        self.rollout_version = Gauge(
            "amnestic_rollout_version",
            "The staged version that takes part in the traffic, 0 without one.",
            registry=registry,
        )
        self.rollout_canary_share = Gauge(
            "amnestic_rollout_canary_share",
            "Share of the calls that the staged version answers in place of the active one, 0 to 1.",
            registry=registry,
        )
        self.rollout_shadow_share = Gauge(
            "amnestic_rollout_shadow_share",
            "Share of the documents that the staged version answers again after the active one, 0 to 1.",
            registry=registry,
        )
        self.canary_calls = Counter(
            "amnestic_canary_calls", "Calls that a staged version answered as a canary.", registry=registry
        )
        self.shadow_documents = Counter(
            "amnestic_shadow_documents", "Documents on which a staged version was compared.", registry=registry
        )
        self.shadow_dropped = Counter(
            "amnestic_shadow_dropped",
            "Documents chosen to be compared that found no room, or that the staged version could not answer.",
            registry=registry,
        )
        self.shadow_decisions_differ = Counter(
            "amnestic_shadow_decisions_differ",
            "Documents compared on which a staged version decides otherwise than the active one, by label; forgotten is"
            " true for the labels that the staged version has forgotten.",
            ["label", "forgotten"],
            registry=registry,
        )
        self.swaps = Counter("amnestic_swaps", "Changes of the active version.", registry=registry)
        self.swap_seconds = Histogram(
            "amnestic_swap_seconds",
            "Time from the swap to the last answer of the version before, in seconds.",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.jobs = Gauge("amnestic_jobs", "Unlearn jobs by state.", ["state"], registry=registry)
        self.job_seconds = Histogram(
            "amnestic_job_seconds",
            "Time from a job's start to its end, in seconds.",
            ["state"],
            buckets=JOB_BUCKETS,
            registry=registry,
        )
        self.job_progress = Gauge(
            "amnestic_job_progress_ratio", "Steps done of the running job, 0 to 1; 0 without one.", registry=registry
        )
        self.forget_f1 = Gauge(
            "amnestic_forget_f1",
            "F1 of each forgotten label on the gate split, through the served path.",
            ["label"],
            registry=registry,
        )
        self.retain_f1 = Gauge(
            "amnestic_retain_f1",
            "F1 of each label not forgotten on the gate split, through the served path.",
            ["label"],
            registry=registry,
        )
        self.forget_auroc = Gauge(
            "amnestic_forget_auroc",
            "AUROC of each forgotten label's score on the gate split, either way round, through the served path.",
            ["label"],
            registry=registry,
        )
        self.probe_ratio = Gauge(
            "amnestic_probe_ratio",
            "What a fresh probe on the served features finds of each forgotten label on the gate split: 1 as in the"
            " base, 0 nothing.",
            ["label"],
            registry=registry,
        )
        self.model = Info(
            "amnestic_model", "The model served, the device asked for and the provider in use.", registry=registry
        )
        self._model_facts: dict[str, str] = {}
        self.ready = Gauge("amnestic_ready", "1 while the server takes calls.", registry=registry)

    def show_model(self, facts: Mapping[str, str]) -> None:
        self._model_facts = dict(facts)
        self.model.info(self._model_facts)

    def show_bundle(self, digest: str) -> None:
        """The bundle of the model shown before is another now."""
        self.show_model({**self._model_facts, "bundle": digest})

    def show_quality(
        self,
        f1: Mapping[str, float],
        forget_auroc: Mapping[str, float],
        probe_ratio: Mapping[str, float],
        forgotten: Collection[str],
    ) -> None:
        """Replace the gauges of the active version; a label's F1 is on just one of its two."""
        for gauge, values in (
            (self.forget_f1, {label: value for label, value in f1.items() if label in forgotten}),
            (self.retain_f1, {label: value for label, value in f1.items() if label not in forgotten}),
            (self.forget_auroc, forget_auroc),
            (self.probe_ratio, probe_ratio),
        ):
            gauge.clear()
            for label, value in values.items():
                gauge.labels(label).set(value)

    def show_differing(self, label: str, forgotten: bool, documents: int) -> None:
        """Count documents on which a staged version decides otherwise; 0 makes the label known."""
        self.shadow_decisions_differ.labels(label, str(forgotten).lower()).inc(documents)

    def watch_rollout(self, figure: Callable[[str], float]) -> None:
        """Read the rollout when the metrics are scraped: its `version`, and its shares `canary` and `shadow`."""
        self.rollout_version.set_function(lambda: figure("version"))
        self.rollout_canary_share.set_function(lambda: figure("canary"))
        self.rollout_shadow_share.set_function(lambda: figure("shadow"))

    def call_ended(self, method: str, code: str, ended: float, seconds: float) -> None:
        """Count and time a call by its method and status code; it ended at a time of `time.perf_counter`."""
        self.requests.labels(method, code).inc()
        self.request_seconds.labels(method, code).observe(seconds)
        if method in PREDICT_METHODS:
            self.recent_calls.add(code, ended, seconds)

    def predict_calls(self) -> CallCounts:
        """How many calls predicted since the start, and how long they took."""
        calls, within = 0, Counts[float]()
        for family in self.request_seconds.collect():
            for sample in family.samples:
                if sample.labels["method"] not in PREDICT_METHODS:
                    continue
                if sample.name.endswith("_count"):
                    calls += int(sample.value)
                elif sample.name.endswith("_bucket") and sample.labels["code"] == "OK":
                    within[float(sample.labels["le"])] += int(sample.value)
        documents = next(sample.value for family in self.documents.collect() for sample in family.samples)
        return CallCounts(calls, int(documents), within)

    def show_jobs(self, counts: dict[JobState, int]) -> None:
        for state in JobState:
            self.jobs.labels(state.value).set(counts.get(state, 0))

    def show_queue_limits(self, tokens: int, open_documents: int) -> None:
        self.queue_tokens_limit.set(tokens)
        self.open_documents_limit.set(open_documents)

    def watch_queue(
        self, rows: Callable[[], int], tokens: Callable[[], int], open_documents: Callable[[], int]
    ) -> None:
        """Read the queue's depth when the metrics are scraped."""
        self.queue_rows.set_function(rows)
        self.queue_tokens.set_function(tokens)
        self.open_documents.set_function(open_documents)

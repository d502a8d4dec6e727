"""What the client takes and gives: frozen dataclasses of plain Python values, free of protobuf.

Times are timezone-aware in UTC, durations in seconds, probabilities and F1 from 0 to 1. What is absent is None.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from amnestic_client.errors import AmnesticError


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label's probability, and whether it is decided for.

    `decision`: of a multi_label model, that the probability reaches the label's threshold; of a single_label model,
    that it is the largest of the document.

    A label that the answering version has forgotten is answered from the model's true output, never masked.
    """

    label: str
    probability: float
    decision: bool
    forgotten: bool


@dataclass(frozen=True, slots=True)
class Prediction:
    """One document's scores in the model's label order; `tokens` counts what the encoder saw in all `windows`.

    `truncated`: the document was longer than the model reads and was cut. `features` are the inputs of the
    classification head, a mean over the windows, empty unless asked for.
    """

    scores: tuple[LabelScore, ...]
    tokens: int
    truncated: bool
    features: tuple[float, ...] = ()
    windows: int = 1

    @property
    def decided(self) -> tuple[str, ...]:
        """The labels that apply, in the model's order."""
        return tuple(score.label for score in self.scores if score.decision)


@dataclass(frozen=True, slots=True)
class PredictResult:
    """One prediction a document, in the order sent, all from the one version named."""

    version: int
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one document of many: `index` is its position in the input, from 0.

    `version` answered it; None for a document that could not be answered, whose `outcome` is the error.
    """

    index: int
    version: int | None
    outcome: Prediction | AmnesticError

    @property
    def error(self) -> AmnesticError | None:
        """Why the document was not answered; None if it was."""
        return self.outcome if isinstance(self.outcome, AmnesticError) else None

    @property
    def prediction(self) -> Prediction:
        """The document's scores; raises `error` if there are none."""
        if isinstance(self.outcome, AmnesticError):
            raise self.outcome
        return self.outcome


@dataclass(frozen=True, slots=True)
class Label:
    """A label of the model, the probability from which on it is decided, and whether it is forgotten now.

    A single_label model has no thresholds.
    """

    name: str
    threshold: float | None
    forgotten: bool


@dataclass(frozen=True, slots=True)
class Model:
    """The model being served and its limits; `provider` is the ONNX Runtime execution provider in use.

    `problem_type`: multi_label, where each label applies or not by itself, or single_label, one label a document.
    `long_documents`: truncate, or window; then a document longer than `max_tokens` is read in at most `max_windows`
    windows that share `window_overlap` tokens, and `pooling` (max or mean) says how their logits become its own.
    """

    name: str
    architecture: str
    labels: tuple[Label, ...]
    precision: str
    provider: str
    max_tokens: int
    max_documents: int
    max_document_bytes: int
    active_version: int
    bundle_digest: str
    encoder_digest: str
    parameters: int
    problem_type: str
    long_documents: str = "truncate"
    window_overlap: int = 0
    max_windows: int = 1
    pooling: str = "max"


class ServerState(StrEnum):
    """Whether the server takes calls. UNSPECIFIED also stands for a state newer than this client."""

    UNSPECIFIED = "UNSPECIFIED"
    SERVING = "SERVING"
    DRAINING = "DRAINING"


@dataclass(frozen=True, slots=True)
class Load:
    """What is in hand beside its limits, and the Predict calls of the last `window_seconds`.

    `failed_calls` are among `calls`; the percentiles are those of the others, None without any.
    """

    open_documents: int
    max_open_documents: int
    queued_documents: int
    queued_tokens: int
    max_queued_tokens: int
    window_seconds: float
    calls: int
    failed_calls: int
    documents: int
    p50_seconds: float | None
    p99_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Settings of STEU (arXiv 2603.19302). None takes the preset's value; no preset, the server's default one."""

    preset: str | None = None
    k: int | None = None
    epochs: int | None = None
    embedding_lr: float | None = None
    head_lr: float | None = None
    forget_weight: float | None = None
    utility_weight: float | None = None
    distil_weight: float | None = None
    batch_size: int | None = None
    seed: int | None = None
    align_weight: float | None = None
    erase_head: bool | None = None
    lr_decay: bool | None = None
    max_steps: int | None = None
    max_tokens: int | None = None
    refit_head: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLimits:
    """Conditions that a candidate must meet before it may serve, each the largest value that passes.

    None takes the server's default. A limit above that is recorded with the job as relaxed.
    """

    forget_f1_max: float | None = None
    forget_auroc_max: float | None = None
    probe_ratio_max: float | None = None
    retain_f1_drop_max: float | None = None
    retain_label_drop_max: float | None = None
    logit_difference_max: float | None = None


class JobState(StrEnum):
    """Where a job is in its life. UNSPECIFIED also stands for a state newer than this client."""

    UNSPECIFIED = "UNSPECIFIED"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    GATING = "GATING"
    ACTIVATING = "ACTIVATING"
    SUCCEEDED = "SUCCEEDED"
    REJECTED = "REJECTED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    STAGED = "STAGED"

    @property
    def ended(self) -> bool:
        """True if the job will not change any more."""
        return self in (JobState.SUCCEEDED, JobState.REJECTED, JobState.FAILED, JobState.CANCELLED)

    @property
    def rests(self) -> bool:
        """True if it has ended, or waits for somebody to promote or cancel it."""
        return self.ended or self is JobState.STAGED


@dataclass(frozen=True, slots=True)
class Progress:
    """What the worker is doing: `step` of `steps` counts over all epochs."""

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    forget_loss: float
    utility_loss: float
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class Gate:
    """A measured condition; `label` is None for a gate that is not measured by label."""

    name: str
    label: str | None
    value: float
    limit: float
    passed: bool


@dataclass(frozen=True, slots=True)
class ChangeReport:
    """What a job changed, and from how many documents; `tokens` are the edited word pieces, best score first."""

    patch_digest: str
    rows_changed: int
    parameters_changed: int
    parameters_changed_ratio: float
    tokens: tuple[str, ...]
    forget_documents: int
    retain_documents: int
    training_seconds: float


@dataclass(frozen=True, slots=True)
class CallsInSecond:
    """The calls that predict which ended in one second, `offset` seconds after a version became active; before it if
    negative.

    `failed_calls` (without the caller's fault) and `cancelled_calls` (the caller left) are among `calls`. The times are
    those of the others, as the server took them; None without any.
    """

    offset: int
    calls: int
    failed_calls: int
    cancelled_calls: int
    p50_seconds: float | None
    p99_seconds: float | None
    max_seconds: float | None


@dataclass(frozen=True, slots=True)
class Job:
    """One forget request and its life. `forgotten` are all labels that the resulting version forgets.

    `relaxed_gates` names the limits that were looser than the server's defaults. `calls_around_swap` are the seconds
    before and after the version became active, the server's own measurement; empty until 10 seconds after that, and in
    a list of jobs.
    """

    job_id: str
    request_id: str
    state: JobState
    labels: tuple[str, ...]
    forgotten: tuple[str, ...]
    dry_run: bool
    reason: str
    method: Method
    gate_limits: GateLimits
    progress: Progress | None
    gates: tuple[Gate, ...]
    change: ChangeReport | None
    version: int | None
    error: str | None
    created_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    attempts: int
    swap_seconds: float
    relaxed_gates: tuple[str, ...]
    stage: bool = False
    calls_around_swap: tuple[CallsInSecond, ...] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """A DSSE envelope as JSON, and the key in PEM that the server says it is signed under; see `verify_receipt`."""

    envelope: str
    public_key: str


@dataclass(frozen=True, slots=True)
class Version:
    """The base (no job, no patch) or the base with one patch; `f1` is by label, on the gate split.

    `relaxed_gates` names the limits that the job behind it had relaxed. `staged` while it waits to be promoted,
    `withdrawn` if it did and was given up.
    """

    version: int
    active: bool
    forgotten: tuple[str, ...]
    job_id: str | None
    patch_digest: str | None
    created_at: datetime | None
    f1: dict[str, float]
    relaxed_gates: tuple[str, ...]
    staged: bool = False
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class DecisionDifference:
    """The documents compared on which a staged version decides otherwise on a label than the active one.

    `forgotten` if the staged version has forgotten it: there a difference is expected.
    """

    label: str
    forgotten: bool
    documents: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """A staged version's part in the traffic and what it has told, of calls that named no version.

    The shares, 0 to 1, hold since `since`; the counts are of the time since `counted_since`, which is the rollout's
    beginning or the server's last start. `differences` has every label in the model's order.
    """

    version: int
    canary_share: float
    shadow_share: float
    since: datetime | None
    counted_since: datetime | None
    active_calls: int
    canary_calls: int
    shadow_documents: int
    shadow_dropped: int
    differences: tuple[DecisionDifference, ...]


@dataclass(frozen=True, slots=True)
class JobSummary:
    """A job in short: without its reason, its settings and the word pieces that it changed."""

    job_id: str
    state: JobState
    labels: tuple[str, ...]
    dry_run: bool
    progress: Progress | None
    version: int | None
    error: str | None
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Status:
    """The server at one moment.

    F1 is of the active version by label, on the gate split: of the labels forgotten, and of the others. Both are empty
    without a corpus, and until it has been measured. `rollout` is None if no staged version takes part in the traffic.
    """

    server_version: str
    state: ServerState
    uptime_seconds: float
    model: str
    architecture: str
    precision: str
    provider: str
    active_version: int
    forgotten: tuple[str, ...]
    forget_f1: dict[str, float]
    retain_f1: dict[str, float]
    load: Load
    queued_jobs: int
    running_job: JobSummary | None
    last_job: JobSummary | None
    staged_versions: tuple[int, ...] = ()
    rollout: Rollout | None = None

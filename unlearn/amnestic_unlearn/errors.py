"""Why an unlearn job gives up: one class a cause, each with a fixed text that may be shown to anybody.

    WorkerError
    ├── InputError                  the bundle or the corpus cannot be used; the text says which and why
    ├── UnknownLabelError           a label to forget is not one of the model's
    ├── NothingToKeepError          every label of the model would be forgotten
    ├── TooFewForgetDocumentsError  a forgotten label has hardly any training document
    ├── NoRetainDocumentsError      every training document has a forgotten label
    ├── NoGateDocumentsError        the result could not be measured
    ├── LossNotFiniteError          training diverged
    └── OutOfMemoryError            the limit of the job was reached

No text holds document text.
"""

MIN_FORGET_DOCUMENTS = 10
# With fewer, chance reaches as far as `measures.MOST_CHANCE`: what the gates measure of the label would tell nothing.
MIN_GATE_DOCUMENTS = 6


class WorkerError(Exception):
    """A cause that the worker knows. `str(error)` is the reason given to the server."""

    reason = "the worker failed"

    def __init__(self, reason: str | None = None) -> None:
        super().__init__(reason or self.reason)


class InputError(WorkerError):
    """Always raised with the text of the BundleError or CorpusError behind it."""


class UnknownLabelError(WorkerError):
    reason = "the model does not have a label that is to be forgotten"


class NothingToKeepError(WorkerError):
    reason = "at least one label of the model must be kept"


class TooFewForgetDocumentsError(WorkerError):
    reason = f"a label to forget has fewer than {MIN_FORGET_DOCUMENTS} documents in the train split"


class NoRetainDocumentsError(WorkerError):
    reason = "every document of the train split has a label that is to be forgotten"


class NoGateDocumentsError(WorkerError):
    reason = "the corpus has no documents in the gate split"


class LossNotFiniteError(WorkerError):
    reason = "the loss is not finite: a learning rate or a weight is too large"


class OutOfMemoryError(WorkerError):
    reason = "out of memory: the job needs more than it was given"

"""What a request to forget is refused for before a job is made of it. Positions are told, never the input itself."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from amnestic_server.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, PreconditionError
from amnestic_server.records import JobRecord
from amnestic_server.request import UnlearnRequest
from amnestic_unlearn.errors import MIN_FORGET_DOCUMENTS, MIN_GATE_DOCUMENTS
from amnestic_unlearn.spec import SettingError


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Documents of each label in the corpus's train and gate splits."""

    train: Mapping[str, int]
    gate: Mapping[str, int]


def check(
    request: UnlearnRequest,
    labels: Sequence[str],
    counts: LabelCounts | None,
    forgotten: Collection[str],
    unfinished: Iterable[JobRecord],
) -> None:
    """Raise the AmnesticError that says why a request can't succeed.

    `labels` are the model's, `forgotten` those of the active version; `counts` are None without a corpus.
    """
    _check_settings(request)
    _check_labels(request.labels, labels)
    if counts is None:
        raise PreconditionError("the server has no corpus: start it with --corpus", reason="NO_CORPUS")
    for position, label in enumerate(request.labels):
        _check_label(label, f"labels[{position}]", counts, forgotten)
    if {*forgotten, *request.labels} >= set(labels):
        raise InvalidArgumentError("at least one label must be kept", field="labels")
    for record in unfinished:
        if set(record.request["labels"]) & set(request.labels):
            raise AlreadyExistsError(
                "an unfinished job is about to forget one of these labels", field="labels", reason="LABEL_TAKEN"
            )


def _check_settings(request: UnlearnRequest) -> None:
    part = "method"
    try:
        request.method.validate()
        part = "gates"
        request.limits.validate()
    except SettingError as error:
        raise InvalidArgumentError(str(error), field=f"{part}.{error.name}") from None
    if request.stage and request.dry_run:
        raise InvalidArgumentError("a dry run makes no version that could be staged", field="stage")


def _check_labels(asked: Sequence[str], labels: Sequence[str]) -> None:
    if not asked:
        raise InvalidArgumentError("no label to forget", field="labels")
    if len(set(asked)) != len(asked):
        raise InvalidArgumentError("a label is named twice", field="labels")
    for position, label in enumerate(asked):
        if label not in labels:
            raise NotFoundError(
                f"label {position + 1} of the request is not one of the model's",
                field=f"labels[{position}]",
                resource="label",
            )


def _check_label(label: str, field: str, counts: LabelCounts, forgotten: Collection[str]) -> None:
    if label in forgotten:
        raise PreconditionError(f"{label} is already forgotten", field=field, reason="ALREADY_FORGOTTEN")
    for split, documents, least in (
        ("training", counts.train, MIN_FORGET_DOCUMENTS),
        ("gate", counts.gate, MIN_GATE_DOCUMENTS),
    ):
        if documents.get(label, 0) < least:
            raise PreconditionError(
                f"the corpus has fewer than {least} {split} documents of {label}",
                field=field,
                reason="TOO_FEW_DOCUMENTS",
            )

"""What is exported: a checkpoint, and what it or its owner says of serving.

How a checkpoint is read is left to `amnestic_unlearn.pretrained`, making a bundle of it to `export`. This module never
runs in the serving process.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from amnestic_unlearn import pretrained
from amnestic_unlearn.architecture import Architecture, CheckpointError, positions
from amnestic_unlearn.manifest import ProblemType
from amnestic_unlearn.pretrained import Checkpoint
from amnestic_unlearn.windows import Reading

DEFAULT_THRESHOLD = 0.5
# What the library names the outputs of a model that nobody named.
_NO_NAME = re.compile(r"LABEL_\d+")


@dataclass(frozen=True, slots=True)
class Given:
    """What a checkpoint may leave out and its owner says. `labels` are names of the outputs, in their order.

    `thresholds` are probabilities, one a label or one for all, and a multi-label model's alone. Labels and thresholds
    go before what the checkpoint says. `reading` are fields of `windows.Reading` but its `max_tokens`, for a checkpoint
    that doesn't say how long documents are read; they are cut if neither does.
    """

    problem_type: ProblemType | None = None
    labels: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    reading: Mapping[str, Any] = field(default_factory=dict)


NOTHING_GIVEN = Given()


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A checkpoint that can be exported, in torch, and how it is to be served."""

    name: str
    architecture: Architecture
    config: Any
    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    problem_type: ProblemType
    reading: Reading
    pad_token_id: int


def load(checkpoint: str, revision: str | None, name: str | None, given: Given, warn: Callable[[str], None]) -> Source:
    """Read a directory, or a hub id at `revision`; `warn` is told what was assumed.

    Labels come from `id2label` of the configuration, thresholds from `amnestic_thresholds` (0.5 where it is absent),
    the longest input from `amnestic_max_tokens` (else the shorter of the position table and the tokenizer's own
    maximum). The kind of problem is never guessed. Raises CheckpointError, saying what is at fault.
    """
    read = pretrained.read(checkpoint, revision)
    config = read.config
    problem_type = _problem_type(config, given.problem_type)
    labels = _labels(read, problem_type, given.labels, warn)
    thresholds = _thresholds(config, labels, problem_type, given.thresholds, warn)
    config.problem_type = problem_type.in_config
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    loaded = pretrained.classifier(read, attention="eager")
    # The library has filled them with random numbers.
    if loaded.absent:
        raise CheckpointError(f"the checkpoint lacks the weight {loaded.absent[0]}, or has it in another shape")
    pad = config.pad_token_id if config.pad_token_id is not None else read.tokenizer.pad_token_id
    return Source(
        name=name or (Path(checkpoint).resolve().name if Path(checkpoint).exists() else checkpoint),
        architecture=read.architecture,
        config=loaded.model.config,
        model=loaded.model.eval(),
        tokenizer=read.tokenizer,
        labels=labels,
        thresholds=thresholds,
        problem_type=problem_type,
        reading=_reading(read, given.reading, warn),
        pad_token_id=int(pad),
    )


def _problem_type(config: Any, given: ProblemType | None) -> ProblemType:
    kinds: dict[str | None, ProblemType] = {kind.in_config: kind for kind in ProblemType}
    said = config.problem_type
    if said is None and given is None:
        # A wrong guess would be served without an error: sigmoids of a softmax's logits, or the other way round.
        raise CheckpointError("the configuration has no problem_type: give --problem-type multi-label or single-label")
    if said is not None and said not in kinds:
        wanted = " or ".join(kind.in_config for kind in ProblemType)
        raise CheckpointError(f"problem_type is {said}; it must be {wanted}")
    if said is not None and given is not None and kinds[said] is not given:
        raise CheckpointError(f"the configuration says that problem_type is {said}")
    return kinds[said] if given is None else given


def _labels(
    checkpoint: Checkpoint, problem_type: ProblemType, given: tuple[str, ...], warn: Callable[[str], None]
) -> tuple[str, ...]:
    """The name of each output of the head."""
    named = checkpoint.config.id2label
    labels = given or tuple(str(named[index]) for index in sorted(named))
    if not labels or len(set(labels)) != len(labels) or not all(labels):
        raise CheckpointError(f"{'--labels' if given else 'id2label'} must give each label a name of its own")
    head = checkpoint.weights.get(f"{checkpoint.architecture.head}.weight")
    if head is None:
        raise CheckpointError(
            f"the checkpoint {checkpoint.name} has no classification head: train one with"
            f" `amnestic train --checkpoint {checkpoint.name}`"
        )
    if len(head) != len(labels):
        by = "--labels names" if given else "its configuration names"
        raise CheckpointError(f"the head of the checkpoint has {len(head)} outputs, {by} {len(labels)} labels")
    if problem_type is ProblemType.SINGLE_LABEL and len(labels) < 2:
        raise CheckpointError("a single-label classifier needs at least two labels")
    if any(_NO_NAME.fullmatch(label) for label in labels):
        warn(f"the checkpoint names its labels {labels[0]} and so on: --labels gives them the names that a corpus has")
    return labels


def _thresholds(
    config: Any,
    labels: tuple[str, ...],
    problem_type: ProblemType,
    given: tuple[float, ...],
    warn: Callable[[str], None],
) -> tuple[float, ...]:
    if problem_type is ProblemType.SINGLE_LABEL:
        if given:
            raise CheckpointError("a single-label classifier decides for the likeliest label: it has no thresholds")
        return ()
    name, found = "amnestic_thresholds", getattr(config, "amnestic_thresholds", None)
    if given:
        name, found = "--thresholds", list(given) * (len(labels) if len(given) == 1 else 1)
    if found is None:
        warn(f"the checkpoint has no amnestic_thresholds: every label is decided at {DEFAULT_THRESHOLD}")
        return (DEFAULT_THRESHOLD,) * len(labels)
    if not isinstance(found, list) or len(found) != len(labels):
        raise CheckpointError(f"{name} is not a list of one threshold a label")
    if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in found):
        raise CheckpointError(f"{name} holds a value that is not a probability")
    return tuple(float(value) for value in found)


def _max_tokens(checkpoint: Checkpoint) -> int:
    tokenizer, most = checkpoint.tokenizer, positions(checkpoint.architecture, checkpoint.config)
    given = getattr(checkpoint.config, "amnestic_max_tokens", None)
    if given is None:
        # The library writes 1e30 for a tokenizer that has no maximum.
        return min(most, int(tokenizer.model_max_length))
    least = int(tokenizer.num_special_tokens_to_add()) + 1
    if not isinstance(given, int) or not least <= given <= most:
        raise CheckpointError(f"amnestic_max_tokens must be from {least} to {most}, the positions of the encoder")
    return given


def _reading(checkpoint: Checkpoint, given: Mapping[str, Any], warn: Callable[[str], None]) -> Reading:
    said = Reading.in_config(checkpoint.config)
    for name, value in given.items():
        if said.get(name, value) != value:
            raise CheckpointError(f"the configuration says that {name} is {said[name]}")
    max_tokens = _max_tokens(checkpoint)
    try:
        reading = Reading.of(**{**said, **given, "max_tokens": max_tokens})
        reading.set_up(Tokenizer.from_str(checkpoint.tokenizer.backend_tokenizer.to_str()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"long documents can't be read so: {error}") from error
    if reading.max_windows > 1 and "long_documents" not in said and hasattr(checkpoint.config, "amnestic_thresholds"):
        warn("amnestic_thresholds may have been chosen for documents that were cut, not read in windows")
    return reading

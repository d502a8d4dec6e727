"""Any number of documents by many calls: how they are cut into calls, and what follows from each answer.

Nothing here sends or waits. `client` and `asyncio_client` run batches side by side, each by the same loop: make the
call, tell the batch how it ended, wait for as long as the batch says.
"""

import random
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from amnestic_client import calls, convert, settings
from amnestic_client.errors import (
    AmnesticError,
    FieldViolation,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from amnestic_client.types import Answer, Model, PredictResult

OnError: TypeAlias = Literal["raise", "return"]
Documents = TypeVar("Documents")
Failure = TypeVar("Failure", bound=AmnesticError)

_NUMBER = re.compile(r"^document (\d+)\b")
_FIELD = re.compile(r"^documents\[\d+\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the caller chose for a run; raises ValueError for what cannot be."""

    version: int | None
    pin: bool
    routing_key: str | None
    on_error: OnError
    include_features: bool
    batch_size: int | None
    concurrency: int
    timeout: float | None

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "return"):
            raise ValueError('on_error must be "raise" or "return"')
        if self.concurrency < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise ValueError("concurrency and batch_size must be at least 1")


class Run:
    """One run over documents: cuts them into batches within the limits of the model that is served."""

    def __init__(self, options: Options, model: Model) -> None:
        self.options = options
        self.version = model.active_version if options.pin and options.version is None else options.version
        self.timeout = settings.PREDICT_MANY_TIMEOUT if options.timeout is None else options.timeout
        size = options.batch_size or settings.BATCH_DOCUMENTS
        self._documents = min(size, model.max_documents or size)
        self._document_bytes = model.max_document_bytes or settings.BATCH_BYTES
        self._count = 0
        self._batch = Batch(self, 0)

    def batches(self, documents: Iterable[str]) -> Iterator["Batch"]:
        for document in documents:
            yield from self._add(document)
        yield from self._rest()

    async def batches_of_stream(self, documents: AsyncIterable[str] | Iterable[str]) -> AsyncIterator["Batch"]:
        if not isinstance(documents, AsyncIterable):
            for batch in self.batches(documents):
                yield batch
            return
        async for document in documents:
            for batch in self._add(document):
                yield batch
        for batch in self._rest():
            yield batch

    def outcome(self, answers: Iterable[Answer]) -> Iterator[Answer]:
        """The answers as the caller gets them; raises the first error if that is what was chosen."""
        for answer in answers:
            if answer.error is not None and self.options.on_error == "raise":
                raise answer.error
            yield answer

    def _add(self, document: str) -> Iterator["Batch"]:
        """Take in one document; yields the batch that it does not fit in any more, and the one that it fills."""
        size, error = _size(document, self._count + 1, self._document_bytes)
        if self._batch.bytes + size > settings.BATCH_BYTES:
            yield from self._rest()
        self._batch.add(document, size, error)
        self._count += 1
        if len(self._batch) == self._documents:
            yield from self._rest()

    def _rest(self) -> Iterator["Batch"]:
        if len(self._batch):
            batch, self._batch = self._batch, Batch(self, self._count)
            yield batch


class Batch:
    """Documents that are sent together, until each has its outcome: a prediction, or the error that it met alone.

    A call that fails for one document is sent again without it, so that the others are answered. A call that finds the
    server full or away is sent again after a pause, within the deadline that all calls of the batch share.
    """

    def __init__(self, run: Run, first: int) -> None:
        self.bytes = 0
        self._run = run
        self._first = first
        self._documents: list[str] = []
        self._answers: dict[int, Answer] = {}
        self._parts: list[list[int]] = [[]]
        self._deadline: float | None = None
        self._refusals = 0

    def __len__(self) -> int:
        return len(self._documents)

    def add(self, document: str, size: int, error: AmnesticError | None) -> None:
        """Take in a document, or one that cannot be sent, with its error."""
        position = len(self._documents)
        if error is None:
            self._parts[0].append(position)
        else:
            self._answers[position] = Answer(self._first + position, None, error)
        self.bytes += size
        self._documents.append(document)

    def next_call(self) -> calls.Call[PredictResult] | None:
        """The call to make now; None once every document has its outcome."""
        self._parts = [part for part in self._parts if part]
        if not self._parts:
            return None
        documents = [self._documents[position] for position in self._parts[-1]]
        options = self._run.options
        return calls.predict(documents, self._run.version, options.routing_key, options.include_features)

    def seconds_left(self) -> float:
        """Until the deadline, which counts from the first call on."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._run.timeout
        return max(0.0, self._deadline - time.monotonic())

    def answered(self, result: PredictResult) -> None:
        self._refusals = 0
        for position, prediction in zip(self._parts.pop(), result.predictions, strict=True):
            self._answers[position] = Answer(self._first + position, result.version, prediction)

    def failed(self, error: AmnesticError) -> float:
        """Seconds to wait before the next call; raises the error if another call would not help."""
        part = self._parts[-1]
        if any(not one.field.startswith("documents") for one in error.field_violations):
            raise error
        if isinstance(error, InvalidArgument) or (
            isinstance(error, Internal) and self._run.options.on_error == "return"
        ):
            self._parts.pop()
            self._isolate(part, error)
            return 0.0
        if not isinstance(error, ResourceExhausted | Unavailable):
            raise error
        self._refusals += 1
        pause = self._pause(error)
        if pause >= self.seconds_left():
            raise error
        # A server that never admits so many documents at once says no more than one that is full just now.
        if isinstance(error, ResourceExhausted) and self._refusals > 1:
            self._parts.pop()
            self._halve(part)
        return pause

    def answers(self) -> list[Answer]:
        """One a document, in order, once `next_call` is None."""
        return [self._answers[position] for position in range(len(self._documents))]

    def _isolate(self, part: list[int], error: AmnesticError) -> None:
        """Part a document that cannot be answered from the others: the one that the error names, else by halves."""
        named = _NUMBER.match(error.detail)
        number = 1 if len(part) == 1 else int(named[1]) if named else 0
        if 1 <= number <= len(part):
            position = part.pop(number - 1)
            index = self._first + position
            self._answers[position] = Answer(index, None, numbered(error, index + 1))
            self._parts.append(part)
        else:
            self._halve(part)

    def _halve(self, part: Sequence[int]) -> None:
        middle = (len(part) + 1) // 2
        self._parts += [list(part[middle:]), list(part[:middle])]

    def _pause(self, error: AmnesticError) -> float:
        """What the server asks for, else from 0.1 s on up to 5 s, drawn so that clients do not come back together."""
        if error.retry_after is not None:
            return error.retry_after
        longest = min(settings.FULL_FIRST_PAUSE * 2.0 ** (self._refusals - 1), settings.FULL_LONGEST_PAUSE)
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def checked(documents: Documents) -> Documents:
    """Raise TypeError for one string, whose characters would be the documents."""
    if isinstance(documents, str | bytes):
        raise TypeError("predict_many takes an iterable of documents; a single document is for predict")
    return documents


def numbered(error: Failure, number: int) -> Failure:
    """The same error, counting the document from the start of the caller's input (from 1), not of its call."""
    told = type(error)(_NUMBER.sub(f"document {number}", error.detail))
    told.reason = error.reason
    told.field_violations = tuple(
        FieldViolation(
            _FIELD.sub(f"documents[{number - 1}]", one.field), _NUMBER.sub(f"document {number}", one.description)
        )
        for one in error.field_violations
    )
    return told


def _size(document: str, number: int, limit: int) -> tuple[int, AmnesticError | None]:
    """Bytes that a document adds to a call, and why it cannot be sent, if it cannot."""
    try:
        convert.check_text(document, f"document {number}")
        size = len(document.encode())
        if size > limit:
            raise InvalidArgument(f"document {number} is larger than {limit} bytes")
    except InvalidArgument as error:
        error.field_violations = (FieldViolation(f"documents[{number - 1}]", error.detail),)
        return 0, error
    return size, None

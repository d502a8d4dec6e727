"""Every error that a caller can see, with its gRPC status code by name and its fixed text.

    AmnesticError
    ├── InvalidArgumentError   the request can never succeed
    │   └── UndecodableError   its bytes are no message of the method
    ├── NotFoundError          no such version, job or label
    ├── AlreadyExistsError     the request id or the label is taken by another job
    ├── PreconditionError      not in the present state of the server
    ├── UnauthenticatedError   it is not known who calls
    ├── PermissionDeniedError  who calls may not do this
    ├── OtherPortError         not at this port
    ├── QueueFullError         bounded queue is full; retry later
    ├── DeadlineError          dropped while it waited
    ├── SlowReaderError        the caller of a stream left answers unread
    ├── DrainingError          the server is shutting down
    ├── StoreError             store or bundle could not be read or written; nothing was changed, but by a purge
    ├── EngineError            the engine failed on this request alone
    └── EngineLostError        the engine answers nothing any more; the process ends
    StartError                 the server cannot start; for the operator, not for callers
    ExitError                  the server did not end in good order; for the operator too

Texts name positions and limits, never input: a document's text must not travel in an error.
"""

from typing import ClassVar


class AmnesticError(Exception):
    """An error with a gRPC status code (`status`) and a text that is safe to send to a caller.

    `field` is the path of the request's field at fault, such as `documents[1]`; empty if no single one is. `reason` is
    a name of the cause for programs, fixed for good. `retry_after` are the seconds after which a repetition has good
    chances, None if the server can't tell.
    """

    status: ClassVar[str] = "INTERNAL"
    reason = "INTERNAL"
    retry_after: float | None = None

    def __init__(self, text: str = "", *, field: str = "", reason: str = "") -> None:
        super().__init__(text)
        self.field = field
        self.reason = reason or self.reason


class InvalidArgumentError(AmnesticError):
    status = "INVALID_ARGUMENT"
    reason = "INVALID_REQUEST"


class UndecodableError(InvalidArgumentError):
    reason = "UNDECODABLE"

    def __init__(self) -> None:
        super().__init__("the request is not a message of this method")


class NotFoundError(AmnesticError):
    """`resource` is the kind of what is not there: version, job, label or model."""

    status = "NOT_FOUND"
    reason = "NOT_FOUND"

    def __init__(self, text: str = "", *, field: str = "", resource: str = "") -> None:
        super().__init__(text, field=field, reason=f"{resource.upper()}_NOT_FOUND" if resource else "")
        self.resource = resource


class AlreadyExistsError(AmnesticError):
    status = "ALREADY_EXISTS"
    reason = "ALREADY_EXISTS"


class PreconditionError(AmnesticError):
    status = "FAILED_PRECONDITION"
    reason = "FAILED_PRECONDITION"


class UnauthenticatedError(AmnesticError):
    status = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"


class PermissionDeniedError(AmnesticError):
    """`role` is the one that was asked for."""

    status = "PERMISSION_DENIED"
    reason = "ROLE_MISSING"

    def __init__(self, role: str) -> None:
        super().__init__(f"this needs the role {role}")


class OtherPortError(AmnesticError):
    status = "PERMISSION_DENIED"
    reason = "OTHER_PORT"

    def __init__(self) -> None:
        super().__init__("this is answered on the port of operations alone")


class QueueFullError(AmnesticError):
    status = "RESOURCE_EXHAUSTED"
    reason = "QUEUE_FULL"

    def __init__(self, retry_after: float | None = None) -> None:
        super().__init__("the queue is full; retry later")
        self.retry_after = retry_after


class DeadlineError(AmnesticError):
    status = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_PASSED"

    def __init__(self) -> None:
        super().__init__("the deadline passed while the request waited")


class SlowReaderError(AmnesticError):
    status = "RESOURCE_EXHAUSTED"
    reason = "SLOW_READER"

    def __init__(self) -> None:
        super().__init__("the stream's answers were not read in time")


class DrainingError(AmnesticError):
    status = "UNAVAILABLE"
    reason = "DRAINING"

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class StoreError(AmnesticError):
    status = "UNAVAILABLE"
    reason = "STORE_FAILED"

    def __init__(self, text: str = "the store could not be read or written") -> None:
        super().__init__(text)


class EngineError(AmnesticError):
    status = "INTERNAL"
    reason = "ENGINE_FAILED"

    def __init__(self) -> None:
        super().__init__("the engine failed on this request")


class EngineLostError(AmnesticError):
    status = "UNAVAILABLE"
    reason = "ENGINE_LOST"

    def __init__(self) -> None:
        super().__init__("the engine has failed, and the server ends")


class StartError(Exception):
    """The server cannot start. The text tells the operator what to change."""


class ExitError(Exception):
    """The server did not end in good order. The text tells the operator what was left."""


class ExportError(ValueError):
    """The bundle cannot be made. The text says why; what is at fault with a checkpoint is a CheckpointError's."""

# ruff: noqa: N818 - the names are those of the gRPC status codes, as callers know them
"""Everything that a call can raise, and the one place where gRPC's errors become ours.

    AmnesticError             any other status code; see `code`
    ├── InvalidArgument       the request can never succeed
    ├── NotFound              no such label, version or job
    ├── AlreadyExists         the request id or the label is taken by another job
    ├── FailedPrecondition    not in the present state of the server
    ├── Unauthenticated       the token or the certificate says nothing, or nothing that holds
    ├── PermissionDenied      the caller has not the role for it
    ├── ResourceExhausted     the server's queue is full, or the message too large; retry later
    ├── DeadlineExceeded      no answer within the timeout
    ├── Unavailable           no server there, or it is shutting down
    ├── Cancelled             the call was cancelled, here or there
    └── Internal              the server failed

No text repeats what was sent: a document never travels in an error.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of the request that is at fault, such as `documents[1]`, and why."""

    field: str
    description: str


class AmnesticError(Exception):
    """A call failed: `code` is its gRPC status, `detail` a sentence for people.

    What the server adds for programs: `reason`, the cause by name, such as `QUEUE_FULL`; `field_violations`; and
    `retry_after`, the seconds after which another try has good chances. Empty or None where it says nothing.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.reason = ""
        self.field_violations: tuple[FieldViolation, ...] = ()
        self.retry_after: float | None = None


class InvalidArgument(AmnesticError):
    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(AmnesticError):
    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(AmnesticError):
    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(AmnesticError):
    code = grpc.StatusCode.FAILED_PRECONDITION


class Unauthenticated(AmnesticError):
    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(AmnesticError):
    code = grpc.StatusCode.PERMISSION_DENIED


class ResourceExhausted(AmnesticError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(AmnesticError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unavailable(AmnesticError):
    code = grpc.StatusCode.UNAVAILABLE


class Cancelled(AmnesticError):
    code = grpc.StatusCode.CANCELLED


class Internal(AmnesticError):
    code = grpc.StatusCode.INTERNAL


_BY_CODE = {error.code: error for error in AmnesticError.__subclasses__()}


def from_rpc(error: Any) -> AmnesticError:
    """The error for a `grpc.RpcError`, of a sync or of an asyncio call."""
    code: grpc.StatusCode = error.code()
    detail: str = error.details() or code.name.lower().replace("_", " ")
    known = _BY_CODE.get(code, AmnesticError)(detail)
    known.code = code
    _add_details(known, error.trailing_metadata() or ())
    return known


def _add_details(error: AmnesticError, metadata: Iterable[Any]) -> None:
    """Take in the `google.rpc.Status` that came with a call's end; from a server that sends none, nothing."""
    data = next((value for key, value in metadata if key == "grpc-status-details-bin"), b"")
    info, request, retry = ErrorInfo(), BadRequest(), RetryInfo()
    with suppress(DecodeError):
        for detail in Status.FromString(data).details:
            if detail.Unpack(info):
                error.reason = info.reason
            elif detail.Unpack(request):
                violations = (FieldViolation(one.field, one.description) for one in request.field_violations)
                error.field_violations = tuple(violations)
            elif detail.Unpack(retry):
                error.retry_after = retry.retry_delay.ToMilliseconds() / 1000

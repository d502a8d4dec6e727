# ruff: noqa: N818 - the names are those of the gRPC status codes, as callers know them
"""Everything that a call can raise, and the one place where gRPC's errors become ours.

    AmnesticError             any other status code; see `code`
    ├── InvalidArgument       the request can never succeed
    ├── NotFound              no such label, version or job
    ├── AlreadyExists         the request id or the label is taken by another job
    ├── FailedPrecondition    not in the present state of the server
    ├── ResourceExhausted     the server's queue is full, or the message too large; retry later
    ├── DeadlineExceeded      no answer within the timeout
    ├── Unavailable           no server there, or it is shutting down
    ├── Cancelled             the call was cancelled, here or there
    └── Internal              the server failed

No text repeats what was sent: a document never travels in an error.
"""

from typing import Any

import grpc


class AmnesticError(Exception):
    """A call failed: `code` is its gRPC status, `detail` a sentence for people."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidArgument(AmnesticError):
    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(AmnesticError):
    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(AmnesticError):
    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(AmnesticError):
    code = grpc.StatusCode.FAILED_PRECONDITION


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
    kind = _BY_CODE.get(code)
    if kind is not None:
        return kind(detail)
    other = AmnesticError(detail)
    other.code = code
    return other

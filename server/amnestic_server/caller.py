"""Who made the call that runs now, and what they may do. Without access control everybody may do everything."""

from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum

from amnestic_server.errors import PermissionDeniedError


class Role(IntEnum):
    """Each may do what those before it may.

    PREDICT: ask the model and about it. OPERATE: jobs and versions. ADMIN: give back what was forgotten.
    """

    PREDICT = 1
    OPERATE = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Caller:
    """`name` is what the audit record calls them: empty if they did not say who they are."""

    name: str = ""
    role: Role | None = Role.ADMIN

    def require(self, role: Role) -> None:
        """Raise PermissionDeniedError unless they have this role."""
        if self.role is None or self.role < role:
            raise PermissionDeniedError(role.name.lower())


ANYBODY = Caller()
_current: ContextVar[Caller] = ContextVar("caller", default=ANYBODY)


def current() -> Caller:
    return _current.get()


def enter(caller: Caller) -> None:
    """From here on the running task works for this caller."""
    _current.set(caller)

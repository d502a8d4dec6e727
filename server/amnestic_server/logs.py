"""The log of a serving process, which a document's text must not reach by any way.

What an exception says may hold a document: a tokenizer quotes what it cannot read, a provider what it cannot run. So of
every exception, whoever logs it and whether anybody catches it, the log tells its type and its place alone.
"""

import asyncio
import faulthandler
import logging
import resource
import sys
import threading
import traceback
from types import TracebackType
from typing import Any

from amnestic_server.trace import TraceFilter

log = logging.getLogger(__name__)

STANDARD_ERROR = 2
FORM = "%(asctime)s %(levelname)s %(name)s: %(message)s%(trace)s"


class Formatter(logging.Formatter):
    """Formats exceptions without what they say."""

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return where(ei[1])


def where(error: BaseException | None) -> str:
    """The type of an error and its places in the code, those of its causes first; not what it says."""
    if error is None:
        return ""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    lines = [*traceback.format_tb(error.__traceback__), f"{type(error).__module__}.{type(error).__qualname__}"]
    return "\n".join(filter(None, (where(before), "".join(lines))))


def set_up(level: str) -> None:
    """Log to standard error from this level on, crashes of native code and errors that nobody caught included."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(FORM))
    handler.addFilter(TraceFilter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # Frames alone, no value of a variable; to standard error as the system knows it.
    faulthandler.enable(STANDARD_ERROR)
    sys.excepthook = _uncaught
    sys.unraisablehook = lambda found: _uncaught(found.exc_type, found.exc_value, found.exc_traceback)
    threading.excepthook = lambda found: _uncaught(found.exc_type, found.exc_value, found.exc_traceback)


def forget_memory() -> None:
    """Leave no core file behind a crash, nor let a worker: it would hold the documents in memory."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))


def of_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What an event loop calls with an error that nobody awaits; its own handler would show the error's text."""
    error = context.get("exception")
    log.error("an error in the event loop that nobody awaits", exc_info=error)


def _uncaught(kind: type[BaseException], error: BaseException | None, place: TracebackType | None) -> None:
    log.critical("an error that nobody caught", exc_info=(kind, error, place) if error else None)

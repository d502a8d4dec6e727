"""The log of a serving process, for people or as JSON, which a document's text must not reach by any way.

What an exception says may hold a document: a tokenizer quotes what it cannot read, a provider what it cannot run. So of
every exception, whoever logs it and whether anybody catches it, the log tells its type and its place alone.
"""

import asyncio
import faulthandler
import json
import logging
import resource
import signal
import sys
import threading
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from amnestic_server import trace

log = logging.getLogger(__name__)

STANDARD_ERROR = 2
LEVELS = ("debug", "info", "warning", "error")
MORE, LESS = signal.SIGUSR1, signal.SIGUSR2
# Of the packages that we wrote: what others say at debug is of no use here.
OURS = logging.getLogger("amnestic_server")


class TextFormatter(logging.Formatter):
    """A line for people; fields follow the message as NAME=VALUE."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        fields = (f"{name}={value}" for name, value in _fields(record).items())
        return " ".join((super().formatMessage(record), *fields))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return where(ei[1])


class JsonFormatter(logging.Formatter):
    """An object a line: `time` (RFC 3339, UTC), `level`, `logger`, `message`, fields, `exception` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = where(record.exc_info[1])
        return json.dumps(line)


FORMATTERS: dict[str, type[logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What was given as `extra={"fields": ...}`, and the trace of the call that runs now."""
    fields = dict(getattr(record, "fields", {}))
    current = trace.current()
    if current and current.trace_id:
        fields["trace"] = current.trace_id
    return fields


def where(error: BaseException | None) -> str:
    """The type of an error and its places in the code, those of its causes first; not what it says."""
    if error is None:
        return ""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    lines = [*traceback.format_tb(error.__traceback__), f"{type(error).__module__}.{type(error).__qualname__}"]
    return "\n".join(filter(None, (where(before), "".join(lines))))


def set_up(level: str, form: str) -> None:
    """Log to standard error from this level on, crashes of native code and errors that nobody caught included.

    `level` is one of `LEVELS`, `form` of `FORMATTERS`.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(FORMATTERS[form]())
    logging.basicConfig(level=max(logging.INFO, logging.getLevelName(level.upper())), handlers=[handler])
    OURS.setLevel(level.upper())
    # Frames alone, no value of a variable; to standard error as the system knows it.
    faulthandler.enable(STANDARD_ERROR)
    sys.excepthook = _uncaught
    sys.unraisablehook = lambda found: _uncaught(found.exc_type, found.exc_value, found.exc_traceback)
    threading.excepthook = lambda found: _uncaught(found.exc_type, found.exc_value, found.exc_traceback)


def heed_signals(loop: asyncio.AbstractEventLoop) -> None:
    """Log more at the signal `MORE` and less at `LESS`, a level each time, while the process runs."""
    loop.add_signal_handler(MORE, _step, -1)
    loop.add_signal_handler(LESS, _step, 1)


def _step(by: int) -> None:
    now = LEVELS.index(logging.getLevelName(OURS.getEffectiveLevel()).lower())
    level = LEVELS[min(max(now + by, 0), len(LEVELS) - 1)]
    OURS.setLevel(level.upper())
    log.log(OURS.level, "from here on what is of level %s or above is logged", level)


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

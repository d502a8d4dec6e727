"""Commands run as people and scripts run them: in a terminal of a given width, or in a pipe."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass

COMMAND = (sys.executable, "-m", "amnestic_server.cli")
# What would change how a terminal is drawn on.
UNSET = ("CI", "COLUMNS", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "AMNESTIC_COLOR", "AMNESTIC_QUIET")


@dataclass(frozen=True, slots=True)
class Shown:
    """What a terminal was sent, as it came and without its control sequences, and how the command exited."""

    raw: str
    code: int

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw).replace("\r\n", "\n")

    @property
    def width(self) -> int:
        """Of the longest line."""
        return max(len(line) for frame in self.text.splitlines() for line in frame.split("\r"))


def environment(server: str, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    return {**kept, "AMNESTIC_SERVER": server, "TERM": "xterm-256color", "TZ": "UTC", **variables}


def start(server: str, *arguments: str, **options: object) -> "subprocess.Popen[str]":
    """`amnestic ARGUMENTS` as a process of its own."""
    return subprocess.Popen([*COMMAND, *arguments], **({"env": environment(server), "text": True} | options))  # type: ignore[call-overload,no-any-return]


def in_terminal(
    server: str,
    *arguments: str,
    columns: int = 80,
    on_output: Callable[["subprocess.Popen[bytes]", str], None] = lambda process, seen: None,
    **variables: str,
) -> Shown:
    """Run `amnestic ARGUMENTS` in a pseudo-terminal; `on_output` is told the process and all that it has written."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment(server, **variables),
        start_new_session=True,
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            piece = os.read(leader, 65_536)
        except OSError:  # Linux says EIO when the other side has closed
            break
        if not piece:
            break
        seen += piece
        on_output(process, seen.decode(errors="replace"))
    os.close(leader)
    return Shown(seen.decode(), process.wait(30))

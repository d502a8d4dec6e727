"""What a disk may hold after the power fails: the system calls of a process, played back with what was not synced lost.

`traced` runs Python code under strace. `Disk` takes its calls one by one, and `leave` writes out a folder as it may be
found after a cut at that moment. What was synced is there; of what was not, each write, and the changes of each folder
from some point on, may be lost. That is POSIX's promise and no more: data by fsync of its file, names by fsync of their
folder. Not played: a disk that lies about fsync, and a sector that is torn within 512 bytes.
"""

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CALLS = "openat,write,pwrite64,fsync,fdatasync,rename,unlink,mkdir,ftruncate"
LINE = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\)\s+= (?P<result>\d+)(?:<.*>)?$")
TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
DESCRIPTOR = re.compile(r"^(\d+)<((?:\\x[0-9a-f]{2})*)>")
SECTOR = 512
# Shared memory, which is rebuilt from the log.
FORGOTTEN = "-shm"


@dataclass(frozen=True, slots=True)
class Call:
    """One system call that succeeded. `path` is that of its file; `said` what it wrote to standard output."""

    name: str
    path: str = ""
    other: str = ""
    data: bytes = b""
    offset: int | None = None
    flags: str = ""
    said: str = ""


def traced(code: str, *arguments: str, log: Path) -> list[Call]:
    """Run code, and return its calls on files in their order."""
    command = ["strace", "-o", str(log), "-y", "-xx", "-s", "10000000", "-e", f"trace={CALLS}", sys.executable, "-c"]
    subprocess.run([*command, code, *arguments], check=True, stdout=subprocess.DEVNULL)
    return list(_calls(log))


def _calls(log: Path) -> Iterator[Call]:
    for line in log.read_text().splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        name, arguments = match["name"], match["arguments"]
        texts = [_bytes(text) for text in TEXT.findall(arguments)]
        descriptor = DESCRIPTOR.match(arguments)
        path = _bytes(descriptor[2]).decode() if descriptor else ""
        match name:
            case "write" if descriptor and descriptor[1] == "1":
                yield Call("say", said=texts[0].decode())
            case "write":
                yield Call(name, path, data=texts[0])
            case "pwrite64":
                yield Call("write", path, data=texts[0], offset=int(arguments.rpartition(", ")[2]))
            case "fsync" | "fdatasync":
                yield Call("sync", path)
            case "ftruncate":
                yield Call(name, path, offset=int(arguments.rpartition(", ")[2]))
            case "rename":
                yield Call(name, texts[0].decode(), other=texts[1].decode())
            case "unlink" | "mkdir":
                yield Call(name, texts[0].decode())
            case "openat":
                yield Call(name, texts[0].decode(), flags=arguments)


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


@dataclass(slots=True)
class File:
    """`synced` is on the disk; of `pending`, (offset, data) or (length, None) to cut at, any part may be."""

    now: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    position: int = 0
    appends: bool = False

    def change(self, offset: int, data: bytes | None) -> None:
        _apply(self.now, offset, data)
        self.pending.append((offset, data))

    def sync(self) -> None:
        self.synced, self.pending = bytes(self.now), []

    def left(self, draw: random.Random, kept: float) -> bytes:
        found = bytearray(self.synced)
        for offset, data in self.pending:
            if data is None:
                if draw.random() < kept:
                    _apply(found, offset, None)
                continue
            for start in range(0, len(data), SECTOR):
                if draw.random() < kept:
                    _apply(found, offset + start, data[start : start + SECTOR])
        return bytes(found)


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


@dataclass(slots=True)
class Disk:
    """The files under `root`, which is a folder that was there before and stays."""

    root: str
    names: dict[str, File] = field(default_factory=dict)
    synced_names: dict[str, File] = field(default_factory=dict)
    # By folder, in order: each makes a name one of a file, or of nothing.
    pending: dict[str, list[tuple[str, File | None]]] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)

    def take(self, call: Call) -> None:
        if not call.path.startswith(self.root) or call.path.endswith(FORGOTTEN):
            return
        match call.name:
            case "openat" if "O_CREAT" in call.flags:
                self._open(call)
            case "write":
                file = self.names[call.path]
                offset = call.offset
                if offset is None:
                    offset = len(file.now) if file.appends else file.position
                    file.position = offset + len(call.data)
                file.change(offset, call.data)
            case "ftruncate":
                self.names[call.path].change(call.offset or 0, None)
            case "sync" if call.path in self.names and call.path not in self.folders:
                self.names[call.path].sync()
            case "sync":
                for name, file in self.pending.pop(call.path, []):
                    _name(self.synced_names, name, file)
            case "rename":
                file = self.names[call.path]
                self._rename(call.path, None)
                self._rename(call.other, file)
            case "unlink":
                self._rename(call.path, None)
            case "mkdir":
                self.folders.add(call.path)
                self._rename(call.path, File())

    def _open(self, call: Call) -> None:
        if call.path not in self.names:
            self._rename(call.path, File())
        file = self.names[call.path]
        file.position, file.appends = 0, "O_APPEND" in call.flags
        if "O_TRUNC" in call.flags and file.now:
            file.change(0, None)

    def _rename(self, name: str, file: File | None) -> None:
        _name(self.names, name, file)
        self.pending.setdefault(str(Path(name).parent), []).append((name, file))

    def leave(self, out: Path, draw: random.Random, kept: float) -> None:
        """Write what may be left to `out`, of whatever was not synced about the share `kept`."""
        names = dict(self.synced_names)
        for changes in self.pending.values():
            # A file system keeps the changes of a folder in their order.
            survive = len(changes) if kept == 1 else draw.randint(0, len(changes)) if kept else 0
            for name, file in changes[:survive]:
                _name(names, name, file)
        for name in sorted(names):
            target = out / Path(name).relative_to(self.root)
            if not target.parent.is_dir():
                continue
            if name in self.folders:
                target.mkdir()
            else:
                target.write_bytes(names[name].left(draw, kept))


def _name(names: dict[str, File], name: str, file: File | None) -> None:
    if file is None:
        names.pop(name, None)
    else:
        names[name] = file

"""A PostgreSQL server of its own for a test session, on a Unix socket in a temporary folder."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PASSWORD = "correct horse"
# Everybody is let in, but for the user who has to give a password.
_ADMITTED = "local all reader scram-sha-256\nlocal all all trust\n"
# It is only a test's: nothing need outlive a crash.
_SETTINGS = ("-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=10", "-c", "shared_buffers=4MB")


@dataclass(frozen=True, slots=True)
class Postgres:
    """`folder` is that of the socket: the host, for libpq."""

    folder: Path

    def url(self, user: str = "postgres", database: str = "postgres") -> str:
        return f"postgresql://{user}@/{database}?host={self.folder}"


def programs() -> Path | None:
    """The folder of initdb and postgres; None if PostgreSQL is not installed."""
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    if found := shutil.which("initdb"):
        places.append(Path(found).parent)
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


@contextmanager
def running(bin_: Path) -> Iterator[Postgres]:
    """A server, while this is open. PostgreSQL refuses root, so root lends it to another user."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # the path of a socket must be short
    user = _other_user() if os.geteuid() == 0 else None
    try:
        if user is not None:
            shutil.chown(folder, user)
        data, log = folder / "data", folder / "log"
        subprocess.run(
            [bin_ / "initdb", "-D", data, "-U", "postgres", "--no-sync", "-A", "trust", "-E", "UTF8", "--locale=C"],
            user=user,
            cwd=folder,
            check=True,
            capture_output=True,
        )
        (data / "pg_hba.conf").write_text(_ADMITTED)
        with log.open("w") as output:
            server = subprocess.Popen(
                [bin_ / "postgres", "-D", data, "-k", folder, *_SETTINGS],
                user=user,
                cwd=folder,
                stdout=output,
                stderr=output,
            )
        try:
            _wait(server, folder, log)
            yield Postgres(folder)
        finally:
            server.terminate()
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _other_user() -> str:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _wait(server: subprocess.Popen[bytes], folder: Path, log: Path) -> None:
    import psycopg

    until = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(Postgres(folder).url()).close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > until:
                raise AssertionError(log.read_text()) from None
            time.sleep(0.05)

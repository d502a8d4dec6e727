"""docs/operations.md: its commands make a backup that can be restored, and tell one that is too old."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from e2e.harness import amnestic, stage

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
# All that the page has typed; another block needs a test too.
STOPPED, RUNNING, TRIED, RESTORED = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def run(server, script):
    """In the folder of the store, as a person would."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euc", script],
        cwd=server.store.parent,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )


def keep_heads(server):
    """Put the heads of now where the page has them kept."""
    (server.store.parent / "kept-elsewhere.jsonl").write_bytes((server.store / "audit-heads.jsonl").read_bytes())


class Changing:
    """Changes the store of a running server without pause: each change is an audit record and a signed head."""

    def __init__(self, server):
        self._client, self._ended, self.changes = server.client, threading.Event(), 0
        self._thread = threading.Thread(target=self._change)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join(30)

    def _change(self):
        while not self._ended.is_set():
            self.changes += 1
            self._client.set_rollout(2, shadow_share=self.changes % 2)


@pytest.fixture
def server(serve, bundle):
    """With a staged version, 2."""
    return stage(serve(corpus=None, start=False), bundle, 1).start()


def test_a_copy_of_a_running_server_is_whole_and_what_it_lacks_is_found(server, until, check_active):
    with Changing(server) as changing:
        for command in RUNNING.splitlines():
            before = changing.changes
            copied = run(server, command)
            assert copied.returncode == 0, copied.stderr
            # The last one begun is done, and so is one that began after the command.
            until(lambda before=before: changing.changes > before + 1)
    server.client.promote(2)
    assert check_active(server) == 2
    keep_heads(server)
    assert server.terminate() == 0
    backup = server.store.parent / "backup"
    alone = subprocess.run(amnestic("audit", "verify", str(backup)), capture_output=True, text=True, timeout=60)
    assert alone.returncode == 0, alone.stderr
    for script in (TRIED, RESTORED):
        found = run(server, script)
        assert found.returncode == 1
        assert re.search(r"records after \d+ are gone: record \d+ was signed", found.stderr)
    server.start()
    assert check_active(server) == 1, "an old backup was said to bring back what was forgotten"
    server.client.promote(2)
    assert check_active(server) == 2
    assert (server.store / "signing-key.pem").stat().st_mode & 0o777 == 0o600


def test_a_copy_of_a_stopped_server_lacks_nothing(server, check_active):
    server.client.promote(2)
    # A kill leaves a part of the database in its log.
    server.kill()
    assert (server.store / "amnestic.db-wal").stat().st_size > 0
    keep_heads(server)
    assert run(server, STOPPED).returncode == 0
    for script in (TRIED, RESTORED):
        verified = run(server, script)
        assert verified.returncode == 0, verified.stderr
        assert re.search(r"^\d+ records verify", verified.stdout)
    server.start()
    assert check_active(server) == 2

"""The TypeScript client by its own commands: installed, built, linted, and tested over a real server."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from e2e.harness import GATES, METHOD, environment

from amnestic_server.settings import Settings

FOLDER = Path(__file__).parents[2] / "clients" / "typescript"
NODE = (20, 19)
SECONDS = 240
# What npm says of a registry that can't be reached.
AWAY = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET_TIMEOUT")

pytestmark = pytest.mark.slow


def npm(*arguments: str, **variables: str) -> tuple[int, str]:
    """Run npm in the client's folder; returns its code and all that it said, and leaves no process behind."""
    process = subprocess.Popen(
        ["npm", *arguments],
        cwd=FOLDER,
        env={**environment(), **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


def installed() -> bool:
    """True if what the lock file asks for is there already."""
    lock, done = FOLDER / "package-lock.json", FOLDER / "node_modules" / ".package-lock.json"
    return done.is_file() and done.stat().st_mtime >= lock.stat().st_mtime


def camel(settings: dict[str, Any]) -> dict[str, Any]:
    return {re.sub(r"_(\w)", lambda match: match[1].upper(), name): value for name, value in settings.items()}


@pytest.fixture(scope="module")
def built() -> None:
    """The client is installed and built, in place: all that this writes is ignored by git."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if tuple(map(int, version.removeprefix("v").split(".")[:2])) < NODE:
        pytest.skip(f"node is {version}, the client needs {'.'.join(map(str, NODE))}")
    if not installed():
        code, said = npm("ci", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=1")
        if code != 0 and AWAY.search(said):
            pytest.skip("the npm registry can't be reached")
        assert code == 0, said
    code, said = npm("run", "build")
    assert code == 0, said


def test_it_is_clean(built: None) -> None:
    code, said = npm("run", "lint")
    assert code == 0, said


def test_it_works_with_a_real_server(built: None, bundle: Path, corpus_path: Path, tmp_path: Path) -> None:
    serve = [sys.executable, "-m", "amnestic_server.cli", "serve", "--threads", "1"]
    serve += ["--bundle", str(bundle), "--corpus", str(corpus_path), "--store", str(tmp_path / "store")]
    variables = {
        "AMNESTIC_TEST_SERVE": json.dumps(serve),
        "AMNESTIC_TEST_SETTINGS": json.dumps({"method": camel(METHOD), "gates": camel(GATES)}),
    }
    if any(field.name == "uds" for field in dataclasses.fields(Settings)):
        variables["AMNESTIC_TEST_UDS"] = "1"
    code, said = npm("test", **variables)
    assert code == 0, said
    assert "a label is forgotten, watched through a restart of the server" in said

"""The commands of the pages, typed as they stand there: each page from top to bottom, in a folder of its own.

The folder holds what the pages suppose: a bundle that knows `endocrine`, its checkpoint and corpus, keys and
certificates. Addresses, places outside the folder and a job's id are put in; settings that suit the toy are in the
environment, where every option has a variable. What is not run is in `pages.commands`.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from e2e import crashing
from e2e.harness import ANYTHING, METHOD, READY, environment
from pages.commands import PAGES, ROOT, blocks, runnable
from tls import issue

from amnestic_server.export import export
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.manifest import MANIFEST, file_digest

TRITON = ROOT / ".venv-triton"
SERVE = "amnestic serve --bundle bundle --store store --corpus corpus.parquet"
UNLEARN = 'amnestic unlearn endocrine --reason "policy 12"'
RECEIPT = "amnestic receipt get JOB_ID --out receipt.json"
ADDRESS = "127.0.0.1:8001"
TOY = METHOD | ANYTHING | {"epochs": 1}
VARIABLES = {f"AMNESTIC_UNLEARN_{name.upper()}": str(value) for name, value in TOY.items()}
VARIABLES |= {"AMNESTIC_GRPC_PORT": "0", "AMNESTIC_METRICS_PORT": "0", "AMNESTIC_THREADS": "1"}
NAME = "amnestic.example"
TLS = {"AMNESTIC_TLS_CA": "clients-ca.pem", "AMNESTIC_TLS_SERVER_NAME": NAME}
TLS |= {"AMNESTIC_TLS_CERT": "officer.pem", "AMNESTIC_TLS_KEY": "officer.key"}
# What was done before these pages begin.
BEFORE = {
    "docs/report.md": (SERVE, UNLEARN, RECEIPT, "cp store/signing-key.pub.pem ."),
    "docs/security.md": (
        SERVE,
        UNLEARN,
        "cp store/signing-key.pub.pem .",
        "cp store/audit-heads.jsonl kept-elsewhere.jsonl",
    ),
}
# What the pages say that is printed, or show beneath.
TOLD = {
    "README.md": (r"^ *2 .*\bendocrine\b",),
    "docs/quickstart.md": (r"version 2\b", r"endocrine.*forgotten", r"\d+ records verify", r"^2 \("),
    "docs/rollout.md": (
        r"^version +2, staged *$",
        r"^canary +0.05 of the calls *$",
        r"^shadow +1 of the documents *$",
        r"^since +20\d\d-\d\d-\d\d \d\d:\d\d *$",
        r"^counted since +20",
        r"^answered +\d+ of \d+ calls *$",
        r"^compared +\d+ documents, \d+ more dropped *$",
    ),
    "docs/security.md": (r"the bundle is version 2 now; purged: endocrine", r"\d+ records verify"),
}
JOB_SECONDS = 120
TRAINED_ON = 100


class Desk:
    """A folder, the server that was started there last, and all that was printed."""

    def __init__(self, folder: Path, kept: Path) -> None:
        self.folder = folder
        self.target = ""
        self.tls: dict[str, str] = {}
        self.printed = ""
        self._kept = kept
        self._server: subprocess.Popen[str] | None = None

    def type(self, command: str) -> None:
        """In a shell; what serves is left running, and what watches is ended by Ctrl-C."""
        if "JOB_ID" in command:
            command = command.replace("JOB_ID", json.loads(self._run("amnestic jobs --json"))[0]["job_id"])
        command = self._here(command)
        if " serve " in command:
            self._serve(command)
        else:
            self.printed += self._run(command)

    def python(self, code: str) -> None:
        """By this interpreter, or by that which has Triton's client."""
        python = [sys.executable]
        if "tritonclient" in code:
            if not (TRITON / ".installed").exists():
                pytest.skip("Triton's client is not installed: `make triton` does it, and needs PyPI")
            python = ["env", "--unset", "PYTHONPATH", str(TRITON / "bin" / "python")]
        self.printed += self._run([*python, "-c", self._here(code)])

    def close(self) -> None:
        """End the server at once: how it stops is not what these pages are about."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.communicate(timeout=60)
        self._server, self.target = None, ""

    def _here(self, text: str) -> str:
        places = {"/run/amnestic": str(self.folder), "/opt/amnestic": ".venv", "DIR_OR_HUB_ID": "checkpoint"}
        if self.target:
            places[ADDRESS] = self.target
        for shown, here in places.items():
            text = text.replace(shown, here)
        return text

    def _serve(self, command: str) -> None:
        """With the worker of `crashing`, which does the same job once."""
        self.close()
        kept = self._kept / file_digest(self.folder / "bundle" / MANIFEST)
        kept.mkdir(exist_ok=True)
        program = f"{sys.executable} {crashing.__file__} {kept} serve "
        with (self.folder / "log").open("a") as log:
            self._server = subprocess.Popen(
                ["bash", "-euc", re.sub(r"\S*\bamnestic serve ", program, command)],
                cwd=self.folder,
                env=self._environment(),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._server.stdout is not None
        ready = READY.fullmatch(self._server.stdout.readline())
        assert ready, f"{command}\n{(self.folder / 'log').read_text()}"
        self.target = ready["grpc"].replace("0.0.0.0", "127.0.0.1") if "--no-tcp" not in command else ""
        self.tls = TLS if "--tls-cert" in command else {}

    def _run(self, command: str | list[str]) -> str:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", command] if isinstance(command, str) else command,
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        watches = "--watch" in command
        if watches:
            assert process.stdout is not None and process.stdout.readline()
            os.killpg(process.pid, signal.SIGINT)
        # To whoever asks: yes.
        output, errors = process.communicate("y\n", timeout=JOB_SECONDS)
        assert process.returncode == (130 if watches else 0), f"{command}\n{output}\n{errors}"
        return output

    def _environment(self) -> dict[str, str]:
        return {
            **environment(),
            **VARIABLES,
            **self.tls,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.folder),
            "AMNESTIC_SERVER": self.target or ADDRESS,
        }


@pytest.fixture(scope="module")
def supposed(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, corpus_path: Path) -> Path:
    """What the pages suppose to be there, to be copied."""
    folder = tmp_path_factory.mktemp("supposed")
    named = folder / "corpus.jsonl"
    named.write_text(corpus_path.read_text().replace('"beta"', '"endocrine"'))
    documents = corpora.read(named)
    shipped = folder / "unlearn" / "amnestic_unlearn" / "data"
    shipped.mkdir(parents=True)
    for file in (folder / "corpus.parquet", shipped / "eicu_demo.parquet"):
        corpora.write(documents, file)
    # Few, since a model is trained on them.
    corpora.write(documents[:: len(documents) // TRAINED_ON], folder / "notes.parquet")
    shutil.copytree(checkpoint, folder / "checkpoint")
    config = folder / "checkpoint" / "config.json"
    config.write_text(config.read_text().replace('"beta"', '"endocrine"'))
    shutil.copytree(folder / "checkpoint", folder / "other")
    export(folder / "checkpoint", folder / "bundle", corpus=named)
    shutil.copytree(folder / "bundle", folder / "out" / "demo" / "bundle")
    (folder / ".config" / "fish" / "completions").mkdir(parents=True)
    (folder / ".venv").symlink_to(sys.prefix)
    _write_credentials(folder)
    return folder


def _write_credentials(folder: Path) -> None:
    """Certificates, the access file as docs/security.md shows it, and the keys that it names."""
    authority = issue("authority")
    authority.write(folder, "clients-ca")
    issue(NAME, authority).write(folder, "server")
    issue("privacy-officer.hospital.example", authority).write(folder, "officer")
    (access,) = (code for language, code in blocks("docs/security.md") if language == "toml")
    (folder / "access.toml").write_text(access)
    key = jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)
    (folder / "jwks.json").write_text(json.dumps({"keys": [{**key, "kid": "1", "use": "sig"}]}))


@pytest.fixture
def desk(supposed: Path, tmp_path: Path, kept: Path) -> Iterator[Desk]:
    shutil.copytree(supposed, tmp_path, symlinks=True, dirs_exist_ok=True)
    desk = Desk(tmp_path, kept)
    yield desk
    desk.close()


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)])
def test_the_commands_of_a_page_run(page: str, desk: Desk) -> None:
    typed = runnable(page)
    for made in ("checkpoint", "bundle"):
        if any(f"--out {made}" in command for _, command in typed):
            shutil.rmtree(desk.folder / made)
    for command in BEFORE.get(page, ()):
        desk.type(command)
    serves = any(" serve " in command for _, command in typed)
    for language, command in typed:
        if not desk.target and (ADDRESS in command or ("amnestic " in command and not serves)):
            desk.type(SERVE)
        desk.python(command) if language == "python" else desk.type(command)
    for pattern in TOLD.get(page, ()):
        assert re.search(pattern, desk.printed, re.MULTILINE), f"{pattern}\n{desk.printed}"

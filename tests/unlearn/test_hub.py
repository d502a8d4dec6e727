"""Checkpoints by their hub id, over real HTTP from a hub of this machine, and from the cache without one."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from amnestic_unlearn import hub
from amnestic_unlearn.architecture import CheckpointError

FIRST, SECOND = "1" * 40, "2" * 40
TOKEN = "hf_letmein"
PUBLIC = {"config.json": b"{}", "tokenizer.json": b"{}", "README.md": b"of no use"}
# By name and commit; `main` is the second.
REPOSITORIES = {
    "someone/safe": {
        FIRST: {**PUBLIC, "model.safetensors": b"old"},
        SECOND: {
            **PUBLIC,
            "model.safetensors": b"new",
            "pytorch_model.bin": b"unwanted",
            "tf_model.h5": b"unwanted",
        },
    },
    "someone/split": {
        SECOND: {
            **PUBLIC,
            "pytorch_model.bin.index.json": b"{}",
            "pytorch_model-00001-of-00002.bin": b"a",
            "pytorch_model-00002-of-00002.bin": b"b",
        }
    },
    "someone/bare": {SECOND: PUBLIC},
    "someone/private": {SECOND: {**PUBLIC, "model.safetensors": b"mine"}},
    "someone/gated": {},
}


class Hub(BaseHTTPRequestHandler):
    """The three calls of the hub's API that fetching a snapshot takes."""

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        path = urlsplit(self.path).path.strip("/").split("/")
        name = "/".join(path[2:4] if path[0] == "api" else path[:2])
        admitted = name != "someone/private" or self.headers["Authorization"] == f"Bearer {TOKEN}"
        if name not in REPOSITORIES or not admitted:
            return self._refuse(401, "RepoNotFound")
        if name == "someone/gated":
            return self._refuse(403, "GatedRepo")
        commits = REPOSITORIES[name]
        asked = path[5] if path[0] == "api" else path[3]
        commit = SECOND if asked == "main" else asked
        if commit not in commits:
            return self._refuse(404, "RevisionNotFound")
        files = commits[commit]
        if path[0] != "api":
            return self._send(files[path[4]], body, {"ETag": f'"{digest(files[path[4]])}"', "X-Repo-Commit": commit})
        if path[4] == "tree":
            tree = [
                {"type": "file", "path": file, "size": len(content), "oid": digest(content)}
                for file, content in files.items()
            ]
            return self._send(json.dumps(tree).encode(), body)
        told = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
        return self._send(json.dumps(told).encode(), body)

    def _send(self, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def located(home: Path, *asked: tuple[str, str | None], **variables: str) -> list[dict[str, str] | str]:
    """What a process of its own finds for each name and revision: its files as text, or why not."""
    code = (
        "import json, sys\n"
        "from amnestic_unlearn import hub\n"
        "from amnestic_unlearn.architecture import CheckpointError\n"
        "def found(name, revision):\n"
        "    try: return {file.name: file.read_text() for file in hub.locate(name, revision).iterdir()}\n"
        "    except CheckpointError as error: return str(error)\n"
        "print(json.dumps([found(*asked) for asked in json.loads(sys.argv[1])]))\n"
    )
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_what_is_needed_is_fetched_once_and_then_found_without_the_hub(endpoint: str, tmp_path: Path) -> None:
    needed = {name: content.decode() for name, content in PUBLIC.items() if name != "README.md"}
    asked = [("someone/safe", None), ("someone/safe", FIRST), ("someone/split", None)]
    expected = [
        {**needed, "model.safetensors": "new"},
        {**needed, "model.safetensors": "old"},
        {name: content.decode() for name, content in REPOSITORIES["someone/split"][SECOND].items() if name in needed}
        | {name: content.decode() for name, content in REPOSITORIES["someone/split"][SECOND].items() if ".bin" in name},
    ]
    assert located(tmp_path, *asked, HF_ENDPOINT=endpoint) == expected
    assert located(tmp_path, *asked, HF_HUB_OFFLINE="1") == expected
    # Nobody listens there.
    assert located(tmp_path, *asked, HF_ENDPOINT="http://127.0.0.1:9") == expected


def test_what_cannot_be_had_is_told_in_a_line(endpoint: str, tmp_path: Path) -> None:
    asked = [
        ("someone/gated", None),
        ("someone/nothing", None),
        ("someone/private", None),
        ("someone/safe", "3" * 40),
        ("someone/bare", None),
        ("some one/safe", None),
    ]
    answers = located(tmp_path, *asked, HF_ENDPOINT=endpoint)
    reasons = [str(answer).rpartition("cannot be loaded: ")[2] for answer in answers]
    assert reasons == [
        "it is gated: accept its terms on the hub, and set HF_TOKEN to a token that may read it",
        "the hub has none of that name, or it is private: HF_TOKEN must hold a token for it",
        "the hub has none of that name, or it is private: HF_TOKEN must hold a token for it",
        "the hub does not have that revision of it",
        "no weights in safetensors, and no pytorch_model.bin",
        "that is neither a directory nor an id of the hub",
    ]
    (answer,) = located(tmp_path, ("someone/private", None), HF_ENDPOINT=endpoint, HF_TOKEN=TOKEN)
    assert isinstance(answer, dict) and answer["model.safetensors"] == "mine"
    (answer,) = located(tmp_path / "empty", ("someone/safe", None), HF_HUB_OFFLINE="1")
    assert answer == (
        "the checkpoint someone/safe cannot be loaded: the cache does not hold it, and the hub is not asked or does"
        " not answer"
    )


def test_a_directory_has_no_revisions(tmp_path: Path) -> None:
    assert hub.locate(str(tmp_path)) == tmp_path
    with pytest.raises(CheckpointError, match="is a directory: only a checkpoint of the hub has revisions"):
        hub.locate(str(tmp_path), "main")


@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", "a/b/c", "~/model"])
def test_a_path_that_is_not_there_is_no_hub_id(name: str) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint directory"):
        hub.locate(name)

"""What is released: a wheel built from the source distribution, and its base install in a clean environment.

That is the client, the stubs and the command line, nothing heavy.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import amnestic

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "onnxruntime", "onnxruntime-gpu", "onnx", "numpy", "transformers", "tokenizers", "duckdb"}
BASE = {"amnestic", "click", "cryptography", "googleapis-common-protos", "grpcio", "jinja2", "protobuf", "rich"}

Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both, built as `make dist` does."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, capture_output=True, timeout=240
    )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dist: Path) -> Run:
    """Installs the project as a user does, and runs a program of that environment, away from the source tree."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder / "env", with_pip=True)
    programs = folder / "env" / ("Scripts" if sys.platform == "win32" else "bin")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def invoke(program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [programs / program, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=check,
        )

    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    invoke("python", *pip, "install", "-c", str(ROOT / "constraints.txt"), str(next(dist.glob("*.whl"))))
    return invoke


def test_the_wheel_and_the_source_hold_what_they_should(dist: Path) -> None:
    name = f"amnestic-{amnestic.__version__}"
    assert {file.name for file in dist.iterdir()} == {f"{name}-py3-none-any.whl", f"{name}.tar.gz"}
    with zipfile.ZipFile(dist / f"{name}-py3-none-any.whl") as wheel:
        held = set(wheel.namelist())
    licences = {"LICENSE", "THIRD_PARTY_NOTICES.md", "unlearn/amnestic_unlearn/data/LICENSE-ODbL.md"}
    assert held >= {f"{name}.dist-info/licenses/{file}" for file in licences}
    packages = {"amnestic", "amnestic_client", "amnestic_server", "amnestic_unlearn"}
    assert {file.partition("/")[0] for file in held} == packages | {f"{name}.dist-info"}
    assert held >= {f"{package}/py.typed" for package in packages}
    assert "amnestic_unlearn/data/eicu_demo.parquet" in held
    with tarfile.open(dist / f"{name}.tar.gz") as source:
        held = set(source.getnames())
    assert held >= {f"{name}/{file}" for file in (*licences, "CHANGELOG.md", "tests/toys.py", "docs/command-line.md")}


def test_no_heavy_package_comes_along(run: Run) -> None:
    listed = run("python", "-m", "pip", "--disable-pip-version-check", "list", "--format=json").stdout
    installed = {re.sub(r"[-_.]+", "-", package["name"]).lower() for package in json.loads(listed)}
    assert installed >= BASE
    assert not installed & HEAVY


def test_the_client_is_usable(run: Run) -> None:
    code = """
from amnestic_client import Client, Unavailable
with Client("127.0.0.1:9") as client:
    try:
        client.predict("text", timeout=5)
    except Unavailable as error:
        print(error.code.name)
"""
    assert run("python", "-c", code).stdout.strip() == "UNAVAILABLE"


def test_the_client_carries_its_types(run: Run) -> None:
    code = "import amnestic_client; print(amnestic_client.__file__)"
    module = Path(run("python", "-c", code).stdout.strip())
    assert ROOT not in module.parents
    assert module.with_name("py.typed").is_file()


def test_the_commands_of_the_client_work(run: Run) -> None:
    listed = run("amnestic", "--help").stdout
    for command in ("status", "predict", "unlearn", "jobs", "versions", "rollback", "completion"):
        assert f"\n  {command} " in listed
        assert run("amnestic", command, "--help").stdout.startswith(f"Usage: amnestic {command} ")
    failed = run("amnestic", "versions", "--server", "127.0.0.1:9", check=False)
    assert (failed.returncode, failed.stdout) == (6, "")
    assert failed.stderr.startswith("Error: no server is ready at 127.0.0.1:9 ")


@pytest.mark.parametrize("command", ["serve --bundle bundle --store store", "train --out checkpoint"])
def test_what_needs_an_extra_says_which(run: Run, command: str) -> None:
    failed = run("amnestic", *command.split(), check=False)
    assert failed.returncode == 1
    needs = rf"Error: `amnestic {command.split()[0]}` needs \w+: install amnestic\[cpu\] or amnestic\[gpu\]\n"
    assert re.fullmatch(needs, failed.stderr)

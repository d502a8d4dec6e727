"""The tools that check what is deployed, each where `make deploy-tools` put it."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".venv-deploy" / "bin"


@pytest.fixture(scope="session")
def tool():
    """Run one of the tools by its name; returns what it prints, and fails with it."""

    def run(name, *arguments, **options):
        program = TOOLS / name
        if not program.exists():
            pytest.skip(f"{name} is not installed: make deploy-tools")
        result = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run


@pytest.fixture(scope="session")
def faults(tool):
    """The faults of a file by the published schemas of its kind; empty if there are none."""

    def check(kind, file):
        return tool("python", Path(__file__).with_name("schemas.py"), kind, file).splitlines()

    return check

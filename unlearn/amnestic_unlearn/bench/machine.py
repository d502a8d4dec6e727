"""What a benchmark ran on, and with which packages."""

import itertools
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def cpu() -> str:
    """The model's name; the architecture where the system does not tell it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(itertools.chain(names, [platform.processor() or platform.machine()]))


def package_version(package: str) -> str:
    """The version of an installed package; empty if it isn't."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""

"""What the images are made of: pins it by digest, lists it, and asks whether any of it is known to be vulnerable.

    supply_chain.py pin [--torch PLACE]   writes requirements-cpu.txt and requirements-gpu.txt beside this file
    supply_chain.py sbom OUT              writes a CycloneDX list of each of them to the folder OUT
    supply_chain.py audit                 exits with 1 if a package that they pin has a known vulnerability

It needs `supply-chain-requirements.txt`; `make pins`, `make sbom` and `make audit` bring it along.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE.parent
KINDS = ("cpu", "gpu")
# What the images run on.
PYTHON, PLATFORM = "3.11", "x86_64-manylinux_2_28"
CPU_TORCH = "https://download.pytorch.org/whl/cpu"

ORIGIN = {
    "cpu": f"""\
# torch is its build for CPUs, without CUDA's libraries, which PyPI does not have: it is published at
# {CPU_TORCH}. Its digest is that of the one file that was at hand when this was written; what
# installs from this names that index (PIP_EXTRA_INDEX_URL) or a folder that holds the file (PIP_FIND_LINKS).
""",
    "gpu": """\
# torch is the build of PyPI, which brings CUDA's libraries along as packages.
""",
}


def pin(torch: str) -> None:
    """Resolve both kinds within constraints.txt, and write every package with the digests of all its files.

    `torch` is a folder with, or the index of, torch for CPUs.
    """
    constraints = (SOURCE / "constraints.txt").read_text()
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            limits = Path(folder) / "constraints.txt"
            local = r"\1+cpu" if kind == "cpu" else r"\1"
            limits.write_text(re.sub(r"^(torch==.*)$", local, constraints, flags=re.MULTILINE))
            place = ["--find-links" if "://" not in torch else "--extra-index-url", torch] if kind == "cpu" else []
            resolved = _uv(f"--extra={kind}", f"--constraints={limits}", *place)
        _requirements(kind).write_text(_header(kind) + resolved)


def sbom(out: Path) -> None:
    """Write `amnestic-KIND.cdx.json` to a folder: every package with its digests and where it comes from."""
    out.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        arguments = ["--pyproject", str(SOURCE / "pyproject.toml"), "--output-reproducible", "--of", "JSON"]
        arguments += ["-o", str(out / f"amnestic-{kind}.cdx.json"), str(_requirements(kind))]
        _run("cyclonedx-py", "requirements", *arguments)


def audit() -> int:
    """Ask the advisory service of PyPI for every package pinned; 1 if it knows of a vulnerability.

    Says so in one line, and does not fail, where no such service answers: then nothing was audited.
    """
    vulnerable = False
    for kind in KINDS:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as plain:
            plain.write(re.sub(r"\+cpu\b.*", "", _without_digests(kind)))
            plain.flush()
            arguments = ["--disable-pip", "--no-deps", "--progress-spinner=off", "--format=json", "-r", plain.name]
            answer = subprocess.run([_tool("pip-audit"), *arguments], capture_output=True, text=True, check=False)
        try:
            packages = json.loads(answer.stdout)["dependencies"]
        except (ValueError, KeyError):
            packages = []
        audited = [package for package in packages if "skip_reason" not in package]
        if not audited:
            print(f"audit: no advisory service answers here; nothing of requirements-{kind}.txt was audited")
            continue
        found = [package for package in audited if package["vulns"]]
        print(f"audit: {len(audited)} of {len(packages)} packages of requirements-{kind}.txt, {len(found)} vulnerable")
        for package in found:
            print(f"  {package['name']} {package['version']}: {', '.join(one['id'] for one in package['vulns'])}")
        vulnerable |= bool(found)
    return int(vulnerable)


def _header(kind: str) -> str:
    return f"""\
# What the image for {kind.upper()}s installs with pip --require-hashes. Written by `make pins` from pyproject.toml and
# constraints.txt, for Python {PYTHON} on Linux on x86-64. Digests are those that the index https://pypi.org/simple,
# or the mirror that answered for it, told of all files of a version.
{ORIGIN[kind]}"""


def _uv(*arguments: str) -> str:
    fixed = ["--no-config", "--quiet", "--generate-hashes", "--no-annotate", "--no-header", "--index-strategy"]
    fixed += ["unsafe-best-match", f"--python-version={PYTHON}", f"--python-platform={PLATFORM}"]
    return _run("uv", "pip", "compile", *fixed, *arguments, str(SOURCE / "pyproject.toml"))


def _without_digests(kind: str) -> str:
    return "\n".join(re.findall(r"^[^\s#]+==[^\s\\]+", _requirements(kind).read_text(), flags=re.MULTILINE)) + "\n"


def _requirements(kind: str) -> Path:
    return HERE / f"requirements-{kind}.txt"


def _run(tool: str, *arguments: str) -> str:
    # What pip is told by its environment holds for pip alone: a place for wheels would change what is pinned.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    environment["PYTHONWARNINGS"] = "ignore"
    command = [_tool(tool), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def _tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("pin").add_argument("--torch", default=os.environ.get("PIP_FIND_LINKS", CPU_TORCH))
    commands.add_parser("sbom").add_argument("out", type=Path)
    commands.add_parser("audit")
    arguments = parser.parse_args()
    if arguments.command == "audit":
        return audit()
    if arguments.command == "sbom":
        sbom(arguments.out)
    else:
        pin(arguments.torch)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Generate the committed Python stubs from the proto files, or check that they are up to date."""

import argparse
import filecmp
import os
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
STUBS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(out: Path) -> None:
    """Write the stubs of every proto file under `out`, in the packages' folders."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    includes = [f"-I{ROOT}", f"-I{resources.files('grpc_tools') / '_proto'}"]
    outputs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    sources = [str(path) for path in sorted(ROOT.glob("amnestic/**/*.proto"))]
    if protoc.main(["protoc", *includes, *outputs, *sources]) != 0:
        sys.exit("protoc failed")


def stubs(root: Path) -> dict[Path, Path]:
    """Generated files below `root`, by their path relative to it."""
    return {path.relative_to(root): path for glob in STUBS for path in root.glob(f"amnestic/**/{glob}")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a stub is out of date")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh, committed = stubs(Path(folder)), stubs(ROOT)
        if check:
            stale = sorted(
                str(name)
                for name in fresh.keys() | committed.keys()
                if name not in fresh
                or name not in committed
                or not filecmp.cmp(fresh[name], committed[name], shallow=False)
            )
            sys.exit(f"out of date, run `make proto`: {', '.join(stale)}" if stale else 0)
        for name, path in fresh.items():
            shutil.copyfile(path, ROOT / name)


if __name__ == "__main__":
    main()

"""`amnestic` with a worker that remembers: `crashing.py KEPT serve ...`.

The first job for some labels is done by the real worker, and what it leaves is kept in the folder KEPT; every later job
for the same labels gets a copy. So a job takes a tenth of a second, and a run of many crashes is mostly crashes.
"""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def main(kept: str) -> None:
    from amnestic_server import cli, worker

    async def start_process(program: str, *arguments: str, **options: Any) -> asyncio.subprocess.Process:
        _, _, spec, folder = arguments
        return await asyncio.create_subprocess_exec(program, __file__, "worker", kept, spec, folder, **options)

    worker.asyncio = SimpleNamespace(  # type: ignore[attr-defined]
        **{**vars(asyncio), "create_subprocess_exec": start_process}
    )
    del sys.argv[1]
    cli.main()


def work(kept: str, spec: str, folder: str) -> int:
    """The worker's process; returns its exit code."""
    results = Path(kept) / "-".join(json.loads(Path(spec).read_text())["forget"])
    if not results.exists():
        code = subprocess.run([sys.executable, "-m", "amnestic_unlearn", spec, folder], check=False).returncode
        if code:
            return code
        whole = results.with_suffix(".partial")
        shutil.copytree(folder, whole, ignore=shutil.ignore_patterns("spec.json"), dirs_exist_ok=True)
        whole.replace(results)
    shutil.copytree(results, folder, dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        sys.exit(work(*sys.argv[2:]))
    main(sys.argv[1])

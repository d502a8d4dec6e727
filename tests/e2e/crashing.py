"""`amnestic` with a worker that remembers: `crashing.py KEPT serve ...`.

The first job for some labels of a bundle is done as the worker does it, though without its low priority, and what it
leaves is kept in the folder KEPT; every later job for the same labels gets a copy. So a job takes a tenth of a second,
and a run of many crashes is mostly crashes.
"""

import asyncio
import hashlib
import json
import os
import shutil
import sys
from contextlib import suppress
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


def work(kept: str, spec: str, folder: str) -> None:
    """The worker's process."""
    job = json.loads(Path(spec).read_text())
    manifest = Path(job["bundle"], "manifest.json").read_bytes()
    results = Path(kept) / "-".join([*job["forget"], hashlib.sha256(manifest).hexdigest()])
    if not results.exists():
        from amnestic_unlearn import worker
        from amnestic_unlearn.spec import JobSpec

        whole = results.with_name(f"{results.name}.{os.getpid()}")
        whole.mkdir()
        worker.work(JobSpec.read(Path(spec)), whole, lambda progress: None)
        with suppress(OSError):
            # Another may have been quicker.
            whole.replace(results)
    shutil.copytree(results, folder, dirs_exist_ok=True)


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        work(*sys.argv[2:])
    else:
        main(sys.argv[1])

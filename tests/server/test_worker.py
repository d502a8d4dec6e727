"""A worker process whose output nobody reads on; what else workers may do is in the end-to-end test of faults."""

import asyncio
import sys
from types import SimpleNamespace

import pytest

from amnestic_server import worker
from amnestic_unlearn.spec import JobSpec

FLOOD = 'while True: print(\'{"progress": {"stage": "training", "step": 1, "steps": 2}}\')'


async def test_a_worker_that_floods_is_ended_though_its_pipe_is_full(monkeypatch, tmp_path):
    async def start(program, *arguments, **options):
        # So little is read ahead that what is left in the pipe pauses the reading.
        return await asyncio.create_subprocess_exec(sys.executable, "-c", FLOOD, limit=1024, **options)

    monkeypatch.setattr(worker, "asyncio", SimpleNamespace(**{**vars(asyncio), "create_subprocess_exec": start}))
    spec = JobSpec("job", "bundle", "corpus", ("alpha",))
    async with asyncio.timeout(30):
        with pytest.raises(worker.WorkerError, match=r"took longer than 0\.5 s"):
            await worker.run_worker(spec, tmp_path, 0.5, lambda progress: None)

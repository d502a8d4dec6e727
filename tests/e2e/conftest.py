"""Fixtures of the end-to-end tests: servers, client processes and the independent torch computation."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from e2e import crashing, faulty
from e2e.crash_trials import ATTEMPTS, Crashing
from e2e.harness import CANARY, JOB_SECONDS, Recorded, Reference, Server, Traffic
from scripted import started

from amnestic_client import Job, JobState
from amnestic_unlearn import corpus as corpora

__all__ = ["started"]

Servers = Callable[..., Server]
Traffics = Callable[..., Traffic]


def _servers(factory: pytest.TempPathFactory, bundle: Path, corpus: Path) -> Iterator[Servers]:
    started: list[Server] = []

    def serve(*flags: str, bundle: Path = bundle, corpus: Path | None = corpus, start: bool = True) -> Server:
        server = Server(factory.mktemp("server"), bundle, corpus, flags)
        started.append(server)
        return server.start() if start else server

    yield serve
    for server in started:
        server.close()


@pytest.fixture
def serve(tmp_path_factory, bundle, corpus_path):
    """Start a server of the toy bundle; it is gone after the test."""
    yield from _servers(tmp_path_factory, bundle, corpus_path)


@pytest.fixture
def serve_quickly(serve, kept):
    """The same with a worker that remembers, see `crashing`: for tests that don't look at what was learned."""

    def begin(*flags: str, **options: Any) -> Server:
        server = serve(*flags, start=False, **options)
        server.program = [sys.executable, crashing.__file__, str(kept)]
        return server.start()

    return begin


@pytest.fixture(scope="module")
def serve_for_module(tmp_path_factory, bundle, corpus_path):
    """The same, for a server that the tests of a file share."""
    yield from _servers(tmp_path_factory, bundle, corpus_path)


@pytest.fixture(scope="module")
def start_faulty(serve_for_module, tmp_path_factory):
    """Start a server that fails as a file says, see `faulty`; both are returned."""

    def begin(*flags: str, start: bool = True, **options: Any) -> tuple[Server, Path]:
        fault = tmp_path_factory.mktemp("fault") / "fault"
        fault.write_text("")
        server = serve_for_module(*flags, start=False, **options)
        server.program = [sys.executable, faulty.__file__, str(fault)]
        return server.start() if start else server, fault

    return begin


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """What the quick workers of all servers share."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def start_crashing(serve_for_module, tmp_path_factory, kept, check_active):
    """Start a server with a quick worker that dies, or whose disk fails, where it is told to: see `Crashing`."""

    def begin(*flags: str, labels: Sequence[str] = ("alpha",), store: Path | None = None, **options: Any) -> Crashing:
        folder = tmp_path_factory.mktemp("crashing")
        server = serve_for_module(*ATTEMPTS, *flags, start=False, **options)
        if store is not None:
            server.set_flag("--store", store)
            server.store = store
        server.program = [sys.executable, crashing.__file__, str(kept)]
        started = Crashing(server, folder / "failpoints", check_active, labels)
        server.environment["AMNESTIC_FAILPOINTS"] = str(started.failpoints)
        started.disarm()
        server.start()
        return started

    return begin


@pytest.fixture(scope="module")
def traffic(tmp_path_factory):
    """Start client processes; they are gone after the tests of the file."""
    started: list[Traffic] = []

    def predict(target: str, texts: Sequence[str], **options: Any) -> Traffic:
        started.append(Traffic(target, tmp_path_factory.mktemp("traffic"), texts, **options))
        return started[-1]

    yield predict
    for clients in started:
        clients.close()


@pytest.fixture(scope="session")
def reference(checkpoint):
    torch.set_num_threads(1)
    return Reference(checkpoint)


@pytest.fixture(scope="session")
def texts(corpus_path):
    """Documents of the test split, short and long; one is longer than the model's maximum."""
    documents = [document.text for document in corpora.read(corpus_path) if document.split == "test"][:30]
    return [*documents, " ".join(documents), documents[0].split()[0]]


@pytest.fixture(scope="session")
def check_answers(reference, texts):
    """Every recorded call succeeded, and says to 1e-5 what the version that it names says in torch."""

    def check(calls: Sequence[Recorded], patch_of: Callable[[int], Path | None]) -> None:
        assert calls
        assert {call.code for call in calls} == {"OK"}
        patches = {version: patch_of(version) for version in {call.version for call in calls}}
        expected = {patch: reference.probabilities(texts, patch) for patch in set(patches.values())}
        for call in calls:
            wanted = expected[patches[call.version]][call.documents]
            np.testing.assert_allclose(call.probabilities, wanted, rtol=0, atol=1e-5)

    return check


@pytest.fixture(scope="session")
def check_active(reference, texts):
    """What a server answers is to 1e-5 what its active version says in torch. Returns that version."""

    def check(server: Server) -> int:
        result = server.client.predict(texts)
        wanted = reference.probabilities(texts, server.patch_of(result.version))
        found = [[score.probability for score in one.scores] for one in result.predictions]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
        return result.version

    return check


@pytest.fixture(scope="session")
def until():
    """Wait for a condition of another process."""

    def wait(condition: Callable[[], Any], seconds: float = 30) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.02)
        return value

    return wait


@pytest.fixture(scope="session")
def reach(until):
    """Wait until a job is at a stage of its worker, or in a state."""

    def wait(server: Server, job: Job, place: str) -> Job:
        def there() -> Job | None:
            seen = server.client.get_job(job.job_id)
            stage = seen.progress.stage if seen.progress and seen.state is JobState.RUNNING else ""
            assert not seen.state.ended or seen.state.value == place, f"the job ended: {seen.state} {seen.error}"
            return seen if place in (stage, seen.state.value) else None

        found: Job = until(there, JOB_SECONDS)
        return found

    return wait


@pytest.fixture(scope="session")
def canary():
    return CANARY

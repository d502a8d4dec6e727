"""What is purged is nowhere any more: no file has its bytes, no call brings it back; what was forgotten stays so."""

import json
import os
import shutil
import subprocess
from contextlib import suppress

import numpy as np
import pytest
from e2e.harness import ANYTHING, amnestic
from safetensors.numpy import load_file

from amnestic_client import JobState, NotFound
from amnestic_server import audit, purge
from amnestic_server.purge import READY
from amnestic_unlearn.manifest import Manifest
from amnestic_unlearn.patch import Patch

REASON = "consent was withdrawn"


@pytest.fixture
def own_bundle(bundle, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(bundle, tmp_path / "bundle")


def forgets(serve, own_bundle, *labels):
    """A server, stopped, that forgot labels one after the other; its jobs and the active version's patch."""
    server = serve(bundle=own_bundle)
    jobs = [server.ended(server.forget(label, gates=ANYTHING)) for label in labels]
    assert [job.state for job in jobs] == [JobState.SUCCEEDED] * len(labels)
    patch = Patch.read(server.patch_of(server.client.get_model().active_version))
    return server, jobs, patch


def run_purge(server, own_bundle):
    command = amnestic("purge", "--bundle", str(own_bundle), "--store", str(server.store), "--reason", REASON, "--yes")
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def places_of(needles, *folders):
    """Files that hold any of these rows, byte by byte."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                found += [path.name for needle in needles if needle in content]
    return found


def rows(tensor, ids):
    return [np.ascontiguousarray(tensor[int(index)]).tobytes() for index in ids]


def test_after_a_purge_nothing_gives_the_label_back(serve, own_bundle, texts):
    server, jobs, patch = forgets(serve, own_bundle, "alpha", "beta")
    column = Manifest.read(own_bundle).labels.index("alpha")
    old = rows(load_file(own_bundle / "embeddings.safetensors")["weight"], patch.row_ids)
    # The head's rows of what was forgotten, of the base and of the version between that still knew beta.
    old += rows(load_file(own_bundle / "head.safetensors")["weight"], [column, column + 1])
    between = load_file(server.patch_of(2))
    old += rows(between["head.weight"], [column + 1]) + rows(between["rows"], range(len(between["rows"])))
    answered = server.client.predict(texts).predictions
    receipt = server.client.receipt(jobs[0].job_id)
    assert run_purge(server, own_bundle).stderr.endswith("the store is in use by another process\n")
    assert server.terminate() == 0
    assert len(set(places_of(old, own_bundle, server.store))) > 2

    done = run_purge(server, own_bundle)
    assert (done.returncode, done.stdout) == (0, "the bundle is version 3 now; purged: alpha, beta\n"), done.stderr
    assert places_of(old, own_bundle, server.store) == []
    assert [*(server.store / "patches").iterdir(), *(server.store / "work").iterdir()] == []
    again = run_purge(server, own_bundle)
    assert again.returncode == 1
    assert again.stderr == "Error: the active version has forgotten nothing that the bundle knows\n"

    server.start()
    client = server.client
    assert server.ready_version == 3
    assert client.predict(texts).predictions == answered
    assert {label.name for label in client.get_model().labels if label.forgotten} == {"alpha", "beta"}
    for version in (1, 2):
        with pytest.raises(NotFound):
            client.predict(texts[0], version=version)
        with pytest.raises(NotFound):
            client.rollback(version, "once more", restore_forgotten=True)
    assert [version.withdrawn for version in client.list_versions()] == [True, True, False]
    assert server.metric("amnestic_audit_intact") == 1
    with audit.reading(server.store) as db:
        last = audit.records(db)[-2:]
    assert [record.action for record in last] == ["purge requested", "purged"]
    assert json.loads(last[0].detail) == {"reason": REASON}
    assert last[0].caller.startswith("command:")
    # A receipt tells of the bundle that its job saw.
    assert client.receipt(jobs[0].job_id) == receipt


def test_what_was_purged_stays_forgotten_when_another_label_is(serve, own_bundle):
    server, _, _ = forgets(serve, own_bundle, "alpha")
    server.terminate()
    assert run_purge(server, own_bundle).returncode == 0
    server.start()
    job = server.ended(server.forget("beta", gates=ANYTHING))
    assert (job.state, job.version, job.forgotten) == (JobState.SUCCEEDED, 3, ("alpha", "beta"))
    gates = {(gate.name, gate.label) for gate in job.gates}
    assert {("forget_f1", "alpha"), ("forget_auroc", "alpha"), ("probe_ratio", "beta")} <= gates
    assert ("probe_ratio", "alpha") not in gates
    back = server.client.rollback(2, "beta by mistake", restore_forgotten=True)
    assert back.forgotten == ("alpha",)
    server.kill()
    server.start()
    assert server.ready_version == 2
    assert {label.name for label in server.client.get_model().labels if label.forgotten} == {"alpha"}


class Killed(BaseException):
    """As if the process had ended."""


def test_a_purge_that_ends_anywhere_is_finished_by_the_next(serve, bundle, tmp_path):
    """It ends after each change of the file system, one after the other, until one run comes to its end."""
    server, _, _ = forgets(serve, shutil.copytree(bundle, tmp_path / "made"), "alpha")
    server.terminate()
    for moment in range(100):
        folder = tmp_path / str(moment)
        own, store = folder / "bundle", folder / "store"
        shutil.copytree(tmp_path / "made", own)
        shutil.copytree(server.store, store)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, moment)
            with suppress(Killed):
                purge.purge(own, store, REASON)
                break
        # Another purge goes on where it ended, or begins.
        begun = (own / READY).is_dir() or Manifest.read(own).purged is not None
        try:
            purge.purge(own, store, REASON)
        except purge.StartError as error:
            assert begun and "nothing that the bundle knows" in str(error)
        assert Manifest.read(own).purged.version == 2
        assert {path.name for path in own.iterdir()} == {path.name for path in (tmp_path / "made").iterdir()}
    assert moment > 8


def kill_at(patch, moment):
    """Let the process end after this many changes of the file system."""
    left = iter(range(moment, -1, -1))

    def counted(change):
        def call(*arguments, **options):
            if next(left) == 0:
                raise Killed
            return change(*arguments, **options)

        return call

    for name in ("mkdir", "rename", "replace", "fsync", "rmdir", "chmod"):
        patch.setattr(os, name, counted(getattr(os, name)))

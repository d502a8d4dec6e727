"""What is purged is nowhere any more: no file has its bytes, no call brings it back; what was forgotten stays so."""

import json
import os
import shutil
import subprocess
from contextlib import suppress

import numpy as np
import pytest
from e2e.harness import ANYTHING, amnestic, make_patch
from safetensors.numpy import load_file

from amnestic_client import JobState, NotFound
from amnestic_server import audit, purge
from amnestic_server.purge import READY
from amnestic_server.store import Store
from amnestic_unlearn.manifest import MANIFEST, Manifest, file_digest

REASON = "consent was withdrawn"


@pytest.fixture
def own_bundle(bundle, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(bundle, tmp_path / "bundle")


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


def test_after_a_purge_nothing_gives_the_labels_back(serve, own_bundle, texts):
    server = serve(bundle=own_bundle)
    jobs = [server.ended(server.forget(label, gates=ANYTHING)) for label in ("alpha", "beta")]
    assert [job.state for job in jobs] == [JobState.SUCCEEDED] * 2
    head, between, last = own_bundle / "head.safetensors", load_file(server.patch_of(2)), load_file(server.patch_of(3))
    beta = Manifest.read(own_bundle).labels.index("beta")
    # Of the base, and of the version between, which still knew beta.
    old = rows(load_file(own_bundle / "embeddings.safetensors")["weight"], last["row_ids"])
    old += rows(load_file(head)["weight"], [beta]) + rows(between["head.weight"], [beta])
    old += rows(between["rows"], range(len(between["rows"])))
    answered = server.client.predict(texts).predictions
    receipt = server.client.receipt(jobs[0].job_id)
    assert run_purge(server, own_bundle).stderr == "Error: the store is in use by another process\n"
    assert server.terminate() == 0
    assert len(set(places_of(old, own_bundle, server.store))) > 2

    done = run_purge(server, own_bundle)
    assert (done.returncode, done.stdout) == (0, "the bundle is version 3 now; purged: alpha, beta\n"), done.stderr
    assert places_of(old, own_bundle, server.store) == []
    assert [*(server.store / "patches").iterdir(), *(server.store / "work").iterdir()] == []
    again = run_purge(server, own_bundle)
    assert again.returncode == 1
    assert again.stderr == "Error: the active version has forgotten nothing that the bundle knows\n"

    client = server.start().client
    assert server.ready_version == 3
    assert client.predict(texts).predictions == answered
    assert forgotten(client) == {"alpha", "beta"}
    for version in (1, 2):
        with pytest.raises(NotFound):
            client.predict(texts[0], version=version)
        with pytest.raises(NotFound):
            client.rollback(version, "once more", restore_forgotten=True)
    assert [version.withdrawn for version in client.list_versions()] == [True, True, False]
    assert server.metric("amnestic_audit_intact") == 1
    with audit.reading(server.store) as db:
        last_records = audit.records(db)[-2:]
    assert [record.action for record in last_records] == ["purge requested", "purged"]
    assert json.loads(last_records[0].detail) == {"reason": REASON}
    assert last_records[0].caller.startswith("command:")
    # A receipt tells of the bundle that its job saw.
    assert client.receipt(jobs[0].job_id) == receipt

    # Another label, from what the bundle is now.
    job = server.ended(server.forget("gamma", gates=ANYTHING))
    assert (job.state, job.version, job.forgotten) == (JobState.SUCCEEDED, 4, ("alpha", "beta", "gamma"))
    gates = {(gate.name, gate.label) for gate in job.gates}
    assert {("forget_f1", "alpha"), ("forget_auroc", "alpha"), ("probe_ratio", "gamma")} <= gates
    assert ("probe_ratio", "alpha") not in gates
    client.rollback(3, "gamma by mistake", restore_forgotten=True)
    server.kill()
    server.start()
    assert server.ready_version == 3
    assert forgotten(server.client) == {"alpha", "beta"}


def forgotten(client):
    return {label.name for label in client.get_model().labels if label.forgotten}


class Killed(BaseException):
    """As if the process had ended."""


def test_a_purge_that_ends_anywhere_is_finished_by_the_next(bundle, tmp_path):
    """It ends after each change of the file system, one after the other, until one run comes to its end."""
    made = shutil.copytree(bundle, tmp_path / "made")
    store = Store(tmp_path / "store", file_digest(made / MANIFEST))
    patch = make_patch(made, 0)
    store.activate_patch("job", patch.forgotten, store.write_patch(patch.to_bytes()), {})
    store.close()
    for moment in range(100):
        folder = tmp_path / str(moment)
        own, store = folder / "bundle", folder / "store"
        shutil.copytree(made, own)
        shutil.copytree(tmp_path / "store", store)
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
        assert {path.name for path in own.iterdir()} == {path.name for path in made.iterdir()}
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

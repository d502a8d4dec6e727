"""What is purged is nowhere any more: no file has its bytes, no call brings it back; what was forgotten stays so."""

import json
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from e2e.crash_trials import QUICK
from e2e.harness import ANYTHING, amnestic, make_patch
from safetensors.numpy import load_file

from amnestic_client import AmnesticError, JobState, NotFound
from amnestic_server import audit, purge
from amnestic_server.errors import StartError
from amnestic_server.store import Store
from amnestic_unlearn.manifest import MANIFEST, Manifest, file_digest

REASON = "consent was withdrawn"


@pytest.fixture
def own_bundle(bundle, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(bundle, tmp_path / "bundle")


def purge_offline(server, own_bundle, version=3):
    options = ("--offline", "--bundle", str(own_bundle), "--store", str(server.store))
    return run_purge(str(version), *options)


def purge_online(server, own_bundle, version=3):
    return run_purge(str(version), "--server", server.target)


def run_purge(*arguments):
    command = amnestic("purge", *arguments, "--reason", REASON, "--yes")
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


def old_rows(server, own_bundle):
    """Of the base, and of the version between, which still knew beta."""
    base, between, last = own_bundle / "embeddings.safetensors", load_file(server.patch_of(2)), server.patch_of(3)
    beta = Manifest.read(own_bundle).labels.index("beta")
    old = rows(load_file(base)["weight"], load_file(last)["row_ids"])
    old += rows(load_file(own_bundle / "head.safetensors")["weight"], [beta]) + rows(between["head.weight"], [beta])
    return old + rows(between["rows"], range(len(between["rows"])))


def rows(tensor, ids):
    return [np.ascontiguousarray(tensor[int(index)]).tobytes() for index in ids]


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_after_a_purge_nothing_gives_the_labels_back(serve_quickly, own_bundle, texts, running):
    server = serve_quickly(bundle=own_bundle)
    jobs = [server.ended(server.forget(label, gates=ANYTHING)) for label in ("alpha", "beta")]
    assert [job.state for job in jobs] == [JobState.SUCCEEDED] * 2
    old = old_rows(server, own_bundle)
    answered = server.client.predict(texts).predictions
    receipt = server.client.receipt(jobs[0].job_id)
    assert len(set(places_of(old, own_bundle, server.store))) > 2

    purge = purge_online if running else purge_offline
    if not running:
        assert purge(server, own_bundle).stderr == "Error: the store is in use by another process\n"
        assert server.terminate() == 0
    assert "that version is not active" in purge(server, own_bundle, version=2).stderr
    done = purge(server, own_bundle)
    assert (done.returncode, done.stdout) == (0, "the bundle is version 3 now; purged: alpha, beta\n"), done.stderr
    assert places_of(old, own_bundle, server.store) == []
    assert [*(server.store / "patches").iterdir(), *(server.store / "work").iterdir()] == []
    again = purge(server, own_bundle)
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr

    if not running:
        server.start()
        assert server.ready_version == 3
    client = server.client
    assert client.predict(texts).predictions == answered
    assert forgotten(client) == {"alpha", "beta"}
    assert client.get_model().bundle_digest == file_digest(own_bundle / MANIFEST)
    for version in (1, 2):
        with pytest.raises(NotFound):
            client.predict(texts[0], version=version)
        with pytest.raises(NotFound):
            client.rollback(version, "once more", restore_forgotten=True)
    assert [version.withdrawn for version in client.list_versions()] == [True, True, False]
    with audit.reading(server.store) as db:
        last_records = audit.records(db)[-2:]
    assert [record.action for record in last_records] == ["purge requested", "purged"]
    assert json.loads(last_records[0].detail) == {"reason": REASON}
    assert last_records[0].caller.partition(":")[0] == ("" if running else "command")
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
    assert server.metric("amnestic_audit_intact") == 1
    assert forgotten(server.client) == {"alpha", "beta"}
    assert server.client.predict(texts).predictions == answered


def test_a_server_answers_while_it_purges_and_keeps_nothing_in_memory(
    serve_quickly, own_bundle, texts, traffic, check_answers
):
    server = serve_quickly(bundle=own_bundle)
    server.ended(server.forget("alpha", gates=ANYTHING))
    patch = shutil.copy(server.patch_of(2), own_bundle.parent)
    clients = traffic(server.target, texts, processes=1, threads=2)
    before = len(server.client.list_versions())
    assert server.client.purge(2, REASON).forgotten == ("alpha",)
    calls = clients.stop()
    assert {call.version for call in calls} == {2}
    check_answers(calls, {2: patch}.get)
    assert len(server.client.list_versions()) == before
    mapped = Path(f"/proc/{server.pid}/maps").read_text()
    assert "embeddings.safetensors (deleted)" not in mapped
    assert f'bundle="{file_digest(own_bundle / MANIFEST)}"' in server.metrics_text()


def test_a_purge_is_refused_before_anything_is_changed(start_crashing, own_bundle):
    crashing = start_crashing(bundle=own_bundle)
    client = crashing.server.client
    digests = {path: file_digest(path) for path in own_bundle.iterdir()}

    def refused(version, reason=REASON):
        with pytest.raises(AmnesticError) as failure:
            client.purge(version, reason)
        assert {path: file_digest(path) for path in own_bundle.iterdir()} == digests
        return failure.value.code.name, failure.value.reason

    assert refused(1) == ("FAILED_PRECONDITION", "NOTHING_TO_PURGE")
    assert refused(2) == ("NOT_FOUND", "VERSION_NOT_FOUND")
    assert refused(1, " ") == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    crashing.server.ended(crashing.server.forget("alpha", method=QUICK, gates=ANYTHING))
    staged = crashing.server.forget("beta", method=QUICK, gates=ANYTHING, stage=True)
    assert refused(2) == ("FAILED_PRECONDITION", "JOB_UNFINISHED")
    for seen in client.watch_job(staged.job_id, timeout=60):
        if seen.state is JobState.STAGED:
            break
    assert refused(2) == ("FAILED_PRECONDITION", "JOB_UNFINISHED")
    client.cancel_job(staged.job_id)
    assert refused(1) == ("FAILED_PRECONDITION", "VERSION_NOT_ACTIVE")
    for failure, told in (("EROFS", "BUNDLE_READ_ONLY"), ("ENOSPC", "STORE_FAILED"), ("EIO", "STORE_FAILED")):
        crashing.arm("file-before-rename", failure)
        assert refused(2)[1] == told
    crashing.disarm()
    crashing.arm("purge-written", "EIO")
    assert refused(2)[1] == "STORE_FAILED"
    crashing.disarm()
    assert client.predict("once", version=1).version == 1

    # Past this place it can only go on.
    crashing.arm("purge-in-place", "EIO")
    with pytest.raises(AmnesticError, match="the purge is begun and could not be finished"):
        client.purge(2, REASON)
    crashing.disarm()
    for change in (
        lambda: client.rollback(1, REASON, restore_forgotten=True),
        lambda: client.promote(3),
        lambda: client.set_rollout(3, shadow_share=0.5),
        lambda: client.unlearn("beta"),
    ):
        with pytest.raises(AmnesticError) as failure:
            change()
        assert failure.value.reason == "PURGE_UNFINISHED"
    assert client.predict("once", version=1).version == 1
    assert client.purge(2, REASON).version == 2
    with pytest.raises(NotFound):
        client.predict("once", version=1)
    crashing.server.ended(crashing.server.forget("beta", method=QUICK, gates=ANYTHING))
    assert client.get_model().active_version == 4


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
                purge.purge(own, store, 2, REASON)
                break
        # Another purge goes on where it ended, or begins.
        assert purge.purge(own, store, 2, REASON).version == 2
        assert Manifest.read(own).purged.version == 2
        assert {path.name for path in own.iterdir()} == {path.name for path in made.iterdir()}
    assert moment > 8
    with pytest.raises(StartError, match="the store belongs to another bundle"):
        Store(store, file_digest(made / MANIFEST))


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

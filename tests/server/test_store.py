"""The store on a real disk: transactions that fail half-way, reopening, the lock, idempotency, damage."""

import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from amnestic_server.errors import NotFoundError, PreconditionError, StartError
from amnestic_server.records import JobRecord, JobState
from amnestic_server.rollout import RolloutRecord, Shares
from amnestic_server.store import Store
from amnestic_unlearn.patch import digest_of

BUNDLE = "b" * 64
REQUEST = {"labels": ["alpha"], "reason": "why"}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(folder):
    store = Store(folder, BUNDLE)
    yield store
    store.close()


def job(name="job", request_id=None, **fields):
    return JobRecord(name, request_id, REQUEST, JobState.QUEUED, created_at=time.time(), **fields)


def rows(folder, query):
    with sqlite3.connect(f"file:{folder}/amnestic.db?mode=ro", uri=True) as database:
        return database.execute(query).fetchall()


def test_a_new_store_has_the_base_alone_and_it_is_active(store):
    (base,) = store.versions()
    assert (base.version, base.forgotten, base.patch_digest, base.job_id) == (1, (), None, None)
    assert store.active_version() == 1
    assert store.jobs(10) == []


def test_activation_writes_version_pointer_job_and_audit_together(store, folder):
    store.add_job(job())
    digest = store.write_patch(b"patch")
    assert store.activate_patch("job", ["alpha"], digest, {"gates": [1]}) == 2
    assert store.active_version() == 2
    assert store.versions()[1].patch_digest == digest
    assert (store.job("job").state, store.job("job").version) == (JobState.ACTIVATING, 2)
    assert rows(folder, "SELECT action, job_id, version FROM audit ORDER BY seq")[-1] == ("version activated", "job", 2)


@pytest.mark.parametrize("table", ["versions", "state", "jobs", "audit"])
def test_an_activation_that_fails_half_way_leaves_nothing(store, folder, table):
    store.add_job(job())
    before = {name: rows(folder, f"SELECT * FROM {name}") for name in ("versions", "state", "jobs", "audit")}
    when = "BEFORE UPDATE" if table in ("state", "jobs") else "BEFORE INSERT"
    store._db.execute(f"CREATE TRIGGER broken {when} ON {table} BEGIN SELECT RAISE(ABORT, 'broken'); END")
    with pytest.raises(sqlite3.Error, match="broken"):
        store.activate_patch("job", ["alpha"], store.write_patch(b"patch"), {})
    store._db.execute("DROP TRIGGER broken")
    assert {name: rows(folder, f"SELECT * FROM {name}") for name in before} == before
    assert store.activate_patch("job", ["alpha"], store.write_patch(b"patch"), {}) == 2


def test_a_store_goes_on_after_a_transaction_that_sqlite_itself_rolled_back(store):
    store._db.execute("CREATE TRIGGER broken BEFORE INSERT ON audit BEGIN SELECT RAISE(ROLLBACK, 'full'); END")
    with pytest.raises(sqlite3.Error, match="full"):
        store.add_job(job())
    store._db.execute("DROP TRIGGER broken")
    store.add_job(job())
    assert store.job("job").state is JobState.QUEUED


def test_all_is_there_after_reopening(store, folder):
    store.add_job(job("one", "first"))
    store.start_job("one", {"forgotten": ["alpha"]})
    store.add_job(job("two"))
    digest = store.write_patch(b"patch")
    store.activate_patch("one", ["alpha"], digest, {"swap_seconds": 0.5})
    store.update_job("one", JobState.SUCCEEDED, {"swap_seconds": 0.5})
    kept = (store.versions(), store.jobs(10), store.active_version())
    store.close()
    again = Store(folder, BUNDLE)
    assert (again.versions(), again.jobs(10), again.active_version()) == kept
    assert again.patch_path(digest).read_bytes() == b"patch"
    assert [one.job_id for one in again.unfinished_jobs()] == ["two"]
    again.close()


def test_version_numbers_only_grow(store):
    versions = [store.activate_patch(f"job-{index}", ["alpha"], "0" * 64, {}) for index in range(3)]
    store.roll_back(1, "why")
    assert store.active_version() == 1
    assert store.activate_patch("job", ["beta"], "1" * 64, {}) == max(versions) + 1


def test_a_rollback_is_recorded_with_its_reason(store, folder):
    store.activate_patch("job", ["alpha"], "0" * 64, {})
    store.roll_back(1, "by mistake")
    assert rows(folder, "SELECT action, version, detail FROM audit ORDER BY seq")[-1] == (
        "rolled back",
        1,
        '{"reason": "by mistake", "restored": []}',
    )


def stage(store, *jobs, forgotten=("alpha",)):
    """Stage a version for each job; each has a patch of its own."""
    for name in jobs:
        store.add_job(job(name))
        store.start_job(name, {"forgotten": list(forgotten)})
    return [store.stage_patch(name, list(forgotten), store.write_patch(name.encode()), {"of": name}) for name in jobs]


def files(store):
    return {path.read_bytes() for path in store.patch_path("any").parent.iterdir()}


def test_a_staged_version_is_there_and_not_active(store, folder):
    (version,) = stage(store, "one")
    assert (version, store.active_version()) == (2, 1)
    assert [(one.version, one.staged, one.withdrawn) for one in store.versions()] == [
        (1, False, False),
        (2, True, False),
    ]
    staged = store.staged_job(2)
    assert (staged.state, staged.version, staged.detail) == (JobState.STAGED, 2, {"of": "one"})
    assert [one.job_id for one in store.unfinished_jobs()] == ["one"]
    assert rows(folder, "SELECT action, job_id, version FROM audit ORDER BY seq")[-1] == ("version staged", "one", 2)


def test_a_promotion_moves_the_pointer_and_gives_up_what_else_is_staged(store, folder):
    stage(store, "one", "two")
    store.set_rollout(RolloutRecord(2, Shares(0.1, 1.0), 5.0))
    store.promote(2, {"documents": 7})
    assert (store.active_version(), store.rollout()) == (2, None)
    assert (store.job("one").state, store.job("two").state) == (JobState.ACTIVATING, JobState.FAILED)
    assert store.job("two").error == "another version became active while this one was staged; ask again"
    assert store.job("two").finished_at is not None
    assert [(one.staged, one.withdrawn) for one in store.versions()] == [(False, False), (False, False), (False, True)]
    assert rows(folder, "SELECT action, job_id, version, detail FROM audit ORDER BY seq")[-3:] == [
        ("version withdrawn", "two", 3, "{}"),
        (
            "job failed",
            "two",
            None,
            '{"error": "another version became active while this one was staged; ask again", "of": "two"}',
        ),
        ("version promoted", "one", 2, '{"documents": 7}'),
    ]


@pytest.mark.parametrize("change", ["activate_patch", "roll_back"])
def test_whatever_changes_the_active_version_gives_up_what_is_staged(store, change):
    store.activate_patch("before", ["beta"], store.write_patch(b"before"), {})
    stage(store, "one")
    store.set_rollout(RolloutRecord(3, Shares(0.1, 1.0), 5.0))
    if change == "roll_back":
        store.roll_back(1, "why")
    else:
        store.activate_patch("another", ["beta", "gamma"], store.write_patch(b"another"), {})
    assert (store.job("one").state, store.versions()[2].withdrawn, store.rollout()) == (JobState.FAILED, True, None)


def test_a_withdrawn_version_keeps_its_rows_and_loses_its_file(store, folder):
    stage(store, "one", "two")
    store.withdraw(2)
    assert (store.job("one").state, store.job("one").version) == (JobState.CANCELLED, 2)
    assert files(store) == {b"one", b"two"}
    store.remove_withdrawn_patches()
    store.remove_withdrawn_patches()
    assert files(store) == {b"two"}
    assert [one.version for one in store.versions()] == [1, 2, 3]


def test_a_patch_that_another_version_names_is_kept(store):
    stage(store, "one")
    store.activate_patch("same", ["alpha"], store.write_patch(b"one"), {})
    assert store.versions()[1].withdrawn
    store.remove_withdrawn_patches()
    assert files(store) == {b"one"}


def test_only_what_is_staged_can_be_promoted_withdrawn_or_rolled_out(store):
    stage(store, "one", "two")
    store.activate_patch("three", ["alpha"], "0" * 64, {})
    changes = (
        lambda version: store.promote(version, {}),
        store.withdraw,
        lambda version: store.set_rollout(RolloutRecord(version, Shares(), 0.0)),
    )
    for change in changes:
        for version, kind, reason in (
            (2, PreconditionError, "VERSION_NOT_STAGED"),
            (1, PreconditionError, "VERSION_NOT_STAGED"),
            (4, PreconditionError, "VERSION_ACTIVE"),
            (9, NotFoundError, "VERSION_NOT_FOUND"),
            (0, NotFoundError, "VERSION_NOT_FOUND"),
        ):
            with pytest.raises(kind) as caught:
                change(version)
            assert (caught.value.reason, caught.value.field) == (reason, "version")
    assert store.active_version() == 4


@pytest.mark.parametrize("table", ["state", "jobs", "withdrawn", "audit"])
def test_a_promotion_that_fails_half_way_leaves_nothing(store, folder, table):
    stage(store, "one", "two")
    before = {name: rows(folder, f"SELECT * FROM {name}") for name in ("state", "jobs", "withdrawn", "audit")}
    when = "BEFORE INSERT" if table in ("withdrawn", "audit") else "BEFORE UPDATE"
    store._db.execute(f"CREATE TRIGGER broken {when} ON {table} BEGIN SELECT RAISE(ABORT, 'broken'); END")
    with pytest.raises(sqlite3.Error, match="broken"):
        store.promote(2, {})
    store._db.execute("DROP TRIGGER broken")
    assert {name: rows(folder, f"SELECT * FROM {name}") for name in before} == before
    store.promote(2, {})


def test_a_rollout_is_there_after_reopening_and_goes_with_its_version(store, folder):
    stage(store, "one", "two")
    rollout = RolloutRecord(2, Shares(0.05, 1.0), 17.5)
    store.set_rollout(RolloutRecord(2, Shares(0.5, 0.0), 3.0))
    store.set_rollout(rollout)
    store.close()
    again = Store(folder, BUNDLE)
    assert again.rollout() == rollout
    again.withdraw(3)
    assert again.rollout() == rollout
    again.withdraw(2)
    assert again.rollout() is None
    again.close()


def test_a_request_id_finds_its_job(store):
    assert store.job_of_request("id") is None
    store.add_job(job(request_id="id"))
    store.add_job(job("other"))
    assert store.job_of_request("id").job_id == "job"


def test_a_version_tells_what_its_job_relaxed(store):
    store.add_job(replace(job(), request={**REQUEST, "relaxed_gates": ["probe_ratio_max"]}))
    store.add_job(replace(job("before it was recorded"), request={**REQUEST, "limits": {"forget_f1_max": 0.05}}))
    store.activate_patch("job", ["alpha"], "0" * 64, {})
    store.activate_patch("before it was recorded", ["beta"], "1" * 64, {})
    assert [version.relaxed_gates for version in store.versions()] == [(), ("probe_ratio_max",), ("forget_f1_max",)]


def test_a_request_id_is_unique_even_without_asking_first(store):
    store.add_job(job("one", "id"))
    with pytest.raises(sqlite3.IntegrityError):
        store.add_job(job("two", "id"))
    with pytest.raises(NotFoundError):
        store.job("two")


def test_a_job_through_its_life(store, folder):
    store.add_job(job())
    store.start_job("job", {"forgotten": ["alpha"]})
    running = store.job("job")
    assert (running.state, running.attempts, running.finished_at) == (JobState.RUNNING, 1, None)
    store.update_job("job", JobState.GATING, {"gates": []})
    store.update_job("job", JobState.REJECTED, {"gates": [{"value": 0.5}]}, "error")
    ended = store.job("job")
    assert (ended.state, ended.error, ended.detail) == (JobState.REJECTED, "error", {"gates": [{"value": 0.5}]})
    assert ended.created_at <= ended.started_at <= ended.finished_at
    assert [action for (action,) in rows(folder, "SELECT action FROM audit ORDER BY seq")] == [
        "signing key set",
        "job requested",
        "job rejected",
    ]
    assert store.job_counts() == {JobState.REJECTED: 1}


def test_a_released_job_waits_again_and_the_attempt_does_not_count(store):
    store.add_job(job())
    store.start_job("job", {})
    store.release_job("job")
    assert (store.job("job").state, store.job("job").attempts) == (JobState.QUEUED, 0)


def test_a_job_that_has_ended_never_changes(store, folder):
    store.add_job(job())
    store.update_job("job", JobState.CANCELLED, {})
    ended = store.job("job")
    store.update_job("job", JobState.GATING, {"late": True})
    store.update_job("job", JobState.SUCCEEDED, {"late": True})
    store.start_job("job", {"late": True})
    assert store.job("job") == ended
    assert len(rows(folder, "SELECT * FROM audit WHERE job_id = 'job'")) == 2


def test_jobs_are_listed_newest_first_and_unfinished_ones_oldest_first(store):
    for name in ("one", "two", "three"):
        store.add_job(job(name))
    assert [one.job_id for one in store.jobs(2)] == ["three", "two"]
    store.update_job("two", JobState.FAILED, {})
    assert [one.job_id for one in store.unfinished_jobs()] == ["one", "three"]


def test_a_patch_is_a_file_of_its_digest_and_writing_it_twice_is_nothing(store):
    digest = store.write_patch(b"patch")
    assert digest == digest_of(b"patch")
    assert store.write_patch(b"patch") == digest
    assert [path.name for path in store.patch_path(digest).parent.iterdir()] == [f"{digest}.safetensors"]


def test_one_process_owns_a_store(store, folder):
    with pytest.raises(StartError, match="in use"):
        Store(folder, BUNDLE)
    code = (
        "import sys, pathlib; from amnestic_server.store import Store\n"
        "try: Store(pathlib.Path(sys.argv[1]), sys.argv[2])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    command = [sys.executable, "-c", code, str(folder), BUNDLE]
    assert "StartError the store is in use" in subprocess.run(command, capture_output=True, text=True).stdout
    store.close()
    assert subprocess.run(command, capture_output=True, text=True).stdout == ""


def test_the_store_of_another_bundle_is_refused_and_untouched(store, folder):
    store.close()
    with pytest.raises(StartError, match="another bundle"):
        Store(folder, "c" * 64)
    Store(folder, BUNDLE).close()


def test_a_damaged_database_is_refused_and_never_replaced(store, folder):
    damage = b"not a database" * 100
    store.close()
    (folder / "amnestic.db").write_bytes(damage)
    with pytest.raises(StartError, match="cannot be opened"):
        Store(folder, BUNDLE)
    assert (folder / "amnestic.db").read_bytes() == damage


def test_patches_without_their_database_are_not_taken_for_a_new_store(store, folder):
    store.write_patch(b"a patch")
    store.close()
    for file in folder.glob("amnestic.db*"):
        file.unlink()
    with pytest.raises(StartError, match="its database was lost"):
        Store(folder, BUNDLE)


def test_writers_on_many_threads_lose_nothing(store):
    def add(start):
        for index in range(20):
            store.add_job(job(f"{start}-{index}"))
            store.update_job(f"{start}-{index}", JobState.FAILED, {})

    threads = [threading.Thread(target=add, args=(start,)) for start in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.job_counts() == {JobState.FAILED: 100}


def test_an_unfinished_write_of_a_killed_process_is_not_there(folder):
    """A process is killed with a transaction open; the store opens on what was committed."""
    code = (
        "import sys, os, pathlib; from amnestic_server.store import Store\n"
        "store = Store(pathlib.Path(sys.argv[1]), sys.argv[2])\n"
        "store.activate_patch('job', ['alpha'], '0' * 64, {})\n"
        "store._db.execute('BEGIN IMMEDIATE')\n"
        "store._db.execute(\"UPDATE state SET value = '7' WHERE name = 'active_version'\")\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), BUNDLE])
    store = Store(folder, BUNDLE)
    assert store.active_version() == 2
    assert len(store.versions()) == 2
    store.close()


def test_a_page_of_the_database_that_is_damaged_is_found_at_the_start(store, folder):
    store.add_job(job())
    store.close()
    database = folder / "amnestic.db"
    data = bytearray(database.read_bytes())
    data[5 * 4096 : 6 * 4096] = b"\xff" * 4096
    database.write_bytes(data)
    with pytest.raises(StartError, match=r"corrupt|cannot be opened"):
        Store(folder, BUNDLE)


def test_a_database_that_cannot_be_in_wal_mode_is_refused(folder, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: connect(":memory:", **options))
    with pytest.raises(StartError, match="cannot be in WAL mode"):
        Store(folder, BUNDLE)


def test_what_a_killed_process_had_not_finished_is_removed(store, folder):
    store.work_folder("job").mkdir()
    (store.work_folder("job") / "spec.json").write_text("{}")
    partial = folder / "patches" / "0123.partial"
    partial.write_bytes(b"half")
    digest = store.write_patch(b"whole")
    store.close()
    again = Store(folder, BUNDLE)
    assert not partial.exists()
    assert not again.work_folder("job").exists()
    assert again.patch_path(digest).exists()
    again.close()

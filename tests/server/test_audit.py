"""The audit record against people who can write the store's files, with and without its key."""

import json
import shutil
import sqlite3
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from amnestic import dsse
from amnestic_server import audit, signing
from amnestic_server.cli import group
from amnestic_server.errors import StartError
from amnestic_server.records import JobRecord, JobState
from amnestic_server.store import Store

BUNDLE = "b" * 64
REQUEST = {"labels": ["alpha"], "reason": "why"}


def fill(store: Store, jobs: int = 3) -> None:
    """Jobs that each make a version, and a rollback."""
    for number in range(jobs):
        name = f"job-{number}"
        store.add_job(JobRecord(name, None, REQUEST, JobState.QUEUED, created_at=time.time()))
        store.activate_patch(name, ["alpha"], store.write_patch(name.encode()), {})
        store.update_job(name, JobState.SUCCEEDED, {})
    store.roll_back(2, "a test")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "store"
    store = Store(folder, BUNDLE)
    fill(store)
    store.close()
    return folder


def tamper(folder, *statements):
    with sqlite3.connect(folder / audit.DATABASE) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def verify(folder, *, heads=None, keys=None):
    lines = audit.read_heads(folder / audit.HEADS_FILE) if heads is None else heads
    with audit.reading(folder) as db:
        return audit.verify(db, lines, keys or signing.published_keys(folder))


def rewrite(folder):
    """What somebody without the key can do: make every digest right again."""
    with audit.reading(folder) as db:
        previous, digests = audit.NOTHING, []
        for seq, record in enumerate(audit.records(db), start=1):
            previous = replace(record, seq=seq).digest_after(previous)
            digests.append((record.seq, seq, previous))
    tamper(
        folder,
        *(f"UPDATE audit SET seq = {new}, digest = '{digest}' WHERE seq = {old}" for old, new, digest in digests),
    )


def test_a_record_that_nobody_touched_verifies(folder):
    found = verify(folder)
    assert (found.records, found.unsigned) == (11, 0)
    assert found.last.seq == 11
    with audit.reading(folder) as db:
        actions = [record.action for record in audit.records(db)]
    assert actions[:4] == ["signing key set", "job requested", "version activated", "job succeeded"]
    assert actions[-1] == "rolled back"


TAMPERED = {
    "an edited text": "UPDATE audit SET detail = replace(detail, 'why', 'because') WHERE seq = 2",
    "an edited action": "UPDATE audit SET action = 'job rejected' WHERE seq = 4",
    "an edited time": "UPDATE audit SET at = at - 3600 WHERE seq = 5",
    "another version": "UPDATE audit SET version = 3 WHERE seq = 3",
    "another job": "UPDATE audit SET job_id = 'job-2' WHERE seq = 2",
    "a deletion": "DELETE FROM audit WHERE seq = 5",
    "the first deleted": "DELETE FROM audit WHERE seq = 1",
    "one put in behind": "INSERT INTO audit SELECT 12, at, action, job_id, version, caller, detail, digest FROM audit"
    " WHERE seq = 2",
}


@pytest.mark.parametrize("how", TAMPERED)
def test_the_chain_shows_it(folder, how):
    tamper(folder, TAMPERED[how])
    with pytest.raises(audit.AuditError, match="record"):
        verify(folder, heads=[])


def test_two_records_that_changed_places_are_found(folder):
    tamper(
        folder,
        "UPDATE audit SET seq = 100 WHERE seq = 5",
        "UPDATE audit SET seq = 5 WHERE seq = 8",
        "UPDATE audit SET seq = 8 WHERE seq = 100",
    )
    with pytest.raises(audit.AuditError, match="record 5 is not what was written, or not where"):
        verify(folder, heads=[])


@pytest.mark.parametrize("how", [name for name in TAMPERED if name != "one put in behind"])
def test_the_signed_heads_show_a_chain_that_was_written_anew(folder, how):
    tamper(folder, TAMPERED[how])
    rewrite(folder)
    with pytest.raises(audit.AuditError, match="signed"):
        verify(folder)


def test_the_signed_heads_show_a_truncation(folder):
    tamper(folder, "DELETE FROM audit WHERE seq > 9", "UPDATE state SET value = 4 WHERE name = 'active_version'")
    with pytest.raises(audit.AuditError, match=r"records after 9 are gone: record 1[01] was signed"):
        verify(folder)


def test_heads_kept_elsewhere_show_a_truncation_of_both(folder):
    kept = audit.read_heads(folder / audit.HEADS_FILE)
    tamper(folder, "DELETE FROM audit WHERE seq > 10", "UPDATE state SET value = 4 WHERE name = 'active_version'")
    (folder / audit.HEADS_FILE).write_text("\n".join(kept[:-1]) + "\n")
    assert verify(folder).records == 10
    with pytest.raises(audit.AuditError, match="records after 10 are gone"):
        verify(folder, heads=kept)


def test_a_head_of_another_key_is_refused(folder):
    head = json.dumps({"seq": 11, "digest": "0" * 64, "at": 0.0}).encode()
    forged = dsse.sign(audit.HEAD_TYPE, head, Ed25519PrivateKey.generate())
    with pytest.raises(audit.AuditError, match="not signed by a key that is trusted"):
        verify(folder, heads=[forged])


STATE = {
    "another active version": (
        "UPDATE state SET value = 1 WHERE name = 'active_version'",
        "version 2 was made the act",
    ),
    "another patch": ("UPDATE versions SET patch_digest = 'f' WHERE version = 3", "version 3 is not the one"),
    "another label": ("UPDATE versions SET forgotten = '[]' WHERE version = 2", "version 2 is not the one"),
    "a version gone": ("DELETE FROM versions WHERE version = 4", "version 4 was recorded and is gone"),
    "a version put in": (
        "INSERT INTO versions (forgotten, patch_digest, created_at) VALUES ('[]', 'f', 0)",
        "version 5 is not the one",
    ),
}


@pytest.mark.parametrize("how", STATE)
def test_a_store_that_is_not_as_the_record_says_is_found(folder, how):
    statement, told = STATE[how]
    tamper(folder, statement)
    with pytest.raises(audit.AuditError, match=told):
        verify(folder)


def test_a_key_that_changes_is_recorded_and_both_are_trusted(folder, tmp_path):
    key = Ed25519PrivateKey.generate()
    path = tmp_path / "key.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    store = Store(folder, BUNDLE, path)
    store.close()
    found = verify(folder)
    assert (found.records, found.unsigned) == (12, 0)
    with audit.reading(folder) as db:
        assert json.loads(audit.records(db)[-1].detail) == {"key": dsse.key_id(key.public_key())}
    assert len(signing.published_keys(folder)) == 2
    with pytest.raises(audit.AuditError, match="not signed by a key that is trusted"):
        verify(folder, keys=[key.public_key()])


def test_records_that_a_crash_left_unsigned_are_signed_at_the_next_start(folder):
    lines = (folder / audit.HEADS_FILE).read_text().splitlines(keepends=True)
    (folder / audit.HEADS_FILE).write_text("".join(lines[:-2]) + lines[-2][:50])
    assert verify(folder).unsigned == 2
    store = Store(folder, BUNDLE)
    assert store.verify_audit().unsigned == 0
    store.roll_back(1, "again")
    assert store.verify_audit().last.seq == 12
    store.close()


def test_a_head_that_cannot_be_written_costs_nothing_and_is_made_up_for(folder, caplog):
    store = Store(folder, BUNDLE)
    shutil.move(folder / audit.HEADS_FILE, folder / "away")
    (folder / audit.HEADS_FILE).mkdir()
    store.roll_back(1, "while the disk is full")
    assert store.active_version() == 1
    assert "could not be written" in caplog.text
    (folder / audit.HEADS_FILE).rmdir()
    shutil.move(folder / "away", folder / audit.HEADS_FILE)
    store.active_version()
    assert store.verify_audit().unsigned == 0
    store.close()


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_signing_key_that_is_none_is_refused_at_the_start(tmp_path, content):
    (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(StartError, match="signing key"):
        Store(tmp_path / "store", BUNDLE, tmp_path / "key.pem")


def test_the_store_keeps_its_key_from_others(folder):
    assert (folder / signing.KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_a_store_of_another_schema_is_refused(folder):
    tamper(folder, "PRAGMA user_version = 99")
    with pytest.raises(StartError, match="cannot read"):
        Store(folder, BUNDLE)


def test_the_command_verifies_beside_a_running_server_and_shows(folder):
    store = Store(folder, BUNDLE)
    run = CliRunner().invoke(group, ["audit", "verify", str(folder), "--key", str(folder / signing.PUBLIC_KEY_FILE)])
    assert run.exit_code == 0, run.output
    assert run.stdout.startswith("11 records verify against ")
    store.close()
    as_json = CliRunner().invoke(group, ["audit", "verify", str(folder), "--json"])
    assert json.loads(as_json.stdout)["records"] == 11
    shown = CliRunner().invoke(group, ["audit", "show", str(folder), "--json"])
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, 12))
    assert lines[1]["detail"] == REQUEST
    assert "rolled back" in CliRunner().invoke(group, ["audit", "show", str(folder)]).stdout


def test_the_command_tells_what_is_wrong(folder, tmp_path):
    tamper(folder, TAMPERED["a deletion"])
    run = CliRunner().invoke(group, ["audit", "verify", str(folder)])
    assert run.exit_code == 1
    assert run.stderr == "Error: the audit record does not verify: record 5 is gone\n"
    (tmp_path / "empty").mkdir()
    run = CliRunner().invoke(group, ["audit", "verify", str(tmp_path / "empty")])
    assert run.exit_code == 1
    assert "cannot be read" in run.stderr

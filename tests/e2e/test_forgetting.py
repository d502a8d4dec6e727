"""The main job on a real server: two labels forgotten one after the other while clients predict without pause.

The whole story is played once; each test looks at one side of what was recorded.
"""

import json
import re
import time
from dataclasses import dataclass
from itertools import pairwise

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from e2e.harness import CANARY, Recorded, Server
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from amnestic import dsse
from amnestic_client import FailedPrecondition, Job, JobState, SignatureError, Version, verify_receipt
from amnestic_server import audit
from amnestic_server.cli import group
from amnestic_server.signing import PUBLIC_KEY_FILE
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.manifest import file_digest
from amnestic_unlearn.patch import Patch

STATES = [JobState.QUEUED, JobState.RUNNING, JobState.GATING, JobState.ACTIVATING, JobState.SUCCEEDED]
FIRST, SECOND = "alpha", "beta"


@dataclass(frozen=True, slots=True)
class Step:
    """One label forgotten: all that a watcher saw, and when it was seen to have succeeded."""

    watched: list[Job]
    succeeded: float
    versions: tuple[Version, ...]
    metrics: dict[str, float]

    @property
    def job(self) -> Job:
        return self.watched[-1]


@dataclass(frozen=True, slots=True)
class Story:
    server: Server
    f1_before: dict[str, float]
    steps: list[Step]
    calls: list[Recorded]


@pytest.fixture(scope="module")
def story(serve_for_module, traffic, texts, until):
    server = serve_for_module()
    f1_before = until(lambda: server.client.list_versions()[0].f1)
    # Few threads: the worker has the lowest priority, and must get its turn on a small machine.
    clients = traffic(server.target, texts, pins=1, processes=1, threads=2)
    steps = [forget(server, label, until) for label in (FIRST, SECOND)]
    time.sleep(0.5)
    return Story(server, f1_before, steps, clients.stop())


def forget(server, label, until):
    job = server.forget(label, request_id=f"forget-{label}", reason="a test")
    watched = list(server.client.watch_job(job.job_id, timeout=200))
    succeeded = time.monotonic()
    until(lambda: server.client.list_versions()[-1].f1)
    names = ("forget_f1", "retain_f1", "forget_auroc", "probe_ratio")
    metrics = {
        f"{name} {which}": value
        for name in names
        for which in ("alpha", "beta", "gamma", "delta")
        if (value := server.metric(f"amnestic_{name}", label=which)) is not None
    }
    return Step(watched, succeeded, server.client.list_versions(), metrics)


def test_every_answer_is_what_its_version_says_and_none_failed(story, check_answers):
    check_answers(story.calls, story.server.patch_of)
    assert {call.version for call in story.calls} == {1, 2, 3}


def test_every_call_begun_after_succeeded_is_answered_by_the_new_version(story):
    for step in story.steps:
        later = [call for call in story.calls if call.started > step.succeeded and not call.pinned]
        assert later
        assert all(call.version >= step.job.version for call in later)


def test_no_call_that_had_ended_is_followed_by_one_of_an_older_version(story):
    unpinned = [call for call in story.calls if not call.pinned]
    by_end = sorted(unpinned, key=lambda call: call.ended)
    newest, ended = 0, 0
    for call in unpinned:
        while by_end[ended].ended < call.started:
            newest = max(newest, by_end[ended].version)
            ended += 1
        assert call.version >= newest
    assert newest == 3


def test_the_base_still_answers_who_pins_it(story):
    pinned = [call for call in story.calls if call.pinned]
    assert pinned
    assert all(call.version == call.pinned == 1 for call in pinned)
    assert any(call.started > story.steps[0].succeeded for call in pinned)


def test_the_label_is_flagged_as_forgotten_in_the_answers_and_still_answered(story):
    wanted = {1: [], 2: [FIRST], 3: [FIRST, SECOND]}
    for call in story.calls:
        assert sorted(call.forgotten) == wanted[call.version]
        assert all(len(probabilities) == 4 for probabilities in call.probabilities)
    model = story.server.client.get_model()
    assert model.active_version == 3
    assert {label.name for label in model.labels if label.forgotten} == {FIRST, SECOND}


@pytest.mark.parametrize("number", [0, 1])
def test_a_watcher_sees_states_and_progress_only_advance(story, number):
    watched = story.steps[number].watched
    assert {job.job_id for job in watched} == {watched[0].job_id}
    states = [STATES.index(job.state) for job in watched]
    assert states == sorted(states)
    assert {JobState.RUNNING, JobState.GATING, JobState.SUCCEEDED} <= {job.state for job in watched}
    training = [job.progress for job in watched if job.progress and job.progress.stage == "training"]
    assert len(training) > 2
    assert all(before.step <= after.step and before.epoch <= after.epoch for before, after in pairwise(training))
    assert training[-1].epochs == 12
    assert 0 < training[-1].step <= training[-1].steps
    assert all(one.forget_loss > 0 and one.utility_loss > 0 for one in training if one.step)
    assert training[-1].forget_loss < next(one.forget_loss for one in training if one.step)


def test_the_second_version_forgets_both_labels_starting_from_the_base(story):
    first, second = story.steps
    assert first.job.forgotten == (FIRST,)
    assert second.job.labels == (SECOND,)
    assert second.job.forgotten == (FIRST, SECOND)
    for name in ("forget_f1", "forget_auroc", "probe_ratio"):
        assert {gate.label for gate in second.job.gates if gate.name == name} == {FIRST, SECOND}
    assert [version.forgotten for version in second.versions] == [(), (FIRST,), (FIRST, SECOND)]


@pytest.mark.parametrize("number", [0, 1])
def test_a_job_that_succeeded_shows_every_gate_and_what_it_changed(story, number):
    job = story.steps[number].job
    assert job.state is JobState.SUCCEEDED
    assert job.error is None
    assert job.attempts == 1
    assert job.reason == "a test"
    assert {gate.name for gate in job.gates} == {
        "forget_f1",
        "forget_auroc",
        "probe_ratio",
        "retain_f1_drop",
        "retain_label_drop",
        "encoder_unchanged",
        "only_declared_changed",
        "logit_difference",
    }
    assert all(gate.passed and gate.value <= gate.limit for gate in job.gates)
    assert 0 < job.change.rows_changed <= 24 * (number + 1)
    assert len(job.change.tokens) == job.change.rows_changed
    assert 0 < job.change.parameters_changed_ratio < 0.1
    assert job.change.training_seconds > 0
    assert job.created_at <= job.started_at <= job.finished_at
    version = story.steps[number].versions[job.version - 1]
    assert version.active
    assert version.job_id == job.job_id
    assert version.patch_digest == job.change.patch_digest


def test_f1_by_label_is_measured_through_the_served_path_and_moves_with_the_swap(story):
    assert set(story.f1_before) == {"alpha", "beta", "gamma", "delta"}
    assert story.f1_before[FIRST] > 0.5
    for step, forgotten in zip(story.steps, ({FIRST}, {FIRST, SECOND}), strict=True):
        assert {name.split()[1] for name in step.metrics if name.startswith("forget_f1")} == forgotten
        assert {name.split()[1] for name in step.metrics if name.startswith("retain_f1")} == (
            set(story.f1_before) - forgotten
        )
        assert all(value <= 0.05 for name, value in step.metrics.items() if name.startswith("forget_f1"))
        assert all(value > 0.5 for name, value in step.metrics.items() if name.startswith("retain_f1"))
        active = step.versions[-1].f1
        assert {name.split()[1]: value for name, value in step.metrics.items() if "_f1 " in name} == active


def test_what_an_attacker_would_find_is_shown_of_the_active_version(story):
    for step, forgotten in zip(story.steps, ({FIRST}, {FIRST, SECOND}), strict=True):
        for name in ("forget_auroc", "probe_ratio"):
            shown = {which.split()[1]: value for which, value in step.metrics.items() if which.startswith(name)}
            assert set(shown) == forgotten
            assert shown == pytest.approx({gate.label: gate.value for gate in step.job.gates if gate.name == name})


def test_what_was_relaxed_is_told_of_job_and_version(story):
    relaxed = ("forget_f1_max", "forget_auroc_max", "retain_f1_drop_max", "retain_label_drop_max")
    for step in story.steps:
        assert step.job.relaxed_gates == step.versions[step.job.version - 1].relaxed_gates == relaxed
        assert f"job {step.job.job_id} relaxes its gates: {', '.join(relaxed)}" in story.server.log
    assert story.steps[0].versions[0].relaxed_gates == ()


def test_the_metrics_tell_of_calls_batches_jobs_and_the_process(story):
    server = story.server
    served = sum(len(call.documents) for call in story.calls)
    assert server.metric("amnestic_requests_total", method="Predict", code="OK") == len(story.calls)
    assert server.metric("amnestic_request_seconds_count", method="Predict", code="OK") == len(story.calls)
    assert server.metric("amnestic_requests_total", method="WatchJob", code="OK") == 2
    for stage in ("tokenizer", "queue", "engine"):
        assert server.metric("amnestic_stage_seconds_count", stage=stage) == len(story.calls)
    assert server.metric("amnestic_documents_total") == served
    assert server.metric("amnestic_truncated_documents_total") > 0
    # Those of the gates and of the measurements are in the batches too.
    assert server.metric("amnestic_batch_rows_sum") > served
    computed, padding = (server.metric(f"amnestic_{kind}_total") for kind in ("tokens", "padding_tokens"))
    assert server.metric("amnestic_batch_tokens_sum") == computed + padding
    assert server.metric("amnestic_queue_rows") == 0
    assert server.metric("amnestic_queue_tokens") == 0
    assert server.metric("amnestic_open_documents") == 0
    assert server.metric("amnestic_active_version") == 3
    assert server.metric("amnestic_swaps_total") == 2
    assert server.metric("amnestic_swap_seconds_count") == 2
    assert 0 < server.metric("amnestic_swap_seconds_sum") < 10
    assert server.metric("amnestic_jobs", state="SUCCEEDED") == 2
    assert server.metric("amnestic_jobs", state="RUNNING") == 0
    assert server.metric("amnestic_job_seconds_count", state="SUCCEEDED") == 2
    assert server.metric("amnestic_job_progress_ratio") == 0
    assert server.metric("amnestic_ready") == 1
    assert server.metric("process_resident_memory_bytes") > 1e7
    assert server.metric("process_cpu_seconds_total") > 0
    assert server.metric("python_gc_collections_total", generation="0") > 0
    assert 'provider="CPUExecutionProvider"' in server.metrics_text()


def test_a_label_already_forgotten_cannot_be_asked_for_again(story):
    with pytest.raises(FailedPrecondition, match="already forgotten"):
        story.server.forget(FIRST)


def test_the_same_request_id_finds_the_job_that_has_ended(story):
    job = story.server.forget(FIRST, request_id=f"forget-{FIRST}", reason="a test")
    assert job == story.steps[0].job


def test_no_text_of_a_document_is_in_log_metrics_or_store(story):
    server = story.server
    secret = f"{CANARY} was admitted"
    server.client.predict([secret, "fine"])
    with pytest.raises(Exception, match="document 2") as failure:
        server.client.predict([secret, f"{CANARY} " * 40_000])
    assert CANARY.lower() not in str(failure.value).lower()
    with pytest.raises(Exception, match="label 1") as failure:
        server.forget(secret)
    assert CANARY.lower() not in str(failure.value).lower()
    texts = [server.log, server.metrics_text()]
    stored = [file.read_bytes() for file in server.store.rglob("*") if file.is_file()]
    assert len(stored) > 3
    for text in (*texts, *(data.decode("latin-1") for data in stored)):
        assert CANARY.lower() not in text.lower()


def test_the_receipt_says_what_was_asked_done_and_measured(story):
    server, step = story.server, story.steps[0]
    receipt = server.client.receipt(step.job.job_id)
    key = (server.store / PUBLIC_KEY_FILE).read_bytes()
    assert receipt.public_key.encode() == key
    statement = verify_receipt(receipt.envelope, key)
    said, job = statement["predicate"], step.job
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "patch", "digest": {"sha256": job.change.patch_digest}}]
    assert said["request"]["labels"] == said["forgotten"] == [FIRST]
    assert (said["job"]["outcome"], said["job"]["version"]) == ("SUCCEEDED", 2)
    assert said["inputs"]["bundle"]["manifest.json"] == server.client.get_model().bundle_digest
    assert said["inputs"]["corpus"] == file_digest(server.corpus)
    assert said["change"]["row_ids"] == Patch.read(server.patch_of(2)).row_ids.tolist()
    assert [(gate["name"], gate["value"], gate["limit"]) for gate in said["gates"]] == [
        (gate.name, gate.value, gate.limit) for gate in job.gates
    ]
    assert said["measured"]["f1"].keys() == said["measured"]["base_f1"].keys() == set(story.f1_before)
    assert said["measured"]["base_f1"] == pytest.approx(story.f1_before)
    with audit.reading(server.store) as db:
        records = {record.seq: record for record in audit.records(db, job.job_id)}
    for name, action in (("requested", "job requested"), ("ended", "job succeeded")):
        named = said["audit"][name]
        assert named == {"seq": named["seq"], "action": action, "digest": records[named["seq"]].digest}
    # The limits were on record before the result was.
    assert json.loads(records[said["audit"]["requested"]["seq"]].detail)["limits"] == said["request"]["limits"]
    assert len(said["claim"]["not_claimed"]) >= 5
    assert server.client.receipt(job.job_id) == receipt


def test_another_implementation_of_dsse_accepts_the_receipt(story):
    receipt = story.server.client.receipt(story.steps[1].job.job_id)
    envelope = Envelope.from_dict(json.loads(receipt.envelope))
    key = SSlibKey.from_crypto(load_pem_public_key(receipt.public_key.encode()), next(iter(envelope.signatures)))
    assert envelope.verify([key], 1)
    assert envelope.payload_type == "application/vnd.in-toto+json"


@pytest.mark.parametrize("part", ["payload", "payloadType", "sig"])
def test_a_receipt_that_was_changed_does_not_verify(story, part):
    receipt = story.server.client.receipt(story.steps[0].job.job_id)
    envelope = json.loads(receipt.envelope)
    changed = envelope["signatures"][0] if part == "sig" else envelope
    first = changed[part][0]
    changed[part] = ("B" if first != "B" else "C") + changed[part][1:]
    with pytest.raises(SignatureError):
        verify_receipt(json.dumps(envelope), receipt.public_key.encode())


def test_a_receipt_is_verified_from_its_file_alone(story, tmp_path):
    """By the commands of the documentation."""
    server = story.server
    key, file = server.store / PUBLIC_KEY_FILE, tmp_path / "receipt.json"
    job_id = story.steps[1].job.job_id
    got = CliRunner().invoke(group, ["receipt", "get", job_id, "--server", server.target, "--out", str(file)])
    assert got.exit_code == 0, got.output
    shown = CliRunner().invoke(group, ["receipt", "verify", str(file), "--key", str(key)])
    assert shown.exit_code == 0, shown.output
    assert job_id in shown.stdout
    assert "probe_ratio" in shown.stdout
    assert "Not claimed" in shown.stdout
    as_json = CliRunner().invoke(group, ["receipt", "verify", str(file), "--key", str(key), "--json"])
    assert json.loads(as_json.stdout)["predicate"]["forgotten"] == [FIRST, SECOND]
    other = tmp_path / "other.pem"
    other.write_text(dsse.public_pem(Ed25519PrivateKey.generate().public_key()))
    refused = CliRunner().invoke(group, ["receipt", "verify", str(file), "--key", str(other)])
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: the receipt does not verify: it is not signed by a key that is trusted")


def test_the_report_says_what_the_receipt_does_of_a_server_and_of_a_file(story, tmp_path):
    server, job = story.server, story.steps[1].job
    key, receipt, out = server.store / PUBLIC_KEY_FILE, tmp_path / "receipt.json", tmp_path / "report.html"
    receipt.write_text(server.client.receipt(job.job_id).envelope)
    asked = (job.job_id, "--server", server.target)
    reports = {}
    for name, arguments in (
        ("server", asked),
        ("server and key", (*asked, "--key", str(key))),
        ("file", ("--receipt", str(receipt), "--key", str(key))),
    ):
        run = CliRunner().invoke(group, ["report", *arguments, "--out", str(out)])
        assert run.exit_code == 0, run.output
        assert run.stdout == f"report in {out}\n"
        reports[name] = out.read_text(encoding="utf-8")
    for html in reports.values():
        assert f"<h1>Forgotten: {FIRST}, {SECOND}</h1>" in html
        assert job.change.patch_digest in html
        assert all(f"<code>{gate.name}</code>" in html for gate in job.gates)
        assert html.count('<span class="interval">loosened</span>') == sum(
            f"{gate.name}_max" in job.relaxed_gates for gate in job.gates
        )
        assert not re.search(r"<(script|link|img|iframe)|(src|href)=.?http|url\(|@import", html)
        assert len(html.encode()) < 200_000
    assert "not who signed it" in reports["server"]
    assert "not who signed it" not in reports["server and key"] + reports["file"]


def test_the_counts_of_the_receipt_are_those_of_its_f1(story):
    said = verify_receipt(
        story.server.client.receipt(story.steps[0].job.job_id).envelope,
        (story.server.store / PUBLIC_KEY_FILE).read_bytes(),
    )["predicate"]
    for version, measured in (("base", said["measured"]["base_f1"]), ("candidate", said["measured"]["f1"])):
        for label, (hits, false_alarms, misses, _) in said["counts"][version].items():
            assert measured[label] == pytest.approx(2 * hits / (2 * hits + false_alarms + misses))
    assert {sum(counts) for version in said["counts"].values() for counts in version.values()} == {
        len(corpora.read(story.server.corpus, splits=("gate",)))
    }


def test_the_audit_record_of_the_running_server_verifies(story):
    run = CliRunner().invoke(group, ["audit", "verify", str(story.server.store)])
    assert run.exit_code == 0, run.output
    assert story.server.metric("amnestic_audit_intact") == 1


def test_a_restart_serves_the_active_version_and_a_rollback_outlives_it(story, check_active):
    """The last of the file: it restarts the server."""
    server = story.server
    assert server.terminate() == 0
    server.start()
    assert server.ready_version == 3
    assert check_active(server) == 3
    assert [job.state for job in server.client.list_jobs()] == [JobState.SUCCEEDED, JobState.SUCCEEDED]
    assert server.client.list_jobs()[0].gates == story.steps[1].job.gates

    with pytest.raises(FailedPrecondition, match="knows labels that the active one has forgotten") as refused:
        server.client.rollback(2, "by accident")
    assert refused.value.reason == "RESTORES_FORGOTTEN"
    assert refused.value.field_violations[0].field == "restore_forgotten"
    assert check_active(server) == 3
    back = server.client.rollback(2, "the second was asked for by mistake", restore_forgotten=True)
    assert back.forgotten == (FIRST,)
    assert check_active(server) == 2
    server.kill()
    server.start()
    assert server.ready_version == 2
    assert check_active(server) == 2
    assert [version.active for version in server.client.list_versions()] == [False, True, False]

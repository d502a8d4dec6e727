"""Staged versions over the wire: what they answer and what not, canary and shadow under traffic, promotion, withdrawal,
and kill -9 on the way.
"""

import json
import math
import random
import subprocess
import time

import pytest
from e2e.harness import ANYTHING, CANARY, JOB_SECONDS, METHOD, amnestic, environment, stage

from amnestic_client import FailedPrecondition, InvalidArgument, JobState, NotFound
from amnestic_server.rollout import Shares, falls_on_candidate

ENDLESS = METHOD | {"epochs": 1000}


@pytest.fixture
def staged(serve, bundle):
    """A server with version 2 staged."""
    return stage(serve(start=False), bundle, 0).start()


def versions(server):
    return [(one.version, one.active, one.staged, one.withdrawn) for one in server.client.list_versions()]


def compared(server, documents, until):
    """The rollout once so many documents are compared."""
    until(lambda: server.client.rollout().shadow_documents >= documents)
    return server.client.rollout()


def test_a_job_is_staged_tried_and_promoted(serve, texts, reference, check_active):
    server = serve()
    job = server.ended(server.forget("alpha", stage=True, reason="policy 12"))
    assert (job.state, job.version, job.finished_at) == (JobState.STAGED, 2, None)
    assert len(job.gates) == 8
    assert all(gate.passed for gate in job.gates)
    assert check_active(server) == 1
    assert not any(label.forgotten for label in server.client.get_model().labels)
    assert versions(server) == [(1, True, False, False), (2, False, True, False)]
    assert server.client.predict(texts, version=2).version == 2
    status = server.client.status()
    assert (status.staged_versions, status.rollout, status.running_job, status.queued_jobs) == ((2,), None, None, 0)
    assert server.metric("amnestic_jobs", state="STAGED") == 1

    assert server.client.promote(2).active
    assert check_active(server) == 2
    ended = server.client.get_job(job.job_id)
    assert (ended.state, ended.version) == (JobState.SUCCEEDED, 2)
    assert ended.swap_seconds > 0
    with pytest.raises(FailedPrecondition) as caught:
        server.client.promote(2)
    assert caught.value.reason == "VERSION_ACTIVE"


def test_a_pinned_call_is_answered_by_the_staged_version_as_torch_has_it(staged, texts, reference, check_active):
    found = [[score.probability for score in one.scores] for one in staged.client.predict(texts, version=2).predictions]
    wanted = reference.probabilities(texts, staged.patch_of(2))
    assert abs(wanted - found).max() < 1e-5
    assert check_active(staged) == 1


def test_a_canary_answers_its_share_by_key_and_without(staged):
    client = staged.client
    rollout = client.set_rollout(canary_share=0.3)
    assert (rollout.version, rollout.canary_share, rollout.shadow_share) == (2, 0.3, 0.0)
    keys = [f"patient {number}" for number in range(100)]
    sides = {key: client.predict("insulin", routing_key=key).version for key in keys}
    assert sides == {key: 2 if falls_on_candidate(key, 2, 0.3) else 1 for key in keys}
    assert {client.predict("insulin", routing_key=key, version=1).version for key in keys[:20]} == {1}

    drawn = [client.predict("insulin").version for _ in range(400)]
    assert abs(drawn.count(2) - 120) < 5 * math.sqrt(400 * 0.3 * 0.7)
    many = list(client.predict_many(["insulin"] * 40, batch_size=1, routing_key=keys[0]))
    assert {answer.version for answer in many} == {sides[keys[0]]}

    canaries = list(sides.values()).count(2) + drawn.count(2) + sum(answer.version == 2 for answer in many)
    rollout = client.rollout()
    assert (rollout.canary_calls, rollout.active_calls) == (canaries, 540 - canaries)
    assert staged.metric("amnestic_canary_calls_total") == canaries
    assert staged.metric("amnestic_rollout_canary_share") == 0.3
    assert staged.metric("amnestic_rollout_version") == 2

    client.set_rollout(canary_share=0.6)
    moved = {key: client.predict("insulin", routing_key=key).version for key in keys}
    assert all(moved[key] == 2 for key in keys if sides[key] == 2)
    client.set_rollout(canary_share=1)
    assert {client.predict("insulin", routing_key=key).version for key in keys[:20]} == {2}
    client.set_rollout(canary_share=0)
    assert {client.predict("insulin", routing_key=key).version for key in keys[:20]} == {1}


def test_shadow_counts_are_those_of_a_comparison_by_hand(staged, texts, until, reference):
    client = staged.client
    differing = dict.fromkeys(reference.labels, 0)
    for text in texts:
        sides = [client.predict(text, version=version).predictions[0] for version in (1, 2)]
        for one, other in zip(*(side.scores for side in sides), strict=True):
            differing[one.label] += one.decision != other.decision
    assert sum(differing.values()) > 0

    client.set_rollout(shadow_share=1)
    # Calls that name a version are nobody's traffic.
    client.predict(texts, version=1)
    client.predict(texts, version=2)
    client.predict(texts[:10])
    for text in texts[10:]:
        assert client.predict(text).version == 1
    rollout = compared(staged, len(texts), until)
    assert (rollout.shadow_documents, rollout.shadow_dropped) == (len(texts), 0)
    assert {one.label: one.documents for one in rollout.differences} == differing
    forgotten = set(next(one for one in client.list_versions() if one.staged).forgotten)
    assert {one.label for one in rollout.differences if one.forgotten} == forgotten
    for label, documents in differing.items():
        flag = str(label in forgotten).lower()
        assert staged.metric("amnestic_shadow_decisions_differ_total", label=label, forgotten=flag) == documents
    assert staged.metric("amnestic_shadow_documents_total") == len(texts)
    assert staged.metric("amnestic_shadow_dropped_total") == 0
    assert staged.metric("amnestic_documents_total") == 4 * len(texts) + len(texts), "shadow answers nobody"


def test_a_share_of_the_documents_is_compared(staged, until):
    staged.client.set_rollout(shadow_share=0.25)
    for _ in range(20):
        staged.client.predict(["insulin"] * 20)
    staged.client.set_rollout(shadow_share=0)
    time.sleep(0.5)
    documents = staged.client.rollout().shadow_documents
    assert abs(documents - 100) < 5 * math.sqrt(400 * 0.25 * 0.75)


def test_what_finds_no_room_is_dropped_and_counted_and_every_call_is_answered(staged, texts, until):
    staged.client.set_rollout(shadow_share=1)
    documents = [" ".join(texts)] * 1000
    answers = list(staged.client.predict_many(documents, batch_size=128, concurrency=6))
    assert len(answers) == len(documents)
    until(lambda: told(staged) == len(documents))
    rollout = staged.client.rollout()
    assert rollout.shadow_dropped > 0
    assert staged.metric("amnestic_shadow_dropped_total") == rollout.shadow_dropped


def told(server):
    rollout = server.client.rollout()
    return rollout.shadow_documents + rollout.shadow_dropped


def test_a_promotion_under_load_fails_no_call_and_leaves_no_old_answer(staged, traffic, texts, check_answers):
    client = staged.client
    client.set_rollout(canary_share=0.3, shadow_share=1)
    clients = traffic(staged.target, texts)
    time.sleep(1)
    assert client.promote(2).active
    promoted = time.monotonic()
    assert client.get_job("job-0").state is JobState.SUCCEEDED
    time.sleep(0.5)
    calls = clients.stop()
    check_answers(calls, staged.patch_of)
    after = [call for call in calls if call.started >= promoted]
    assert after
    assert {call.version for call in after} == {2}
    assert all(call.version == 2 for call in calls if call.ended > promoted)
    assert {call.version for call in calls if call.started < promoted} == {1, 2}
    assert client.rollout() is None
    assert staged.metric("amnestic_rollout_version") == 0


def test_a_withdrawal_under_load_answers_who_was_admitted_and_nobody_else(staged, traffic, texts, check_answers):
    client = staged.client
    patch = staged.patch_of(2)
    kept = patch.with_name("kept")
    kept.write_bytes(patch.read_bytes())
    client.set_rollout(canary_share=0.5)
    clients = traffic(staged.target, texts)
    time.sleep(0.5)
    assert client.cancel_job("job-0").state is JobState.CANCELLED
    withdrawn = time.monotonic()
    time.sleep(0.3)
    calls = clients.stop()
    check_answers(calls, lambda version: kept if version == 2 else None)
    assert {call.version for call in calls} == {1, 2}
    assert all(call.version == 1 for call in calls if call.ended > withdrawn)
    with pytest.raises(NotFound):
        client.predict("insulin", version=2)
    assert versions(staged) == [(1, True, False, False), (2, False, False, True)]
    assert not patch.exists()
    with pytest.raises(FailedPrecondition):
        client.promote(2)
    staged.kill()
    staged.start()
    assert versions(staged) == [(1, True, False, False), (2, False, False, True)]
    assert staged.client.get_job("job-0").state is JobState.CANCELLED


def test_another_job_that_activates_in_between_fails_what_is_staged(serve, bundle, until, check_active):
    server = stage(serve(start=False), bundle, 1, shares=Shares(0.5, 0.0)).start()
    watched = server.client.watch_job("job-1", timeout=JOB_SECONDS)
    assert next(watched).state is JobState.STAGED
    job = server.ended(server.forget("alpha", gates=ANYTHING))
    assert (job.state, job.version, job.forgotten) == (JobState.SUCCEEDED, 3, ("alpha",))
    failed = list(watched)[-1]
    assert failed.state is JobState.FAILED
    assert failed.error == "another version became active while this one was staged; ask again"
    assert check_active(server) == 3
    assert {server.client.predict("insulin").version for _ in range(30)} == {3}
    with pytest.raises(NotFound):
        server.client.predict("insulin", version=2)
    assert server.client.rollback(1, "both", restore_forgotten=True).active
    assert check_active(server) == 1
    with pytest.raises(NotFound):
        server.client.rollback(2, "withdrawn", restore_forgotten=True)


def test_one_version_at_a_time_has_shares_and_the_others_go_with_its_promotion(serve, bundle, check_active):
    server = stage(serve(start=False), bundle, 0, 1).start()
    client = server.client
    with pytest.raises(FailedPrecondition, match="name one"):
        client.set_rollout(canary_share=0.1)
    client.set_rollout(3, canary_share=0.1)
    with pytest.raises(FailedPrecondition) as caught:
        client.set_rollout(2, shadow_share=0.1)
    assert caught.value.reason == "ROLLOUT_TAKEN"
    assert client.promote(2).active
    assert check_active(server) == 2
    assert client.get_job("job-1").state is JobState.FAILED
    assert client.rollout() is None


@pytest.mark.parametrize("stop", ["terminate", "kill"])
def test_a_restart_finds_what_was_staged_and_its_shares(staged, stop, check_active):
    before = staged.client.set_rollout(canary_share=0.25, shadow_share=1)
    staged.client.predict(["insulin"] * 5)
    getattr(staged, stop)()
    staged.start()
    assert staged.ready_version == 1
    after = staged.client.rollout()
    assert (after.version, after.canary_share, after.shadow_share) == (2, 0.25, 1.0)
    assert (after.since, after.shadow_documents) == (before.since, 0)
    assert after.counted_since > before.counted_since
    job = staged.client.get_job("job-0")
    assert (job.state, job.attempts) == (JobState.STAGED, 1)
    assert staged.workers() == []
    assert staged.client.promote(2).active
    assert check_active(staged) == 2


@pytest.mark.soak
def test_kills_at_random_moments_of_a_promotion_leave_it_staged_or_done(serve, bundle, check_active):
    random_ = random.Random(11)
    outcomes = set()
    for attempt in range(6):
        server = stage(serve(start=False), bundle, 0, shares=Shares(0.5, 0.0)).start()
        promoting = subprocess.Popen(
            amnestic("promote", "2", "--server", server.target),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        waited = server.client.watch_job("job-0", timeout=30)
        # Half of the time as soon as the job moves, else while the command is still on its way.
        if attempt % 2:
            next(job for job in waited if job.state is not JobState.STAGED)
        else:
            time.sleep(random_.uniform(0.2, 1.0))
        server.kill()
        promoting.wait(30)
        server.start()
        job = server.client.get_job("job-0")
        assert job.attempts == 1
        assert job.state in (JobState.STAGED, JobState.SUCCEEDED)
        assert server.client.get_model().active_version == (1 if job.state is JobState.STAGED else 2)
        check_active(server)
        assert (server.client.rollout() is None) == (job.state is JobState.SUCCEEDED)
        outcomes.add(job.state)
        server.close()
    assert JobState.SUCCEEDED in outcomes


def test_nothing_of_a_key_or_a_document_is_left_behind(staged, until):
    staged.client.set_rollout(canary_share=0.5, shadow_share=1)
    for number in range(20):
        staged.client.predict(f"{CANARY} insulin", routing_key=f"{CANARY} {number}")
    until(lambda: staged.client.rollout().active_calls == told(staged))
    with pytest.raises(InvalidArgument) as caught:
        staged.client.predict("insulin", routing_key=CANARY * 40)
    assert [one.field for one in caught.value.field_violations] == ["routing_key"]
    assert CANARY not in caught.value.detail
    left = staged.metrics_text() + staged.log
    staged.terminate()
    files = b"".join(path.read_bytes() for path in staged.store.rglob("*") if path.is_file())
    assert CANARY not in left
    assert CANARY.encode() not in files


@pytest.mark.parametrize("field", ["canary_share", "shadow_share"])
@pytest.mark.parametrize("share", [-0.1, 1.5, math.nan, math.inf])
def test_a_share_out_of_range_is_refused(module_staged, field, share):
    with pytest.raises(InvalidArgument) as caught:
        module_staged.client.set_rollout(2, **{field: share})
    assert [one.field for one in caught.value.field_violations] == [field]


@pytest.fixture(scope="module")
def module_staged(serve_for_module, bundle):
    return stage(serve_for_module(start=False), bundle, 0).start()


def test_the_command_line_from_staging_to_promotion(serve):
    server = serve()

    def run(*arguments):
        return subprocess.run(
            amnestic(*arguments, "--server", server.target), capture_output=True, text=True, env=environment()
        )

    method = [f"--{name.replace('_', '-')}={value}" for name, value in METHOD.items()]
    gates = [f"--{name.replace('_', '-')}={value}" for name, value in ANYTHING.items()]
    done = run("unlearn", "alpha", "--stage", *method, *gates)
    assert done.returncode == 0, done.stderr
    assert "version 2 is staged" in done.stdout
    assert "amnestic promote 2" in done.stdout
    assert "no rollout; staged: 2" in run("rollout").stdout
    assert "staged" in run("versions").stdout
    shown = run("rollout", "set", "--canary", "0.05", "--shadow", "1.0").stdout
    assert "0.05 of the calls" in shown
    assert json.loads(run("rollout", "--json").stdout)["shadow_share"] == 1.0
    assert "2; version 2: canary 0.05, shadow 1" in run("status").stdout
    assert run("rollout", "set", "--canary", "7").returncode == 1
    assert run("promote", "2").stdout == "version 2 is active; forgotten: alpha\n"
    assert json.loads(run("rollout", "--json").stdout) is None
    assert json.loads(run("jobs", "--json").stdout)[0]["state"] == "SUCCEEDED"

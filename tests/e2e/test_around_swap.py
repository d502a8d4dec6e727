"""What callers felt around a swap, as a job and its report tell it: of real calls, over restarts and kills.

The whole story is played once; each test looks at one side of what was recorded.
"""

import time
from collections import Counter
from dataclasses import dataclass

import pytest
from click.testing import CliRunner
from e2e.crash_trials import QUICK, Crashing
from e2e.harness import ANYTHING, Recorded, Server

from amnestic_client import Job, JobState
from amnestic_server import audit
from amnestic_server.cli import group

THREADS = 4
# More calls at once than that are refused, and a call of more documents is invalid.
FEW = ("--max-concurrent-requests", "4")
NOTHING = "The server has recorded nothing of it"


@dataclass(frozen=True, slots=True)
class Story:
    """Three jobs that made versions 2, 3 and 4: under load, promoted after a rollback, and killed right after it.

    `told` is the first as it was told of when it had just ended.
    """

    server: Server
    calls: list[Recorded]
    told: Job
    dry: str
    rejected: str
    loaded: str
    promoted: str
    killed: str


def ended(server: Server, label: str, **options: object) -> Job:
    return server.ended(server.forget(label, **({"method": QUICK, "gates": ANYTHING} | options)))


@pytest.fixture(scope="module")
def story(start_crashing, traffic, texts):
    crashing: Crashing = start_crashing(*FEW)
    server = crashing.server
    # The first job takes seconds, those after it a moment.
    dry = ended(server, "alpha", dry_run=True)
    rejected = ended(server, "alpha", gates=ANYTHING | {"logit_difference_max": 1e-9})
    clients = traffic(server.target, texts, processes=1, threads=THREADS)
    time.sleep(1)
    told = ended(server, "alpha")
    time.sleep(0.5)
    calls = clients.stop()
    roll_back(server)
    staged = server.forget("alpha", method=QUICK, gates=ANYTHING, stage=True)
    next(job for job in server.client.watch_job(staged.job_id, timeout=60) if job.state is JobState.STAGED)
    server.client.promote(3)
    # It stops before the seconds after its swaps are over.
    assert server.terminate() == 0
    server.start()
    roll_back(server)
    killed = ended(server, "alpha")
    server.kill()
    server.start()
    assert server.ready_version == killed.version == 4
    crashing.audit_verifies()
    ids = (job.job_id for job in (dry, rejected, told, staged, killed))
    return Story(server, calls, told, *ids)


def roll_back(server: Server) -> None:
    server.client.rollback(1, "a test", restore_forgotten=True)


def seconds_of(story: Story, job_id: str):
    return story.server.client.get_job(job_id).calls_around_swap


def test_every_call_is_in_a_second_before_or_after_the_swap(story):
    seconds = seconds_of(story, story.loaded)
    offsets = [one.offset for one in seconds]
    assert offsets == list(range(offsets[0], offsets[-1] + 1))
    assert -10 <= offsets[0] <= -1
    assert 0 <= offsets[-1] <= 9
    codes = Counter(call.code for call in story.calls)
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"}, "each kind of call was tried"
    assert sum(one.calls for one in seconds) == codes["OK"] + codes["RESOURCE_EXHAUSTED"]
    assert sum(one.failed_calls for one in seconds) == codes["RESOURCE_EXHAUSTED"]
    assert sum(one.cancelled_calls for one in seconds) == 0


def test_calls_of_the_version_before_end_before_the_swap_but_for_those_in_flight(story):
    seconds = seconds_of(story, story.loaded)
    after = sum(one.calls - one.failed_calls for one in seconds if one.offset >= 0)
    by_the_new = sum(call.version == 2 for call in story.calls)
    assert by_the_new > 0
    assert 0 <= after - by_the_new <= THREADS


def test_the_times_are_those_of_the_calls_answered(story):
    answered = [call.ended - call.started for call in story.calls if call.code == "OK"]
    timed = [one for one in seconds_of(story, story.loaded) if one.p50_seconds is not None]
    assert all(0 < one.p50_seconds <= one.p99_seconds <= one.max_seconds for one in timed)
    assert max(one.max_seconds for one in timed) < max(answered)
    assert min(one.p50_seconds for one in timed) < sorted(answered)[len(answered) // 2]
    assert all(one.calls == one.failed_calls for one in seconds_of(story, story.loaded) if one not in timed)


def test_it_is_told_once_it_is_recorded_and_of_one_job_alone(story):
    assert story.told.calls_around_swap == ()
    listed = {job.job_id: job for job in story.server.client.list_jobs()}
    assert listed[story.loaded].calls_around_swap == ()
    watched = list(story.server.client.watch_job(story.loaded, timeout=20))
    assert [job.calls_around_swap for job in watched] == [seconds_of(story, story.loaded)]


def test_jobs_without_a_swap_and_one_whose_server_was_killed_have_none(story):
    states = [story.server.client.get_job(one).state for one in (story.dry, story.rejected, story.killed)]
    assert states == [JobState.SUCCEEDED, JobState.REJECTED, JobState.SUCCEEDED]
    assert [seconds_of(story, one) for one in (story.dry, story.rejected, story.killed)] == [(), (), ()]


def test_a_promotion_has_it_and_a_rollback_is_no_jobs(story):
    after = [one for one in seconds_of(story, story.promoted) if one.offset >= 0]
    assert after[-1].offset < 8, "the server that stopped waited for the seconds after the swap"
    assert {(one.calls, one.p50_seconds, one.max_seconds) for one in after} == {(0, None, None)}
    with audit.reading(story.server.store) as db:
        stored = Counter(tuple(row) for row in db.execute("SELECT version, job_id FROM swaps"))
    # The second rollback is lost, too: the server was killed right after it.
    assert stored == {(2, story.loaded): 1, (3, story.promoted): 1, (1, None): 1}


def test_the_report_shows_it_as_unsigned_and_says_so_where_there_is_none(story, tmp_path):
    server, out = story.server, tmp_path / "report.html"

    def report(*arguments: str) -> str:
        run = CliRunner().invoke(group, ["report", *arguments, "--out", str(out)])
        assert run.exit_code == 0, run.output
        return out.read_text(encoding="utf-8")

    html = report(story.loaded, "--server", server.target)
    seconds = seconds_of(story, story.loaded)
    before, after = (sum(one.calls for one in seconds if (one.offset >= 0) is later) for later in (False, True))
    assert f'<th scope="row">Calls</th><td class="number">{before:,}</td><td class="number">{after:,}</td>' in html
    assert html.count('<circle class="p99"') == sum(one.p99_seconds is not None for one in seconds)
    assert "Measured by the server, and not signed" in html
    assert NOTHING in report(story.killed, "--server", server.target)
    assert "No version became active" in report(story.rejected, "--server", server.target)
    receipt, key = tmp_path / "receipt.json", server.store / "signing-key.pub.pem"
    receipt.write_text(server.client.receipt(story.loaded).envelope)
    assert "A saved receipt does not hold it" in report("--receipt", str(receipt), "--key", str(key))

"""One trial: a server is killed at a place on the way of a change, started again, and looked at from all sides."""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from e2e.harness import ANYTHING, METHOD, Server

from amnestic import dsse
from amnestic_client import AmnesticError, Job, JobState
from amnestic_server import audit
from amnestic_server.failpoints import Place
from amnestic_server.signing import PUBLIC_KEY_FILE
from amnestic_unlearn.manifest import Manifest

QUICK = METHOD | {"epochs": 1}
# A kill may come again and again at the same job.
DOCUMENTS = ("a note", "another one")
ATTEMPTS = ("--max-job-attempts", "100000")


@dataclass(slots=True)
class Crashing:
    """A server that dies where `armed` says, and what must be true of it whenever it is started again."""

    server: Server
    failpoints: Path
    check_active: Callable[[Server], int]
    labels: Sequence[str]

    def arm(self, place: Place, action: str = "kill") -> None:
        self.failpoints.write_text(f"{place} {action}")

    def disarm(self) -> None:
        self.failpoints.write_text("")

    def trial(self, place: Place) -> None:
        """A kill at this place, whatever change it is on the way of."""
        change = place.partition("-")[0]
        {
            "rollout": self.rollout_trial,
            "promotion": self.promotion_trial,
            "withdrawal": self.withdrawal_trial,
            "rollback": self.rollback_trial,
            "purge": self.purge_trial,
        }.get(change, self.job_trial)(place)

    def job_trial(self, place: Place) -> None:
        """A job is asked for, the server dies, and the job is asked for again, as a caller without an answer does."""
        versions = self._ready_for_a_job()
        request_id, labels = uuid.uuid4().hex, self._next_labels()
        self.arm(place)
        acknowledged = self._ask(labels, request_id)
        self.restart()
        self.goes_on(labels, request_id, acknowledged, versions)

    def random_trial(self, seconds: float) -> None:
        """The same, but the kill comes from outside, so many seconds after the job was asked for."""
        versions = self._ready_for_a_job()
        request_id, labels = uuid.uuid4().hex, self._next_labels()
        acknowledged = self._ask(labels, request_id)
        time.sleep(seconds)
        self.server.kill()
        self.server.start()
        self.goes_on(labels, request_id, acknowledged, versions)

    def rollout_trial(self, place: Place) -> None:
        version = self._staged()
        # A canary would answer some of the calls that look at the active version.
        self.dies(place, lambda: self.server.client.set_rollout(version, shadow_share=0.5, timeout=20))
        rollout = self.server.client.rollout()
        assert (rollout is not None) == (place == "rollout-recorded")
        self.server.client.set_rollout(version, shadow_share=0.0)
        self._withdraw(version)

    def promotion_trial(self, place: Place) -> None:
        version = self._staged()
        self.dies(place, lambda: self.server.client.promote(version, timeout=20))
        if place == "promotion-before-commit":
            self.server.client.promote(version)
        assert self.check_active(self.server) == version
        assert self._job_of(version).state is JobState.SUCCEEDED

    def withdrawal_trial(self, place: Place) -> None:
        version = self._staged()
        job = self._job_of(version)
        self.dies(place, lambda: self.server.client.cancel_job(job.job_id, timeout=20))
        if place != "withdrawal-committed":
            self._withdraw(version)
        assert self._job_of(version).state is JobState.CANCELLED

    def rollback_trial(self, place: Place) -> None:
        if self.server.client.get_model().active_version == 1:
            self._done(self._ask(self._next_labels(), uuid.uuid4().hex))
        self.dies(place, lambda: self.server.client.rollback(1, "trial", restore_forgotten=True, timeout=20))
        if place == "rollback-before-commit":
            self.server.client.rollback(1, "trial", restore_forgotten=True)
        assert self.check_active(self.server) == 1

    def purge_trial(self, place: Place) -> None:
        """On copies, since nothing brings back what is purged."""
        client = self.server.client
        if client.get_model().active_version == 1:
            self._done(self._ask(self._next_labels(), uuid.uuid4().hex))
        version = client.get_model().active_version
        answered = client.predict(DOCUMENTS).predictions
        with self._on_copies() as bundle:
            self.arm(place)
            with suppress(AmnesticError):
                self.server.client.purge(version, "trial", timeout=20)
            assert self.server.wait() == -9
            self.disarm()
            self.server.start()
            client = self.server.client
            assert self.server.ready_version == version
            assert client.predict(DOCUMENTS).predictions == answered
            assert [one.version for one in client.list_versions() if not one.withdrawn] == [version]
            assert not list((self.server.store / "patches").iterdir())
            assert Manifest.read(bundle).purged
            assert not [path for path in bundle.iterdir() if path.name.startswith(".")]
            self.audit_verifies()

    @contextmanager
    def _on_copies(self) -> Iterator[Path]:
        """The server runs on a copy of its store and of its bundle, whose folder this gives."""
        server, folder = self.server, self.failpoints.parent / "copies"
        arguments, store = [*server.arguments], server.store
        assert server.terminate() == 0
        shutil.copytree(store, folder / "store")
        shutil.copytree(arguments[arguments.index("--bundle") + 1], folder / "bundle")
        try:
            server.set_flag("--store", folder / "store")
            server.set_flag("--bundle", folder / "bundle")
            server.store = folder / "store"
            server.start()
            yield folder / "bundle"
            assert server.terminate() == 0
        finally:
            server.arguments, server.store = arguments, store
            shutil.rmtree(folder)
        server.start()

    def dies(self, place: Place, change: Callable[[], object]) -> None:
        """Ask for a change that kills the server, and start it again."""
        self.arm(place)
        with suppress(AmnesticError):
            change()
        self.restart()

    def restart(self) -> None:
        """The server is gone by its own hand. It starts again whole."""
        assert self.server.wait() == -9
        self.disarm()
        self.server.start()
        self.is_whole()

    def is_whole(self) -> None:
        """It serves exactly the version that its store names, and the audit record verifies, as for an auditor."""
        assert self.check_active(self.server) == self.server.ready_version
        assert self.server.metric("amnestic_audit_intact") == 1
        self.audit_verifies()
        assert not list((self.server.store / "patches").glob("*.partial"))
        named = {version.patch_digest for version in self.server.client.list_versions() if not version.withdrawn}
        for digest in named - {None}:
            assert (self.server.store / "patches" / f"{digest}.safetensors").exists()

    def audit_verifies(self) -> None:
        store = self.server.store
        heads = audit.read_heads(store / audit.HEADS_FILE)
        with audit.reading(store) as db:
            audit.verify(db, heads, dsse.read_public_keys((store / PUBLIC_KEY_FILE).read_bytes()))

    def goes_on(self, labels: Sequence[str], request_id: str, acknowledged: Job | None, before: set[int]) -> None:
        """The job is there once, comes to a good end and makes one version; and no other job is touched."""
        job = self._done(self._ask(labels, request_id))
        assert acknowledged is None or job.job_id == acknowledged.job_id
        made = {version.version for version in self.server.client.list_versions()} - before
        assert made == {job.version}
        assert self.check_active(self.server) == job.version
        actions = self.actions_of(job)
        assert actions == ["job requested", "version activated", "job succeeded"]
        self.audit_verifies()
        assert not list((self.server.store / "work").iterdir())
        assert self.unfinished() == 0

    def actions_of(self, job: Job) -> list[str]:
        with audit.reading(self.server.store) as db:
            return [record.action for record in audit.records(db, job.job_id)]

    def unfinished(self) -> int:
        with audit.reading(self.server.store) as db:
            return int(db.execute("SELECT count(*) FROM jobs WHERE finished_at IS NULL").fetchone()[0])

    def _ask(self, labels: Sequence[str], request_id: str) -> Job | None:
        """None where the answer did not come."""
        with suppress(AmnesticError):
            return self.server.forget(*labels, method=QUICK, gates=ANYTHING, request_id=request_id)
        return None

    def _done(self, job: Job | None, state: JobState = JobState.SUCCEEDED) -> Job:
        assert job is not None
        ended = self.server.ended(job)
        assert (ended.state, ended.error) == (state, None)
        return ended

    def _ready_for_a_job(self) -> set[int]:
        """Every version there is; the base is active if all that trials forget was forgotten."""
        self._rolled_back()
        return {version.version for version in self.server.client.list_versions()}

    def _rolled_back(self) -> None:
        if self.server.client.get_model().active_version != 1:
            self.server.client.rollback(1, "next trial", restore_forgotten=True)

    def _next_labels(self) -> list[str]:
        return [self.labels[self.server.restarts % len(self.labels)]]

    def _staged(self) -> int:
        self._rolled_back()
        job = self.server.forget(*self._next_labels(), method=QUICK, gates=ANYTHING, stage=True)
        for seen in self.server.client.watch_job(job.job_id, timeout=60):
            if seen.state is JobState.STAGED:
                assert seen.version is not None
                return seen.version
        raise AssertionError(f"not staged: {seen.state} {seen.error}")

    def _withdraw(self, version: int) -> None:
        assert self.server.client.cancel_job(self._job_of(version).job_id).state is JobState.CANCELLED

    def _job_of(self, version: int) -> Job:
        with audit.reading(self.server.store) as db:
            (job_id,) = db.execute("SELECT job_id FROM versions WHERE version = ?", (version,)).fetchone()
        return self.server.client.get_job(job_id)

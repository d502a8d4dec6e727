"""What is compared and what is not: the bound, an engine that fails, a candidate that goes, and when it all begins."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from amnestic_server import shadow as shadow_module
from amnestic_server.call import Answer
from amnestic_server.errors import EngineError
from amnestic_server.metrics import Metrics
from amnestic_server.rollout import Shares
from amnestic_server.shadow import MAX_DOCUMENTS, Shadow
from amnestic_server.snapshot import Snapshot, Snapshots
from amnestic_server.tokenizer import Encoded
from amnestic_unlearn.manifest import ProblemType

MANIFEST = SimpleNamespace(labels=("alpha", "beta"), thresholds=(0.5, 0.5), problem_type=ProblemType.MULTI_LABEL)


class Batcher:
    """Answers that alpha applies and beta doesn't, when it may."""

    def __init__(self):
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.error = None
        self.asked = []

    async def submit_encoded(self, documents, snapshot):
        self.asked.append((len(documents), snapshot.version))
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return [Answer(np.array([1.0, -1.0]), np.zeros(1), document) for document in documents]


def snapshot(version, *forgotten):
    return Snapshot(version, frozenset(forgotten), None, None, torch.zeros(1, 1), torch.zeros(1))


def document(tokens=3):
    return Encoded((np.zeros(tokens, dtype=np.int64),), False)


@pytest.fixture
async def parts():
    snapshots = Snapshots(snapshot(1))
    for version in (2, 3):
        snapshots.add(snapshot(version, "beta"), staged=True)
    snapshots.roll_out(2, Shares(shadow=1.0), 0.0)
    batcher, metrics = Batcher(), Metrics()
    yield SimpleNamespace(
        snapshots=snapshots, batcher=batcher, shadow=Shadow(batcher, snapshots, MANIFEST, metrics), metrics=metrics
    )


def answer(parts, *decisions, pin=None, documents=None):
    """A call is answered; its answer has not left yet."""
    pin = parts.snapshots.pin() if pin is None else pin
    documents = [document() for _ in decisions] if documents is None else documents
    answers = [Answer(np.zeros(2), np.zeros(1), one) for one in documents]
    parts.shadow.answered(pin, answers, decisions)
    return pin


async def settled(parts):
    while parts.shadow._comparing is not None and not parts.shadow._comparing.done():  # noqa: ASYNC110
        await asyncio.sleep(0)
    return parts.shadow.counts(parts.snapshots.rollout)


async def test_nothing_is_asked_before_the_answer_has_left(parts):
    pin = answer(parts, (True, True), (False, False), (True, False))
    await asyncio.sleep(0.01)
    assert parts.batcher.asked == []
    pin.release()
    counts = await settled(parts)
    assert parts.batcher.asked == [(3, 2)]
    assert (counts.documents, counts.differing, counts.active_calls) == (3, {"alpha": 1, "beta": 1}, 1)
    sample = parts.metrics.registry.get_sample_value
    assert sample("amnestic_shadow_decisions_differ_total", {"label": "beta", "forgotten": "true"}) == 1
    assert sample("amnestic_shadow_decisions_differ_total", {"label": "alpha", "forgotten": "false"}) == 1


async def test_calls_that_name_a_version_and_those_of_the_candidate_are_not_compared(parts):
    for version in (1, 2):
        answer(parts, (True, True), pin=parts.snapshots.pin(version)).release()
    parts.snapshots.roll_out(2, Shares(canary=1.0, shadow=1.0), 0.0)
    answer(parts, (True, True)).release()
    counts = await settled(parts)
    assert (counts.documents, counts.active_calls, counts.canary_calls, parts.batcher.asked) == (0, 0, 1, [])


async def test_no_more_wait_than_there_is_room_for(parts):
    parts.batcher.may_answer.clear()
    for _ in range(30):
        answer(parts, *[(True, False)] * 10).release()
        await asyncio.sleep(0)
    parts.batcher.may_answer.set()
    counts = await settled(parts)
    assert (counts.documents, counts.dropped) == (MAX_DOCUMENTS, 300 - MAX_DOCUMENTS)
    answer(parts, (True, False)).release()
    assert (await settled(parts)).documents == MAX_DOCUMENTS + 1


async def test_no_more_tokens_wait_than_there_is_room_for(parts, monkeypatch):
    monkeypatch.setattr(shadow_module, "MAX_TOKENS", 100)
    decisions = [(True, False)] * 4
    answer(parts, *decisions, documents=[document(60), document(60), document(40), document(1)]).release()
    counts = await settled(parts)
    assert (counts.documents, counts.dropped) == (2, 2)


async def test_an_engine_that_fails_costs_the_documents_and_no_more(parts):
    parts.batcher.error = EngineError()
    answer(parts, (True, True)).release()
    assert (await settled(parts)).dropped == 1
    parts.batcher.error = None
    answer(parts, (True, True)).release()
    counts = await settled(parts)
    assert (counts.documents, counts.dropped) == (1, 1)


async def test_what_waits_for_a_candidate_that_is_gone_is_not_asked(parts):
    parts.batcher.may_answer.clear()
    for _ in range(5):
        answer(parts, *[(True, True)] * 20).release()
    await asyncio.sleep(0)
    parts.snapshots.withdraw(2)
    parts.batcher.may_answer.set()
    parts.snapshots.roll_out(3, Shares(shadow=1.0), 0.0)
    answer(parts, (True, True)).release()
    counts = await settled(parts)
    assert (counts.candidate.version, counts.documents) == (3, 1)
    assert [version for _, version in parts.batcher.asked] == [2, 3]


async def test_once_closed_nothing_is_asked_for_calls_still_in_flight(parts):
    pin = answer(parts, (True, False))
    parts.shadow.close()
    pin.release()
    await asyncio.sleep(0.01)
    assert parts.batcher.asked == []

"""A run over many documents against the real server: one that is soon full, and that refuses some of them."""

import asyncio
from typing import Any

import numpy as np
import pytest

from amnestic_client import AsyncClient, InvalidArgument

ROUNDS = 20


@pytest.fixture(scope="module")
def small(serve_for_module):
    """A server that admits no more than 8 documents at once, fewer than one batch of the client."""
    return serve_for_module("--max-concurrent-requests", "8", "--max-document-bytes", "2000")


@pytest.fixture(scope="module")
def documents(texts):
    """Texts that the server answers, and among them what it refuses."""
    short = [text for text in texts if len(text) < 2000]
    return [*short, " \n", "insulin " * 300] * ROUNDS


async def _gather(target: str, documents: list[str]) -> list[Any]:
    async def stream():
        for document in documents:
            yield document

    async with AsyncClient(target) as client:
        return [one async for one in client.predict_many(stream(), on_error="return", concurrency=8)]


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_a_server_that_is_soon_full_answers_all_that_can_be(kind, small, documents, reference) -> None:
    if kind == "sync":
        answers = list(small.client.predict_many(iter(documents), on_error="return", concurrency=8))
    else:
        answers = asyncio.run(_gather(small.target, documents))
    assert [one.index for one in answers] == list(range(len(documents)))
    length = len(documents) // ROUNDS
    for one in answers:
        reason = {length - 2: "is empty", length - 1: "is larger than 2000 bytes"}.get(one.index % length)
        if reason is None:
            assert (one.error, one.version) == (None, 1)
        else:
            assert type(one.error) is InvalidArgument
            assert one.error.detail == f"document {one.index + 1} {reason}"
            assert [violation.field for violation in one.error.field_violations] == [f"documents[{one.index}]"]
    found = [[score.probability for score in one.prediction.scores] for one in answers if one.error is None]
    wanted = reference.probabilities(documents[: length - 2], None)
    np.testing.assert_allclose(found, np.tile(wanted, (ROUNDS, 1)), rtol=0, atol=1e-5)


def test_a_call_that_could_never_be_admitted_is_told_so(small, texts) -> None:
    with pytest.raises(InvalidArgument, match="more than 8 documents"):
        small.client.predict(texts[:1] * 9)


def test_a_full_server_refused_calls_on_the_way(small) -> None:
    """So the test above was one."""
    assert small.metric("amnestic_requests_total", method="Predict", code="RESOURCE_EXHAUSTED")

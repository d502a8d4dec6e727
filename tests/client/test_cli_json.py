"""The shapes of JSON are those that docs/command-line.md promises."""

import dataclasses
import re
from pathlib import Path

import pytest

import amnestic_client

PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
JSON = PAGE.partition("## JSON")[2]


@pytest.mark.parametrize(
    "kind",
    [
        "Status",
        "Load",
        "Job",
        "JobSummary",
        "Progress",
        "Gate",
        "ChangeReport",
        "CallsInSecond",
        "Version",
        "Rollout",
        "DecisionDifference",
        "PredictResult",
        "Prediction",
        "LabelScore",
    ],
)
def test_every_key_is_on_the_page(kind: str) -> None:
    keys = {field.name for field in dataclasses.fields(getattr(amnestic_client, kind))}
    assert keys <= set(re.findall(r"`(\w+)`", JSON))


@pytest.mark.parametrize("kind", [amnestic_client.JobState, amnestic_client.ServerState])
def test_every_state_is_on_the_page(kind: type[amnestic_client.JobState]) -> None:
    for state in kind:
        assert state.value in JSON or state.value == "UNSPECIFIED"

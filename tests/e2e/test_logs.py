"""The log of a real server: a line a call with its figures, in both forms, from the level on that is asked for."""

import json
import re
import signal

import grpc
import pytest
from e2e.harness import METHOD

from amnestic.v1 import prediction_pb2, prediction_pb2_grpc
from amnestic_client import AmnesticError

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
LOGGER = "amnestic_server.calls"
UTC_MILLISECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00")


@pytest.fixture(scope="module")
def server(serve_for_module):
    return serve_for_module("--log-format", "json")


def calls(server):
    lines = [json.loads(line) for line in server.log.splitlines()]
    return [line for line in lines if line["logger"] == LOGGER]


def predict(server):
    with grpc.insecure_channel(server.target) as channel:
        prediction_pb2_grpc.PredictionServiceStub(channel).Predict(
            prediction_pb2.PredictRequest(documents=["ward week", "stroke"]),
            timeout=60,
            metadata=[("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")],
        )


def test_a_signal_shows_a_line_a_call_and_another_hides_them_again(server, until):
    predict(server)
    server.send(signal.SIGUSR1)
    until(lambda: "of level debug" in server.log)
    predict(server)
    job = server.forget("alpha", method=METHOD)
    with pytest.raises(AmnesticError):
        server.client.get_job("nobody's")
    server.send(signal.SIGUSR2)
    until(lambda: "of level info" in server.log)
    predict(server)

    lines = {line["message"]: line for line in calls(server)}
    assert list(lines) == ["Predict OK", "Unlearn OK", "GetJob NOT_FOUND"]
    assert all(UTC_MILLISECONDS.fullmatch(line["time"]) and line["level"] == "debug" for line in lines.values())
    answered = lines["Predict OK"]
    assert (answered["documents"], answered["version"], answered["trace"]) == (2, 1, TRACE)
    stages = [answered[f"{stage}_seconds"] for stage in ("tokenizer", "queue", "engine")]
    assert 0 < sum(stages) < answered["seconds"]
    assert lines["Unlearn OK"]["job"] == job.job_id
    until(lambda: f"job {job.job_id}: " in server.log)
    assert lines["GetJob NOT_FOUND"]["reason"] == "JOB_NOT_FOUND"


def test_at_debug_every_call_has_its_line_and_a_level_beyond_the_last_is_the_last(serve, until):
    server = serve("--log-level", "debug", corpus=None)
    server.send(signal.SIGUSR1)
    until(lambda: "of level debug" in server.log)
    predict(server)
    [line] = [line for line in server.log.splitlines() if f" DEBUG {LOGGER}: Predict OK " in line]
    assert re.search(r" seconds=\S+ documents=2 version=1 tokenizer_seconds=\S+ queue_seconds=", line)
    assert line.endswith(f" trace={TRACE}")

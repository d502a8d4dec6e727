"""`amnestic predict`: what it reads, sends and prints."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from client.commands import Run, fits

from amnestic.v1 import prediction_pb2


def test_predict_prints_a_table(run: Run, server: Any, prediction: Any) -> None:
    server.script("GetModel", prediction_pb2.GetModelResponse(max_documents=128))
    server.script("Predict", prediction)
    result = run("predict", "first note", "second note")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["1", "12", "renal", "0.750", "yes"] in rows
    assert ["endocrine", "0.125", "no", "forgotten"] in rows
    assert ["2", "128,", "cut", "renal", "0.750", "yes"] in rows
    assert "answered by version 3" in result.stdout
    assert "note" not in result.stdout
    assert "\x1b" not in result.stdout
    assert fits(result.stdout)


def test_predict_as_json(run: Run, server: Any, prediction: Any) -> None:
    server.script("Predict", prediction)
    result = run("predict", "text", "--version", "3", "--features", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["version"] == 3
    assert answer["predictions"][0] == {
        "scores": [
            {"label": "renal", "probability": 0.75, "decision": True, "forgotten": False},
            {"label": "endocrine", "probability": 0.125, "decision": False, "forgotten": True},
        ],
        "tokens": 12,
        "truncated": False,
        "features": [0.5, -1.0],
        "windows": 1,
    }
    sent = server.asked("Predict")[0]
    assert (sent.version, sent.include_features) == (3, True)


def test_predict_shows_in_how_many_windows_a_document_was_read(run: Run, server: Any, prediction: Any) -> None:
    prediction.predictions[1].windows = 3
    server.script("GetModel", prediction_pb2.GetModelResponse(max_documents=128))
    server.script("Predict", prediction)
    result = run("predict", "acute renal failure", "on dialysis")
    assert "128 in 3 windows" in result.stdout


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", "first\r\n\n  \nsecond\u2028still second"),
        ("notes.jsonl", '{"text": "first"}\n\n{"text": "second\\u2028still second", "id": 7}\n'),
    ],
)
def test_predict_reads_files(run: Run, server: Any, prediction: Any, tmp_path: Path, name: str, content: str) -> None:
    server.script("GetModel", prediction_pb2.GetModelResponse(max_documents=128))
    server.script("Predict", prediction)
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert run("predict", "--file", str(path)).exit_code == 0
    assert list(server.asked("Predict")[0].documents) == ["first", "second\u2028still second"]


@pytest.mark.parametrize("arguments", [(), ("--file", "-")])
def test_predict_reads_a_pipe(run: Run, server: Any, prediction: Any, arguments: tuple[str, ...]) -> None:
    server.script("GetModel", prediction_pb2.GetModelResponse(max_documents=128))
    server.script("Predict", prediction)
    assert run("predict", *arguments, stdin="first\nsecond\n").exit_code == 0
    assert list(server.asked("Predict")[0].documents) == ["first", "second"]


def test_predict_splits_what_is_too_much_for_one_call(run: Run, server: Any) -> None:
    def echo(request: Any, context: Any) -> prediction_pb2.PredictResponse:
        predictions = [prediction_pb2.Prediction(tokens=int(text)) for text in request.documents]
        return prediction_pb2.PredictResponse(version=5, predictions=predictions)

    server.script("GetModel", prediction_pb2.GetModelResponse(max_documents=2, active_version=5))
    server.script("Predict", echo)
    result = run("predict", "--json", stdin="1\n2\n3\n4\n5\n")
    assert [prediction["tokens"] for prediction in json.loads(result.stdout)["predictions"]] == [1, 2, 3, 4, 5]
    sent = sorted((list(request.documents), request.version) for request in server.asked("Predict"))
    assert sent == [(["1", "2"], 5), (["3", "4"], 5), (["5"], 5)], "the version active at the start is pinned"


def test_predict_counts_documents_from_the_start_of_the_input(run: Run, server: Any) -> None:
    def picky(request: Any, context: Any) -> prediction_pb2.PredictResponse:
        if "3" in request.documents:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "document 1 is too large")
        return prediction_pb2.PredictResponse(version=5, predictions=[prediction_pb2.Prediction()] * 2)

    server.script("GetModel", prediction_pb2.GetModelResponse(max_documents=2))
    server.script("Predict", picky)
    result = run("predict", stdin="1\n2\n3\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: document 3 is too large (INVALID_ARGUMENT)\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "secret"}\n{"text": 3}\n', 'a.jsonl, line 2: no string "text"'),
        ("a.jsonl", b'{"text": "fine"}\n\nsecret {\n', "a.jsonl, line 3: not JSON"),
        ("a.txt", b"fine\nsecret \xff\n", "a.txt, line 2: not UTF-8"),
    ],
)
def test_a_bad_line_is_named_but_not_repeated(
    run: Run, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    result = run("predict", "--file", str(path))
    assert (result.exit_code, result.stderr) == (1, f"Error: {message}\n")
    assert isinstance(result.exception, SystemExit)

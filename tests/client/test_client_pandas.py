"""Tables in and out, over a real connection."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from amnestic.v1 import prediction_pb2
from amnestic_client import Client, InvalidArgument
from amnestic_client.pandas import predict_frame

COLUMNS = ["probability_renal", "probability_endocrine", "decision_renal", "decision_endocrine"]
COLUMNS += ["version", "tokens", "truncated", "windows", "error"]


def answer(request: Any, context: grpc.ServicerContext) -> prediction_pb2.PredictResponse:
    """Scores that tell how long the document is; a blank one fails the call."""
    predictions = []
    for number, text in enumerate(request.documents, 1):
        if not text.strip():
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"document {number} is empty")
        scores = [
            prediction_pb2.LabelScore(label="renal", probability=len(text) / 16, decision=len(text) >= 8),
            prediction_pb2.LabelScore(label="endocrine", probability=0.25, forgotten=True),
        ]
        predictions.append(prediction_pb2.Prediction(scores=scores, tokens=len(text), truncated=len(text) > 12))
    return prediction_pb2.PredictResponse(version=request.version or 9, predictions=predictions)


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    labels = [prediction_pb2.Label(name="renal"), prediction_pb2.Label(name="endocrine", forgotten=True)]
    server.script("GetModel", prediction_pb2.GetModelResponse(labels=labels, active_version=3))
    server.script("Predict", answer)
    with Client(server.target) as client:
        yield client


def expected(index: Any, lengths: list[int | None], errors: list[str | None]) -> pd.DataFrame:
    renal = pd.Series([None if length is None else length / 16 for length in lengths], dtype="float64")
    known = pd.Series([None if length is None else True for length in lengths], dtype="boolean")
    columns = [
        renal,
        renal.where(renal.isna(), 0.25),
        pd.Series([None if length is None else length >= 8 for length in lengths], dtype="boolean"),
        ~known,
        pd.Series([None if length is None else 3 for length in lengths], dtype="Int64"),
        pd.Series(lengths, dtype="Int64"),
        pd.Series([None if length is None else length > 12 for length in lengths], dtype="boolean"),
        pd.Series([None if length is None else 1 for length in lengths], dtype="Int64"),
        pd.Series(errors, dtype="string"),
    ]
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True))).set_axis(index)


def test_a_table_of_texts_becomes_one_of_scores(client: Client) -> None:
    frame = pd.DataFrame({"note": ["a" * length for length in (4, 8, 16)], "age": [1, 2, 3]}, index=[7, 3, 7])
    table = predict_frame(client, frame, "note", batch_size=2)
    assert_frame_equal(table, expected(frame.index, [4, 8, 16], [None] * 3))
    assert list(frame.columns) == ["note", "age"], "the caller's frame is as it was"
    joined = pd.concat([frame, table], axis="columns")
    assert joined.loc[joined["decision_renal"], "age"].tolist() == [2, 3]


@pytest.mark.parametrize("dtype", ["object", "string"])
def test_rows_without_text_are_missing_and_not_sent(client: Client, server: Any, dtype: str) -> None:
    names = pd.Index(["w", "x", "y", "z"], name="stay")
    frame = pd.DataFrame({"text": pd.Series([None, "aaaa", float("nan"), "a" * 8], index=names, dtype=dtype)})
    table = predict_frame(client, frame)
    assert_frame_equal(table, expected(names, [None, 4, None, 8], [None] * 4))
    assert [list(request.documents) for request in server.asked("Predict")] == [["aaaa", "a" * 8]]


def test_a_refused_row_is_named_by_its_place_in_the_frame(client: Client) -> None:
    frame = pd.DataFrame({"text": [None, "aaaa", "  ", 5]}, index=list("wxyz"))
    with pytest.raises(InvalidArgument, match=r"^document 3 is empty$"):
        predict_frame(client, frame)
    table = predict_frame(client, frame, on_error="return")
    errors = [None, None, "document 3 is empty", "document 4 is not a string"]
    assert_frame_equal(table, expected(frame.index, [None, 4, None, None], errors))


@pytest.mark.parametrize("texts", [[], [None, None]])
def test_a_table_without_texts_keeps_its_columns(client: Client, server: Any, texts: list[None]) -> None:
    table = predict_frame(client, pd.DataFrame({"text": pd.Series(texts, dtype="string")}))
    assert_frame_equal(table, expected(pd.RangeIndex(len(texts)), texts, texts))
    assert server.asked("Predict") == []


def test_all_rows_are_of_one_version_unless_told(client: Client) -> None:
    frame = pd.DataFrame({"text": ["a", "b"]})
    assert predict_frame(client, frame)["version"].tolist() == [3, 3]
    assert predict_frame(client, frame, version=2)["version"].tolist() == [2, 2]
    assert predict_frame(client, frame, pin=False)["version"].tolist() == [9, 9]


def test_the_extra_is_named_where_pandas_is_missing() -> None:
    code = "import sys; sys.modules['pandas'] = None; import amnestic_client.pandas"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert failed.stderr.splitlines()[-1] == (
        "ImportError: amnestic_client.pandas needs pandas: install amnestic[pandas]"
    )

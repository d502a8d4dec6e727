"""Predictions as tables. Needs the extra `amnestic[pandas]`; nothing else of the client imports pandas."""

try:
    import pandas as pd
except ImportError as error:
    raise ImportError("amnestic_client.pandas needs pandas: install amnestic[pandas]") from error

from amnestic_client import many, settings
from amnestic_client.client import Client
from amnestic_client.types import Answer


def predict_frame(
    client: Client,
    frame: pd.DataFrame,
    column: str = "text",
    *,
    version: int | None = None,
    pin: bool = True,
    on_error: many.OnError = "raise",
    batch_size: int | None = None,
    concurrency: int = settings.CONCURRENCY,
    timeout: float | None = None,
) -> pd.DataFrame:
    """Classify the texts of a column; one row a row of the frame, under the frame's index.

    Columns: `probability_LABEL` (float) and `decision_LABEL` (boolean) for each label of the model, in its order, then
    `version`, `tokens`, `truncated`, `windows` and `error`. All rows are of one version, unless `pin` is false.

    A row without a text (None, NaN, NA) is not sent: all its columns are missing. With `on_error="return"` so are
    those of a row that was refused, and `error` says why; "raise" raises the first such error, which names the
    document by its position in the frame, from 1. The other arguments are those of `Client.predict_many`.
    """
    labels = [label.name for label in client.get_model().labels]
    present = frame[column].notna().to_numpy().nonzero()[0]
    answers: list[Answer | None] = [None] * len(frame)
    for answer in client.predict_many(
        frame[column].iloc[present],
        version=version,
        pin=pin,
        on_error="return",
        batch_size=batch_size,
        concurrency=concurrency,
        timeout=timeout,
    ):
        position = int(present[answer.index])
        if answer.error is not None:
            error = many.numbered(answer.error, position + 1)
            if on_error == "raise":
                raise error
            answer = Answer(position, None, error)
        answers[position] = answer
    return _table(answers, labels, frame.index)


def _table(answers: list[Answer | None], labels: list[str], index: pd.Index) -> pd.DataFrame:
    """One row an answer; None for a row that was not sent."""
    given = [None if answer is None or answer.error else answer for answer in answers]
    predictions = [answer and answer.prediction for answer in given]
    scores = [prediction and {score.label: score for score in prediction.scores} for prediction in predictions]
    errors = [answer.error.detail if answer and answer.error else None for answer in answers]
    columns = {
        f"probability_{label}": pd.Series([one and one[label].probability for one in scores], dtype="float64")
        for label in labels
    }
    columns |= {
        f"decision_{label}": pd.Series([one and one[label].decision for one in scores], dtype="boolean")
        for label in labels
    }
    columns |= {
        "version": pd.Series([answer and answer.version for answer in given], dtype="Int64"),
        "tokens": pd.Series([one and one.tokens for one in predictions], dtype="Int64"),
        "truncated": pd.Series([one and one.truncated for one in predictions], dtype="boolean"),
        "windows": pd.Series([one and one.windows for one in predictions], dtype="Int64"),
        "error": pd.Series(errors, dtype="string"),
    }
    return pd.DataFrame(columns).set_axis(index)

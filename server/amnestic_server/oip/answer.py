"""Scores to the ModelInfer response that was asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from amnestic.oip import open_inference_pb2 as oip
from amnestic_server.oip.request import Asked, Wanted
from amnestic_server.oip.tensors import DTYPES, TYPED_FIELDS, Tensor
from amnestic_server.prediction import DocumentScores
from amnestic_unlearn.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Output:
    """An output of every model: `width` elements a document, which `values` takes from its scores.

    `unasked`: sent to a request that names no output.
    """

    datatype: str
    width: Callable[[Manifest], int]
    values: Callable[[DocumentScores, Manifest], Any]
    unasked: bool = False


def _labels(manifest: Manifest) -> int:
    return len(manifest.labels)


def _one(manifest: Manifest) -> int:
    return 1


# By name, in the order in which the model lists them. One more thing to tell of a document is one more line.
OUTPUTS = {
    "probabilities": Output("FP32", _labels, lambda scores, _: scores.probabilities, unasked=True),
    "decisions": Output("BOOL", _labels, lambda scores, _: scores.decisions, unasked=True),
    # The same for every document: who splits a batch has the names with each part, and the batch's dimension holds.
    "labels": Output("BYTES", _labels, lambda _, manifest: [label.encode() for label in manifest.labels], unasked=True),
    "features": Output("FP32", lambda manifest: manifest.feature_size, lambda scores, _: scores.features),
    "tokens": Output("INT32", _one, lambda scores, _: scores.tokens),
    "truncated": Output("BOOL", _one, lambda scores, _: scores.truncated),
    "windows": Output("INT32", _one, lambda scores, _: scores.windows),
}
UNASKED = tuple(Wanted(name) for name, output in OUTPUTS.items() if output.unasked)


def answer(
    request: oip.ModelInferRequest, asked: Asked, scores: Sequence[DocumentScores], version: int, manifest: Manifest
) -> oip.ModelInferResponse:
    """The response in the form of the request, with the outputs in the order in which they were asked for."""
    tensors = [_tensor(wanted, scores, manifest) for wanted in asked.outputs or UNASKED]
    return oip.ModelInferResponse(
        model_name=manifest.name,
        model_version=str(version),
        id=request.id,
        parameters={
            "version": oip.InferParameter(int64_param=version),
            "truncated": oip.InferParameter(bool_param=any(score.truncated for score in scores)),
        },
        outputs=[_output(tensor, None if asked.raw else _contents(tensor)) for tensor in tensors],
        raw_output_contents=[tensor.raw for tensor in tensors] if asked.raw else (),
    )


def _tensor(wanted: Wanted, scores: Sequence[DocumentScores], manifest: Manifest) -> Tensor:
    if wanted.classes:
        return _classification(wanted, scores, manifest)
    output = OUTPUTS[wanted.name]
    shape = len(scores), output.width(manifest)
    rows = [output.values(score, manifest) for score in scores]
    if output.datatype == "BYTES":
        return Tensor(wanted.name, output.datatype, shape, [element for row in rows for element in row])
    return Tensor(wanted.name, output.datatype, shape, np.array(rows, DTYPES[output.datatype]).reshape(shape))


def _classification(wanted: Wanted, scores: Sequence[DocumentScores], manifest: Manifest) -> Tensor:
    """A document's likeliest labels as Triton writes them, `value:index:label`, the likeliest first."""
    probabilities = np.array([score.probabilities for score in scores], DTYPES["FP32"])
    order = np.argsort(np.negative(probabilities), axis=1, kind="stable")[:, : wanted.classes]
    elements = [
        f"{row[index]:f}:{index}:{manifest.labels[index]}".encode()
        for row, indices in zip(probabilities, order, strict=True)
        for index in indices
    ]
    return Tensor(wanted.name, "BYTES", order.shape, elements)


def _output(tensor: Tensor, contents: oip.InferTensorContents | None) -> oip.ModelInferResponse.InferOutputTensor:
    return oip.ModelInferResponse.InferOutputTensor(
        name=tensor.name, datatype=tensor.datatype, shape=tensor.shape, contents=contents
    )


def _contents(tensor: Tensor) -> oip.InferTensorContents:
    contents = oip.InferTensorContents()
    getattr(contents, TYPED_FIELDS[tensor.datatype]).extend(tensor.typed)
    return contents

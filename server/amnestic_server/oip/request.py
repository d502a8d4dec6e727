"""A ModelInfer request read and checked: what is asked for, or an InvalidArgumentError that names the field at fault.

Nothing of what was sent is repeated in an error: a wrong name or shape may be a document that went astray.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from amnestic.oip import open_inference_pb2 as oip
from amnestic_server.errors import InvalidArgumentError
from amnestic_server.oip.tensors import TYPED_FIELDS, TensorError, decode_texts, split_bytes
from amnestic_server.rollout import check_routing_key

INPUT = "text"
SHARED_MEMORY = "shared_memory_"
# More digits than a version can have, and few enough that reading them costs nothing.
MAX_VERSION_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output asked for; `classes` above 0 asks for that many of its likeliest labels instead of the tensor."""

    name: str
    classes: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for. `outputs` is empty if it names none; `seconds` None without a timeout.

    `raw` is the form that it came in, and that its answer takes.
    """

    texts: list[str]
    outputs: tuple[Wanted, ...]
    raw: bool
    seconds: float | None


def version_number(version: str, field: str) -> int:
    """The version that a request names, 0 if it names none; raises InvalidArgumentError."""
    if not version:
        return 0
    number = int(version) if version.isascii() and version.isdigit() and len(version) <= MAX_VERSION_DIGITS else 0
    if not number:
        raise InvalidArgumentError("the version must be a number above 0, or empty for the active one", field=field)
    return number


def routing_key(parameters: Mapping[str, oip.InferParameter]) -> str:
    """The key by which a rollout sends the request to a version, empty if it has none; raises InvalidArgumentError."""
    if "routing_key" not in parameters:
        return ""
    parameter, field = parameters["routing_key"], "parameters[routing_key]"
    if parameter.WhichOneof("parameter_choice") != "string_param":
        raise InvalidArgumentError("routing_key must be a string", field=field)
    return check_routing_key(parameter.string_param, field)


def read(request: oip.ModelInferRequest, max_documents: int, outputs: Collection[str]) -> Asked:
    """Read a request to a model with these outputs; raises InvalidArgumentError."""
    return Asked(
        texts=_texts(request, max_documents),
        outputs=_outputs(request.outputs, outputs),
        raw=bool(request.raw_input_contents),
        seconds=_timeout(request.parameters),
    )


def _texts(request: oip.ModelInferRequest, max_documents: int) -> list[str]:
    index = _input_index(request.inputs)
    tensor = request.inputs[index]
    field = f"inputs[{index}]"
    if tensor.datatype != "BYTES":
        raise InvalidArgumentError(f"input {INPUT} must be of datatype BYTES", field=f"{field}.datatype")
    _refuse_shared_memory(tensor.parameters, f"{field}.parameters")
    documents = _batch_size(tensor.shape, max_documents, f"{field}.shape")
    try:
        if request.raw_input_contents:
            field = f"raw_input_contents[{index}]"
            return decode_texts(split_bytes(_raw(request, index), documents))
        field = f"{field}.contents"
        return decode_texts(_typed(tensor, documents, field))
    except TensorError as error:
        raise InvalidArgumentError(f"input {INPUT}: {error}", field=field) from None


def _input_index(inputs: Sequence[oip.ModelInferRequest.InferInputTensor]) -> int:
    """Where the one input is, checking that there is no other."""
    found = [index for index, tensor in enumerate(inputs) if tensor.name == INPUT]
    for index, tensor in enumerate(inputs):
        if tensor.name != INPUT:
            raise InvalidArgumentError(
                f"input {index + 1} is not one of the model's, which is {INPUT}", field=f"inputs[{index}].name"
            )
    if not found:
        raise InvalidArgumentError(f"input {INPUT} is missing", field="inputs")
    if len(found) > 1:
        raise InvalidArgumentError(f"input {INPUT} is there twice", field=f"inputs[{found[1]}].name")
    return found[0]


def _batch_size(shape: Sequence[int], max_documents: int, field: str) -> int:
    """The documents of a shape [n] or [n, 1]. Bounded before anything is decoded by it."""
    if len(shape) not in (1, 2) or shape[0] < 0 or shape[1:] not in ([], [1]):
        raise InvalidArgumentError(f"input {INPUT} must be of shape [n] or [n, 1]", field=field)
    if shape[0] > max_documents:
        raise InvalidArgumentError(f"the call has more than {max_documents} documents", field=field)
    return shape[0]


def _raw(request: oip.ModelInferRequest, index: int) -> bytes:
    if request.inputs[index].HasField("contents"):
        raise InvalidArgumentError(
            f"input {INPUT} has both typed and raw contents: send one", field=f"inputs[{index}].contents"
        )
    if len(request.raw_input_contents) != len(request.inputs):
        raise InvalidArgumentError("there must be one raw content an input", field="raw_input_contents")
    return request.raw_input_contents[index]


def _typed(tensor: oip.ModelInferRequest.InferInputTensor, documents: int, field: str) -> Sequence[bytes]:
    expected = TYPED_FIELDS["BYTES"]
    if any(given.name != expected for given, _ in tensor.contents.ListFields()):
        raise InvalidArgumentError(f"input {INPUT} is of datatype BYTES: send it in {expected}", field=field)
    elements = tensor.contents.bytes_contents
    if len(elements) != documents:
        raise TensorError(f"there are {len(elements)} elements, where its shape says {documents}")
    return elements


def _outputs(
    requested: Sequence[oip.ModelInferRequest.InferRequestedOutputTensor], known: Collection[str]
) -> tuple[Wanted, ...]:
    wanted: dict[str, Wanted] = {}
    for index, output in enumerate(requested):
        field = f"outputs[{index}]"
        if output.name not in known:
            raise InvalidArgumentError(
                f"output {index + 1} is not one of the model's, which are {', '.join(known)}", field=f"{field}.name"
            )
        if output.name in wanted:
            raise InvalidArgumentError(f"output {output.name} is asked for twice", field=f"{field}.name")
        _refuse_shared_memory(output.parameters, f"{field}.parameters")
        wanted[output.name] = Wanted(output.name, _classes(output, f"{field}.parameters[classification]"))
    return tuple(wanted.values())


def _classes(output: oip.ModelInferRequest.InferRequestedOutputTensor, field: str) -> int:
    classes = _integer(output.parameters, "classification", field)
    if classes and output.name != "probabilities":
        raise InvalidArgumentError("only the output probabilities can be asked for as classification", field=field)
    return classes


def _timeout(parameters: Mapping[str, oip.InferParameter]) -> float | None:
    """In seconds; the parameter is in microseconds, and 0 sets none."""
    return _integer(parameters, "timeout", "parameters[timeout]") / 1e6 or None


def _integer(parameters: Mapping[str, oip.InferParameter], name: str, field: str) -> int:
    """A parameter that is a whole number, 0 if it is absent. `in` comes first: a map makes what is looked up."""
    if name not in parameters:
        return 0
    kind = parameters[name].WhichOneof("parameter_choice")
    value = getattr(parameters[name], kind) if kind in ("int64_param", "uint64_param") else -1
    if value < 0:
        raise InvalidArgumentError(f"{name} must be a whole number of at least 0", field=field)
    return int(value)


def _refuse_shared_memory(parameters: Mapping[str, oip.InferParameter], field: str) -> None:
    """Any other parameter may be ignored; this one says that the tensor is elsewhere."""
    if any(name.startswith(SHARED_MEMORY) for name in parameters):
        raise InvalidArgumentError("shared memory is not supported: send tensors in the message", field=field)

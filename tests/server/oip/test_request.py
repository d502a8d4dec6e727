"""Reading a ModelInfer request: what is asked for, and that whatever is sent is read or refused, never repeated."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amnestic.oip import open_inference_pb2 as oip
from amnestic_server.errors import InvalidArgumentError
from amnestic_server.oip.answer import OUTPUTS
from amnestic_server.oip.request import Wanted, read, routing_key, version_number
from amnestic_server.oip.tensors import join_bytes

MAX_DOCUMENTS = 8
SECRET = "Xylqvornik"
Input = oip.ModelInferRequest.InferInputTensor
Requested = oip.ModelInferRequest.InferRequestedOutputTensor


def asked(request):
    return read(request, MAX_DOCUMENTS, OUTPUTS)


def typed(*texts, **fields):
    contents = oip.InferTensorContents(bytes_contents=[text.encode() for text in texts])
    return Input(**{"name": "text", "datatype": "BYTES", "shape": [len(texts)], "contents": contents} | fields)


def parameter(value):
    kind = {int: "int64_param", str: "string_param", bool: "bool_param", float: "double_param"}[type(value)]
    return oip.InferParameter(**{kind: value})


@pytest.mark.parametrize("shape", [[2], [2, 1]])
@pytest.mark.parametrize("raw", [True, False])
def test_both_forms_and_both_shapes(shape, raw):
    tensor = typed("one", "zwölf", shape=shape)
    contents = []
    if raw:
        contents = [join_bytes(tensor.contents.bytes_contents)]
        tensor.ClearField("contents")
    found = asked(oip.ModelInferRequest(inputs=[tensor], raw_input_contents=contents))
    assert (found.texts, found.raw, found.outputs, found.seconds) == (["one", "zwölf"], raw, (), None)


def test_outputs_keep_their_order_and_classification_is_of_probabilities():
    outputs = [
        Requested(name="truncated"),
        Requested(name="probabilities", parameters={"classification": parameter(3)}),
        Requested(name="labels", parameters={"classification": parameter(0), "binary_data": parameter(True)}),
    ]
    found = asked(oip.ModelInferRequest(inputs=[typed("one")], outputs=outputs))
    assert found.outputs == (Wanted("truncated"), Wanted("probabilities", 3), Wanted("labels"))


def test_a_routing_key_is_a_string_of_bounded_length():
    assert routing_key({}) == ""
    assert routing_key({"routing_key": parameter("patient 17")}) == "patient 17"
    for value in (17, True, 0.5, SECRET * 30):
        with pytest.raises(InvalidArgumentError) as caught:
            routing_key({"routing_key": parameter(value)})
        assert caught.value.field == "parameters[routing_key]"
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("microseconds", "seconds"), [(0, None), (1, 1e-6), (2_500_000, 2.5)])
def test_a_timeout_is_in_microseconds(microseconds, seconds):
    request = oip.ModelInferRequest(inputs=[typed("one")], parameters={"timeout": parameter(microseconds)})
    assert asked(request).seconds == seconds
    unsigned = {"timeout": oip.InferParameter(uint64_param=microseconds)}
    assert asked(oip.ModelInferRequest(inputs=[typed("one")], parameters=unsigned)).seconds == seconds


def test_parameters_that_change_nothing_are_ignored():
    parameters = {name: parameter(value) for name, value in {"priority": 3, "sequence_id": "a", "x": 0.5}.items()}
    tensor = typed("one", parameters={"content_type": parameter("str")})
    assert asked(oip.ModelInferRequest(inputs=[tensor], parameters=parameters)).texts == ["one"]


RAW_ONE = join_bytes([b"one"])
BARE = {"contents": None}
BAD = {
    "no input": ({}, "input text is missing", "inputs"),
    "another input": ({"inputs": [typed("one", name=SECRET)]}, "input 1 is not one of the model's", "inputs[0].name"),
    "one input too many": ({"inputs": [typed("one"), typed("one", name=SECRET)]}, "input 2 is not", "inputs[1].name"),
    "twice": ({"inputs": [typed("one"), typed("one")]}, "input text is there twice", "inputs[1].name"),
    "datatype": ({"inputs": [typed("one", datatype="FP32")]}, "must be of datatype BYTES", "inputs[0].datatype"),
    "unknown datatype": ({"inputs": [typed("one", datatype=SECRET)]}, "of datatype BYTES", "inputs[0].datatype"),
    "no shape": ({"inputs": [typed("one", shape=[])]}, "must be of shape [n] or [n, 1]", "inputs[0].shape"),
    "wide": ({"inputs": [typed("one", shape=[1, 2])]}, "must be of shape", "inputs[0].shape"),
    "deep": ({"inputs": [typed("one", shape=[1, 1, 1])]}, "must be of shape", "inputs[0].shape"),
    "negative": ({"inputs": [typed("one", shape=[-1])]}, "must be of shape", "inputs[0].shape"),
    "negative twice": ({"inputs": [typed("one", shape=[-1, -1])]}, "must be of shape", "inputs[0].shape"),
    "overflow": ({"inputs": [typed("one", shape=[2**62, 4])]}, "must be of shape", "inputs[0].shape"),
    "huge": ({"inputs": [typed("one", shape=[2**63 - 1])]}, "more than 8 documents", "inputs[0].shape"),
    "too many": ({"inputs": [typed(*["one"] * 9)]}, "more than 8 documents", "inputs[0].shape"),
    "too few elements": ({"inputs": [typed("one", shape=[2])]}, "there are 1 elements", "inputs[0].contents"),
    "no contents": ({"inputs": [typed("one", **BARE)]}, "there are 0 elements", "inputs[0].contents"),
    "other contents": (
        {"inputs": [typed("one", contents=oip.InferTensorContents(fp32_contents=[1.0]))]},
        "send it in bytes_contents",
        "inputs[0].contents",
    ),
    "not UTF-8": (
        {"inputs": [typed("one", "two", contents=oip.InferTensorContents(bytes_contents=[b"a", b"\xff"]), shape=[2])]},
        "input text: element 2 is not UTF-8",
        "inputs[0].contents",
    ),
    "raw and typed": ({"inputs": [typed("one")], "raw_input_contents": [RAW_ONE]}, "send one", "inputs[0].contents"),
    "raw without an input": (
        {"inputs": [typed("one", **BARE)], "raw_input_contents": [RAW_ONE, RAW_ONE]},
        "one raw content an input",
        "raw_input_contents",
    ),
    "raw cut": (
        {"inputs": [typed("one", **BARE)], "raw_input_contents": [RAW_ONE[:-1]]},
        "input text: element 1 runs past the end",
        "raw_input_contents[0]",
    ),
    "raw with more": (
        {"inputs": [typed("one", **BARE)], "raw_input_contents": [RAW_ONE + SECRET.encode()]},
        "there are bytes behind element 1",
        "raw_input_contents[0]",
    ),
    "raw not UTF-8": (
        {"inputs": [typed("one", **BARE)], "raw_input_contents": [join_bytes([SECRET.encode() + b"\xc3"])]},
        "input text: element 1 is not UTF-8",
        "raw_input_contents[0]",
    ),
    "unknown output": (
        {"inputs": [typed("one")], "outputs": [Requested(name="labels"), Requested(name=SECRET)]},
        "output 2 is not one of the model's, which are probabilities, decisions",
        "outputs[1].name",
    ),
    "output twice": (
        {"inputs": [typed("one")], "outputs": [Requested(name="labels")] * 2},
        "output labels is asked for twice",
        "outputs[1].name",
    ),
    "classification of features": (
        {
            "inputs": [typed("one")],
            "outputs": [Requested(name="features", parameters={"classification": parameter(2)})],
        },
        "only the output probabilities",
        "outputs[0].parameters[classification]",
    ),
    "negative classification": (
        {
            "inputs": [typed("one")],
            "outputs": [Requested(name="probabilities", parameters={"classification": parameter(-1)})],
        },
        "classification must be a whole number",
        "outputs[0].parameters[classification]",
    ),
    "negative timeout": (
        {"inputs": [typed("one")], "parameters": {"timeout": parameter(-5)}},
        "timeout must be a whole number of at least 0",
        "parameters[timeout]",
    ),
    "timeout in words": (
        {"inputs": [typed("one")], "parameters": {"timeout": parameter(SECRET)}},
        "timeout must be a whole number",
        "parameters[timeout]",
    ),
    "shared memory in": (
        {"inputs": [typed("one", parameters={"shared_memory_region": parameter(SECRET)})]},
        "shared memory is not supported",
        "inputs[0].parameters",
    ),
    "shared memory out": (
        {
            "inputs": [typed("one")],
            "outputs": [Requested(name="labels", parameters={"shared_memory_region": parameter(SECRET)})],
        },
        "shared memory is not supported",
        "outputs[0].parameters",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(name):
    fields, text, field = BAD[name]
    with pytest.raises(InvalidArgumentError) as refusal:
        asked(oip.ModelInferRequest(**fields))
    assert text in str(refusal.value)
    assert refusal.value.field == field
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize("version", ["0", "-1", "1.0", " 1", "latest", "\u0661", "\u00b2", "9" * 5000, SECRET])
def test_bad_versions(version):
    with pytest.raises(InvalidArgumentError) as refusal:
        version_number(version, "model_version")
    assert refusal.value.field == "model_version"
    assert version not in str(refusal.value) or version == "0"


def test_versions():
    assert [version_number(version, "") for version in ("", "1", "007", "9" * 18)] == [0, 1, 7, int("9" * 18)]


def mostly(usual, *others):
    """The usual in about four of five draws, so that a request gets past its first check."""
    return st.integers(0, 4).flatmap(lambda draw: usual if draw else st.one_of(*others))


names = mostly(st.just("text"), st.sampled_from(["probabilities", SECRET, ""]))
parameters = mostly(
    st.just({}),
    st.dictionaries(
        st.sampled_from(["timeout", "classification", "shared_memory_region", "x"]),
        st.sampled_from([1, -1, 2**62, SECRET, True, 0.5]).map(parameter) | st.just(oip.InferParameter()),
        max_size=2,
    ),
)
outputs = st.builds(Requested, name=mostly(st.sampled_from(sorted(OUTPUTS)), st.just(SECRET)), parameters=parameters)
elements = st.just(SECRET.encode()) | st.binary(max_size=6)


@st.composite
def requests(draw):
    """Near enough to a good request that any one thing may be wrong with it, or several."""
    texts = draw(st.lists(elements, max_size=3))
    shape = draw(
        mostly(st.sampled_from([[len(texts)], [len(texts), 1]]), st.lists(st.sampled_from([0, 1, 9, -1, 2**62])))
    )
    raw = draw(mostly(st.just(join_bytes(texts)), st.binary(max_size=12), st.just(join_bytes(texts)[:-1])))
    contents = draw(
        mostly(
            st.just(oip.InferTensorContents(bytes_contents=texts)),
            st.just(oip.InferTensorContents(fp32_contents=[1.0])),
        )
    )
    both = st.just((True, True)) | st.just((False, False))
    has_raw, has_contents = draw(mostly(st.sampled_from([(True, False), (False, True)]), both))
    tensor = Input(
        name=draw(names),
        datatype=draw(mostly(st.just("BYTES"), st.sampled_from(["FP32", ""]))),
        shape=shape,
        parameters=draw(parameters),
        contents=contents if has_contents else None,
    )
    return oip.ModelInferRequest(
        parameters=draw(parameters),
        inputs=draw(mostly(st.just([tensor]), st.sampled_from([[], [tensor, tensor]]))),
        outputs=draw(st.lists(outputs, max_size=2)),
        raw_input_contents=[raw] if has_raw else [],
    )


@settings(max_examples=500, deadline=None)
@given(requests())
def test_whatever_is_sent_is_read_or_refused(request):
    try:
        found = asked(request)
    except InvalidArgumentError as error:
        assert str(error) and error.field and SECRET not in str(error) + error.field
        return
    assert len(found.texts) == request.inputs[0].shape[0] <= MAX_DOCUMENTS
    sent = request.raw_input_contents[0] if found.raw else join_bytes(request.inputs[0].contents.bytes_contents)
    assert join_bytes(text.encode() for text in found.texts) == sent

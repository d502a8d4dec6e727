"""Whether an ONNX file stands alone, told from its bytes without loading it.

A tensor of an ONNX graph may lie in another file, which no digest of the graph covers, and which ONNX Runtime would
open wherever the graph says. The fields that are followed here are those of onnx.proto3 that lead to a tensor; all
others are skipped unread, so that a graph of any size costs a few milliseconds.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

# By message: its fields that hold, or lead to, tensors, and the message of each.
FIELDS = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
# Of a TensorProto: where its data lies, whether it says so in full or not.
EXTERNAL_DATA, DATA_LOCATION = 13, 14
DEEPEST = 64

# A field's number, and the value of a varint or the bounds of what has a length.
Field = tuple[int, int, tuple[int, int] | None]


def stands_alone(path: Path) -> bool:
    """True if every tensor of an ONNX file is in the file itself.

    Raises OSError if it can't be read, and ValueError if it is not a protocol buffer.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _stands_alone(data, 0, len(data), "ModelProto", 0)


def _stands_alone(data: mmap.mmap, start: int, end: int, message: str, depth: int) -> bool:
    if depth > DEEPEST:
        raise ValueError("nested too deeply")
    for number, value, bounds in _fields(data, start, end):
        if message == "TensorProto" and (number == EXTERNAL_DATA or (number == DATA_LOCATION and value)):
            return False
        inner = FIELDS[message].get(number)
        if inner and bounds and not _stands_alone(data, *bounds, inner, depth + 1):
            return False
    return True


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[Field]:
    """The fields of the message that lies in these bounds."""
    while start < end:
        key, start = _varint(data, start, end)
        value, bounds = 0, None
        match key & 7:
            case 0:  # a varint
                value, start = _varint(data, start, end)
            case 1:  # 64 bits
                start += 8
            case 2:  # what tells its length: a message, a string, packed numbers
                length, start = _varint(data, start, end)
                bounds = (start, start + length)
                start += length
            case 5:  # 32 bits
                start += 4
            case _:
                raise ValueError("an unknown type of field")
        if start > end:
            raise ValueError("a field beyond its message")
        yield key >> 3, value, bounds


def _varint(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    """The number that begins here, and where it ends."""
    value = 0
    for position in range(start, min(start + 10, end)):
        byte = data[position]
        value |= (byte & 0x7F) << (7 * (position - start))
        if byte < 0x80:
            return value, position + 1
    raise ValueError("a number without end")

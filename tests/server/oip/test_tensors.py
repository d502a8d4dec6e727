"""Tensors in the raw form: what is written reads back, and no bytes do anything but read or be refused."""

import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from amnestic_server.oip.tensors import Tensor, TensorError, decode_texts, join_bytes, split_bytes


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_bytes_read_back_as_they_were_written(elements):
    assert split_bytes(join_bytes(elements), len(elements)) == elements


def test_an_element_is_its_length_little_endian_and_its_bytes():
    assert join_bytes([b"ab", b""]) == b"\x02\x00\x00\x00ab\x00\x00\x00\x00"


@settings(max_examples=400)
@given(st.binary(max_size=60), st.integers(0, 2**63))
@example(b"", 0)
@example(b"", 2**63)
@example(b"\xff\xff\xff\xff", 1)
@example(b"\x00\x00\x00", 1)
@example(b"\x00" * 4, 2**63)
@example(b"\x01\x00\x00\x00ab", 1)
def test_any_bytes_are_read_whole_or_refused(raw, count):
    try:
        elements = split_bytes(raw, count)
    except TensorError:
        return
    assert len(elements) == count
    assert join_bytes(elements) == raw


@pytest.mark.parametrize(
    ("raw", "count", "text"),
    [
        (b"\x02\x00\x00\x00a", 1, "element 1 runs past the end"),
        (b"\x01\x00\x00\x00a\x09", 2, "element 2 runs past the end"),
        (b"\x01\x00\x00\x00ab", 1, "there are bytes behind element 1"),
        (b"x", 0, "there are bytes behind element 0"),
    ],
)
def test_what_is_wrong_with_bytes_is_told_by_position(raw, count, text):
    with pytest.raises(TensorError, match=text):
        split_bytes(raw, count)


@given(st.lists(st.binary(max_size=8), max_size=8))
def test_texts_are_utf_8_or_refused(elements):
    try:
        texts = decode_texts(elements)
    except TensorError as error:
        number = int(str(error).split()[1])
        with pytest.raises(UnicodeDecodeError):
            elements[number - 1].decode()
        return
    assert [text.encode() for text in texts] == elements


@pytest.mark.parametrize(
    ("datatype", "elements", "raw"),
    [
        ("FP32", np.array([[0.5, -1.25]], "<f4"), struct.pack("<ff", 0.5, -1.25)),
        ("INT32", np.array([[7], [-2]], "<i4"), struct.pack("<ii", 7, -2)),
        ("BOOL", np.array([[True, False]]), b"\x01\x00"),
        ("BYTES", [b"a", b"bc"], b"\x01\x00\x00\x00a\x02\x00\x00\x00bc"),
    ],
)
def test_both_forms_of_each_datatype(datatype, elements, raw):
    tensor = Tensor("t", datatype, np.shape(elements), elements)
    assert tensor.raw == raw
    assert list(tensor.typed) == list(np.asarray(elements).reshape(-1).tolist())

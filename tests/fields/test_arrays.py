from __future__ import annotations

import io
import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardio.errors import CodecError
from shardio.fields.arrays import decode_cls, decode_npy
from shardio.fields.text import decode_json, decode_txt

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def saved(array: NDArray[Any], *, pickled: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=pickled)
    return stream.getvalue()


def npy(header: str | bytes, data: bytes = b"", *, version: int = 1) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes((version, 0)) + length + text + data


@pytest.mark.parametrize(
    ("data", "number"),
    [(b"0", 0), (b" 12\n", 12), (b"-1", -1), (b"007", 7), (b"9223372036854775807", 2**63 - 1)],
)
def test_class_numbers_are_decimal_integers(data: bytes, number: int) -> None:
    assert decode_cls(data) == number
    assert decode_cls(memoryview(data)) == number
    assert decode_cls(bytearray(data)) == number


@pytest.mark.parametrize(
    "data",
    [
        *[b"", b" ", b"cat", b"1.0", b"1 2", b"1_0", b"0x1", b"+1", b"--1", b"1" * 5000],
        b"9223372036854775808",
        "١".encode(),  # noqa: RUF001  a digit, but no ASCII
    ],
)
def test_anything_else_is_no_class_number(data: bytes) -> None:
    with pytest.raises(CodecError, match="not a 64-bit decimal integer: b'"):
        decode_cls(data)


def test_text_is_utf8_and_kept_as_it_is() -> None:
    assert decode_txt(" naïve\r\n".encode()) == " naïve\r\n"
    assert decode_txt(memoryview(b"abc")) == "abc"
    with pytest.raises(CodecError, match="not UTF-8 text: invalid start byte at byte 2 of 4"):
        decode_txt(b"ab\xffc")


def test_json_is_decoded() -> None:
    assert decode_json(memoryview(b'{"a": [1, null, "\xc3\xa9"]}')) == {"a": [1, None, "é"]}


@pytest.mark.parametrize("data", [b"", b"{", b"{'a': 1}", b"\xff", b"[" * 100_000, b"1" * 10_000])
def test_what_is_no_json_raises(data: bytes) -> None:
    with pytest.raises(CodecError, match=r"not JSON|not UTF-8|nested more than"):
        decode_json(data)


ARRAYS: dict[str, NDArray[Any]] = {
    "vector": np.arange(5),
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "column order": np.asfortranarray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)),
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 3), np.uint8),
    "big-endian": np.arange(4, dtype=">i4"),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "text": np.array(["a", "bcd"]),
    "dates": np.array(["2020-01-01"], dtype="M8[D]"),
    "records": np.array([(1, 2.0)], dtype=[("a", "<i4"), ("é", "<f8")]),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_arrays_come_back_as_they_were_saved(name: str) -> None:
    array = ARRAYS[name]
    for data in (saved(array), memoryview(saved(array)), bytearray(saved(array))):
        decoded = decode_npy(data)
        np.testing.assert_array_equal(decoded, array)
        assert decoded.shape == array.shape
        assert decoded.dtype == array.dtype.newbyteorder("=")
        assert decoded.dtype.isnative
        assert decoded.flags.writeable
        assert decoded.flags.f_contiguous == array.flags.f_contiguous


def test_arrays_share_memory_with_writable_data_only() -> None:
    data = bytearray(saved(np.arange(5)))
    assert np.shares_memory(decode_npy(data), np.frombuffer(data, np.uint8))
    fixed = bytes(data)
    assert not np.shares_memory(decode_npy(fixed), np.frombuffer(fixed, np.uint8))


def test_arrays_of_objects_are_refused_without_unpickling() -> None:
    data = saved(np.array([{"a": 1}], dtype=object), pickled=True)
    with pytest.raises(CodecError, match="Python objects: they are pickled, and pickles run code"):
        decode_npy(data)
    nested = "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}"
    with pytest.raises(CodecError, match="Python objects"):
        decode_npy(npy(nested, bytes(8)))


@pytest.mark.parametrize(
    "shape", ["(10**12,)", "(1000000000000,)", "(99999, 99999, 99999)", "(3,)"]
)
def test_a_size_that_the_bytes_do_not_have_is_refused_before_allocating(shape: str) -> None:
    data = npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}", bytes(16))
    with pytest.raises(CodecError, match=r"but 16 follow|broken .npy header"):
        decode_npy(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"PK\3\4" + bytes(20),
        npy("", version=9) + bytes(20),
        saved(np.arange(5))[:-1],
        saved(np.arange(5)) + b"\0",
        b"\x93NUMPY\x02\0\xff\xff\xff\xff" + bytes(100),
        npy(" " * 60_000 + "{}"),
        npy("{}"),
        npy("[]"),
        npy("print(1)"),
        npy("{'descr': '<i4', 'fortran_order': False}"),
        npy("{'descr': '<i4', 'fortran_order': False, 'shape': (1,), 'more': 1}", bytes(4)),
        npy("{'descr': '<i4', 'fortran_order': False, 'shape': 1}", bytes(4)),
        npy("{'descr': '<i4', 'fortran_order': False, 'shape': (-1, -1)}", bytes(4)),
        npy("{'descr': '<i4', 'fortran_order': False, 'shape': ('a',)}", bytes(4)),
        npy("{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,)}", bytes(4)),
        npy("{'descr': 5, 'fortran_order': False, 'shape': (1,)}", bytes(4)),
        npy("{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000,)}"),
        npy("{'descr': '<i4', 'fortran_order': False, 'shape': (0, 10000000000000000000000)}"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': " + "(1," * 100 + ")" * 100 + "}"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (" + "1," * 100 + ")}", b"1"),
        npy("(" * 9000),
        npy("-" * 9000 + "1"),
        npy(b"\xff\xfe\0"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (True,)}", b"1"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1.0,)}", b"1"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': '1'}", b"1"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (None,)}", b"1"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 1099511627777)}"),
        npy("{'descr': '|u1', 'fortran_order': 2, 'shape': (1,)}", b"1"),
        npy("{'descr': '|u1', 'fortran_order': None, 'shape': (1,)}", b"1"),
        npy("{'descr': [('a',)], 'fortran_order': False, 'shape': (1,)}", b"1"),
        npy("{'descr': [1], 'fortran_order': False, 'shape': (1,)}", b"1"),
        npy("{'descr': ('|u1', (-1,)), 'fortran_order': False, 'shape': (1,)}", b"1"),
        npy(
            "{'descr': [('a', '|u1'), ('a', '|u1')], 'fortran_order': False, 'shape': (1,)}", b"12"
        ),
        npy("{'descr': 'a1', 'fortran_order': False, 'shape': (1,)}", b"1"),
        npy("{'descr': [('b', '|a1')], 'fortran_order': False, 'shape': (1,)}", b"1"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1if 1else 2,)}", b"1"),
        npy("{'descr': '\\d', 'fortran_order': False, 'shape': (1,)}", b"1"),
        npy("{'descr': '" + "9" * 9000),
        npy("9" * 9000 + "x"),
    ],
)
def test_what_is_no_sound_array_raises(data: bytes) -> None:
    with pytest.raises(CodecError, match=r"\.npy"):
        decode_npy(data)


@given(st.data())
def test_damaged_arrays_decode_or_raise_codec_errors(draw: st.DataObject) -> None:
    data = bytearray(saved(ARRAYS["matrix"]))
    for _ in range(draw.draw(st.integers(1, 4), label="flips")):
        bit = draw.draw(st.integers(0, len(data) * 8 - 1), label="bit")
        data[bit // 8] ^= 1 << bit % 8
    try:
        decoded = decode_npy(bytes(data))
    except CodecError:
        return
    assert decoded.nbytes == 24


@pytest.mark.parametrize("decode", [decode_cls, decode_txt, decode_json, decode_npy])
@given(st.binary(max_size=60), st.sampled_from([b"", b"\x93NUMPY\1\0", b"\x93NUMPY\1\0\x30\0{'"]))
def test_random_bytes_raise_nothing_but_codec_errors(
    decode: Callable[[bytes], object], tail: bytes, magic: bytes
) -> None:
    try:
        decode(magic + tail)
    except CodecError as error:
        assert str(error)  # noqa: PT017  it may or may not be raised


@pytest.mark.parametrize("text", ["[" * 101 + "]" * 101, '{"a":' * 800 + "1" + "}" * 800])
def test_json_nested_more_than_a_hundred_deep_is_refused(text: str) -> None:
    """A worker could not send it, and would lose the whole batch."""
    with pytest.raises(CodecError, match="nested more than 100 deep"):
        decode_json(text.encode())


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "é": 2, "a": 3}}]'])
def test_json_with_a_name_twice_in_one_object_is_refused(text: str) -> None:
    """JSON's readers differ in which of the two counts."""
    with pytest.raises(CodecError, match=r"^it has the name 'a' twice in one object; keep one"):
        decode_json(text.encode())


def test_brackets_in_strings_and_side_by_side_are_not_nested() -> None:
    values: list[object] = [["[" * 500, '"\\[{' * 200], [[]] * 500, {"a": [{"b": {}}] * 300}]
    for value in values:
        assert decode_json(json.dumps(value).encode()) == value

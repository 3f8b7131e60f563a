"""Numbers of annotations: what would become another number is refused, and takes no time."""

from __future__ import annotations

import io
import json
import time
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardio
from shardio.errors import CodecError, UsageError
from shardio.fields.text import decode_json, integer_in

BOX = [0, 0, 1, 1]


def npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def boxes(rows: Any, **more: Any) -> bytes:
    return json.dumps({"boxes": rows, **more}).encode()


ODD = [
    np.full((2, 4), 1j),
    np.ones((2, 4), np.bool_),
    np.ones((2, 4), "datetime64[s]"),
    np.full((2, 4), "12"),
    np.full((2, 4), 1e300),
]


@pytest.mark.parametrize("array", ODD, ids=lambda array: str(array.dtype))
def test_arrays_of_something_else_are_no_coordinates(array: np.ndarray[Any, Any]) -> None:
    for type_ in (shardio.Boxes("npy"), shardio.Points("npy")):
        with pytest.raises(CodecError):
            type_.decode(npy(array))


@pytest.mark.parametrize("value", ["1", None, True, 1e39, 10**400])
def test_lists_of_something_else_are_no_coordinates(value: Any) -> None:
    with pytest.raises(CodecError, match="boxes"):
        shardio.Boxes("json").decode(boxes([[0, 0, 1, value]]))
    with pytest.raises(CodecError):
        shardio.Points("json").decode(json.dumps([[1, value]]).encode())


def test_whole_numbers_beside_boxes_stay_what_they_are() -> None:
    ids = [900100259691, 1.5]
    type_ = shardio.Boxes("json", also=["id", "area"])
    found = type_.decode(boxes([BOX, BOX], id=ids, area=[1.5, 1e39]))
    assert found["id"].tolist() == ids
    assert found["area"].tolist() == [1.5, 1e39]
    assert type_.decode(boxes([BOX], id=[1 << 40], area=[2.5]))["id"].tolist() == [1 << 40]
    assert type_.decode(boxes([BOX], id=[1], area=[2.5]))["area"].dtype == np.float64


def test_class_numbers_of_yolo_are_exact_or_refused() -> None:
    type_ = shardio.Boxes("txt", format="yolo")
    found = type_.decode(b"9007199254740993 .5 .5 .1 .1\n2.0 .5 .5 .1 .1\n")
    assert found["labels"].tolist() == [9007199254740993, 2]
    for label in (b"1e300", b"1_0", b"1.5", b"nan"):
        with pytest.raises(CodecError, match="line 1"):
            type_.decode(label + b" .5 .5 .1 .1")


@pytest.mark.parametrize("value", ["12", b"12", {1: 0}, ["1"], [Decimal("1.7")], [1.5]])
def test_a_set_of_classes_is_not_made_of_something_else(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        shardio.MultiLabel("json", classes=5).encode(value)


@pytest.mark.parametrize("value", [{0, 2}, (0, 2), [np.int64(0), 2], np.array([1, 0, 1, 0, 0])])
def test_sets_of_classes_are_encoded(value: Any) -> None:
    type_ = shardio.MultiLabel("json", classes=5)
    assert type_.decode(type_.encode(value)).tolist() == [1, 0, 1, 0, 0]


def test_depth_that_float32_does_not_hold_is_refused() -> None:
    with pytest.raises(CodecError, match="float32"):
        shardio.Depth("depth.npy").decode(npy(np.full((2, 2), 1e300)))
    with pytest.raises(CodecError, match="float32"):
        shardio.Depth("depth.npy", scale=1e38).decode(npy(np.full((2, 2), 1e30)))
    assert shardio.Depth("depth.npy").decode(npy(np.full((2, 2), np.inf))).max() == np.inf
    for scale in (1e-50, 1e300):
        with pytest.raises(UsageError, match="float32"):
            shardio.Depth("depth.png", scale=scale)


@given(
    st.sampled_from(["u1", "i2", "i4", ">i4", "u4", "i8", "u8"]),
    st.lists(st.tuples(st.integers(-(1 << 25), 1 << 25), st.integers(0, 40)), min_size=1),
)
def test_whole_numbers_of_depth_keep_their_value_or_are_refused(
    dtype: str, drawn: list[tuple[int, int]]
) -> None:
    limits = np.iinfo(dtype)
    numbers = [number << shift for number, shift in drawn]
    numbers = [number for number in numbers if limits.min <= number <= limits.max] or [limits.min]
    values, type_ = np.array([numbers], dtype), shardio.Depth("depth.npy")
    if all(int(np.float32(number)) == number for number in numbers):
        assert [*map(int, type_.decode(type_.encode(values)).ravel())] == numbers
        return
    for refused in (lambda: type_.decode(npy(values)), lambda: type_.encode(values)):
        with pytest.raises(CodecError, match="as float32; store whole numbers up to 16,777,216"):
            refused()


def test_a_depth_of_32_bits_names_the_number_that_would_change() -> None:
    type_ = shardio.Depth("depth.npy")
    assert type_.decode(npy(np.array([[1 << 24, 1 << 25]], np.int32))).max() == 1 << 25
    with pytest.raises(CodecError, match="the depth 2147483647 is 2147483648 as float32"):
        type_.decode(npy(np.array([[5, 2**31 - 1]], np.int32)))


def test_hostile_text_takes_no_time() -> None:
    start = time.process_time()
    assert integer_in("1" * 50_000 + "e") is None
    with pytest.raises(CodecError, match="not JSON"):
        decode_json(b"[" + b"[]," * 300 + b'"' + b'\\"' * 50_000)
    assert time.process_time() - start < 2  # it was a minute

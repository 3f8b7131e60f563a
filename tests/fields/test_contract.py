"""Every field type of shardio keeps what a field type promises."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import shardio
from shardio.errors import CodecError, UsageError
from shardio.fields.annotations import Boxes, MultiLabel, Points
from shardio.fields.arrays import Array, Label
from shardio.fields.audio import Audio
from shardio.fields.base import Bytes, Dense
from shardio.fields.pictures import Depth, Image, Mask, PixelMask, Pixels
from shardio.fields.text import Json, Text
from shardio.testing import FieldTypeContract

PICTURES = tuple(np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8))
PNGS = tuple(cv2.imencode(".png", each[..., ::-1])[1].tobytes() for each in PICTURES)


class TestImage(FieldTypeContract):
    field_type = Image("png;jpg")
    values = PICTURES
    files = PNGS


CLASSES = tuple(picture[:, :, 0] for picture in PICTURES)


class TestMask(FieldTypeContract):
    field_type = Mask("mask.png", max_pixels=1 << 10)
    values = CLASSES


class TestMaskOfManyClasses(FieldTypeContract):
    field_type = Mask("mask.png", dtype="int32")
    values = tuple(classes.astype(np.int32) * 200 for classes in CLASSES)


class TestMaskInArray(FieldTypeContract):
    field_type = Mask("mask.npy")
    values = CLASSES
    files = tuple(Array().encode(classes) for classes in CLASSES)


class TestDepth(FieldTypeContract):
    field_type = Depth("depth.png", scale=1 / 256)
    values = tuple((classes[None] / np.float32(256)) for classes in CLASSES)
    files = tuple(Depth().encode(classes) for classes in CLASSES)


BOXES = (
    {"boxes": np.array([[0, 1, 30, 40], [5, 5, 64, 48]], np.float32), "labels": np.array([3, 1])},
    {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)},
)


class TestBoxes(FieldTypeContract):
    field_type = Boxes("json", also=["labels"])
    values = BOXES


@pytest.mark.parametrize(
    "found", [[1, "a"], [True, 2], [None, 3], [[1, 2], [1, 2, 3]], [{"a": 1}, {}], ["a", "b"]]
)
def test_what_belongs_to_boxes_is_encoded_as_it_is(found: list[object]) -> None:
    type_ = Boxes("json", also=["found"])
    boxes = np.array([[0, 0, 9, 9], [1, 1, 5, 5]])
    decoded = type_.decode(type_.encode({"boxes": boxes, "found": found}))["found"]
    assert [*map(repr, decoded)] == [*map(repr, found)]


@pytest.mark.parametrize(
    ("type_", "data"),
    [
        (Boxes("json"), b'{"boxes": [[0, 0, 1, 1e300]]}'),
        (Points("json"), b"[[1e300, 2]]"),
    ],
)
def test_numbers_that_would_become_infinite_are_refused(type_: Any, data: bytes) -> None:
    with np.errstate(all="ignore"), pytest.raises(CodecError, match="that float32 cannot hold"):
        type_.decode(data)


def test_integers_beyond_64_bits_stay_what_they_are() -> None:
    data = b'{"boxes": [[0, 0, 1, 1], [0, 0, 2, 2]], "id": [9223372036854775808, -1]}'
    assert Boxes("json", also=["id"]).decode(data)["id"] == [2**63, -1]


@pytest.mark.parametrize("value", [[Decimal("1.5")], ["1"]])
def test_sets_of_classes_are_not_encoded_from_what_is_no_integer(value: Any) -> None:
    with pytest.raises(TypeError):
        MultiLabel("json", classes=4).encode(value)


@pytest.mark.parametrize("number", ["1e30", "-1e30", str(2**63), "0.5"])
def test_class_numbers_that_int64_does_not_hold_are_refused(number: str) -> None:
    with pytest.raises(CodecError, match="line 2 does not begin with a class number"):
        Boxes("txt", format="yolo").decode(f"1 .5 .5 .1 .1\n{number} .5 .5 .1 .1".encode())


@pytest.mark.parametrize("pairs", [[0, 1], [(0, 1, 2)], [(0.5, 1)], [(0, 1), (1, 2)], [(-1, 0)], 3])
def test_pairs_of_points_that_are_none_are_refused(pairs: Any) -> None:
    with pytest.raises(UsageError, match=r"flip_pairs=.* must be pairs of point numbers"):
        Points("json", flip_pairs=pairs)


@pytest.mark.parametrize(
    ("type_", "arguments"),
    [
        (Audio, {"mono": []}),
        (Audio, {"mono": 1}),
        (Points, {"ragged": []}),
        (Depth, {"scale": "1"}),
        (Depth, {"scale": [1.0]}),
        (Depth, {"scale": float("nan")}),
        (Depth, {"scale": float("inf")}),
        (Depth, {"scale": True}),
    ],
)
def test_arguments_of_another_kind_are_refused(type_: Any, arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(UsageError, match=rf"{type_.__name__}: {name}="):
        type_("x", **arguments)


def test_depth_without_a_finite_value_has_a_preview() -> None:
    for values in (np.full((2, 3), np.nan), np.full((2, 3), np.inf)):
        assert Depth().preview(Array().encode(values)) == "depth, 2 × 3, none finite"
    some = np.array([[np.nan, 1], [np.inf, 2]])
    assert Depth().preview(Array().encode(some)) == "depth, 2 × 2, 1 to 2"


class TestPoints(FieldTypeContract):
    field_type = Points("json", flip_pairs=[(0, 2)])
    values = (np.arange(6, dtype=np.float32).reshape(3, 2), np.ones((3, 2), np.float32))


class TestPointsThatNothingMirrors(FieldTypeContract):
    field_type = Points("json", points="keypoints", ragged=True)
    values = (np.ones((2, 1, 3), np.float32), np.ones((5, 3), np.float32))


class TestMultiLabel(FieldTypeContract):
    field_type = MultiLabel("json", classes=4)
    values = (np.array([0, 1, 1, 0], np.float32), np.zeros(4, np.float32))


def test_sets_of_classes_are_encoded_from_lists_of_numbers_and_from_zeros_and_ones() -> None:
    type_ = MultiLabel("json", classes=4)
    for value, ones in (([], []), ([1, 3], [1, 3]), ((), []), ([0.0, 1, 1, 0], [1, 2])):
        assert np.flatnonzero(type_.decode(type_.encode(value))).tolist() == ones
    for hot in (torch.tensor([0, 1, 1, 0]), np.array([0, 1, 1, 0]), [False, True, True, False]):
        assert type_.decode(type_.encode(hot)).tolist() == [0, 1, 1, 0]
    with pytest.raises(ValueError, match="no array"):
        type_.encode(np.zeros(0))


class TestAudio(FieldTypeContract):
    field_type = Audio("flac", rate=8000)
    values = tuple(np.arange(-n, n, dtype=np.float32)[None] / 1024 for n in (512, 90))


class TestPixels(FieldTypeContract):
    field_type = Pixels("rgb.npy")
    values = PICTURES


class TestPixelMask(FieldTypeContract):
    field_type = PixelMask("mask.rgb.npy")
    values = tuple(np.moveaxis(picture, -1, 0) for picture in PICTURES)
    files = tuple(Pixels().encode(picture) for picture in PICTURES)


class TestLabel(FieldTypeContract):
    field_type = Label("cls")
    values = (0, 7, 123456, -5, 2**63 - 1, -(2**63))


class TestText(FieldTypeContract):
    field_type = Text("txt")
    values = ("", " naïve\n", "x" * 1000)


class TestJson(FieldTypeContract):
    field_type = Json("json")
    values = ({"a": [1, -2.5, None]}, [], "é", True)


class TestArray(FieldTypeContract):
    field_type = Array("npy")
    values = (np.arange(6.0).reshape(2, 3), np.full((2, 3), np.nan))


class TestArrayOfNothing(FieldTypeContract):
    field_type = Array("npy")
    values = (np.empty((2, 0), np.int32), np.empty((2, 0), np.int32))


class TestBytes(FieldTypeContract):
    field_type = Bytes("bin")
    values = files = (b"", b"\0\xff")


class Pcm(shardio.FieldType):
    magic = {b"RIFF": "wav"}  # noqa: RUF012

    def decode(self, data: Any) -> Any:
        with wave.open(BytesIO(data)) as file:
            return np.frombuffer(file.readframes(file.getnframes()), np.int16)

    def encode(self, value: Any) -> bytes:
        with wave.open(stream := BytesIO(), "wb") as file:
            file.setparams((1, 2, 8000, len(value), "NONE", ""))
            file.writeframes(np.asarray(value, np.int16).tobytes())
        return stream.getvalue()


class TestTypeOfAUser(FieldTypeContract):
    field_type = Pcm("wav")
    values = (np.arange(9, dtype=np.int16), np.ones(9, np.int16))


@dataclass(frozen=True)
class Vector(shardio.FieldType):
    """Numbers in text, of which a batch is dense."""

    separator: str = " "
    batching = Dense(np.float32, (3,))

    def decode(self, data: Any) -> Any:
        return np.array([*map(float, str(data, "ascii").split(self.separator))], np.float32)

    def encode(self, value: Any) -> bytes:
        return self.separator.join(map(str, value)).encode()


class TestDenseTypeOfAUser(FieldTypeContract):
    field_type = Vector("vec", separator=",")
    values = (np.array([1, 2, 3], np.float32), np.array([0, -1, 0.5], np.float32))


def broken(**changes: Any) -> FieldTypeContract:
    class Other(Vector):
        for name, value in changes.items():
            locals()[name] = value

    contract = TestDenseTypeOfAUser()
    contract.field_type = Other("vec", separator=",")
    return contract


def test_the_contract_notices_types_that_break_it(tmp_path: Path) -> None:
    """Each of its tests fails for a type that breaks what it is about."""
    value = TestDenseTypeOfAUser.values[0]
    with pytest.raises(AssertionError):
        broken(decode=lambda *_: value.tolist()).test_an_encoded_value_decodes_to_itself()
    with pytest.raises(AssertionError):
        broken(
            __module__="shardio.other",  # types of a user get bytes, which they may keep
            encode=lambda _, value: value.tobytes(),
            decode=lambda _, data: np.frombuffer(data, np.float32),
        ).test_a_value_keeps_nothing_of_the_buffer()
    with pytest.raises(AssertionError):
        broken(preview=lambda *_: 3).test_sound_data_pass_checks_and_have_a_preview()
    with pytest.raises((AttributeError, TypeError)):
        broken().test_workers_receive_an_equal_type()  # a local class does not pickle

    def use_up(*_: Any) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        broken(decode=use_up).test_damaged_data_raise_codec_errors_alone()
    with pytest.raises(AssertionError):
        broken(
            encode=lambda *_: b"1,2,3"
        ).test_values_that_are_no_values_of_the_type_are_not_encoded()
    with pytest.raises(AssertionError):
        broken(
            decode_rows=lambda *_: np.zeros((2, 3), np.float32)
        ).test_many_at_once_are_decoded_as_one_by_one()
    with pytest.raises(AssertionError):
        broken(batching=Dense(np.int64, (3,))).test_a_batch_holds_what_the_type_promises(tmp_path)

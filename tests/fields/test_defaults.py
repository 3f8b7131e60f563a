from __future__ import annotations

import io
import json
import struct
import zlib
from contextlib import suppress
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardio.errors import CodecError, UsageError
from shardio.fields.base import FieldType
from shardio.fields.defaults import decode_field, type_of
from shardio.fields.formats import IMAGE_FIELDS, probe_image
from shardio.fields.geometry import Crop
from shardio.fields.image import Scratch, decode_part, write_part
from shardio.transforms import CenterCrop, RandomResizedCrop


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        *((field, "image") for field in sorted(IMAGE_FIELDS)),
        ("seg.png", "mask"),
        ("a.depth.png", "depth"),
        ("cls", "cls"),
        ("index", "cls"),
        ("caption.txt", "txt"),
        ("text", "txt"),
        ("json", "json"),
        ("a.b.npy", "npy"),
        ("png.pyd", "bytes"),
        ("pickle", "bytes"),
        ("pth", "bytes"),
        ("gif", "bytes"),
        ("", "bytes"),
    ],
)
def test_the_last_component_of_a_field_decides(field: str, kind: str) -> None:
    assert type_of(field).name == kind


def test_fields_are_decoded_by_their_kind() -> None:
    stream = io.BytesIO()
    np.save(stream, np.arange(3))
    picture = np.zeros((2, 3, 3), np.uint8)
    picture[..., 0] = 255  # blue to OpenCV
    pixels = decode_field("left.png", cv2.imencode(".png", picture)[1].tobytes())
    np.testing.assert_array_equal(np.asarray(pixels), picture[..., ::-1])
    assert decode_field("cls", b"7\n") == 7
    assert decode_field("txt", memoryview(b"hello")) == "hello"
    assert decode_field("meta.json", b'{"a": 1}') == {"a": 1}
    np.testing.assert_array_equal(np.asarray(decode_field("npy", stream.getvalue())), [0, 1, 2])
    assert decode_field("pyd", memoryview(b"cos\nsystem\n")) == b"cos\nsystem\n"


def test_the_bytes_choose_the_format_of_an_image_not_its_field() -> None:
    data = cv2.imencode(".png", np.zeros((2, 3, 3), np.uint8))[1].tobytes()
    assert np.asarray(decode_field("jpg", data)).shape == (2, 3, 3)
    with pytest.raises(CodecError, match="an HTML file"):
        decode_field("jpg", b"<html>")


def test_all_that_decodes_is_behind_the_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a parser raises is CodecError, except for what is not the bytes' fault."""
    picture = cv2.imencode(".png", np.zeros((2, 3, 3), np.uint8))[1].tobytes()
    for kind in (OverflowError, TypeError, struct.error, RecursionError, cv2.error, KeyError):

        def fail(*_: object, kind: type[Exception] = kind, **__: object) -> None:
            raise kind("some")

        monkeypatch.setattr(cv2, "imdecode", fail)
        with pytest.raises(CodecError, match="some"):
            decode_field("png", picture)
    with pytest.raises(cv2.error):  # OpenCV leaves its words in the class, for any thread
        cv2.resize(np.zeros((0, 0), np.uint8), (1, 1))
    monkeypatch.setattr(cv2, "imdecode", raise_as_opencv)
    with pytest.raises(CodecError, match=r"^OpenCV refuses the image: !buf.empty\(\)$"):
        decode_field("png", picture)
    mistakes = NameError, ImportError, AttributeError
    for other in (MemoryError, OSError, KeyboardInterrupt, UsageError, *mistakes):

        def pass_on(*_: object, kind: type[BaseException] = other) -> None:
            raise kind("some")

        monkeypatch.setattr(cv2, "imdecode", pass_on)
        with pytest.raises(other, match="some"):
            decode_field("png", picture)
    monkeypatch.setattr(np.lib.format, "descr_to_dtype", use_up)
    with pytest.raises(MemoryError):
        decode_field("npy", npy())


def raise_as_opencv(*_: object) -> None:
    raise cv2.error(
        "OpenCV(5.0.0) /io/imgcodecs/loadsave.cpp:1195: error: (-215:Assertion failed) "
        "!buf.empty() in function 'imdecode_'\n"
    )


def use_up(*_: object) -> None:
    raise MemoryError


def test_a_users_parser_may_lack_an_attribute_because_of_the_bytes() -> None:
    class Caption(FieldType):
        def decode(self, data: Any) -> Any:
            return json.loads(data).get("caption")

    class Misspelt(FieldType):
        def decode(self, data: Any) -> Any:
            return jsn.loads(data)  # type: ignore[name-defined]  # noqa: F821  the mistake

    with pytest.raises(CodecError, match="'list' object has no attribute 'get'"):
        Caption("json").decode(b"[]")
    with pytest.raises(NameError):
        Misspelt("json").decode(b"[]")


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros((2, 3, 3), np.uint8))
    return stream.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 17, 3), np.uint8)
SOUND = {
    "jpeg": cv2.imencode(".jpg", PIXELS)[1].tobytes(),
    "progressive": cv2.imencode(".jpg", PIXELS, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes(),
    "restarts": cv2.imencode(".jpg", PIXELS, [cv2.IMWRITE_JPEG_RST_INTERVAL, 1])[1].tobytes(),
    "png": cv2.imencode(".png", PIXELS)[1].tobytes(),
    "webp": cv2.imencode(".webp", PIXELS, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes(),
    "lossy webp": cv2.imencode(".webp", PIXELS, [cv2.IMWRITE_WEBP_QUALITY, 50])[1].tobytes(),
    "bmp": cv2.imencode(".bmp", PIXELS)[1].tobytes(),
    "npy": npy(),
    "json": b'{"a": [1, -2.5e3, null, "\\ud800"]}',
    "cls": b" -12\n",
    "txt": "naïve".encode(),
}
FIELDS = ["jpg", "npy", "rgb.npy", "json", "cls", "txt", "bin"]
LENGTHS = st.sampled_from([0, 1, 2, 3, 5, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks, damaged or not, have the checksums that they should."""
    changed, position = bytearray(data), 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        changed[end : end + 4] = struct.pack(">I", zlib.crc32(changed[position + 4 : end]))
        position = end + 4
    return bytes(changed)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A sound file with other numbers, bits and lengths in it, mostly near its start."""
    data = bytearray(SOUND[draw(st.sampled_from(sorted(SOUND)))])
    for _ in range(draw(st.integers(0, 4))):
        near = draw(st.booleans())
        place = draw(st.integers(0, min(len(data), 200 if near else len(data)) - 1))
        how = draw(st.sampled_from(["bit", "byte", "big", "little", "cut", "twice"]))
        if how == "bit":
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "byte":
            data[place] = draw(st.integers(0, 255))
        elif how in {"big", "little"}:
            size = draw(st.sampled_from([2, 4]))
            number = draw(LENGTHS) & (1 << 8 * size) - 1
            data[place : place + size] = number.to_bytes(size, how)  # type: ignore[arg-type]
        elif how == "cut" and place:
            del data[place : place + draw(st.integers(1, 40))]
        elif how == "twice":
            data[place:place] = data[place : place + 40]
        if not data:
            return b""
    fixed = bytes(data)
    return with_checksums(fixed) if fixed[:4] == b"\x89PNG" and draw(st.booleans()) else fixed


@given(damaged(), st.sampled_from(FIELDS))
def test_whatever_the_bytes_are_a_field_decodes_or_raises_a_codec_error(
    data: bytes, field: str
) -> None:
    with suppress(CodecError):
        decode_field(field, data, max_pixels=1 << 16)


@given(damaged(), st.data())
def test_whatever_the_bytes_are_a_crop_is_made_or_a_codec_error_raised(
    data: bytes, draw: st.DataObject
) -> None:
    size = draw.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    fractions = draw.draw(st.lists(st.floats(0, 0.999), min_size=50, max_size=50))
    with suppress(CodecError):
        info = probe_image(data, max_pixels=1 << 16)
        central = CenterCrop(size, resize=max(size))
        transform = RandomResizedCrop(size) if draw.draw(st.booleans()) else central
        crop = transform.crop(info.height, info.width, fractions)
        part = decode_part(
            data,
            info,
            crop,
            size,
            scratch=Scratch(),
            reduced=draw.draw(st.booleans()),
            verified=draw.draw(st.booleans()),
        )
        write_part(part, info, crop, np.empty((*size, 3), np.uint8))


def test_a_jpeg_with_a_sampling_factor_of_0_does_not_decode() -> None:
    """The height of its blocks is what rows are counted by when only the upper ones are decoded."""
    data = bytearray(SOUND["restarts"])
    place = data.index(b"\xff\xc0") + 11
    for factor in (0x00, 0x01, 0x10, 0x55):
        data[place] = factor
        info = probe_image(data)
        with pytest.raises(CodecError, match="JPEG"):
            decode_part(
                data, info, Crop(0, 0, 1, 1), (1, 1), scratch=Scratch(), reduced=True, verified=True
            )

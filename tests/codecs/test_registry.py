from __future__ import annotations

import io

import cv2
import numpy as np
import pytest

from shardio.codecs.registry import IMAGE_FIELDS, decode_field, kind_of
from shardio.errors import CodecError


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        *((field, "image") for field in sorted(IMAGE_FIELDS)),
        ("seg.png", "image"),
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
    assert kind_of(field) == kind


def test_fields_are_decoded_by_their_kind() -> None:
    stream = io.BytesIO()
    np.save(stream, np.arange(3))
    picture = np.zeros((2, 3, 3), np.uint8)
    picture[..., 0] = 255  # blue to OpenCV
    pixels = decode_field("mask.png", cv2.imencode(".png", picture)[1].tobytes())
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

"""BMP of every kind: decoded as by Pillow, or refused with a sentence."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shardio.errors import CodecError
from shardio.fields.formats import check_complete, probe_image
from shardio.fields.image import decode_image

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 13, 7
FIVE, FIVE_SIX, EIGHT = (0x7C00, 0x3E0, 0x1F), (0xF800, 0x7E0, 0x1F), (0xFF0000, 0xFF00, 0xFF)
REVERSED, SHIFTED = (0xFF, 0xFF00, 0xFF0000), (0xFF000000, 0xFF0000, 0xFF00)


def bmp(
    bits: int,
    compression: int = 0,
    masks: Sequence[int] = (),
    *,
    header: int = 40,
    top_down: bool = False,
    palette: bytes = b"",
    rows: bytes | None = None,
) -> bytes:
    if rows is None:
        stride = (WIDTH * bits + 31) // 32 * 4
        rows = np.random.default_rng(bits).bytes(stride * HEIGHT)
    height = -HEIGHT if top_down else HEIGHT
    fields = (header, WIDTH, height, 1, bits, compression, len(rows), 2835, 2835, 0, 0)
    head = struct.pack("<IiiHHIIiiII", *fields) + struct.pack(f"<{len(masks)}I", *masks)
    head = head.ljust(header, b"\0") + palette
    offset = 14 + len(head)
    return struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset) + head + rows


KINDS = {
    "16 bits": (16, 0, ()),
    "16 bits, 5-5-5": (16, 3, FIVE),
    "16 bits, 5-6-5": (16, 3, FIVE_SIX),
    "24 bits": (24, 0, ()),
    "32 bits": (32, 0, ()),
    "32 bits, usual masks": (32, 3, EIGHT),
    "32 bits, shifted masks": (32, 3, SHIFTED),
}


@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_colours_are_those_that_pillow_gives(name: str, header: int, top_down: bool) -> None:
    bits, compression, masks = KINDS[name]
    alpha = (0,) if masks and header >= 56 else ()
    data = bmp(bits, compression, (*masks, *alpha), header=header, top_down=top_down)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data), expected)


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("top_down", [False, True])
def test_palettes_are_those_that_pillow_gives(bits: int, top_down: bool) -> None:
    palette = np.random.default_rng(0).bytes(4 << bits)
    data = bmp(bits, top_down=top_down, palette=palette)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data), expected)


@pytest.mark.parametrize(
    ("bits", "compression", "masks", "most"),
    [
        (16, 3, (0xF00, 0xF0, 0xF), 15),
        (16, 6, (*FIVE, 0x8000), 31),
        (32, 3, REVERSED, 255),
        (32, 6, (*EIGHT, 0xFF000000), 255),
        (32, 3, (0x3FF00000, 0xFFC00, 0x3FF), 1023),
    ],
)
def test_masks_that_pillow_does_not_know_scale_to_all_of_a_byte(
    bits: int, compression: int, masks: Sequence[int], most: int
) -> None:
    pixels = [masks[0], masks[1], masks[2], 0, *masks[:3]]
    row = struct.pack("<7" + ("H" if bits == 16 else "I"), *pixels)
    rows = row.ljust((WIDTH * bits + 31) // 32 * 4, b"\0") * HEIGHT
    found = decode_image(bmp(bits, compression, masks, rows=rows))
    expected = np.zeros((7, 3), np.uint8)
    expected[[0, 1, 2, 4, 5, 6], [0, 1, 2, 0, 1, 2]] = 255
    for line in found:
        np.testing.assert_array_equal(line[:7], expected)
    half = struct.pack(
        "<H" if bits == 16 else "<I", (most // 2) << (masks[1] & -masks[1]).bit_length() - 1
    )
    found = decode_image(bmp(bits, compression, masks, rows=half + rows[len(half) :]))
    assert found[-1, 0].tolist() == [0, most // 2 * 255 // most, 0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bmp(2, palette=bytes(16)), "2 bits a pixel and the compression 0, which is not decoded"),
        (bmp(64), "64 bits a pixel and the compression 0"),
        (bmp(24, 4), "24 bits a pixel and the compression 4"),
        (bmp(0, 5, rows=bytes(9)), "0 bits a pixel and the compression 5"),
        (bmp(16, 3, (0x7C00, 0, 0x1F)), "broken BMP header: the masks of its channels; save it"),
        (bmp(16, 3, (0x7C00, 0x3A0, 0x1F)), "broken BMP header: the masks"),
        (bmp(32, 3, (0xFFFFF000, 0xF00, 0xFF)), "broken BMP header: the masks"),
        (bmp(16)[:-1], r"truncated BMP: 249 of 250 bytes"),
        (bmp(16, 3, FIVE_SIX)[:60], "truncated BMP"),
    ],
)
def test_other_kinds_are_refused_when_they_are_packed(data: bytes, message: str) -> None:
    info = probe_image(data)
    with pytest.raises(CodecError, match=message):
        check_complete(data, info)
    with pytest.raises(CodecError, match=message):
        decode_image(data)


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 65), st.integers(0, 255))
def test_a_changed_header_gives_pixels_or_a_codec_error(name: str, place: int, value: int) -> None:
    data = bytearray(bmp(*KINDS[name]))
    data[place] = value
    try:
        pixels = decode_image(bytes(data), max_pixels=1 << 20)
    except CodecError as error:
        assert str(error)  # noqa: PT017  it may or may not be raised
    else:
        assert pixels.dtype == np.uint8

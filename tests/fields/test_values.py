"""Values that PNGs of one channel store, as masks and depth maps do; Pillow is the oracle."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shardio.errors import CodecError
from shardio.fields.exif import apply_orientation
from shardio.fields.formats import probe_image
from shardio.fields.image import decode_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
         (1, 0, 2, 1)]  # fmt: skip
GRAY, PALETTE = 0, 3


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def rows_of(values: NDArray[np.uint16], depth: int) -> bytes:
    if not values.size:
        return b""
    bits = (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    return b"".join(
        b"\0" + np.packbits(row.ravel().astype(np.uint8)).tobytes()
        for row in bits.reshape(len(values), -1)
    )


def png_of(
    values: NDArray[np.uint16],
    depth: int,
    colour: int,
    *,
    interlace: bool = False,
    extra: bytes = b"",
) -> bytes:
    """A PNG made by hand, by the specification alone."""
    height, width = values.shape
    passes = ADAM7 if interlace else [(0, 0, 1, 1)]
    parts = [values[top::down, left::right] for top, left, down, right in passes]
    stream = zlib.compress(b"".join(rows_of(part, depth) for part in parts))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            extra,
            chunk(b"IDAT", stream),
            chunk(b"IEND", b""),
        ]
    )


def with_pillow(data: bytes, depth: int, colour: int) -> NDArray[np.uint16]:
    """Stored values as Pillow gives them, which scales gray of 2 and 4 bits."""
    image = Image.open(io.BytesIO(data))
    values = np.array(image).astype(np.uint16)
    return values // (255 // (2**depth - 1)) if colour == GRAY and depth in {2, 4} else values


@st.composite
def kinds(draw: st.DrawFn) -> tuple[int, int]:
    colour = draw(st.sampled_from([GRAY, PALETTE]))
    return draw(st.sampled_from([1, 2, 4, 8, 16] if colour == GRAY else [1, 2, 4, 8])), colour


@given(
    kinds(),
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
    st.integers(1, 256),
)
def test_values_are_those_that_pillow_gives(
    kind: tuple[int, int], height: int, width: int, interlace: bool, clear: bool, colours: int
) -> None:
    depth, colour = kind
    rng = np.random.default_rng(height * width)
    values = rng.integers(0, 2**depth, (height, width), np.uint16)
    extra = b""
    if colour == PALETTE:
        extra = chunk(b"PLTE", rng.bytes(3 * min(colours, 2**depth)))
        extra += chunk(b"tRNS", b"\0\x80") if clear and min(colours, 2**depth) > 1 else b""
    elif clear:
        extra = chunk(b"tRNS", struct.pack(">H", int(values[0, 0])))
    data = png_of(values, depth, colour, interlace=interlace, extra=extra)
    found = decode_values(data)
    assert found.dtype == (np.uint16 if depth == 16 else np.uint8)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(found, with_pillow(data, depth, colour))


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_pictures_that_pillow_saves_come_back(mode: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, {"1": 2, "I;16": 1 << 16}.get(mode, 256), (61, 83))
    if mode == "1":
        image = Image.fromarray(values.astype(bool))
    else:
        image = Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        image.putpalette(rng.bytes(768))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    assert image.mode == mode
    np.testing.assert_array_equal(decode_values(stream.getvalue()), values)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_values_are_turned_as_pictures_are(orientation: int) -> None:
    values = np.arange(24 * 40, dtype=np.uint16).reshape(24, 40)
    exif = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, orientation, 0)
    data = png_of(values, 16, GRAY, extra=chunk(b"eXIf", exif))
    expected = apply_orientation(values[..., None], orientation)[..., 0]
    np.testing.assert_array_equal(decode_values(data), expected)
    np.testing.assert_array_equal(decode_values(data, probe_image(data)), expected)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("depth", [8, 16])
def test_a_png_of_colours_is_refused_and_its_header_says_so(
    colour: int, channels: int, depth: int
) -> None:
    wide = np.zeros((4, 5 * channels), np.uint16)
    header = struct.pack(">IIBBBBB", 5, 4, depth, colour, 0, 0, 0)
    data = png_of(wide, depth, GRAY)
    data = data[:8] + chunk(b"IHDR", header) + data[33:]
    info = probe_image(data)
    assert (info.bits, info.channels) == (depth, channels)
    with pytest.raises(CodecError, match="the PNG holds colours, not indices; save it"):
        decode_values(data)


@pytest.mark.parametrize("name", ["JPEG", "WebP", "BMP"])
def test_other_formats_have_no_values_to_read_exactly(name: str) -> None:
    data = cv2.imencode(f".{name.lower()}", np.zeros((8, 8), np.uint8))[1].tobytes()
    with pytest.raises(CodecError, match=f"a {name} holds colours, and no values to read exactly"):
        decode_values(data)


def test_damage_is_refused() -> None:
    data = png_of(np.zeros((4, 5), np.uint16), 8, PALETTE)
    with pytest.raises(CodecError, match="broken PNG: a palette of 0 bytes"):
        decode_values(data)
    whole = png_of(np.zeros((4, 5), np.uint16), 8, GRAY)
    for place in range(33, len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        with pytest.raises(CodecError):
            decode_values(bytes(changed))


@given(st.binary(max_size=200))
def test_any_bytes_give_values_or_a_codec_error(tail: bytes) -> None:
    data = png_of(np.zeros((4, 5), np.uint16), 8, GRAY)
    try:
        decode_values(data[:33] + tail)
    except CodecError as error:
        assert str(error)  # noqa: PT017  it may or may not be raised

from __future__ import annotations

import struct
import subprocess
import sys
from functools import cache

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardio.errors import CodecError
from shardio.fields.formats import check_complete, probe_image
from shardio.fields.limits import MAX_PIXELS

ENCODINGS = {
    "jpeg": (".jpg", []),
    "progressive": (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
    "png": (".png", []),
    "lossless webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
    "lossy webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 80]),
    "bmp": (".bmp", []),
}


@cache
def encoded(name: str) -> bytes:
    """A file of 24 x 40 pixels."""
    suffix, options = ENCODINGS[name]
    rows, columns = np.mgrid[0:24, 0:40]
    picture = np.stack([rows * 10, columns * 6, (rows + columns) * 3], axis=-1).astype(np.uint8)
    return cv2.imencode(suffix, picture, options)[1].tobytes()


def jpeg_header(height: int, width: int, *, frame: int = 0xC0, bits: int = 8) -> bytes:
    """A frame header and a scan header, nothing else."""
    sof = struct.pack(">BBHBHHB", 0xFF, frame, 11, bits, height, width, 1) + b"\1\x11\0"
    return b"\xff\xd8" + sof + b"\xff\xda\0\x08\1\1\0\0\x3f\0"


def png_header(height: int, width: int) -> bytes:
    """An IHDR and an IEND chunk, nothing else."""
    ihdr = struct.pack(">I4sIIBBBBB4x", 13, b"IHDR", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + ihdr + struct.pack(">I4s4x", 0, b"IEND")


@pytest.mark.parametrize("name", ENCODINGS)
def test_format_and_size_are_read(name: str) -> None:
    for data in (encoded(name), bytearray(encoded(name)), memoryview(encoded(name))):
        info = probe_image(data)
        assert info.format == {"progressive": "jpeg"}.get(name, name.split()[-1])
        assert (info.height, info.width, info.orientation) == (24, 40, 1)
        assert info.multiscan == (name == "progressive")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "^empty file$"),
        (b"\0" * 100, "zero bytes"),
        (b"GIF89a" + b"\0" * 20, "^a GIF file, where a JPEG, PNG, WebP or BMP is needed$"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"\0\0\0\x20ftypavif", "AVIF"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x18ftypisom", "video"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"8BPS\0\1", "Photoshop"),
        (b"%PDF-1.7", "PDF"),
        (b"\n <!DOCTYPE html><html>", "HTML"),
        (b"<html><body>404", "HTML"),
        (b'<?xml version="1.0"?><svg>', "SVG"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "not a JPEG"),
        (b"hello", "starts with b'hello'"),
        (b"\xff\xd8\xff", "truncated JPEG"),
        (b"\xff\xd8\xff\xe0\x40\0JFIF", "reaches past its end"),
        (b"\xff\xd8\xff\xd9\0\0\0", "broken JPEG header"),
        (b"\xff\xd8\xff\xda\0\x08\1\1\0\0\x3f\0", "no frame header"),
        (b"\xff\xd8" + b"\xff\xfe\0\2" * 20_000, "more than 10000 segments"),
        (jpeg_header(8, 8, bits=12), "12 bits per sample"),
        (jpeg_header(8, 8, frame=0xC5), "SOF5"),
        (jpeg_header(0, 8), "announces 8 x 0 pixels"),
        (png_header(0, 8), "announces 8 x 0 pixels"),
        (png_header(8, 8)[:20], "truncated PNG"),
        (b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s4x", 0, b"CgBI"), "first chunk is b'CgBI'"),
        (png_header(8, 8)[:-12] + struct.pack(">I4s4x", 0, b"tEXt") * 100_000, "more than 100000"),
        (b"RIFF\x04\0\0\0WEBP", "broken WebP header"),
        (b"BM", "truncated BMP"),
        (encoded("bmp")[:14] + b"\x07" + encoded("bmp")[15:], "broken BMP header"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        probe_image(data)


def test_more_pixels_than_the_limit_are_refused() -> None:
    for data in (png_header(20_000, 20_000), jpeg_header(20_000, 20_000)):
        with pytest.raises(CodecError, match=f"20000 x 20000 pixels, more than .* {MAX_PIXELS}"):
            probe_image(data)
    large = png_header(20_000, 20_000) + bytes(400_000)
    assert probe_image(large, max_pixels=400_000_000).width == 20_000
    with pytest.raises(CodecError, match="more than the limit of 959"):
        probe_image(encoded("jpeg"), max_pixels=959)
    assert probe_image(encoded("jpeg"), max_pixels=960).height == 24


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_truncation_anywhere_is_noticed(name: str) -> None:
    data = encoded(name)
    check_complete(data, probe_image(data))
    for length in range(len(data)):
        with pytest.raises(CodecError, match=r"truncated|empty|not a|broken"):
            check_complete(data[:length], probe_image(data[:length]))


@pytest.mark.parametrize("name", ENCODINGS)
def test_bytes_after_the_end_are_no_truncation(name: str) -> None:
    data = encoded(name) + b"trailing"
    check_complete(data, probe_image(data))


def test_junk_before_a_marker_is_passed_over() -> None:
    data = encoded("jpeg")
    junked = data[:20] + b"\0junk\xff\xff" + data[20:]
    assert probe_image(junked).height == 24


def test_top_down_bitmaps_have_a_negative_height() -> None:
    data = bytearray(encoded("bmp"))
    data[22:26] = struct.pack("<i", -24)
    info = probe_image(data)
    assert (info.height, info.width) == (24, 40)
    check_complete(data, info)


def test_bitmaps_of_os2_are_read() -> None:
    rows = bytes(4 * 3 * 2)
    data = b"BM" + struct.pack("<IIIIHHHH", 26 + len(rows), 0, 26, 12, 4, 2, 1, 24) + rows
    info = probe_image(data)
    assert (info.height, info.width) == (2, 4)
    check_complete(data, info)
    with pytest.raises(CodecError, match="truncated BMP: 49 of 50 bytes"):
        check_complete(data[:-1], info)


MAGIC = [
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\xff\0\0\0WEBP",
    b"BM",
    b"\xff\xd8\xff\xc0",
]


def probe_and_check(data: bytes) -> None:
    """Whatever the bytes, nothing but CodecError may come out."""
    try:
        info = probe_image(data)
        check_complete(data, info)
    except CodecError as error:
        assert str(error)  # noqa: PT017  it may or may not be raised
    else:
        assert 0 < info.height * info.width <= MAX_PIXELS


@given(st.sampled_from(MAGIC), st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_codec_errors(magic: bytes, tail: bytes) -> None:
    probe_and_check(magic + tail)


@given(st.sampled_from(sorted(ENCODINGS)), st.data())
def test_damaged_headers_raise_nothing_but_codec_errors(name: str, draw: st.DataObject) -> None:
    data = bytearray(encoded(name)[: draw.draw(st.integers(0, 700), label="length")])
    for _ in range(draw.draw(st.integers(0, 4), label="flips")):
        bit = draw.draw(st.integers(0, max(len(data), 1) * 8 - 1), label="bit")
        if data:
            data[bit // 8] ^= 1 << bit % 8
    probe_and_check(bytes(data))


def test_probing_loads_no_decoder() -> None:
    modules = "shardio.fields.probe, shardio.fields.base, shardio.fields.arrays"
    code = f"import sys, {modules}; print({{'cv2', 'simplejpeg', 'torch'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

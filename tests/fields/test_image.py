from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from shardio.errors import CodecError
from shardio.fields.formats import probe_image
from shardio.fields.geometry import Crop
from shardio.fields.image import Scratch, decode_image, decode_part

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]


def smooth(height: int = 40, width: int = 60) -> Pixels:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 6, columns * 4, (rows + columns) * 2], axis=-1).astype(np.uint8)


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encode(suffix: str, rgb: NDArray[np.integer[Any]], *options: int) -> bytes:
    stored = rgb[..., [2, 1, 0, 3][: rgb.shape[-1]]] if rgb.ndim == 3 else rgb
    return cv2.imencode(suffix, stored, options)[1].tobytes()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: list[bytes], width: int, *, depth: int, colour: int, extra: bytes = b"") -> bytes:
    """A PNG of packed rows, with other chunks before its data."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


FILES = {
    "jpeg": encode(".jpg", smooth()),
    "progressive": encode(".jpg", smooth(), cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "cmyk": simplejpeg.encode_jpeg(noise(20, 30, 4), colorspace="CMYK"),
    "png": encode(".png", smooth()),
    "webp": encode(".webp", smooth(), cv2.IMWRITE_WEBP_QUALITY, 101),
    "bmp": encode(".bmp", smooth()),
}


@pytest.mark.parametrize("name", ["png", "webp", "bmp"])
def test_formats_without_loss_give_the_pixels_back(name: str) -> None:
    np.testing.assert_array_equal(decode_image(FILES[name]), smooth())


@pytest.mark.parametrize("name", ["jpeg", "progressive"])
def test_jpeg_gives_nearly_the_pixels_back_as_rgb(name: str) -> None:
    pixels = decode_image(FILES[name])
    assert pixels.shape == (40, 60, 3)
    assert np.abs(pixels.astype(int) - smooth()).mean() < 4


@pytest.mark.parametrize("name", FILES)
def test_all_kinds_of_buffers_give_the_same_writable_array(name: str) -> None:
    data = FILES[name]
    expected = decode_image(data)
    assert expected.dtype == np.uint8
    assert expected.flags.writeable
    assert expected.flags.c_contiguous
    for buffer in (bytearray(data), memoryview(data), memoryview(b"x" + data + b"x")[1:-1]):
        np.testing.assert_array_equal(decode_image(buffer), expected)
        np.testing.assert_array_equal(decode_image(buffer, scratch=Scratch()), expected)
        np.testing.assert_array_equal(decode_image(buffer, probe_image(buffer)), expected)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_gray_becomes_three_equal_channels(suffix: str) -> None:
    gray = smooth()[..., 0]
    pixels = decode_image(encode(suffix, gray))
    assert np.abs(pixels.astype(int) - gray[..., None]).max() <= 2 * (suffix == ".jpg")


def test_cmyk_is_adobes_inverted_cmyk() -> None:
    inverted = simplejpeg.decode_jpeg(FILES["cmyk"], "CMYK").astype(int)
    expected = inverted[..., :3] * inverted[..., 3:] / 255
    assert np.abs(decode_image(FILES["cmyk"]) - expected).max() <= 2
    # The same in words: full ink of C, M and Y, or of K, is black; no ink is white.
    ink = np.array([[[0, 0, 0, 255], [255, 255, 255, 0], [255, 255, 255, 255]]], np.uint8)
    tiles = simplejpeg.encode_jpeg(np.repeat(np.repeat(ink, 16, 0), 16, 1), colorspace="CMYK")
    assert decode_image(tiles)[8, 8::16].max(axis=1).tolist() == pytest.approx([0, 0, 255], abs=3)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_alpha_is_dropped_not_composited(suffix: str) -> None:
    alpha = np.full((40, 60, 1), 3, np.uint8)
    data = encode(suffix, np.concatenate([smooth(), alpha], axis=2), cv2.IMWRITE_WEBP_QUALITY, 101)
    np.testing.assert_array_equal(decode_image(data), smooth())


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (20, 30, 4)])
def test_of_16_bits_the_high_byte_is_kept(shape: tuple[int, ...]) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)
    expected = (np.atleast_3d(deep) >> 8)[..., :3]
    np.testing.assert_array_equal(
        decode_image(encode(".png", deep)), np.broadcast_to(expected, (20, 30, 3))
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palettes_are_looked_up(depth: int) -> None:
    palette = noise(2**depth, 3)
    indices = np.arange(16).reshape(2, 8) % 2**depth
    bits = (indices[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = [row.tobytes() for row in np.packbits(bits.reshape(2, -1).astype(np.uint8), axis=1)]
    transparency = png_chunk(b"tRNS", b"\0\x80")
    for extra in (b"", transparency):
        chunks = png_chunk(b"PLTE", palette.tobytes()) + extra
        data = png(rows, 8, depth=depth, colour=3, extra=chunks)
        np.testing.assert_array_equal(decode_image(data), palette[indices])


def test_metadata_of_a_png_are_not_even_looked_at(capfd: pytest.CaptureFixture[str]) -> None:
    rows = [bytes(row) for row in smooth().reshape(40, -1)]
    bomb = b"Comment\0\0" + zlib.compress(bytes(10_000_000))
    extra = png_chunk(b"iCCP", b"broken\0\0profile") + png_chunk(b"zTXt", bomb) * 20
    extra += png_chunk(b"acTL", b"\0\0\0\2\0\0\0\0") + png_chunk(b"gAMA", b"\0\0\0\1")
    data = png(rows, 60, depth=8, colour=2, extra=extra)
    np.testing.assert_array_equal(decode_image(data), smooth())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_raise_and_print_nothing(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = FILES[name]
    for length in [*range(0, len(data) - 2, 37), len(data) - 2, len(data) - 1]:
        with pytest.raises(CodecError):
            decode_image(data[:length])
    assert capfd.readouterr().err == ""


def test_a_flipped_bit_anywhere_in_a_png_is_noticed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = FILES["png"]
    for position in range(data.index(b"IHDR"), len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(CodecError, match=r"PNG|header"):
            decode_image(flipped)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["jpeg", "progressive", "cmyk"])
def test_junk_in_a_scan_is_corrupt(name: str) -> None:
    data = FILES[name]
    with pytest.raises(CodecError, match="the JPEG data do not decode: Corrupt JPEG data"):
        decode_image(data[:-2] + b"junk" * 20 + data[-2:])


@pytest.mark.parametrize("name", ["jpeg", "progressive", "cmyk"])
def test_junk_between_the_segments_of_a_header_harms_no_pixel(name: str) -> None:
    data = FILES[name]
    quantization = data.index(b"\xff\xdb")
    junked = data[:quantization] + b"\xff\0junk" + data[quantization:]
    with pytest.raises(ValueError, match="Corrupt JPEG data"):
        simplejpeg.decode_jpeg(junked)
    np.testing.assert_array_equal(decode_image(junked), decode_image(data))
    with pytest.raises(CodecError, match="Corrupt JPEG data"):
        decode_image(junked[:-2] + b"junk" * 20 + junked[-2:])


def scan_header(data: bytes) -> int:
    """Where the parameters of the first scan stand."""
    return probe_image(data).scan - 3


HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "revision of JFIF": lambda data: data.replace(b"JFIF\0\1\1", b"JFIF\0\0\0"),
    "parameters of a sequential scan": lambda data: (
        data[: scan_header(data)] + b"\0\0\0" + data[scan_header(data) + 3 :]
    ),
    "bytes behind the data": lambda data: data[:-2] + b"\x12\x34\x56" * 40 + data[-2:],
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("restarts", [0, 5])
def test_warnings_that_harm_no_pixel_are_passed_over_whole_or_in_part(
    name: str, restarts: int
) -> None:
    options = [cv2.IMWRITE_JPEG_RST_INTERVAL, restarts]
    sound = encode(".jpg", smooth(320, 240), *options)
    data = HARMLESS[name](sound)
    with pytest.raises(ValueError, match=r"JFIF|SOS|extraneous"):
        simplejpeg.decode_jpeg(data)
    expected = decode_image(sound)
    np.testing.assert_array_equal(decode_image(data, verified=True), expected)
    info, scratch = probe_image(data), Scratch()
    for crop in (Crop(0, 0, 60, 240), Crop(200, 10, 120, 200), Crop(0, 0, 320, 240)):
        part = decode_part(
            data, info, crop, (64, 64), scratch=scratch, reduced=False, verified=True
        )
        bottom = crop.top + crop.height
        np.testing.assert_array_equal(part.pixels[:bottom], expected[:bottom])


def test_a_harmless_warning_hides_no_other() -> None:
    """TurboJPEG names the first warning alone."""
    sound = encode(".jpg", smooth(320, 240))
    for change in HARMLESS.values():
        data = change(sound)
        for end in (b"\xff\xd9", b"junk\xff\xd9"):
            short = data[: len(sound) * 2 // 3] + end
            with pytest.raises(CodecError, match="premature end of data segment"):
                decode_image(short, verified=True)


def test_bytes_before_the_end_that_stand_for_restart_markers_are_no_rest() -> None:
    sound = encode(".jpg", smooth(320, 240), cv2.IMWRITE_JPEG_RST_INTERVAL, 15)
    third = sound.index(b"\xff\xd2", probe_image(sound).scan)
    short = sound[:third] + b"\x12\x34" * 9 + sound[-2:]
    with pytest.raises(ValueError, match="extraneous bytes before marker 0xd9"):
        simplejpeg.decode_jpeg(short)
    with pytest.raises(CodecError, match="extraneous bytes before marker 0xd9"):
        decode_image(short, verified=True)


def test_another_images_header_is_noticed() -> None:
    with pytest.raises(CodecError, match=r"decode to \(40, 60, 3\).*announces \(41, 60\)"):
        decode_image(FILES["webp"], probe_image(encode(".webp", smooth(41, 60))))
    with pytest.raises(CodecError, match="the checksum of its chunk b'IDAT' is wrong"):
        decode_image(FILES["png"], probe_image(encode(".png", smooth(41, 60))))


def test_a_scratch_is_used_again() -> None:
    scratch = Scratch()
    first = decode_image(FILES["jpeg"], scratch=scratch)
    second = decode_image(FILES["progressive"], scratch=scratch)
    assert np.shares_memory(first, second)
    assert not np.shares_memory(second, decode_image(FILES["jpeg"]))


def test_a_scratch_grows_but_does_not_keep_huge_buffers() -> None:
    scratch = Scratch()
    small = scratch.take(1000)
    assert np.shares_memory(small, scratch.take(1000))
    large = scratch.take(100_000)
    assert large.size >= 100_000
    huge = scratch.take(Scratch.KEEP + 1)
    assert huge.size == Scratch.KEEP + 1
    assert np.shares_memory(large, scratch.take(1000))


@given(st.sampled_from(sorted(FILES)), st.data())
def test_damaged_files_decode_or_raise_codec_errors(name: str, draw: st.DataObject) -> None:
    data = bytearray(FILES[name])
    for _ in range(draw.draw(st.integers(1, 4), label="flips")):
        bit = draw.draw(st.integers(0, len(data) * 8 - 1), label="bit")
        data[bit // 8] ^= 1 << bit % 8
    try:
        info = probe_image(data, max_pixels=1_000_000)
        pixels = decode_image(data, info)
    except CodecError:
        return
    assert pixels.shape == (info.height, info.width, 3)
    assert pixels.dtype == np.uint8

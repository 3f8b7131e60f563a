"""The plain PNG that OpenCV gets: the same pixels, and nothing that libpng prints about."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardio.errors import CodecError
from shardio.fields import png as module
from shardio.fields.formats import check_complete, probe_image
from shardio.fields.image import decode_image
from shardio.fields.png import plain_png

if TYPE_CHECKING:
    from numpy.typing import NDArray

ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
         (1, 0, 2, 1)]  # fmt: skip


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int,
    height: int,
    packed: bytes,
    *,
    depth: int = 8,
    colour: int = 2,
    interlace: int = 0,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG of a zlib stream, with other chunks before and after it."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            before,
            chunk(b"IDAT", packed),
            after,
            chunk(b"IEND", b""),
        ]
    )


def rows_of(pixels: NDArray[np.uint8]) -> bytes:
    """Rows of RGB, each after the filter type 0."""
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


PIXELS = picture(7, 5)
ROWS = rows_of(PIXELS)
PACKED = zlib.compress(ROWS)
PALETTE = chunk(b"PLTE", bytes(range(6)))


@given(st.integers(1, 20), st.integers(1, 20))
def test_interlaced_pixels_come_back(height: int, width: int) -> None:
    pixels = picture(height, width)
    passes = [pixels[top::down, left::right] for top, left, down, right in ADAM7]
    rows = b"".join(rows_of(some) for some in passes if some.size)
    data = png(width, height, zlib.compress(rows), interlace=1)
    np.testing.assert_array_equal(decode_image(data), pixels)


@pytest.mark.parametrize("at_once", [1, 16, 50, len(ROWS), len(ROWS) + 1, 1 << 20])
@pytest.mark.parametrize("colour", [0, 2, 3, 4, 6])
def test_how_much_is_inflated_at_once_changes_nothing(
    at_once: int, colour: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = np.random.default_rng(0).integers(0, 256, (9, 1 + 4 * channels), np.uint8)
    rows[:, 0] %= 5
    palette = chunk(b"PLTE", bytes(range(256)) * 3)
    data = png(4, 9, zlib.compress(rows.tobytes()), colour=colour, before=palette)
    expected = decode_image(data)
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    np.testing.assert_array_equal(decode_image(data), expected)
    rows[8, 0] = 5
    data = png(4, 9, zlib.compress(rows.tobytes()), colour=colour, before=palette)
    with pytest.raises(CodecError, match="a row of the unknown filter type 5"):
        decode_image(data)


def test_filtered_rows_are_handed_on_as_they_are() -> None:
    pixels = picture(31, 17)
    for strategy in range(5):
        options = [cv2.IMWRITE_PNG_STRATEGY, strategy, cv2.IMWRITE_PNG_FILTER, 8 << strategy]
        data = cv2.imencode(".png", pixels[..., ::-1], options)[1].tobytes()
        np.testing.assert_array_equal(decode_image(data), pixels)


PASSED = {
    "bytes after the stream": png(5, 7, PACKED + b"padding"),
    "more than the rows": png(5, 7, zlib.compress(ROWS + b"\0")),
    "another stream after a chunk": png(
        5, 7, PACKED, after=chunk(b"tEXt", b"") + chunk(b"IDAT", PACKED)
    ),
    "a palette that no pixel uses": png(5, 7, PACKED, before=chunk(b"PLTE", b"odd")),
    "an odd end": png(5, 7, PACKED)[:-12] + chunk(b"IEND", b"more"),
    "metadata of any kind": png(5, 7, PACKED, before=chunk(b"iCCP", b"x") + chunk(b"gAMA", b"")),
}


@pytest.mark.parametrize("name", PASSED)
def test_what_harms_no_pixel_passes_in_silence(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    np.testing.assert_array_equal(decode_image(PASSED[name]), PIXELS)
    assert capfd.readouterr() == ("", "")


REFUSED: dict[str, tuple[bytes, str]] = {
    "colour type": (png(5, 7, PACKED, colour=5), "colour type 5 of 8 bits"),
    "depth": (png(5, 7, PACKED, depth=4), "colour type 2 of 4 bits"),
    "interlace": (png(5, 7, PACKED, interlace=2), "interlace 2 do not go together"),
    "width": (png(1_000_001, 1, PACKED), "more than 1000000 for a side"),
    "no data": (png(5, 7, b""), "fewer than the 112 bytes of rows"),
    "a short stream": (png(5, 7, zlib.compress(ROWS[:-1])), "fewer than the 112 bytes"),
    "a cut stream": (png(5, 7, PACKED[:-1]), "fewer than the 112 bytes"),
    "a wrong checksum": (png(5, 7, PACKED[:-1] + b"\0"), "do not inflate: .*data check"),
    "no stream": (png(5, 7, b"text" * 30), "do not inflate: .*header check"),
    "a filter": (png(5, 7, zlib.compress(b"\7" + ROWS[1:])), "unknown filter type 7"),
    "no palette": (png(5, 7, PACKED, colour=3), "a palette of 0 bytes"),
    "half a colour": (
        png(5, 7, PACKED, colour=3, before=chunk(b"PLTE", b"1234")), "a palette of 4 bytes"),
    "a huge palette": (
        png(5, 7, PACKED, colour=3, before=chunk(b"PLTE", bytes(771))), "a palette of 771 bytes"),
    "a late palette": (png(5, 7, PACKED, colour=3, after=PALETTE), "b'PLTE' that no decoder"),
    "two palettes": (png(5, 7, PACKED, colour=3, before=PALETTE * 2), "b'PLTE' that no decoder"),
    "an unknown chunk": (png(5, 7, PACKED, before=chunk(b"ABCD", b"")), "b'ABCD' that no decoder"),
    "two headers": (
        png(5, 7, PACKED, before=chunk(b"IHDR", bytes(13))), "b'IHDR' that no decoder"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_libpng_would_print_about_is_refused_in_silence(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data, message = REFUSED[name]
    with pytest.raises(CodecError, match=message):
        decode_image(data)
    assert capfd.readouterr() == ("", "")


def test_colours_that_a_palette_lacks_are_black(capfd: pytest.CaptureFixture[str]) -> None:
    packed = zlib.compress(b"\0\0\1\2\xff")
    data = png(4, 1, packed, colour=3, before=PALETTE)
    assert decode_image(data).tolist() == [[[0, 1, 2], [3, 4, 5], [0, 0, 0], [0, 0, 0]]]
    assert capfd.readouterr() == ("", "")


@given(st.data())
def test_whatever_a_png_holds_libpng_prints_nothing(draw: st.DataObject) -> None:
    """Every file that passes is taken by OpenCV, which is how libpng has nothing to print."""
    depth = draw.draw(st.sampled_from([1, 2, 4, 8, 16]))
    colour = draw.draw(st.sampled_from([0, 2, 3, 4, 6]))
    width, height = draw.draw(st.integers(1, 9)), draw.draw(st.integers(1, 9))
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = bytearray(draw.draw(st.binary(max_size=20))).ljust(
        height * (1 + (width * bits + 7) // 8), b"\0"
    )
    for row in range(height):
        rows[row * (1 + (width * bits + 7) // 8)] = draw.draw(st.integers(0, 5))
    packed = bytearray(zlib.compress(bytes(rows), draw.draw(st.sampled_from([0, 9]))))
    for _ in range(draw.draw(st.integers(0, 2))):
        packed[draw.draw(st.integers(0, len(packed) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    kinds = st.sampled_from([b"PLTE", b"IHDR", b"IDAT", b"tRNS", b"ABCD", b"\0\0\0\0"])
    extra = st.lists(st.builds(chunk, kinds, st.binary(max_size=16)), max_size=2).map(b"".join)
    data = png(
        width,
        height,
        bytes(packed),
        depth=depth,
        colour=colour,
        interlace=draw.draw(st.integers(0, 1)),
        before=draw.draw(extra),
        after=draw.draw(extra),
    )
    try:
        info = probe_image(data)
        plain = plain_png(memoryview(data), info.chunks)
    except CodecError:
        return
    assert cv2.imdecode(np.frombuffer(plain, np.uint8), cv2.IMREAD_COLOR) is not None


@pytest.mark.parametrize("case", PASSED)
def test_a_verified_tiny_image_has_the_same_pixels(case: str) -> None:
    data = PASSED[case]
    assert np.array_equal(decode_image(data, verified=True), decode_image(data))


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_refused_when_a_tiny_image_is_packed(case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises(CodecError, match=message):
        check_complete(data, probe_image(data))


def test_zlib_ng_says_what_zlib_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sound and of corrupt streams: the same file, or the same sentence."""
    libraries = [zlib, pytest.importorskip("zlib_ng").zlib_ng]
    rng = np.random.default_rng(0)
    rows = rows_of(picture(40, 40) // 64)
    sound = zlib.compress(rows)
    for _ in range(400):
        packed = bytearray(sound)
        for place in rng.integers(0, len(packed), int(rng.integers(0, 3))):
            packed[place] ^= 1 << int(rng.integers(0, 8))
        data = memoryview(png(40, 40, bytes(packed[: len(packed) - int(rng.integers(0, 2))])))
        outcomes = []
        for library in libraries:
            monkeypatch.setattr(module, "zlib", library)
            try:
                outcomes.append(bytes(plain_png(data, module.png_chunks(data))))
            except CodecError as error:
                outcomes.append(str(error).encode())
        assert outcomes[0] == outcomes[1]

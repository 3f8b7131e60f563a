from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardio.fields.exif import apply_orientation, exif_orientation
from shardio.fields.image import Scratch, decode_image
from shardio.fields.probe import probe_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

# EXIF's definition: which stored row and column a pixel comes from, by where it is shown.
# r and c count the row and column from the top left, R and C from the bottom right.
STORED_AT = {1: "rc", 2: "rC", 3: "RC", 4: "Rc", 5: "cr", 6: "Cr", 7: "CR", 8: "cR"}


def shown_by_hand(stored: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    height, width = stored.shape[:2] if orientation < 5 else stored.shape[1::-1]
    shown = np.zeros((height, width, 3), np.uint8)
    for row in range(height):
        for column in range(width):
            places = {"r": row, "c": column, "R": height - 1 - row, "C": width - 1 - column}
            source = STORED_AT[orientation]
            shown[row, column] = stored[places[source[0]], places[source[1]]]
    return shown


def picture() -> NDArray[np.uint8]:
    """A smooth picture of 24 x 40 pixels without symmetry."""
    rows, columns = np.mgrid[0:24, 0:40]
    return np.stack([rows * 10, columns * 6, (rows + columns) * 3], axis=-1).astype(np.uint8)


def exif_of(orientation: int, *, order: str = "<", kind: int = 3) -> bytes:
    """A TIFF structure of one directory: another tag, then the orientation."""
    value = struct.pack(order + {1: "B", 3: "H", 4: "I"}.get(kind, "H"), orientation)
    return (
        (b"II*\0" if order == "<" else b"MM\0*")
        + struct.pack(order + "IH", 8, 2)
        + struct.pack(order + "HHII", 0x0100, 4, 1, 99)
        + struct.pack(order + "HHI", 0x0112, kind, 1)
        + value.ljust(4, b"\0")
        + struct.pack(order + "I", 0)
    )


def jpeg_with(exif: bytes) -> bytes:
    data = cv2.imencode(".jpg", picture()[..., ::-1])[1].tobytes()
    segment = b"Exif\0\0" + exif
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def png_with(exif: bytes) -> bytes:
    data = cv2.imencode(".png", picture()[..., ::-1])[1].tobytes()
    checksum = struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    return data[:33] + struct.pack(">I", len(exif)) + b"eXIf" + exif + checksum + data[33:]


def webp_with(exif: bytes) -> bytes:
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101]
    data = cv2.imencode(".webp", picture()[..., ::-1], lossless)[1].tobytes()
    canvas = struct.pack("<I", 8) + (39).to_bytes(3, "little") + (23).to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<I", 10) + canvas + data[12:]
    chunks += b"EXIF" + struct.pack("<I", len(exif)) + exif + b"\0" * (len(exif) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


WRITERS = {"jpeg": jpeg_with, "png": png_with, "webp": webp_with}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_views_are_turned_as_exif_defines(orientation: int) -> None:
    turned = apply_orientation(picture(), orientation)
    np.testing.assert_array_equal(turned, shown_by_hand(picture(), orientation))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_turned_alike(name: str, orientation: int) -> None:
    data = WRITERS[name](exif_of(orientation))
    stored = decode_image(WRITERS[name](b""))
    expected = shown_by_hand(stored, orientation)
    shown = decode_image(data)
    np.testing.assert_array_equal(shown, expected)
    assert shown.flags.c_contiguous
    np.testing.assert_array_equal(decode_image(data, scratch=Scratch()), expected)
    info = probe_image(data)
    assert (info.height, info.width) == expected.shape[:2]
    assert info.stored_size == (24, 40)


@pytest.mark.parametrize("name", ["png", "webp"])
def test_pixels_without_loss_are_the_pictures(name: str) -> None:
    np.testing.assert_array_equal(decode_image(WRITERS[name](exif_of(1))), picture())


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
def test_orientation_is_read_in_both_byte_orders(order: str, kind: int, prefix: bytes) -> None:
    assert exif_orientation(prefix + exif_of(6, order=order, kind=kind)) == 6


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"II*\0",
        b"XX*\0" + exif_of(6)[4:],
        exif_of(0),
        exif_of(9),
        exif_of(6, kind=2),
        b"II*\0" + struct.pack("<I", 0xFFFFFFFF),
        exif_of(6)[:24],
    ],
)
def test_broken_metadata_mean_upright(exif: bytes) -> None:
    assert exif_orientation(exif) == 1


def test_a_jpeg_segment_with_another_prefix_is_not_exif() -> None:
    turned = jpeg_with(exif_of(6))
    assert probe_image(turned).orientation == 6
    assert probe_image(turned.replace(b"Exif\0\0", b"Exif\0\2")).orientation == 1


def test_the_first_of_several_exif_segments_counts() -> None:
    first, second = jpeg_with(exif_of(6)), jpeg_with(exif_of(3))
    end = 2 + 4 + 6 + len(exif_of(6))  # start of image, marker and length, prefix, metadata
    assert probe_image(first[:end] + second[2:]).orientation == 6


@given(st.binary(max_size=80), st.sampled_from([b"", b"II*\0", b"MM\0*"]))
def test_any_bytes_give_an_orientation(tail: bytes, magic: bytes) -> None:
    assert 1 <= exif_orientation(magic + tail) <= 8


@given(st.integers(0, len(exif_of(6)) * 8 - 1))
def test_flipped_bits_give_an_orientation(bit: int) -> None:
    flipped = bytearray(exif_of(6))
    flipped[bit // 8] ^= 1 << bit % 8
    assert 1 <= exif_orientation(bytes(flipped)) <= 8

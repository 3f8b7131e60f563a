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
from PIL import Image, ImageOps

from shardio.fields import png
from shardio.fields.exif import apply_orientation, orientation_of
from shardio.fields.formats import probe_image
from shardio.fields.image import Scratch, decode_image

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
    assert orientation_of(prefix + exif_of(6, order=order, kind=kind), None) == 6


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
    assert orientation_of(exif, None) == 1


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
    assert 1 <= orientation_of(magic + tail, None) <= 8


@given(st.integers(0, len(exif_of(6)) * 8 - 1))
def test_flipped_bits_give_an_orientation(bit: int) -> None:
    flipped = bytearray(exif_of(6))
    flipped[bit // 8] ^= 1 << bit % 8
    assert 1 <= orientation_of(bytes(flipped), None) <= 8


def xmp_of(orientation: object, form: str = 'tiff:Orientation="{}"/>') -> bytes:
    head = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description '
    return (head + form.format(orientation)).encode()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(*chunks: bytes) -> bytes:
    data = png_with(b"")
    end = data.index(b"IDAT") - 4
    return data[:33] + b"".join(chunks) + data[data.index(b"eXIf") + 8 : end] + data[end:]


def raw_profile(profile: bytes, name: bytes = b"exif") -> bytes:
    """What ImageMagick wrote before there was a chunk for EXIF."""
    digits = profile.hex()
    lines = [digits[start : start + 72].encode() for start in range(0, len(digits), 72)]
    return b"\n".join([b"", name, b"%8d" % len(profile), *lines, b""])


def text(keyword: bytes, value: bytes) -> bytes:
    return png_chunk(b"tEXt", keyword + b"\0" + value)


def packed_text(keyword: bytes, value: bytes) -> bytes:
    return png_chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(value))


def international(keyword: bytes, value: bytes, *, packed: bool = False) -> bytes:
    value = zlib.compress(value) if packed else value
    return png_chunk(b"iTXt", keyword + bytes([0, packed, 0]) + b"en\0word\0" + value)


def xmp_in_jpeg(xmp: bytes) -> bytes:
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    return b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment


def xmp_in_webp(exif: bytes, xmp: bytes) -> bytes:
    data = webp_with(exif) + b"XMP " + struct.pack("<I", len(xmp)) + xmp + b"\0" * (len(xmp) % 2)
    flags = bytes([12])  # EXIF and XMP
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:20] + flags + data[21:]


RAW, XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"
EXIF = b"Exif\0\0" + exif_of(6)
TURNED = {
    "text": png_of(text(RAW, raw_profile(EXIF))),
    "packed text": png_of(packed_text(RAW, raw_profile(EXIF))),
    "international text": png_of(international(RAW, raw_profile(EXIF))),
    "packed international text": png_of(international(RAW, raw_profile(EXIF), packed=True)),
    "XMP": png_of(international(XMP, xmp_of(6))),
    "packed XMP": png_of(international(XMP, xmp_of(6), packed=True)),
    "XMP as an element": png_of(international(XMP, xmp_of(6, "tiff:Orientation>{}<"))),
    "JPEG with XMP": jpeg_with(b"")[:2] + xmp_in_jpeg(xmp_of(6)) + jpeg_with(b"")[2:],
    "WebP with XMP": xmp_in_webp(b"", xmp_of(6)),
    "XMP where EXIF says nothing": png_of(
        png_chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0\0\0\0\0"), international(XMP, xmp_of(6))
    ),
    "EXIF before XMP": png_of(international(XMP, xmp_of(3)), png_chunk(b"eXIf", exif_of(6))),
    "text before XMP": png_of(international(XMP, xmp_of(3)), text(RAW, raw_profile(EXIF))),
    "EXIF before text": png_of(text(RAW, raw_profile(exif_of(3))), png_chunk(b"eXIf", exif_of(6))),
    "JPEG with EXIF before XMP": (
        jpeg_with(exif_of(6))[:2] + xmp_in_jpeg(xmp_of(3)) + jpeg_with(exif_of(6))[2:]
    ),
    "WebP with EXIF before XMP": xmp_in_webp(exif_of(6), xmp_of(3)),
}


@pytest.mark.parametrize("name", TURNED)
def test_orientation_is_found_where_pillow_finds_it(name: str) -> None:
    data = TURNED[name]
    assert probe_image(data).orientation == 6
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert decode_image(data).shape[:2] == picture.size[::-1] == (40, 24)


def test_app1_segments_in_text_hold_exif_or_xmp() -> None:
    """ExifTool and ImageMagick read them, Pillow does not."""
    keyword = b"Raw profile type APP1"
    assert probe_image(png_of(text(keyword, raw_profile(EXIF, b"APP1")))).orientation == 6
    segment = xmp_in_jpeg(xmp_of(8))[4:]
    assert probe_image(png_of(text(keyword, raw_profile(segment, b"APP1")))).orientation == 8


@pytest.mark.parametrize(
    "chunk",
    [
        text(RAW, b""),
        text(RAW, b"\nexif\n  6\nnot hexadecimal\n"),
        text(RAW, "\nexif\n  6\n\u00e9\u00e9".encode()),
        text(RAW, raw_profile(exif_of(9))),
        text(b"Comment", raw_profile(EXIF)),
        png_chunk(b"zTXt", RAW),
        png_chunk(b"zTXt", RAW + b"\0\0not deflated"),
        png_chunk(b"iTXt", RAW + b"\0\1"),
        international(XMP, xmp_of(0)),
        international(XMP, xmp_of(9)),
        international(XMP, xmp_of(66)),
        international(XMP, xmp_of("six")),
        international(XMP, b"tiff:Orientation"),
    ],
)
def test_broken_text_means_upright(chunk: bytes) -> None:
    assert probe_image(png_of(chunk)).orientation == 1


@given(
    st.sampled_from([b"tEXt", b"zTXt", b"iTXt"]),
    st.sampled_from([RAW, XMP, b"Raw profile type APP1", b""]),
    st.one_of(
        st.binary(max_size=60),
        st.binary(max_size=60).map(zlib.compress),
        st.binary(max_size=40).map(raw_profile),
        st.binary(max_size=20).map(lambda tail: b"tiff:Orientation=" + tail),
    ),
)
def test_any_text_gives_an_orientation(kind: bytes, keyword: bytes, value: bytes) -> None:
    for between in (b"\0", b"\0\0", b"\0\1\0\0\0", b"\0\0\0\0\0"):
        data = png_of(png_chunk(kind, keyword + between + value))
        assert 1 <= probe_image(data).orientation <= 8


def test_text_that_inflates_for_ever_is_inflated_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    library = vars(png)["zlib"]  # zlib, or what is installed in its place
    inflater = library.decompressobj

    class Spy:
        def __init__(self) -> None:
            self._inflating = inflater()

        def decompress(self, data: bytes, most: int) -> bytes:
            found: bytes = self._inflating.decompress(data, most)
            sizes.append(len(found))
            return found

    bomb = png_of(packed_text(RAW, bytes(1 << 26)))
    monkeypatch.setattr(library, "decompressobj", Spy)
    assert probe_image(bomb).orientation == 1
    assert sizes == [1 << 20]

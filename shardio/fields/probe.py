"""What the header of an image says: format, size, orientation; no decoding.

Each format has a walker that finds the segments or chunks of the file without looking into them;
the few fields needed are read from those. Work is bounded: a walk only moves forward and gives up
after a fixed number of steps, and nothing is allocated by a size that the bytes announce. Which
formats there are is the table of shardio.fields.formats.

Formats: JPEG (ITU T.81 annex B), PNG (W3C PNG third edition, 5.3 and 11), WebP (RFC 9649). BMP has
a module of its own.
"""

from __future__ import annotations

import re
from struct import unpack_from
from typing import NamedTuple

from shardio.errors import CodecError
from shardio.fields.exif import FIRST_TURNED, UPRIGHT, is_exif, is_xmp, orientation_of
from shardio.fields.png import (
    TEXT_CHUNKS,
    TINY,
    Chunk,
    plain_png,
    png_chunks,
    png_header,
    text_metadata,
)

Buffer = bytes | bytearray | memoryview
"""Bytes in one contiguous piece."""

_MAX_SEGMENTS = 10_000
_MAX_CHUNKS = 100_000  # of a WebP

# JPEG markers: a segment has a length, a marker that stands alone has none.
_SOI, _EOI, _SOS, _DRI, _APP1 = 0xD8, 0xD9, 0xDA, 0xDD, 0xE1
_STAND_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA})
_SAMPLINGS = frozenset(across << 4 | down for across in range(1, 5) for down in range(1, 5))
_HUFFMAN_FRAMES = frozenset({0xC0, 0xC1})
_PROGRESSIVE_FRAMES = frozenset({0xC2, 0xCA})
_OTHER_FRAMES = frozenset({0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF})
_FF, _FILL = 0xFF, frozenset({0x00, 0xFF})
_MARKER = re.compile(rb"\xff[^\x00\xff]")  # passes over fill bytes and junk, as decoders do
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # and over restarts


class PictureSize(NamedTuple):
    """Size of a picture as an index records it.

    Attributes:
        height: rows of the picture as shown, after orientation.
        width: columns of the picture as shown, after orientation.
        orientation: EXIF orientation, 1 to 8.
    """

    height: int
    width: int
    orientation: int

    def __str__(self) -> str:
        """Return the size for a message."""
        turned = "" if self.orientation == UPRIGHT else f", orientation {self.orientation}"
        return f"{self.height} × {self.width}{turned}"


class ImageInfo(NamedTuple):
    """What the header of an image says.

    Attributes:
        format: "jpeg", "png", "webp" or "bmp".
        height: rows of the picture as shown, after orientation.
        width: columns of the picture as shown, after orientation.
        orientation: EXIF orientation, 1 to 8.
        bits: greatest number of bits of a channel: 8, or 1, 2, 4 or 16 in a PNG.
        channels: number of values of a pixel as stored; an index into a PNG's palette is one. 3 for
            WebP and BMP, whatever they hold.
        scan: JPEG only: offset of what follows the header of the first scan.
        multiscan: JPEG only: whether a pixel's data are spread over several scans.
        frame: JPEG only: offset of the frame header's length, where the height in it may be
            lowered to decode less: Huffman coding, one scan, gray or three colours; else 0.
        restart: JPEG only: restart interval in MCUs; 0 for none.
        chunks: PNG only: all of them.
        unpacked: PNG only: bytes of the inflated data.
    """

    format: str
    height: int
    width: int
    orientation: int = UPRIGHT
    bits: int = 8
    channels: int = 3
    scan: int = 0
    multiscan: bool = False
    frame: int = 0
    restart: int = 0
    chunks: tuple[Chunk, ...] = ()
    unpacked: int = 0

    @property
    def size(self) -> PictureSize:
        """What an index records of the picture."""
        return PictureSize(self.height, self.width, self.orientation)

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width as stored, before orientation: what a decoder makes of the bytes."""
        if self.orientation >= FIRST_TURNED:
            return self.width, self.height
        return self.height, self.width


def jpeg_segments(view: memoryview) -> list[tuple[int, int, int]]:
    """Find the header segments of a JPEG, the start of the first scan last.

    Returns:
        Marker code, and where the segment starts and ends; the start is that of its length.

    Raises:
        CodecError: the header ends too early, or has more segments than any real one.
    """
    found: list[tuple[int, int, int]] = []
    end = 2
    size = len(view)
    for _ in range(_MAX_SEGMENTS):
        start = end + 2
        if start > size or view[end] != _FF or view[end + 1] in _FILL:
            marked = _MARKER.search(view, end)
            start = marked.end() if marked else size
        if start + 2 > size:
            raise CodecError("truncated JPEG: it ends inside its header")
        marker = view[start - 1]
        if marker in _STAND_ALONE:
            end = start
            continue
        if marker in {_EOI, _SOI}:
            raise CodecError("broken JPEG header: no picture before the next marker FF D8 or FF D9")
        length = view[start] << 8 | view[start + 1]
        end = start + length
        if length < 2 or end > size:
            raise CodecError("truncated or broken JPEG: a header segment reaches past its end")
        found.append((marker, start, end))
        if marker == _SOS:
            return found
    raise CodecError(f"broken JPEG header: more than {_MAX_SEGMENTS} segments")


def count_scans(view: memoryview, end: int) -> int:
    """Count the scans of a JPEG whose first one starts at an offset."""
    scans = 1
    for _ in range(_MAX_SEGMENTS):
        found = _AFTER_SCAN.search(view, end)
        if found is None or view[found.end() - 1] == _EOI or found.end() + 2 > len(view):
            return scans
        scans += view[found.end() - 1] == _SOS
        end = found.end() + int(unpack_from(">H", view, found.end())[0])
    raise CodecError(f"broken JPEG: more than {_MAX_SEGMENTS} segments between its scans")


def _webp_chunks(view: memoryview) -> list[Chunk]:
    """Find the chunks of a WebP: their type, and where their data start and end."""
    found: list[Chunk] = []
    position = 12
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(view):
            break
        kind, length = unpack_from("<4sI", view, position)
        start = position + 8
        found.append((kind, start, min(start + length, len(view))))
        position = start + length + (length & 1)
    return found


def probe_jpeg(view: memoryview) -> ImageInfo:
    """Read the header of a JPEG.

    Raises:
        CodecError: the header is broken.
    """
    frame, restart = 0, 0
    exif, xmp = None, None
    for marker, start, end in jpeg_segments(view):
        if marker in _FRAMES:
            frame = start
        elif marker in _OTHER_FRAMES:
            raise CodecError(f"a JPEG of the rare kind SOF{marker - 0xC0}, which no decoder reads")
        elif marker == _APP1:
            segment = view[start + 2 : end]
            if exif is None and is_exif(segment):
                exif = segment
            elif xmp is None and is_xmp(segment):
                xmp = segment
        elif marker == _DRI and end - start == 4:
            restart = unpack_from(">H", view, start + 2)[0]
        elif marker == _SOS and frame:
            orientation = orientation_of(exif, xmp) if exif or xmp else UPRIGHT
            return _jpeg_info(view, frame, start, orientation, restart)
    raise CodecError("broken JPEG header: no frame header before the first scan")


def _jpeg_info(
    view: memoryview, frame: int, scan: int, orientation: int, restart: int
) -> ImageInfo:
    """Put together what the frame header (SOF) and the first scan's header (SOS) say."""
    frame_length: int = unpack_from(">H", view, frame)[0]
    scan_length: int = unpack_from(">H", view, scan)[0]
    if frame_length < 8 or scan_length < 3:
        raise CodecError("broken JPEG header: the frame's or scan's header is too short")
    bits, height, width, components = unpack_from(">BHHB", view, frame + 2)
    if bits != 8:
        raise CodecError(f"a JPEG of {bits} bits per sample, where 8 are needed")
    multiscan = view[frame - 1] in _PROGRESSIVE_FRAMES or view[scan + 2] < components
    plain = view[frame - 1] in _HUFFMAN_FRAMES and not multiscan and components in {1, 3}
    plain = plain and frame_length == 8 + 3 * components
    samplings = view[frame + 9 : frame + 8 + 3 * components : 3]
    plain = plain and _SAMPLINGS.issuperset(samplings)
    shown_height, shown_width = _as_shown((height, width), orientation)
    return ImageInfo(
        format="jpeg",
        height=shown_height,
        width=shown_width,
        orientation=orientation,
        channels=components,
        scan=scan + scan_length,
        multiscan=multiscan,
        frame=frame if plain else 0,
        restart=restart,
    )


def probe_png(view: memoryview) -> ImageInfo:
    """Read the header of a PNG.

    Raises:
        CodecError: the header is broken.
    """
    chunks = png_chunks(view)
    orientation = _png_orientation(view, chunks)
    header = png_header(view)
    height, width = _as_shown((header.height, header.width), orientation)
    of_pixels = header.depth, header.channels
    return ImageInfo(
        "png", height, width, orientation, *of_pixels, chunks=tuple(chunks), unpacked=header.size
    )


def _png_orientation(view: memoryview, chunks: list[Chunk]) -> int:
    """Look for EXIF in its own chunk, then in text, and for XMP, which is text."""
    exif: bytes | memoryview | None = None
    raw, xmp = None, None
    for kind, start, end in chunks:
        if kind == b"eXIf":
            exif = view[start:end] if exif is None else exif
        elif kind in TEXT_CHUNKS and (raw is None or xmp is None):
            found_raw, found_xmp = text_metadata(kind, view[start:end])
            raw, xmp = raw or found_raw, xmp or found_xmp
    return orientation_of(raw if exif is None else exif, xmp) if exif or raw or xmp else UPRIGHT


def probe_webp(view: memoryview) -> ImageInfo:
    """Read the header of a WebP.

    Raises:
        CodecError: the header is broken.
    """
    chunks = _webp_chunks(view)
    kind, start, end = chunks[0] if chunks else (b"", 0, 0)
    needed = {b"VP8X": 10, b"VP8 ": 10, b"VP8L": 5}.get(kind)
    if needed is None or end - start < needed:
        raise CodecError(f"broken WebP header: its first chunk is {kind!r}, cut short or unknown")
    if kind == b"VP8 ":
        if bytes(view[start + 3 : start + 6]) != b"\x9d\x01\x2a":
            raise CodecError("broken WebP header: no start code in its VP8 frame")
        width, height = unpack_from("<HH", view, start + 6)
        return _info("webp", (height & 0x3FFF, width & 0x3FFF), UPRIGHT)
    if kind == b"VP8L":
        bits: int = unpack_from("<I", view, start + 1)[0]
        if view[start] != 0x2F:
            raise CodecError("broken WebP header: no signature in its VP8L frame")
        return _info("webp", (1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)), UPRIGHT)
    width = 1 + int.from_bytes(view[start + 4 : start + 7], "little")
    height = 1 + int.from_bytes(view[start + 7 : start + 10], "little")
    exif, xmp = None, None
    for kind, start, end in chunks:
        if kind == b"EXIF" and exif is None:
            exif = view[start:end]
        elif kind == b"XMP " and xmp is None:
            xmp = view[start:end]
    return _info("webp", (height, width), orientation_of(exif, xmp))


def _info(name: str, stored_size: tuple[int, int], orientation: int) -> ImageInfo:
    """Make an ImageInfo of the size as stored."""
    height, width = _as_shown(stored_size, orientation)
    return ImageInfo(format=name, height=height, width=width, orientation=orientation)


def _as_shown(stored_size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return stored_size if orientation < FIRST_TURNED else stored_size[::-1]


def check_jpeg(view: memoryview, info: ImageInfo) -> None:
    """Look for the end-of-image marker, mostly the last two bytes; cameras append thumbnails."""
    if bytes(view[-2:]) != b"\xff\xd9" and b"\xff\xd9" not in bytes(view[info.scan :]):
        raise CodecError("truncated JPEG: no end-of-image marker after its first scan")


def check_png(view: memoryview, info: ImageInfo) -> None:
    """Look at the data of a tiny image; of others the probe has seen the last chunk."""
    if info.unpacked <= TINY:
        plain_png(view, info.chunks)


def check_webp(view: memoryview, _: ImageInfo) -> None:
    """Compare the size in the RIFF header with the file's."""
    announced = 8 + int(unpack_from("<I", view, 4)[0])
    if announced > len(view):
        raise CodecError(f"truncated WebP: {len(view)} of {announced} bytes")

"""What an image is, from its header: format, size, orientation; no decoding.

The format is chosen by magic bytes from an allowlist of four; of other formats only the name is
recognised, for the error message. Each format has a walker that yields the segments or chunks of
the file without looking into them; the few fields needed are read from those. Work is bounded: a
walk only moves forward and gives up after a fixed number of steps, and nothing is allocated by a
size that the bytes announce.

Formats: JPEG (ITU T.81 annex B), PNG (W3C PNG third edition, 5.3 and 11), WebP (RFC 9649),
BMP (Windows' BITMAPFILEHEADER and BITMAPINFOHEADER, OS/2's BITMAPCOREHEADER).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from struct import pack, unpack_from
from typing import TYPE_CHECKING

from shardio.errors import CodecError
from shardio.fields.boundary import decoder
from shardio.fields.exif import FIRST_TURNED, UPRIGHT, exif_orientation, is_exif
from shardio.fields.limits import FREE_BYTES, MAX_PIXELS, limit_packed, limit_pixels, limit_scans
from shardio.fields.png import PNG_MAGIC, Chunk, is_tiny, plain_png, png_chunks, png_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Buffer = bytes | bytearray | memoryview
"""Bytes in one contiguous piece."""

_MAX_SEGMENTS = 10_000
_MAX_CHUNKS = 100_000  # of a WebP

_OTHER_MAGIC = (
    (0, b"GIF8", "a GIF"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (4, b"ftypavi", "an AVIF"),
    (4, b"ftyphe", "a HEIC"),
    (4, b"ftypmif1", "a HEIF or AVIF"),
    (4, b"ftyp", "a video (ISO media)"),
    (4, b"jP  ", "a JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (4, b"JXL ", "a JPEG XL"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (0, b"8BPS", "a Photoshop (PSD)"),
    (0, b"%PDF", "a PDF"),
    (0, b"\0\0\1\0", "an icon (ICO)"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x1f\x8b", "a gzip"),
    (0, b"PK\3\4", "a zip"),
)
_TEXT_MAGIC = (
    (b"<!doctype html", "an HTML"),
    (b"<html", "an HTML"),
    (b"<svg", "an SVG"),
    (b"<?xml", "an XML or SVG"),
)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
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

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width as stored, before orientation: what a decoder makes of the bytes."""
        if self.orientation >= FIRST_TURNED:
            return self.width, self.height
        return self.height, self.width


@decoder
def probe_image(data: Buffer, *, max_pixels: int = MAX_PIXELS) -> ImageInfo:
    """Read format, size and orientation from an image's header.

    Args:
        data: the whole file.
        max_pixels: greatest number of pixels; raises the other limits of work, see
            shardio.fields.limits.

    Raises:
        CodecError: not a JPEG, PNG, WebP or BMP; or the header is broken, or announces no
            pixels; or the image exceeds a limit.
    """
    view = memoryview(data).cast("B")
    info = _prober(view)(view)
    height, width = info.stored_size
    if height < 1 or width < 1:
        raise CodecError(f"the header announces {width} x {height} pixels")
    limit_pixels(height, width, size=len(view), max_pixels=max_pixels)
    if info.multiscan:
        limit_scans(_count_scans(view, info.scan), height, width, max_pixels=max_pixels)
    if info.format == "png" and len(view) > FREE_BYTES:
        packed = sum(end - start for kind, start, end in info.chunks if kind == b"IDAT")
        limit_packed(packed, png_header(view).size, max_pixels=max_pixels)
    return info


@decoder
def check_complete(data: Buffer, info: ImageInfo) -> None:
    """Check that an image's bytes reach to its end, without decoding.

    Args:
        data: the whole file.
        info: what probe_image said about it.

    Raises:
        CodecError: the file is truncated.
    """
    _COMPLETENESS[info.format](memoryview(data).cast("B"), info)


def jpeg_segments(view: memoryview) -> Iterator[tuple[int, int, int]]:
    """Yield the header segments of a JPEG, the start of the first scan last.

    Yields:
        Marker code, and where the segment starts and ends; the start is that of its length.

    Raises:
        CodecError: the header ends too early, or has more segments than any real one.
    """
    end = 2
    size = len(view)
    for _ in range(_MAX_SEGMENTS):
        start = end + 2
        if start > size or view[end] != _FF or view[end + 1] in _FILL:
            found = _MARKER.search(view, end)
            start = found.end() if found else size
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
        yield marker, start, end
        if marker == _SOS:
            return
    raise CodecError(f"broken JPEG header: more than {_MAX_SEGMENTS} segments")


def _count_scans(view: memoryview, end: int) -> int:
    """Count the scans of a JPEG whose first one starts at an offset."""
    scans = 1
    for _ in range(_MAX_SEGMENTS):
        found = _AFTER_SCAN.search(view, end)
        if found is None or view[found.end() - 1] == _EOI or found.end() + 2 > len(view):
            return scans
        scans += view[found.end() - 1] == _SOS
        end = found.end() + int(unpack_from(">H", view, found.end())[0])
    raise CodecError(f"broken JPEG: more than {_MAX_SEGMENTS} segments between its scans")


def webp_chunks(view: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Yield the chunks of a WebP: their type, and where their data start and end."""
    position = 12
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(view):
            return
        kind, length = unpack_from("<4sI", view, position)
        start = position + 8
        yield kind, start, min(start + length, len(view))
        position = start + length + (length & 1)


def _prober(view: memoryview) -> Callable[[memoryview], ImageInfo]:
    """Choose what reads the header, by magic bytes."""
    head = bytes(view[:16])
    if head[:3] == b"\xff\xd8\xff":
        return _probe_jpeg
    if head[:8] == PNG_MAGIC:
        return _probe_png
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _probe_webp
    if head[:2] == b"BM":
        return _probe_bmp
    raise CodecError(_why_not(head, view))


def _why_not(head: bytes, view: memoryview) -> str:
    """Say what bytes are that are none of the four formats."""
    if not head:
        return "empty file"
    if not head.strip(b"\0"):
        return "not an image: it starts with zero bytes, as files do whose writing was cut short"
    text = bytes(view[:256]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for offset, magic, name in _OTHER_MAGIC:
        if head.startswith(magic, offset):
            return f"{name} file, where a JPEG, PNG, WebP or BMP is needed"
    for magic, name in _TEXT_MAGIC:
        if text.startswith(magic):
            return f"{name} file, where a JPEG, PNG, WebP or BMP is needed"
    return f"not a JPEG, PNG, WebP or BMP: it starts with {head[:8]!r}"


def _probe_jpeg(view: memoryview) -> ImageInfo:
    frame, orientation, restart = 0, 0, 0
    for marker, start, end in jpeg_segments(view):
        if marker in _FRAMES:
            frame = start
        elif marker in _OTHER_FRAMES:
            raise CodecError(f"a JPEG of the rare kind SOF{marker - 0xC0}, which no decoder reads")
        elif marker == _APP1 and not orientation and is_exif(view[start + 2 : end]):
            orientation = exif_orientation(view[start + 2 : end])
        elif marker == _DRI and end - start == 4:
            restart = unpack_from(">H", view, start + 2)[0]
        elif marker == _SOS and frame:
            return _jpeg_info(view, frame, start, orientation or UPRIGHT, restart)
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


def _probe_png(view: memoryview) -> ImageInfo:
    chunks: list[Chunk] = []
    orientation = 0
    for chunk in png_chunks(view):
        kind, start, end = chunk
        if not chunks and (kind != b"IHDR" or end - start != 13):
            raise CodecError(f"broken PNG header: its first chunk is {kind!r}, not a sound IHDR")
        if kind == b"eXIf" and not orientation:
            orientation = exif_orientation(view[start:end])
        chunks.append(chunk)
    header = png_header(view)
    height, width = _as_shown((header.height, header.width), orientation)
    return ImageInfo(
        format="png",
        height=height,
        width=width,
        orientation=orientation or UPRIGHT,
        bits=header.depth,
        channels=header.channels,
        chunks=tuple(chunks),
    )


def _probe_webp(view: memoryview) -> ImageInfo:
    kind, start, end = next(webp_chunks(view), (b"", 0, 0))
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
    for kind, start, end in webp_chunks(view):
        if kind == b"EXIF":
            return _info("webp", (height, width), exif_orientation(view[start:end]))
    return _info("webp", (height, width), UPRIGHT)


def _probe_bmp(view: memoryview) -> ImageInfo:
    if len(view) < 26:
        raise CodecError("truncated BMP: it ends inside its header")
    header_size: int = unpack_from("<I", view, 14)[0]
    if header_size == 12:
        width, height = unpack_from("<HH", view, 18)
    elif header_size >= 40:
        width, height = unpack_from("<ii", view, 18)
    else:
        raise CodecError(f"broken BMP header: it announces its own size as {header_size} bytes")
    return _info("bmp", (abs(height), width), UPRIGHT)  # a negative height: first row on top


def _info(name: str, stored_size: tuple[int, int], orientation: int) -> ImageInfo:
    """Make an ImageInfo of the size as stored."""
    height, width = _as_shown(stored_size, orientation)
    return ImageInfo(format=name, height=height, width=width, orientation=orientation)


def _as_shown(stored_size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return stored_size if orientation < FIRST_TURNED else stored_size[::-1]


def _check_jpeg(view: memoryview, info: ImageInfo) -> None:
    """Look for the end-of-image marker, mostly the last two bytes; cameras append thumbnails."""
    if bytes(view[-2:]) != b"\xff\xd9" and b"\xff\xd9" not in bytes(view[info.scan :]):
        raise CodecError("truncated JPEG: no end-of-image marker after its first scan")


def _check_png(view: memoryview, info: ImageInfo) -> None:
    """Look at the data of a tiny image; of others the probe has seen the last chunk."""
    if is_tiny(view):
        plain_png(view, info.chunks)


def _check_webp(view: memoryview, _: ImageInfo) -> None:
    """Compare the size in the RIFF header with the file's."""
    announced = 8 + int(unpack_from("<I", view, 4)[0])
    if announced > len(view):
        raise CodecError(f"truncated WebP: {len(view)} of {announced} bytes")


def _check_bmp(view: memoryview, info: ImageInfo) -> None:
    """Compare where the rows end with the file's size; run-length coded rows tell theirs."""
    offset, header_size = unpack_from("<II", view, 10)
    if header_size == 12:
        bits, compression, announced = unpack_from("<H", view, 24)[0], 0, 0
    elif len(view) < 38:
        raise CodecError("truncated BMP: it ends inside its header")
    else:
        bits, compression, announced = unpack_from("<HII", view, 28)
        if (header_size, bits, compression) == (40, 32, 3) and view[54:66] != _BMP_MASKS:
            raise CodecError("a BMP whose channels have a rare order, which is not decoded")
    if offset < 14 + header_size:
        raise CodecError(f"broken BMP header: its pixels would start inside it, at byte {offset}")
    if compression in {0, 3}:  # plain rows, padded to four bytes; 3: with masks for the channels
        announced = (info.width * bits + 31) // 32 * 4 * info.height
    if offset + announced > len(view):
        raise CodecError(f"truncated BMP: {len(view)} of {offset + announced} bytes")


_BMP_MASKS = pack("<III", 0xFF0000, 0xFF00, 0xFF)
_COMPLETENESS: dict[str, Callable[[memoryview, ImageInfo], None]] = {
    "jpeg": _check_jpeg,
    "png": _check_png,
    "webp": _check_webp,
    "bmp": _check_bmp,
}

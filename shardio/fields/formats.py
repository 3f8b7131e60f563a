"""The formats of image files: one table, an entry each.

A file's format is chosen by its first bytes from this table; of other formats only the name is
recognised, for the error message. What decodes and encodes loads when it is first used, so that
headers are read without OpenCV.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from shardio.errors import CodecError
from shardio.fields.bmp import check_bmp, decode_masked_bmp, probe_bmp
from shardio.fields.boundary import decoder
from shardio.fields.limits import FREE_BYTES, MAX_PIXELS, limit_packed, limit_pixels, limit_scans
from shardio.fields.png import (
    PNG_MAGIC,
    TINY,
    critical_chunks,
    plain_png,
    transparent_colour,
)
from shardio.fields.probe import (
    check_jpeg,
    check_png,
    check_webp,
    count_scans,
    probe_jpeg,
    probe_png,
    probe_webp,
)
from shardio.native.checking import are_sound_jpegs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from shardio.fields.probe import Buffer, ImageInfo

    Decode = Callable[
        [memoryview, ImageInfo, NDArray[np.uint8] | None, int, bool, int], NDArray[np.uint8]
    ]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFormat:
    """What shardio knows of a format of image files.

    Attributes:
        title: name of the format in messages.
        fields: last dot components of fields that hold it, the usual one first.
        magic: bytes that files start with.
        form: four bytes that stand eight bytes from the start; empty for none.
        probe: reader of the header.
        check: check that a file reaches to its end, without decoding.
        check_data: check of data that readers may decode in part, so that damage would be met in
            some epochs only; None where they decode all.
        are_sound: quick answer for several files whether check_data would find nothing; False also
            where only that tells.
        decode: decoder to uint8 [H, W, channels] as stored, or [H, W, 3] for other channels that
            follow from those. Takes the whole file, what the prober said about it, a buffer for
            the pixels or None, and the arguments shrink, verified and channels of
            shardio.fields.image.decode_stored.
        encode: encoder of uint8 [H, W, 1, 3 or 4] at a quality.
        is_lossy: whether files have a quality.
        shrinks: whether the decoder takes a buffer, and shrinks.
        holds_values: whether shardio.fields.image.decode_values reads files.
    """

    title: str
    fields: tuple[str, ...]
    magic: bytes
    form: bytes = b""
    probe: Callable[[memoryview], ImageInfo]
    check: Callable[[memoryview, ImageInfo], None]
    decode: Decode
    encode: Callable[[NDArray[np.uint8], int], bytes]
    check_data: Callable[[memoryview, ImageInfo], None] | None = None
    are_sound: Callable[[Sequence[memoryview]], NDArray[np.bool_]] | None = None
    is_lossy: bool = False
    shrinks: bool = False
    holds_values: bool = False


def _decode_jpeg(
    view: memoryview,
    info: ImageInfo,
    buffer: NDArray[np.uint8] | None,
    shrink: int,
    verified: bool,
    channels: int,
) -> NDArray[np.uint8]:
    decode = _jpeg_decoder()
    return decode(view, info, buffer, shrink=shrink, verified=verified, gray=channels == 1)


@cache  # an import statement costs a microsecond
def _jpeg_decoder() -> Callable[..., NDArray[np.uint8]]:
    from shardio.fields.jpeg import decode_jpeg  # noqa: PLC0415  loads simplejpeg

    return decode_jpeg


def _check_jpeg_data(view: memoryview, info: ImageInfo) -> None:
    from shardio.fields.jpeg import check_jpeg_data  # noqa: PLC0415  loads simplejpeg

    check_jpeg_data(view, info)


def _encode_jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    from shardio.fields.jpeg import encode_jpeg  # noqa: PLC0415  loads simplejpeg

    return encode_jpeg(pixels, quality)


def _decode_png(
    view: memoryview, info: ImageInfo, _: object, _shrink: int, verified: bool, channels: int
) -> NDArray[np.uint8]:
    if channels == 4:
        colour = transparent_colour(view, info.chunks)
        plain = plain_png(view, info.chunks, transparent=True)
        return _opencv_decoder()(plain, info, alpha=True, transparent=colour)
    prepare = critical_chunks if verified and info.unpacked <= TINY else plain_png
    return _opencv_decoder()(prepare(view, info.chunks), info)


def _decode_webp(view: memoryview, info: ImageInfo, *rest: object) -> NDArray[np.uint8]:
    check_webp(view, info)
    return _opencv_decoder()(view, info, alpha=rest[-1] == 4)


def _decode_bmp(view: memoryview, info: ImageInfo, *rest: object) -> NDArray[np.uint8]:
    check_bmp(view, info)
    if rest[-1] == 4:
        raise CodecError("the alpha of a BMP is not read", remedy="save it as a PNG")
    pixels = decode_masked_bmp(view)
    return _opencv_decoder()(view, info) if pixels is None else pixels


@cache
def _opencv_decoder() -> Callable[..., NDArray[np.uint8]]:
    from shardio.fields.image import decode_with_opencv  # noqa: PLC0415  loads OpenCV

    return decode_with_opencv


def _encoder(extension: str) -> Callable[[NDArray[np.uint8], int], bytes]:
    def encode(pixels: NDArray[np.uint8], quality: int) -> bytes:
        from shardio.fields.image import encode_with_opencv  # noqa: PLC0415  loads OpenCV

        return encode_with_opencv(pixels, extension, quality)

    return encode


FORMATS = {
    "jpeg": ImageFormat(
        title="JPEG",
        fields=("jpg", "jpeg", "jpe", "jfif"),
        magic=b"\xff\xd8\xff",
        probe=probe_jpeg,
        check=check_jpeg,
        check_data=_check_jpeg_data,
        are_sound=are_sound_jpegs,
        decode=_decode_jpeg,
        encode=_encode_jpeg,
        is_lossy=True,
        shrinks=True,
    ),
    "png": ImageFormat(
        title="PNG",
        fields=("png",),
        magic=PNG_MAGIC,
        probe=probe_png,
        check=check_png,
        decode=_decode_png,
        encode=_encoder(".png"),
        holds_values=True,
    ),
    "webp": ImageFormat(
        title="WebP",
        fields=("webp",),
        magic=b"RIFF",
        form=b"WEBP",
        probe=probe_webp,
        check=check_webp,
        decode=_decode_webp,
        encode=_encoder(".webp"),
        is_lossy=True,
    ),
    "bmp": ImageFormat(
        title="BMP",
        fields=("bmp",),
        magic=b"BM",
        probe=probe_bmp,
        check=check_bmp,
        decode=_decode_bmp,
        encode=_encoder(".bmp"),
    ),
}
"""Image formats by their name, as ImageInfo has it."""

IMAGE_FIELDS = frozenset(field for format_ in FORMATS.values() for field in format_.fields)
"""Last dot components of fields that hold images; which format, the bytes themselves say."""

_TITLES = [format_.title for format_ in FORMATS.values()]
_NAMED = ", ".join(_TITLES[:-1]) + " or " + _TITLES[-1]


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
    info = _format_of(view).probe(view)
    height, width = info.stored_size
    if height < 1 or width < 1:
        raise CodecError(f"the header announces {width} x {height} pixels")
    limit_pixels(height, width, size=len(view), max_pixels=max_pixels)
    if info.multiscan:
        limit_scans(count_scans(view, info.scan), height, width, max_pixels=max_pixels)
    if info.format == "png" and len(view) > FREE_BYTES:
        packed = sum(end - start for kind, start, end in info.chunks if kind == b"IDAT")
        limit_packed(packed, info.unpacked, max_pixels=max_pixels)
    return info


@decoder
def check_complete(data: Buffer, info: ImageInfo) -> None:
    """Check that an image's bytes reach to its end, without decoding.

    Args:
        data: the whole file.
        info: result of probe_image.

    Raises:
        CodecError: the file is truncated.
    """
    FORMATS[info.format].check(memoryview(data).cast("B"), info)


def find_corrupt(
    pictures: Sequence[tuple[memoryview, ImageInfo]],
) -> tuple[int, CodecError] | None:
    """Find the first image that readers cannot decode alike in every epoch.

    Args:
        pictures: whole files, which check_complete accepted, each with the result of probe_image;
            several together take less time.

    Returns:
        Number of the image and what is wrong with it; None if all are sound.
    """
    unsure = list[int]()
    for name, format_ in FORMATS.items():
        numbers = [n for n, (_, info) in enumerate(pictures) if info.format == name]
        if format_.check_data is None or not numbers:
            continue
        if format_.are_sound is not None:
            sound = format_.are_sound([pictures[number][0] for number in numbers])
            numbers = [number for number, known in zip(numbers, sound, strict=True) if not known]
        unsure += numbers
    found = ((number, _fault_of(*pictures[number])) for number in sorted(unsure))
    return next(((number, error) for number, error in found if error is not None), None)


def _fault_of(data: memoryview, info: ImageInfo) -> CodecError | None:
    check = FORMATS[info.format].check_data
    try:
        if check is not None:
            decoder(check)(data, info)
    except CodecError as error:
        return error
    return None


def is_image(head: bytes) -> bool:
    """Tell whether the first 16 bytes of a file are those of an image."""
    return _find_format(head) is not None


def _find_format(head: bytes) -> ImageFormat | None:
    for format_ in FORMATS.values():
        if head.startswith(format_.magic) and (not format_.form or head[8:12] == format_.form):
            return format_
    return None


def _format_of(view: memoryview) -> ImageFormat:
    head = bytes(view[:16])
    found = _find_format(head)
    if found is None:
        raise CodecError(_why_not(head, view))
    return found


def _why_not(head: bytes, view: memoryview) -> str:
    """Say what bytes are that are none of the formats."""
    if not head:
        return "empty file"
    if not head.strip(b"\0"):
        return "not an image: it starts with zero bytes, as files do whose writing was cut short"
    text = bytes(view[:256]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for offset, magic, name in _OTHER_MAGIC:
        if head.startswith(magic, offset):
            return f"{name} file, where a {_NAMED} is needed"
    for magic, name in _TEXT_MAGIC:
        if text.startswith(magic):
            return f"{name} file, where a {_NAMED} is needed"
    return f"not a {_NAMED}: it starts with {head[:8]!r}"

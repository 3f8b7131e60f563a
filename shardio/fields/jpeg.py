"""Decoding JPEG, strictly.

libjpeg-turbo decodes what it can of broken data and only warns; simplejpeg's strict mode turns
each warning into an error, which is how truncated and corrupt files are noticed. Of libjpeg's
warnings (jerror.h, JWRN) some harm no pixel, and such files are delivered, whole or in part:

- Bytes between the segments of the header (EXTRANEOUS_DATA), an unknown revision of JFIF
  (JFIF_MAJOR), odd ICC profiles (BOGUS_ICC) and odd parameters of a sequential scan
  (NOT_SEQUENTIAL, as Samsung's phones wrote): decoding does not use them. The header is written
  anew without them, so that they hide no other warning.
- Bytes between the end of the data and the end of the image (EXTRANEOUS_DATA before marker 0xd9):
  every block was decoded before, from codes that exist. But nearly all flipped bits that
  libjpeg notices give this warning, too. So such a file is delivered if a checksum says that its
  bytes are those that were packed, and refused otherwise.

All others are refused, in each reading alike: data end too early (HIT_MARKER, JPEG_EOF), have codes
that do not exist (HUFF_BAD_CODE, ARITH_BAD_CODE), lack restart markers or have bytes too many
before one (MUST_RESYNC, EXTRANEOUS_DATA), scans that refine what is not there (BOGUS_PROGRESSION),
and colours that are coded in an unknown way (ADOBE_XFORM), where pixels would be a guess.
Samplings of colour that TurboJPEG has no name for, as 4:1:0, are refused: no decoder at hand would
notice when such files are corrupt.

Of a crop, the rows below need no decoding: a lower height in the frame header ends the decoder's
work early. It then finds the rest of the scan before the end of the image and says so; of several
warnings TurboJPEG reports the first, so that this one alone means that it met no other. Damage that
a decoder notices at the end of a scan alone goes unnoticed then, so this is for bytes whose
checksum was verified. Where a scan has restart markers, it is cut behind whole intervals, and
nothing may be left, since the warning may come of damage before a marker.
Files that are progressive, arithmetic or CMYK are decoded whole.

Gray becomes three equal channels. CMYK and YCCK follow Adobe's convention, inverted, as nearly
all such files do: a channel of RGB is C * K / 255.
"""

from __future__ import annotations

import re
from math import gcd, prod
from struct import pack, unpack_from
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg

from shardio.errors import CodecError
from shardio.fields.probe import jpeg_segments, probe_jpeg

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from shardio.fields.probe import ImageInfo

_MOST_CHECKED = 1 << 24  # pixels of a JPEG of several scans that packing decodes
LEAST_SHRUNK = 16
"""From this side on TurboJPEG's scaling factors give different sizes, which tell them apart."""

_MARGIN = 4  # rows below, which upsampling of colours looks at: one of chroma is at most four
_REST_IS_LEFT = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9")
_EOI = b"\xff\xd9"
_DRI = b"\xff\xdd"
_JFIF, _ADOBE, _COMMENT, _SOS = 0xE0, 0xEE, 0xFE, 0xDA
_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC9})
_METADATA = frozenset({*range(0xE0, 0xF0), _COMMENT}) - {_JFIF, _ADOBE}
"""Segments that harm no pixel when they are missing; JFIF and Adobe say how colours are coded."""


def decode_jpeg(
    data: memoryview,
    info: ImageInfo,
    buffer: NDArray[np.uint8] | None = None,
    *,
    shrink: int = 1,
    verified: bool = False,
    gray: bool = False,
) -> NDArray[np.uint8]:
    """Decode a JPEG to RGB, or to gray, as stored.

    Args:
        data: the whole file.
        info: result of probe_image.
        buffer: uint8 [at least H * W * 3], where the pixels go; None for new memory.
        shrink: 1, 2, 4 or 8: divides height and width, rounded up; above 1 only for pictures of
            at least LEAST_SHRUNK rows and columns.
        verified: whether the data have the checksum that they should.
        gray: whether to decode to gray, if the file is not CMYK.

    Returns:
        uint8 [ceil(H / shrink), ceil(W / shrink), 3], or 1 channel in gray, before orientation.

    Raises:
        CodecError: the data are truncated, corrupt or of a rare kind.
    """
    shape = _shape(*info.stored_size, shrink, 1 if gray and info.channels < 4 else 3)
    if buffer is None:
        buffer = np.empty(prod(shape), np.uint8)
    try:
        return _decode_soundly(data, info, shape, buffer, verified=verified)
    except ValueError as error:
        found = error
    sound = _with_new_header(data)
    if sound != data:
        try:
            view = memoryview(sound)
            return _decode_soundly(view, probe_jpeg(view), shape, buffer, verified=verified)
        except ValueError as error:
            found = error
    raise CodecError(_sentence(found)) from None


def decode_jpeg_top(
    data: memoryview,
    info: ImageInfo,
    take: Callable[[int], NDArray[np.uint8]],
    *,
    rows: int,
    shrink: int = 1,
    gray: bool = False,
) -> NDArray[np.uint8] | None:
    """Decode the upper part of a JPEG, the same pixels as whole.

    Args:
        data: the whole file.
        info: result of probe_image.
        take: function that lends a buffer of at least a number of bytes.
        rows: number of rows, as stored, that are needed.
        shrink: see decode_jpeg.
        gray: see decode_jpeg.

    Returns:
        uint8 [at least ceil(rows / shrink), ceil(W / shrink), …]; the last rows may differ. None
        where the file must be decoded whole, also to tell what is wrong with it.
    """
    stored_height, width = info.stored_size
    height = rows + _MARGIN * shrink
    if info.frame and info.restart:
        height = _height_to_restart(data, info, height)
    if not info.frame or height >= stored_height:
        return None
    lowered = _lower(data, info, height)
    shape = _shape(height, width, shrink, 1 if gray else 3)
    buffer = take(prod(shape))
    try:
        return _decode(lowered, shape, buffer)
    except ValueError as error:
        if info.restart or not _REST_IS_LEFT.fullmatch(str(error)):
            return None
    return buffer[: prod(shape)].reshape(shape)


def check_jpeg_data(data: memoryview, info: ImageInfo) -> None:
    """Check what readers of a part of the picture may not see, in two thirds of a decode's time.

    Raises:
        CodecError: the data are truncated, corrupt or of a rare kind.
    """
    height, width = info.stored_size
    if info.multiscan and height * width > _MOST_CHECKED:
        return  # readers decode it whole in every epoch, with memory for all of its scans
    shrinks = min(height, width) >= LEAST_SHRUNK
    if info.channels in {1, 3} and shrinks:
        try:
            simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, strict=True)
        except ValueError:
            pass  # harmless or not: decided below
        else:
            return
    decode_jpeg(data, info, shrink=8 if shrinks else 1, verified=True)


def encode_jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """Encode uint8 [H, W, 1, 3 or 4] as a baseline JPEG with colours at half the resolution.

    A JPEG has no alpha: of four channels the last one is left out.

    Raises:
        ValueError: a JPEG cannot hold such pixels.
    """
    if pixels.shape[2] == 1:
        return bytes(simplejpeg.encode_jpeg(pixels, quality, "GRAY", "Gray"))
    pixels = np.ascontiguousarray(pixels[..., :3])
    return bytes(simplejpeg.encode_jpeg(pixels, quality, "RGB", "420"))


def _shape(height: int, width: int, shrink: int, channels: int) -> tuple[int, int, int]:
    return -(-height // shrink), -(-width // shrink), channels


def _decode(
    data: memoryview | bytes, shape: tuple[int, int, int], buffer: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    space = "RGB" if shape[2] == 3 else "GRAY"
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data, space, min_height=shape[0], min_width=shape[1], buffer=buffer, strict=True
    )
    return pixels.reshape(shape)


def _decode_soundly(
    data: memoryview,
    info: ImageInfo,
    shape: tuple[int, int, int],
    buffer: NDArray[np.uint8],
    *,
    verified: bool,
) -> NDArray[np.uint8]:
    """Decode a JPEG; verified data may be followed by bytes too many.

    Raises:
        ValueError: another warning, or an error.
    """
    try:
        return _decode(data, shape, buffer)
    except ValueError as error:
        is_rest = verified and _REST_IS_LEFT.fullmatch(str(error))
        if not is_rest or not _has_all_restarts(data, info):
            raise
    return buffer[: prod(shape)].reshape(shape)


def _has_all_restarts(data: memoryview, info: ImageInfo) -> bool:
    """Tell that bytes before the end of the image do not stand for a restart marker."""
    if not info.frame:  # one that stands between scans would change what is expected
        return not info.restart and _DRI not in bytes(data[info.scan :])
    if not info.restart:
        return True
    rows, across = _mcus(data, info)
    mcus = -(-info.stored_size[0] // rows) * across
    return len(_restarts(data, info)) >= -(-mcus // info.restart) - 1


def _lower(data: memoryview, info: ImageInfo, height: int) -> bytes:
    """Give the file another height, and only the restart intervals that it then needs."""
    place = info.frame + 3
    parts: list[bytes | memoryview] = [data[:place], pack(">H", height)]
    end = _end_of_rows(data, info, height) if info.restart else None
    parts += [data[place + 2 : end], _EOI] if end else [data[place + 2 :]]
    return b"".join(parts)


def _mcus(data: memoryview, info: ImageInfo) -> tuple[int, int]:
    """Return the number of rows of an MCU, and of MCUs side by side."""
    components = data[info.frame + 7]
    factors = [data[info.frame + 9 + 3 * component] for component in range(components)]
    width: int = unpack_from(">H", data, info.frame + 5)[0]
    if components == 1:
        return 8, -(-width // 8)
    return 8 * max(f & 15 for f in factors), -(-width // (8 * max(f >> 4 for f in factors)))


def _height_to_restart(data: memoryview, info: ImageInfo, height: int) -> int:
    """Return the least height, from this one on, at which whole restart intervals end."""
    rows, across = _mcus(data, info)
    step = info.restart // gcd(info.restart, across) * rows
    return -(-height // step) * step


def _end_of_rows(data: memoryview, info: ImageInfo, height: int) -> int | None:
    """Find where the last restart interval of these rows ends; None if markers are missing."""
    rows, across = _mcus(data, info)
    intervals = height // rows * across // info.restart
    restarts = _restarts(data, info)
    return info.scan + int(restarts[intervals - 1]) if intervals <= len(restarts) else None


def _restarts(data: memoryview, info: ImageInfo) -> NDArray[np.intp]:
    """Find the restart markers behind the header of the first scan."""
    scan = np.frombuffer(data, np.uint8)[info.scan :]
    marked = np.flatnonzero(scan[:-1] == 0xFF)
    restarts: NDArray[np.intp] = marked[(scan[marked + 1] & 0xF8) == 0xD0]
    return restarts


def _with_new_header(data: memoryview) -> bytes:
    """Write the header anew, without what harms no pixel; the data of the scans stay."""
    parts: list[bytes | memoryview] = [b"\xff\xd8"]
    frame, end = 0, 0
    for marker, start, end in jpeg_segments(data):
        segment = bytes(data[start:end])
        if marker == _JFIF and segment[2:7] == b"JFIF\0":
            segment = segment[:7] + b"\1" + segment[8:]
        elif marker in _SEQUENTIAL:
            frame = marker
        elif marker == _SOS and frame:
            segment = segment[:-3] + b"\0\x3f\0"
        if marker not in _METADATA:
            parts += [bytes((0xFF, marker)), segment]
    return b"".join([*parts, data[end:]])


def _sentence(error: ValueError) -> str:
    if "subsampling" in str(error):
        return "the JPEG subsamples its colours in a rare way, as 4:1:0, which is not decoded"
    return f"the JPEG data do not decode: {error}"

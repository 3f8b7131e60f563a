"""Decoding JPEG, strictly.

libjpeg-turbo decodes what it can of broken data and only warns; simplejpeg's strict mode turns
each warning into an error, which is how truncated and corrupt files are noticed. It goes too far
in one place: junk between the segments of the header harms no pixel. So a header that is refused
is written anew from the segments that matter to pixels, and the scans behind it are decoded
strictly again. Samplings of colour that TurboJPEG has no name for, as 4:1:0, are refused: no
decoder at hand would notice when such files are corrupt.

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
from shardio.fields.probe import jpeg_segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shardio.fields.probe import ImageInfo

LEAST_SHRUNK = 16
"""From this side on TurboJPEG's scaling factors give different sizes, which tell them apart."""

_MARGIN = 4  # rows below, which upsampling of colours looks at: one of chroma is at most four
_REST_IS_LEFT = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9")
_EOI = b"\xff\xd9"
_JFIF, _ADOBE, _COMMENT = 0xE0, 0xEE, 0xFE
_METADATA = frozenset({*range(0xE0, 0xF0), _COMMENT}) - {_JFIF, _ADOBE}
"""Segments that harm no pixel when they are missing; JFIF and Adobe say how colours are coded."""


def decode_jpeg(
    data: memoryview,
    info: ImageInfo,
    buffer: NDArray[np.uint8] | None = None,
    *,
    shrink: int = 1,
) -> NDArray[np.uint8]:
    """Decode a JPEG to RGB as stored.

    Args:
        data: the whole file.
        info: what probe_image said about it.
        buffer: uint8 [at least H * W * 3], where the pixels go; None for new memory.
        shrink: 1, 2, 4 or 8: divides height and width, rounded up; above 1 only for pictures of
            at least LEAST_SHRUNK rows and columns.

    Returns:
        uint8 [ceil(H / shrink), ceil(W / shrink), 3], before orientation.

    Raises:
        CodecError: the data are truncated, corrupt or of a rare kind.
    """
    shape = _shape(*info.stored_size, shrink)
    try:
        return _decode(data, shape, buffer)
    except ValueError as error:
        if _header_is_sound(data):
            raise CodecError(_sentence(error)) from None
    try:
        return _decode(_with_new_header(data), shape, buffer)
    except ValueError as error:
        raise CodecError(_sentence(error)) from None


def decode_jpeg_top(
    data: memoryview, info: ImageInfo, buffer: NDArray[np.uint8], *, rows: int, shrink: int = 1
) -> NDArray[np.uint8] | None:
    """Decode the upper part of a JPEG, the same pixels as whole.

    Args:
        data: the whole file.
        info: what probe_image said about it.
        buffer: see decode_jpeg.
        rows: of the picture as stored that are needed.
        shrink: see decode_jpeg.

    Returns:
        uint8 [at least ceil(rows / shrink), ceil(W / shrink), 3]; the last rows may differ. None
        where the file must be decoded whole, also to tell what is wrong with it.
    """
    stored_height, width = info.stored_size
    height = rows + _MARGIN * shrink
    if info.frame and info.restart:
        height = _height_to_restart(data, info, height)
    if not info.frame or height >= stored_height:
        return None
    lowered = _lower(data, info, height)
    shape = _shape(height, width, shrink)
    try:
        return _decode(lowered, shape, buffer)
    except ValueError as error:
        if info.restart or not _REST_IS_LEFT.fullmatch(str(error)):
            return None
    return buffer[: prod(shape)].reshape(shape)


def _shape(height: int, width: int, shrink: int) -> tuple[int, int, int]:
    return -(-height // shrink), -(-width // shrink), 3


def _decode(
    data: memoryview | bytes, shape: tuple[int, int, int], buffer: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data, "RGB", min_height=shape[0], min_width=shape[1], buffer=buffer, strict=True
    )
    return pixels


def _lower(data: memoryview, info: ImageInfo, height: int) -> bytes:
    """The file with another height; of restart intervals those that are needed, and no more."""
    place = info.frame + 3
    parts: list[bytes | memoryview] = [data[:place], pack(">H", height)]
    end = _end_of_rows(data, info, height) if info.restart else None
    parts += [data[place + 2 : end], _EOI] if end else [data[place + 2 :]]
    return b"".join(parts)


def _mcus(data: memoryview, info: ImageInfo) -> tuple[int, int]:
    """How many rows an MCU has, and how many MCUs lie side by side."""
    components = data[info.frame + 7]
    factors = [data[info.frame + 9 + 3 * component] for component in range(components)]
    width: int = unpack_from(">H", data, info.frame + 5)[0]
    if components == 1:
        return 8, -(-width // 8)
    return 8 * max(f & 15 for f in factors), -(-width // (8 * max(f >> 4 for f in factors)))


def _height_to_restart(data: memoryview, info: ImageInfo, height: int) -> int:
    """The least height from this one on at which whole restart intervals end."""
    rows, across = _mcus(data, info)
    step = info.restart // gcd(info.restart, across) * rows
    return -(-height // step) * step


def _end_of_rows(data: memoryview, info: ImageInfo, height: int) -> int | None:
    """Where the last restart interval of a height from above ends; None if markers are missing."""
    rows, across = _mcus(data, info)
    intervals = height // rows * across // info.restart
    scan = np.frombuffer(data, np.uint8)[info.scan :]
    marked = np.flatnonzero(scan[:-1] == 0xFF)
    restarts = marked[(scan[marked + 1] & 0xF8) == 0xD0]
    return info.scan + int(restarts[intervals - 1]) if intervals <= len(restarts) else None


def _header_is_sound(data: memoryview) -> bool:
    try:
        simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError:
        return False
    return True


def _with_new_header(data: memoryview) -> bytes:
    """Write the header anew, without junk and metadata; the scans stay as they are."""
    parts: list[bytes | memoryview] = [b"\xff\xd8"]
    end = 0
    for marker, start, end in jpeg_segments(data):
        if marker not in _METADATA:
            parts += [bytes((0xFF, marker)), data[start:end]]
    return b"".join([*parts, data[end:]])


def _sentence(error: ValueError) -> str:
    if "subsampling" in str(error):
        return "the JPEG subsamples its colours in a rare way, as 4:1:0, which is not decoded"
    return f"the JPEG data do not decode: {error}"

"""Decoding JPEG, strictly.

libjpeg-turbo decodes what it can of broken data and only warns; simplejpeg's strict mode turns
each warning into an error, which is how truncated and corrupt files are noticed. It goes too far
in one place: junk between the segments of the header harms no pixel. So a header that is refused
is written anew from the segments that matter to pixels, and the scans behind it are decoded
strictly again. Samplings of colour that TurboJPEG has no name for, as 4:1:0, are refused: no
decoder at hand would notice when such files are corrupt.

Gray becomes three equal channels. CMYK and YCCK follow Adobe's convention, inverted, as nearly
all such files do: a channel of RGB is C * K / 255.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING

import simplejpeg

from shardio.codecs.probe import jpeg_segments
from shardio.errors import CodecError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from shardio.codecs.probe import ImageInfo

MAX_SCANS = 100
"""Progressive files have about ten; each costs a pass over all pixels, however few its bytes."""

_SCAN = re.compile(rb"\xff\xda")
_JFIF, _ADOBE, _COMMENT = 0xE0, 0xEE, 0xFE
_METADATA = frozenset({*range(0xE0, 0xF0), _COMMENT}) - {_JFIF, _ADOBE}
"""Segments that harm no pixel when they are missing; JFIF and Adobe say how colours are coded."""


def decode_jpeg(
    data: memoryview, info: ImageInfo, buffer: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    """Decode a JPEG to RGB as stored.

    Args:
        data: the whole file.
        info: what probe_image said about it.
        buffer: uint8 [at least H * W * 3], where the pixels go; None for new memory.

    Returns:
        uint8 [H, W, 3], before orientation.

    Raises:
        CodecError: the data are truncated, corrupt, of a rare kind, or in too many scans.
    """
    if info.multiscan:
        _check_scans(data)
    try:
        return _decode(data, buffer)
    except ValueError as error:
        if _header_is_sound(data):
            raise CodecError(_sentence(error)) from None
    try:
        return _decode(_with_new_header(data), buffer)
    except ValueError as error:
        raise CodecError(_sentence(error)) from None


def _decode(data: memoryview | bytes, buffer: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", buffer=buffer, strict=True)
    return pixels


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


def _check_scans(data: memoryview) -> None:
    """Refuse a file made to keep a decoder busy: many scans of a few bytes each."""
    if next(islice(_SCAN.finditer(data), MAX_SCANS, None), None):
        raise CodecError(f"a JPEG of more than {MAX_SCANS} scans, where real ones have about ten")

"""Decoding an image to RGB pixels as shown.

Every image takes one path: probe the header, decode as stored, compare the shape with the probe's
word, turn by the EXIF orientation. JPEG goes to simplejpeg, the rest to OpenCV. OpenCV prints about
some broken files, so truncation is looked for first, and a PNG's checksums are verified. Of a PNG
it sees the critical chunks alone: no metadata to inflate, no animation to compose. WebP and BMP
have no checksums: changed bits can give other pixels, which only the index's checksums notice.

Alpha is dropped, not composited; 16 bits per channel keep their high byte; gray becomes three
equal channels; of an animation the default image of a PNG or the first frame of a WebP is taken.
"""

from __future__ import annotations

import threading
import zlib
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from shardio.codecs.exif import UPRIGHT, apply_orientation
from shardio.codecs.jpeg import decode_jpeg
from shardio.codecs.probe import check_complete, probe_image
from shardio.errors import CodecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from shardio.codecs.probe import Buffer, Chunk, ImageInfo

_PNG_MAGIC_LENGTH = 8
_NATIVE_RGB: int | None = getattr(cv2, "IMREAD_COLOR_RGB", None)  # OpenCV 4.11 and later
_FLAGS = cv2.IMREAD_IGNORE_ORIENTATION | (_NATIVE_RGB or cv2.IMREAD_COLOR)


class Scratch(threading.local):
    """A growing uint8 buffer for each thread that uses it, kept for the next image.

    New memory costs a page fault for each of its pages: a quarter of the time that decoding a
    small photo takes.
    """

    KEEP = 1 << 26
    """Most bytes kept between uses, so that one huge image does not hold memory for ever."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def take(self, size: int) -> NDArray[np.uint8]:
        """Lend a buffer of at least size bytes, valid until the next call."""
        if size > self.KEEP:
            return np.empty(size, np.uint8)
        if size > self._buffer.size:
            self._buffer = np.empty(min(size + size // 2, self.KEEP), np.uint8)
        return self._buffer


def decode_image(
    data: Buffer, info: ImageInfo | None = None, *, scratch: Scratch | None = None
) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG, WebP or BMP to RGB, turned by its EXIF orientation.

    Alpha is dropped, not composited; 16 bits per channel keep their high byte.

    Args:
        data: the whole file.
        info: what probe_image said about it; probed here when not given.
        scratch: where to put the pixels. With it, the result is a view, perhaps not contiguous,
            and valid until the scratch's next use; without it, a contiguous array of its own.

    Returns:
        uint8 [H, W, 3].

    Raises:
        CodecError: the bytes are not an image of these formats, or truncated, or corrupt, or
            have more than MAX_PIXELS pixels.
    """
    view = memoryview(data).cast("B")
    if info is None:
        info = probe_image(view)
    pixels = decode_stored(view, info, scratch)
    if info.orientation != UPRIGHT:
        pixels = apply_orientation(pixels, info.orientation)
        if scratch is None:
            pixels = np.ascontiguousarray(pixels)
    return pixels


def decode_stored(
    view: memoryview, info: ImageInfo, scratch: Scratch | None, *, shrink: int = 1
) -> NDArray[np.uint8]:
    """Decode an image whole, without turning it.

    Args:
        view: the whole file.
        info: what probe_image said about it.
        scratch: see decode_image.
        shrink: see decode_jpeg; 1 for other formats.

    Returns:
        uint8 [ceil(H / shrink), ceil(W / shrink), 3].

    Raises:
        CodecError: see decode_image.
    """
    height, width = (-(-side // shrink) for side in info.stored_size)
    if info.format == "jpeg":
        buffer = scratch.take(height * width * 3) if scratch is not None else None
        pixels = decode_jpeg(view, info, buffer, shrink=shrink)
    elif info.format == "png":
        pixels = _decode_with_opencv(_critical_chunks(view, info.chunks))
    else:
        check_complete(view, info)
        pixels = _decode_with_opencv(view)
    if pixels.shape != (height, width, 3) or pixels.dtype != np.uint8:
        raise CodecError(
            f"the pixels decode to {pixels.shape}, but the header announces {info.stored_size}"
        )
    return pixels


def _decode_with_opencv(data: Buffer) -> NDArray[np.uint8]:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS)
    except cv2.error as error:
        raise CodecError(f"OpenCV refuses the image: {error.err or error}") from None
    if pixels is None:
        raise CodecError("OpenCV does not decode the image: its data are corrupt or of a rare kind")
    if _NATIVE_RGB is None:
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    return cast("NDArray[np.uint8]", pixels)


def _critical_chunks(view: memoryview, chunks: Sequence[Chunk]) -> Buffer:
    """Verify the checksums of a PNG, keep what decoding needs: chunks named in capitals."""
    parts = [view[:_PNG_MAGIC_LENGTH]]
    for kind, start, end in chunks:
        if zlib.crc32(view[start - 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise CodecError(f"corrupt PNG: the checksum of its chunk {kind!r} is wrong")
        if kind[:1].isupper():
            parts.append(view[start - 8 : end + 4])
    return view if len(parts) > len(chunks) else b"".join(parts)

"""Decoding an image to RGB pixels as shown.

Every image takes one path: probe the header, decode as stored, compare the shape with the probe's
word, turn by the EXIF orientation. JPEG goes to simplejpeg, the rest to OpenCV, truncation looked
for first. Of a PNG OpenCV sees a plain file that is known to be sound: no metadata to inflate, no
animation to compose, nothing to print about. WebP and BMP have no checksums: changed bits can give
other pixels, which only the index's checksums notice.

Alpha is dropped, not composited; 16 bits per channel keep their high byte; gray becomes three
equal channels; of an animation the default image of a PNG or the first frame of a WebP is taken.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from shardio.codecs.boundary import decoder
from shardio.codecs.exif import UPRIGHT, apply_orientation
from shardio.codecs.jpeg import decode_jpeg
from shardio.codecs.limits import MAX_PIXELS
from shardio.codecs.opencv import decode_with_opencv
from shardio.codecs.png import critical_chunks, is_tiny, plain_png
from shardio.codecs.probe import check_complete, probe_image
from shardio.errors import CodecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shardio.codecs.probe import Buffer, ImageInfo


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


@decoder
def decode_image(
    data: Buffer,
    info: ImageInfo | None = None,
    *,
    scratch: Scratch | None = None,
    max_pixels: int = MAX_PIXELS,
    verified: bool = False,
) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG, WebP or BMP to RGB, turned by its EXIF orientation.

    Alpha is dropped, not composited; 16 bits per channel keep their high byte.

    Args:
        data: the whole file.
        info: what probe_image said about it; probed here when not given.
        scratch: where to put the pixels. With it, the result is a view, perhaps not contiguous,
            and valid until the scratch's next use; without it, a contiguous array of its own.
        max_pixels: see probe_image; only where info is not given.
        verified: whether the data have the checksum that an index recorded. libpng then sees a tiny
            PNG as it is, and may print a line about it if it was corrupt before that.

    Returns:
        uint8 [H, W, 3].

    Raises:
        CodecError: the bytes are not an image of these formats, or truncated, or corrupt, or
            exceed a limit.
        MemoryError: the machine does not have the memory that the image takes.
    """
    view = memoryview(data).cast("B")
    if info is None:
        info = probe_image(view, max_pixels=max_pixels)
    pixels = decode_stored(view, info, scratch, verified=verified)
    if info.orientation != UPRIGHT:
        pixels = apply_orientation(pixels, info.orientation)
        if scratch is None:
            pixels = np.ascontiguousarray(pixels)
    return pixels


@decoder
def decode_stored(
    view: memoryview,
    info: ImageInfo,
    scratch: Scratch | None,
    *,
    shrink: int = 1,
    verified: bool = False,
) -> NDArray[np.uint8]:
    """Decode an image whole, without turning it.

    Args:
        view: the whole file.
        info: what probe_image said about it.
        scratch: see decode_image.
        shrink: see decode_jpeg; 1 for other formats.
        verified: see decode_image.

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
        prepare = critical_chunks if verified and is_tiny(view) else plain_png
        pixels = decode_with_opencv(prepare(view, info.chunks), info.stored_size)
    else:
        check_complete(view, info)
        pixels = decode_with_opencv(view, info.stored_size)
    if pixels.shape != (height, width, 3) or pixels.dtype != np.uint8:
        raise CodecError(
            f"the pixels decode to {pixels.shape}, but the header announces {info.stored_size}"
        )
    return pixels

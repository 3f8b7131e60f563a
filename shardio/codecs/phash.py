"""A hash of what a picture looks like: alike pictures differ in few of its bits.

The picture is shrunk to 32 x 32 gray pixels by averaging, so that size, compression and small
noise hardly matter; of its discrete cosine transform the 8 x 8 lowest frequencies are taken, and
each bit says whether one of them lies above their median (Zauner, "Implementation and
benchmarking of perceptual image hash functions", 2010; known as pHash).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from shardio.codecs.boundary import decoder
from shardio.codecs.exif import UPRIGHT, apply_orientation
from shardio.codecs.image import Scratch, decode_stored
from shardio.codecs.probe import Buffer, ImageInfo

_SIDE, _KEPT = 32, 8
_SHRINKS = (8, 4, 2, 1)


@decoder
def perceptual_hash(data: Buffer, info: ImageInfo, scratch: Scratch) -> int:
    """Hash a picture to 64 bits.

    Args:
        data: the whole image file.
        info: what probe_image said about it.
        scratch: where it is decoded.

    Raises:
        CodecError: the image does not decode.
    """
    shorter = min(info.height, info.width)
    shrink = next((some for some in _SHRINKS if shorter >= some * 2 * _SIDE), 1)
    shrink = shrink if info.format == "jpeg" else 1
    pixels = decode_stored(memoryview(data).cast("B"), info, scratch, shrink=shrink)
    if info.orientation != UPRIGHT:
        pixels = apply_orientation(pixels, info.orientation)
    small = cv2.resize(pixels, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float64)
    low: NDArray[np.float64] = np.rint(cv2.dct(gray)[:_KEPT, :_KEPT].ravel())
    bits = low > np.median(low[1:])
    bits[0] = False  # the mean, which says how bright it is
    return int.from_bytes(np.packbits(bits).tobytes(), "big")

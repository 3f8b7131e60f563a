"""Encoding pixels as image files."""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from shardio.errors import CodecError

LOSSY = frozenset({"jpeg", "webp"})
"""Formats that have a quality."""


def encode_image(pixels: NDArray[np.uint8], format_: str, quality: int) -> bytes:
    """Make an image file without metadata.

    Args:
        pixels: uint8 [H, W, 3], RGB, in C order.
        format_: "jpeg" (baseline, 4:2:0), "png", "webp" or "bmp".
        quality: 1 to 100, of JPEG and WebP.

    Raises:
        CodecError: the format cannot hold such pixels, as WebP none with a side over 16,383.
    """
    try:
        if format_ == "jpeg":
            return bytes(simplejpeg.encode_jpeg(pixels, quality, "RGB", "420"))
        options = [cv2.IMWRITE_WEBP_QUALITY, quality] if format_ == "webp" else []
        done, encoded = cv2.imencode(f".{format_}", pixels[..., ::-1], options)
    except (cv2.error, ValueError) as error:
        done, reason = False, str(error)
    else:
        reason = "the encoder gave nothing"
    if not done:
        raise CodecError(f"the pixels cannot be encoded as {format_}: {reason}")
    return encoded.tobytes()

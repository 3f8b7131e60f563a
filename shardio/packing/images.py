"""Images that are decoded while they are packed: stored as pixels, encoded anew, or compared.

Pixels are `.npy` version 1.0: a header, the same for all images of one size, then uint8 [H, W, 3]
in RGB and C order, or as many channels as the type of the field reads. Images of one size become
members of one size, at one stride if the other fields allow it, so that a reader may treat the
shard as an array.

Image files keep their format. The EXIF orientation is applied to the pixels, and all metadata are
dropped, colour profiles included. Images that keep their size and quality are stored as they are.

Similar images differ in few bits of their perceptual hash. An image is averaged to 32 x 32 gray
pixels, so that size, compression and noise hardly matter. Each bit says whether one of the 8 x 8
lowest frequencies of the discrete cosine transform is above their median (Zauner, "Implementation
and benchmarking of perceptual image hash functions", 2010; known as pHash).
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from math import prod

import cv2
import numpy as np
from numpy.typing import NDArray

from shardio.fields.boundary import decoder
from shardio.fields.exif import UPRIGHT, apply_orientation
from shardio.fields.formats import FORMATS, check_complete
from shardio.fields.image import Scratch, decode_image, decode_stored, encode_image
from shardio.fields.probe import Buffer, ImageInfo
from shardio.packing.plan import Cut, ImageEncoding
from shardio.tar.writer import ArchiveWriter

_QUALITY = 90


class PixelWriter:
    """Decodes images into an archive, with the memory of one decoded image.

    Args:
        archive: archive to write to.
        encoding: encoding of the images.

    Attributes:
        sizes: heights and widths stored as pixels so far.
    """

    def __init__(self, archive: ArchiveWriter, encoding: ImageEncoding) -> None:
        self._archive = archive
        self._encoding = encoding
        self._scratch = Scratch()
        self.sizes: set[tuple[int, int]] = set()

    def reserve(self, data: memoryview, info: ImageInfo, channels: int) -> None:
        """Reserve a member in the archive and fill it with what is stored of an image.

        Args:
            data: the image file, which check_complete accepted; may lie where the archive reserved
                a member before.
            info: result of probe_image.
            channels: channels that the type of its field reads.

        Raises:
            CodecError: the image does not decode.
            OSError: the archive cannot be written.
        """
        crop = self._encoding.crop(info.height, info.width)
        if self._encoding.store == "raw":
            self._reserve_pixels(self._decode(data, info, channels), crop)
        elif self._changes(info, crop):
            pixels = self._decode(data, info, channels)
            out = np.empty((*crop.size, channels), np.uint8)
            _resize(pixels, crop, out)
            encoded = encode_image(out, info.format, self._encoding.quality or _QUALITY)
            self._archive.reserve(len(encoded))[:] = encoded

    def _changes(self, info: ImageInfo, crop: Cut) -> bool:
        if crop.size != (info.height, info.width):
            return True
        return self._encoding.quality is not None and FORMATS[info.format].is_lossy

    def _decode(self, data: memoryview, info: ImageInfo, channels: int) -> NDArray[np.uint8]:
        return decode_image(data, info, scratch=self._scratch, verified=True, channels=channels)

    def _reserve_pixels(self, pixels: NDArray[np.uint8], crop: Cut) -> None:
        shape = *crop.size, pixels.shape[2]
        header = _npy_header(shape)
        place = self._archive.reserve(len(header) + prod(shape))
        place[: len(header)] = header
        out = np.frombuffer(place, np.uint8, offset=len(header)).reshape(shape)
        _resize(pixels, crop, out)
        self.sizes.add(crop.size)


def _resize(pixels: NDArray[np.uint8], crop: Cut, out: NDArray[np.uint8]) -> None:
    part = pixels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    if part.shape == out.shape:
        out[:] = part
        return
    shrinks = crop.height >= crop.size[0] and crop.width >= crop.size[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    cv2.resize(part, crop.size[::-1], dst=out, interpolation=how)


@lru_cache(maxsize=256)
def _npy_header(shape: tuple[int, int, int]) -> bytes:
    stream = BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


_SIDE, _KEPT = 32, 8
_SHRINKS = (8, 4, 2, 1)


@decoder
def perceptual_hash(data: Buffer, info: ImageInfo, scratch: Scratch) -> int:
    """Hash a picture to 64 bits.

    Args:
        data: the whole image file.
        info: result of probe_image.
        scratch: memory for decoding.

    Raises:
        CodecError: the image does not decode.
    """
    shorter = min(info.height, info.width)
    shrink = next((some for some in _SHRINKS if shorter >= some * 2 * _SIDE), 1)
    shrink = shrink if FORMATS[info.format].shrinks else 1
    check_complete(data, info)
    view = memoryview(data).cast("B")
    pixels = decode_stored(view, info, scratch, shrink=shrink, verified=True)
    if info.orientation != UPRIGHT:
        pixels = apply_orientation(pixels, info.orientation)
    small = cv2.resize(pixels, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float64)
    low: NDArray[np.float64] = np.rint(cv2.dct(gray)[:_KEPT, :_KEPT].ravel())
    bits = low > np.median(low[1:])
    bits[0] = False  # the mean, which says how bright it is
    return int.from_bytes(np.packbits(bits).tobytes(), "big")

"""From a picture's bytes to a slot of the batch: decode no more than the crop needs.

The crop is known before decoding. Of a JPEG whose checksum was verified, the rows below it are not
decoded, which changes no pixel. Where the crop is several times larger than the slot, the JPEG is
decoded at 1/2, 1/4 or 1/8 of its size, at which the crop still covers the slot. Such reduced
decoding averages pixels where a plain bilinear resize would skip them, so the result is nearer to
an antialiased resize; the crop's edges are kept to a fraction of a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from shardio.codecs.boundary import decoder
from shardio.codecs.exif import UPRIGHT, apply_orientation, place_as_stored
from shardio.codecs.image import decode_stored
from shardio.codecs.jpeg import LEAST_SHRUNK, decode_jpeg_top
from shardio.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shardio.codecs.image import Scratch
    from shardio.codecs.probe import Buffer, ImageInfo

_LEAST_RATIOS = ((8, 8.0), (4, 4.5), (2, 3.75))
"""How many times larger than the slot a crop must be to be shrunk; below, a plain linear resize of
all pixels is nearer to an antialiased one, measured on blurred noise."""
_SAMPLE = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle of a picture as shown, and whether to mirror it left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


@dataclass(frozen=True, slots=True)
class DecodedPart:
    """What was decoded of a picture for a crop.

    Attributes:
        pixels: uint8 [h, w, 3] as stored, from the first row and column on.
        shrink: what the sides were divided by.
    """

    pixels: NDArray[np.uint8]
    shrink: int


@decoder
def decode_part(
    data: Buffer,
    info: ImageInfo,
    crop: Crop,
    size: tuple[int, int],
    *,
    scratch: Scratch,
    reduced: bool,
    verified: bool,
) -> DecodedPart:
    """Decode what a crop of a JPEG, PNG, WebP or BMP needs.

    Args:
        data: the whole file.
        info: what probe_image said about it.
        crop: inside the picture as shown.
        size: height and width of the slot.
        scratch: where the pixels go; they are valid until its next use.
        reduced: let large JPEGs be decoded at a part of their size.
        verified: the data have the checksum that they should. Otherwise a JPEG is decoded to its
            end, where decoders notice most damage.

    Raises:
        CodecError: see decode_image.
    """
    view = memoryview(data).cast("B")
    shrink = _shrink(info, crop, size) if reduced and info.format == "jpeg" else 1
    height, width = (-(-side // shrink) for side in info.stored_size)
    pixels = None
    if info.format == "jpeg" and verified:
        _, _, bottom, _ = _box_as_stored(info, crop)
        buffer = scratch.take(height * width * 3)
        pixels = decode_jpeg_top(view, info, buffer, rows=bottom, shrink=shrink)
    if pixels is None:
        pixels = decode_stored(view, info, scratch, shrink=shrink, verified=verified)
    return DecodedPart(pixels, shrink)


@decoder
def write_part(part: DecodedPart, info: ImageInfo, crop: Crop, out: NDArray[np.uint8]) -> None:
    """Resize a crop into a slot, bilinearly, turned and mirrored as orientation and crop say.

    Args:
        part: of the picture.
        info: of the picture.
        crop: that the part was decoded for.
        out: uint8 [h, w, 3], contiguous, where the result goes.
    """
    if part.shrink > 1:
        matrix = _sampling(info, crop, (out.shape[0], out.shape[1]), part.shrink)
        size = out.shape[1], out.shape[0]
        cv2.warpAffine(part.pixels, matrix, size, out, _SAMPLE, cv2.BORDER_REPLICATE)
        return
    top, left, bottom, right = _box_as_stored(info, crop)
    shown = part.pixels[top:bottom, left:right]
    if info.orientation != UPRIGHT:
        shown = apply_orientation(shown, info.orientation)
    _fit(shown, out, flip=crop.flip)


@decoder
def write_crop(
    pixels: NDArray[np.uint8], crop: Crop, out: NDArray[np.uint8], *, nearest: bool = False
) -> None:
    """Resize a crop of a decoded picture into a slot, bilinearly, mirrored if the crop says so.

    Args:
        pixels: uint8 [H, W, 3], any view.
        crop: a rectangle inside the picture.
        out: uint8 [h, w, 3], contiguous, where the result goes.
        nearest: take pixels as they are instead of blending them, the same ones as Pillow does.
    """
    bottom, right = crop.top + crop.height, crop.left + crop.width
    how = cv2.INTER_NEAREST_EXACT if nearest else cv2.INTER_LINEAR
    _fit(pixels[crop.top : bottom, crop.left : right], out, flip=crop.flip, interpolation=how)


def _fit(
    source: NDArray[np.uint8],
    out: NDArray[np.uint8],
    *,
    flip: bool,
    interpolation: int = cv2.INTER_LINEAR,
) -> None:
    size = out.shape[1], out.shape[0]
    if cv2.resize(source, size, dst=out, interpolation=interpolation) is not out:
        raise UsageError(f"the slot must be uint8 [h, w, 3], not {out.dtype} {list(out.shape)}")
    if flip:
        cv2.flip(out, 1, dst=out)


def _shrink(info: ImageInfo, crop: Crop, size: tuple[int, int]) -> int:
    """The greatest of 1, 2, 4 and 8 that costs no likeness to an antialiased resize."""
    if min(info.height, info.width) >= LEAST_SHRUNK:
        ratio = min(crop.height / size[0], crop.width / size[1])
        for shrink, least in _LEAST_RATIOS:
            if ratio >= least:
                return shrink
    return 1


def _box_as_stored(info: ImageInfo, crop: Crop) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of a crop in the picture as stored."""
    bottom, right = crop.top + crop.height, crop.left + crop.width
    if info.orientation == UPRIGHT:
        return crop.top, crop.left, bottom, right
    corners = [_as_stored(info, crop.top, crop.left), _as_stored(info, bottom, right)]
    rows, columns = (
        sorted(round(place) for place in places) for places in zip(*corners, strict=True)
    )
    return rows[0], columns[0], rows[1], columns[1]


def _as_stored(info: ImageInfo, row: float, column: float) -> tuple[float, float]:
    return place_as_stored(
        row, column, orientation=info.orientation, height=info.height, width=info.width
    )


def _sampling(
    info: ImageInfo, crop: Crop, size: tuple[int, int], shrink: int
) -> NDArray[np.float64]:
    """From pixels of the slot to places in the shrunk picture as stored, an affine [2, 3].

    Columns come first in it, and pixel i reaches from i - 1/2 to i + 1/2, both as in OpenCV.
    """
    step_down, step_right = crop.height / size[0], crop.width / size[1]
    first = crop.left
    if crop.flip:
        first, step_right = crop.left + crop.width, -step_right
    top, left = crop.top + step_down / 2, first + step_right / 2
    origin, right, down = (
        np.array(_as_stored(info, row, column))[::-1] / shrink - 0.5
        for row, column in ((top, left), (top, left + step_right), (top + step_down, left))
    )
    return np.stack([right - origin, down - origin, origin], axis=1)

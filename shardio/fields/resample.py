"""Resize pictures with antialiasing, the same as Pillow and torchvision, or to the nearest pixel.

Each pixel of the result is a weighted mean of all pixels under it. A window of the result needs
only some pixels of the source, and only those are looked at. As there, the columns come first and
the rows second, and the pixels between the two passes are bytes.

torch's kernel for x86 with AVX2 does this in the thread that calls it, several times as fast as
NumPy. It takes boxes of whole pixels only, computes all rows and columns before a window, and on
other machines torch uses threads of its own, which would multiply those of a loader. Where that
matters, NumPy does it, with torch's weights and to one grey level the same. torch is imported when
a picture is resized first, as most of what decodes pictures does without.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from numpy.typing import NDArray

    from shardio.fields.geometry import Axis

_VECTORIZED = frozenset({"AVX2", "AVX512"})
_CHUNK = 32
"""Rows at once, few enough for a processor's cache."""
_AROUND = 4096
"""Pixels to each side of a slot's whose weights have a say in how weights are rounded: all, but
where a very long picture is enlarged."""
_MOST_COMPUTED = 4
"""Pixels that torch may compute for each that is in the slot. NumPy computes those in the slot, and
a picture of 1 x 60,000 pixels whose shorter side becomes 256 has billions of others."""


def _weights(axis: Axis, *, cubic: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return which pixels each pixel of the slot is the mean of, and their weights.

    Returns:
        Pixels from `first` on, int64 [count, n], and weights with sum 1, float32 [count, n].
    """
    stretch = max(axis.scale, 1.0)
    support = (2 if cubic else 1) * stretch
    first = max(0, axis.window - _AROUND)
    end = min(axis.resized, axis.window + axis.kept + _AROUND)
    kept = slice(axis.window - first, axis.window - first + axis.kept)
    centres = axis.start + (np.arange(first, end) + 0.5) * axis.scale
    low = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    high = np.minimum((centres + support + 0.5).astype(np.int64), axis.reach)
    pixels = low[:, None] + np.arange((high - low).max())
    distances = np.abs(pixels + 0.5 - centres[:, None]) / stretch
    weights = (_cubic if cubic else _linear)(distances) * (pixels < high[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    return np.minimum(pixels, high[:, None] - 1)[kept], _in_16_bits(weights)[kept]


def write_nearest(
    source: NDArray[np.uint8], rows: Axis, columns: Axis, out: NDArray[np.uint8]
) -> None:
    """Fill a slot with the pixels under the centres of its own.

    Args:
        source: uint8 [h, w, channels], any view: the picture from the first row and column of the
            axes on.
        rows: axis down the picture.
        columns: axis across the picture.
        out: uint8 [rows.kept, columns.kept, channels], where the result goes.
    """
    taken = source.take(rows.nearest(), axis=0)
    taken.take(columns.nearest(), axis=1, out=out, mode="clip")


def write_antialiased(
    source: NDArray[np.uint8], rows: Axis, columns: Axis, out: NDArray[np.uint8], *, cubic: bool
) -> None:
    """Fill a slot with means of the pixels under its own.

    Args:
        source: see write_nearest; at least as many rows and columns as are needed.
        rows: axis down the picture.
        columns: axis across the picture.
        out: uint8 [rows.kept, columns.kept, channels], where the result goes.
        cubic: whether to weight the pixels by a cubic filter, which sharpens, and not a linear one.
    """
    if (rows.length, columns.length) == (rows.resized, columns.resized) and rows.shrink == 1:
        out[...] = source[rows.in_slot, columns.in_slot]
        return
    computed = rows.in_slot.stop * columns.in_slot.stop
    suits = rows.shrink == 1 and computed <= _MOST_COMPUTED * rows.kept * columns.kept
    kernel = _torch_kernel(cubic) if suits else None
    if kernel is None:
        turned = _weighted_rows(cv2.transpose(source), columns, cubic=cubic)
        out[...] = _weighted_rows(cv2.transpose(turned), rows, cubic=cubic).reshape(out.shape)
    else:
        out[...] = kernel(source, rows, columns)


def _weighted_rows(pixels: NDArray[Any], axis: Axis, *, cubic: bool) -> NDArray[np.uint8]:
    """Return weighted means of rows of a contiguous array."""
    lines = pixels.reshape(len(pixels), -1)
    places, weights = _weights(axis, cubic=cubic)
    means = np.empty((axis.kept, lines.shape[1]), np.uint8)
    for first in range(0, axis.kept, _CHUNK):
        chunk = slice(first, first + _CHUNK)
        total = np.full(means[chunk].shape, 0.5, np.float32)
        for place, weight in zip(places[chunk].T, weights[chunk].T, strict=True):
            total += lines[place] * weight[:, None]
        means[chunk] = total.clip(0, 255, out=total) if cubic else total
    return means.reshape(axis.kept, *pixels.shape[1:])


def _linear(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1 - distances, 0)


def _cubic(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Keys's cubic with a = -1/2."""
    inner = (1.5 * distances - 2.5) * distances**2 + 1
    outer = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
    return np.where(distances < 1, inner, np.where(distances < 2, outer, 0))


def _in_16_bits(weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round weights as torch does: to multiples of the power of two with which they fit 16 bits."""
    _, exponent = math.frexp((2**15 - 0.5) / float(weights.max()))
    unit = 2.0 ** min(exponent - 1, 22)
    scaled = weights * unit
    whole = np.trunc(scaled + np.copysign(0.5, scaled))
    return (whole / unit).astype(np.float32)


@cache
def _torch_kernel(
    cubic: bool,
) -> Callable[[NDArray[np.uint8], Axis, Axis], NDArray[np.uint8]] | None:
    """Return torch's resize of boxes of whole pixels; None where it uses threads of its own."""
    import torch  # noqa: PLC0415  see above

    if torch.backends.cpu.get_cpu_capability() not in _VECTORIZED:
        return None
    aten = torch.ops.aten
    upsample: Any = aten._upsample_bicubic2d_aa if cubic else aten._upsample_bilinear2d_aa
    support = 2 if cubic else 1

    def resize(source: NDArray[np.uint8], rows: Axis, columns: Axis) -> NDArray[np.uint8]:
        source = source[: rows.needed(support)]
        if not source.flags.c_contiguous:
            source = source[:, : columns.needed(support)]
        source = np.require(source, requirements=["C", "W"])
        height, width, channels = source.shape
        size = _computed(rows, height), _computed(columns, width)
        flat = torch.from_numpy(source.reshape(-1))  # sides of one pixel may have odd strides
        images = flat.view(1, height, width, channels).permute(0, 3, 1, 2)
        found = upsample(images, size, False, 1 / rows.scale, 1 / columns.scale)
        pixels: NDArray[np.uint8] = found.permute(0, 2, 3, 1).numpy()[0]
        return pixels[rows.in_slot, columns.in_slot]

    return resize


def _computed(axis: Axis, side: int) -> int:
    """Return how many pixels are computed: one too many where torch would take sides for equal."""
    count = axis.window + axis.kept
    return count + 1 if count == side and axis.length != axis.resized else count


_MERGED = (np.dtype(np.uint8), np.dtype(np.float32))


def in_planes(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a copy of a picture, [H, W, C], as [C, H, W]."""
    planes = np.empty((pixels.shape[2], *pixels.shape[:2]), np.uint8)
    cv2.split(pixels, [*planes])
    return planes


def copy_pixels(value: NDArray[Any], out: NDArray[Any]) -> None:
    """Copy an array; for a picture in planes, NumPy would take twenty times as long as OpenCV."""
    planes = value.transpose(2, 0, 1) if value.ndim == 3 and value.dtype in _MERGED else None
    if planes is not None and 1 < len(planes) < 5 and planes.flags.c_contiguous and value.size:
        cv2.merge([*planes], out)
    else:
        out[...] = value

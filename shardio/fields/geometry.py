"""Crops: which part of a picture fills a slot, and where its pixels, boxes and points come from.

A crop is a rectangle of the picture as it is shown. The rectangle is resized, and a window of the
result fills the slot, mirrored if the crop says so. One crop applies to all fields of a sample.

Where values are names, such as class numbers, each pixel of the slot takes the value of the pixel
under its centre. The position is computed in whole numbers, so it is exact on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Interpolation = Literal["nearest", "bilinear", "bicubic"]


class Resampling(NamedTuple):
    """How the pixels of a crop become those of a slot.

    Attributes:
        interpolation: method of interpolation.
        antialias: whether each pixel of a slot averages all pixels under it.
    """

    interpolation: Interpolation = "bilinear"
    antialias: bool = False


PLAIN = Resampling()


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle of a picture as shown, and how it fills a slot.

    Attributes:
        top: first row of the rectangle.
        left: first column of the rectangle.
        height: number of rows.
        width: number of columns.
        flip: whether to mirror the result left to right.
        resized: height and width that the rectangle is resized to; None for those of the slot.
        window: first row and column, in the resized rectangle, of what fills the slot.
        resampling: method of resizing.
    """

    top: int
    left: int
    height: int
    width: int
    flip: bool = False
    resized: tuple[int, int] | None = None
    window: tuple[int, int] = (0, 0)
    resampling: Resampling = PLAIN

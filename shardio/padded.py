"""Transforms that may leave a margin beside an image: padded and letterboxed crops, scale jitter.

They are fused with decoding as those of shardio.transforms are. A margin is filled where pixels are
written, and everything that follows an image moves with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from shardio.checks import is_whole, probability, require, whole_number
from shardio.fields.geometry import PLAIN, Fill, Interpolation, Resampling
from shardio.transforms import (
    Place,
    PlacedTransform,
    ResizedTransform,
    Whole,
    assign,
    between,
    check_range,
    least,
    resampling_arguments,
    rounded,
    size_pair,
    span,
)

_MOST_SCALE = 1000  # of a picture, whose resized sides are whole numbers


@dataclass(frozen=True, slots=True, init=False)
class RandomCrop(PlacedTransform):
    """Crop a random part of the output's size, after adding a margin, and randomly flip it.

        shardio.RandomCrop(32, padding=4)               # the recipe of CIFAR
        shardio.RandomCrop(512, fill=(124, 116, 104))   # of segmentation

    Nothing is resized. Equivalent to torchvision's RandomCrop with pad_if_needed=True, followed by
    RandomHorizontalFlip: an image that is smaller than the output lies whole in it, at a random
    place.

    Args:
        size: height and width of the output, or one number for both.
        padding: width of the margin that is added to each side, less than height and width.
        fill: value of the margin's pixels, for all channels or for each. "reflect" mirrors the
            image there, without repeating its edge, which boxes and points cannot follow; twice
            the padding must then be less than height and width.
        flip: probability of a horizontal flip.
    """

    size: tuple[int, int]
    padding: int
    fill: Fill
    flip: float
    moves: ClassVar[int] = 2

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        padding: int = 0,
        fill: Fill = 0,
        flip: float = 0.5,
    ) -> None:
        pair = size_pair(size)
        most = (min(pair) - 1) // (2 if fill == "reflect" else 1)
        assign(
            self,
            size=pair,
            padding=whole_number("padding", padding, least=0, most=most),
            fill=_fill_value(fill),
            flip=probability("flip", flip),
        )

    def _how(self) -> Resampling:
        return PLAIN

    def _place(self, height: Whole, width: Whole, drawn: Sequence[Any]) -> Place[Whole]:
        top, rows, above = self._along(self.size[0], height, drawn[0])
        left, columns, before = self._along(self.size[1], width, drawn[1])
        return Place(top, left, rows, columns, (rows, columns), (above, before))

    def _along(self, size: int, side: Whole, uniform: Any) -> tuple[Whole, Whole, Whole]:
        """Return the start and length of what is shown of a side, and the window on it."""
        margin = self.padding + _greatest(size - side - 2 * self.padding, 0 * side)
        start = _whole(uniform * (side + 2 * margin - size + 1)) - margin
        first = _greatest(start, 0 * side)
        return first, least(start + size, side) - first, least(start, 0 * side)


@dataclass(frozen=True, slots=True, init=False)
class Letterbox(ResizedTransform):
    """Resize an image to fit into the output, keep its aspect ratio, and centre it.

        shardio.Letterbox(640)

    Boxes, points, masks and depth follow the image. What is left of the output is filled; there a
    Mask has its `fill`.

    Args:
        size: height and width of the output, or one number for both.
        fill: value of the margin's pixels, for all channels or for each; by default YOLO's.
        flip: probability of a horizontal flip.
        antialias: whether each pixel of the output averages all pixels under it. Without it, large
            JPEGs may be decoded at a part of their size.
        interpolation: "bilinear", "bicubic" or "nearest"; "nearest" never averages.
    """

    size: tuple[int, int]
    fill: Fill
    flip: float
    antialias: bool
    interpolation: Interpolation

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        fill: Fill = 114,
        flip: float = 0.0,
        antialias: bool = True,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        assign(
            self,
            size=size_pair(size),
            fill=_fill_value(fill),
            flip=probability("flip", flip),
            **resampling_arguments(antialias=antialias, interpolation=interpolation),
        )

    def _place(self, height: Whole, width: Whole, drawn: Sequence[Any] = ()) -> Place[Whole]:
        del drawn
        down, across = self.size
        rows = least(rounded(height * across, width), 0 * height + down)
        columns = least(rounded(width * down, height), 0 * width + across)
        resized = _greatest(rows, 0 * height + 1), _greatest(columns, 0 * width + 1)
        window = -((down - resized[0]) // 2), -((across - resized[1]) // 2)
        return Place(0 * height, 0 * width, height, width, resized, window)


@dataclass(frozen=True, slots=True, init=False)
class ScaleJitter(ResizedTransform):
    """Resize an image by a random factor, then crop a random part of it or fill up the output.

        shardio.ScaleJitter(1024)                       # the large scale jitter of detection
        shardio.ScaleJitter(1024, scale=(0.8, 1.25))    # the standard one

    Equivalent to torchvision's ScaleJitter followed by FixedSizeCrop and RandomHorizontalFlip, with
    places down and across that are independent. An image that is smaller than the output is at its
    top and left.

    Args:
        size: height and width of the output, or one number for both.
        scale: minimum and maximum of the factor; at 1 the image just fits into the output.
        fill: value of the margin's pixels, for all channels or for each.
        flip: probability of a horizontal flip.
        antialias: whether each pixel of the output averages all pixels under it. Without it, the
            edges of a crop are rounded to whole pixels of the source, and large JPEGs may be
            decoded at a part of their size.
        interpolation: "bilinear", "bicubic" or "nearest"; "nearest" never averages.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    fill: Fill
    flip: float
    antialias: bool
    interpolation: Interpolation
    moves: ClassVar[int] = 3

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        scale: tuple[float, float] = (0.1, 2.0),
        fill: Fill = 0,
        flip: float = 0.5,
        antialias: bool = True,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        check_range("scale", scale, most=_MOST_SCALE)
        assign(
            self,
            size=size_pair(size),
            scale=tuple(scale),
            fill=_fill_value(fill),
            flip=probability("flip", flip),
            **resampling_arguments(antialias=antialias, interpolation=interpolation),
        )

    def _place(self, height: Whole, width: Whole, drawn: Sequence[Any]) -> Place[Whole]:
        fitting = np.minimum(self.size[0] / height, self.size[1] / width)
        factor = between(*self.scale, drawn[0]) * fitting
        top, rows, down, above = self._along(self.size[0], height, factor, drawn[1])
        left, columns, across, before = self._along(self.size[1], width, factor, drawn[2])
        return Place(top, left, rows, columns, (down, across), (above, before))

    def _along(
        self, size: int, side: Whole, factor: Any, uniform: Any
    ) -> tuple[Whole, Whole, Whole, Whole]:
        """Return start and length of what is resized of a side, to how much, and the window."""
        resized = _greatest(_whole(side * factor), 0 * side + 1)
        window = _whole(uniform * (_greatest(resized - size, 0 * side) + 1))
        if self.antialias:
            return 0 * side, side, resized, window
        kept = least(resized, 0 * side + size)
        start, length = span(kept, window, resized, side)
        return start, length, kept, 0 * side


def _greatest(one: Whole, other: Whole) -> Whole:
    """Return the larger of two whole numbers, or of each two."""
    return one + (other > one) * (other - one)


def _whole(number: Any) -> Any:
    """Return a number without its fraction, or each of several."""
    return number.astype(np.int64) if isinstance(number, np.ndarray) else int(number)


def _fill_value(fill: Any) -> Fill:
    """Check the value of a margin."""
    values = fill if isinstance(fill, tuple | list) else (fill,)
    good = len(values) > 0 and all(is_whole(each, least=0, most=255) for each in values)
    wanted = "a number from 0 to 255, a tuple of one for each channel, or 'reflect'"
    require(good or fill == "reflect", "fill", fill, wanted)
    return tuple(fill) if isinstance(fill, list) else fill

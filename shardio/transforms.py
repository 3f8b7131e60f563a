"""Transforms of images: crops that are fused with decoding.

A crop transform maps the size of an image and some uniform random numbers to a rectangle. It never
sees pixels, so the decoder knows the crop before it decodes. The random numbers are passed in, so
a sample of an epoch gets the same crop in any thread, worker or machine. For a batch whose sizes
are known, `crops` chooses all rectangles at once, in NumPy; they are those of `crop`.

Names and arguments mean what they mean in torchvision's transforms (version 2, on uint8). With
antialias=True, the pixels are the same too, to one grey level.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from numbers import Real
from typing import (
    Any,
    ClassVar,
    Generic,
    Protocol,
    TypeVar,
    get_args,
    runtime_checkable,
)

import numpy as np
from numpy.typing import NDArray

from shardio.checks import flag, is_whole, one_of, probability, require, whole_number
from shardio.errors import UsageError
from shardio.fields.geometry import PLAIN, Crop, Fill, Interpolation, Resampling
from shardio.fields.limits import MAX_RESIZED_PIXELS

Whole = TypeVar("Whole", int, NDArray[np.int64])
"""A whole number, or an array of them, one per sample."""

_TRIES = 10


@runtime_checkable
class SizedTransform(Protocol):
    """Transform of images of any size to one size."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the output."""

    @property
    def draws(self) -> int:
        """Number of uniform random numbers per sample; 0 if nothing is random."""

    def crop(self, height: int, width: int, uniforms: Sequence[float]) -> Crop:
        """Choose the rectangle of an image that fills the slot.

        Args:
            height: height of the image, after its orientation is applied.
            width: width of the image, after its orientation is applied.
            uniforms: `draws` numbers in [0, 1).

        Returns:
            Crop of at least one pixel inside the image.
        """


@dataclass(frozen=True, slots=True)
class Crops:
    """Crops of the samples of a batch. Item i is the Crop of sample i.

    Attributes:
        top: int64 [B], see Crop.
        left: int64 [B].
        height: int64 [B].
        width: int64 [B].
        flip: bool [B].
        resized: int64 [B, 2]; None for the size of the slot.
        window: int64 [B, 2]; None for (0, 0).
        resampling: method of resizing, one for all.
        fill: value of what is outside of the picture, one for all.
    """

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    flip: NDArray[np.bool_]
    resized: NDArray[np.int64] | None = None
    window: NDArray[np.int64] | None = None
    resampling: Resampling = PLAIN
    fill: Fill = 0

    def __len__(self) -> int:
        return len(self.top)

    def __iter__(self) -> Iterator[Crop]:
        """Yield the crops of all samples, which costs half of what `self[index]` does."""
        resized = repeat(None) if self.resized is None else map(tuple, _listed(self.resized))
        window = repeat((0, 0)) if self.window is None else map(tuple, _listed(self.window))
        edges = map(_listed, (self.top, self.left, self.height, self.width))
        flip = np.asarray(self.flip, np.bool_).tolist()
        alike = repeat(self.resampling), repeat(self.fill)
        return map(Crop, *edges, flip, resized, window, *alike)

    def part(self, samples: slice) -> Crops:
        """Return the crops of some of the samples."""
        return Crops(
            self.top[samples],
            self.left[samples],
            self.height[samples],
            self.width[samples],
            self.flip[samples],
            None if self.resized is None else self.resized[samples],
            None if self.window is None else self.window[samples],
            self.resampling,
            self.fill,
        )

    def __getitem__(self, index: int) -> Crop:
        return Crop(
            int(self.top[index]),
            int(self.left[index]),
            int(self.height[index]),
            int(self.width[index]),
            bool(self.flip[index]),
            None if self.resized is None else _two(self.resized[index]),
            (0, 0) if self.window is None else _two(self.window[index]),
            self.resampling,
            self.fill,
        )


@runtime_checkable
class BatchedTransform(SizedTransform, Protocol):
    """Transform that also chooses the rectangles of a whole batch at once."""

    def crops(
        self,
        heights: NDArray[np.int64],
        widths: NDArray[np.int64],
        uniforms: NDArray[np.float64],
    ) -> Crops:
        """Choose the rectangles of the images of a batch, the same as `crop` chooses.

        Args:
            heights: int64 [B], see crop.
            widths: int64 [B], see crop.
            uniforms: float64 [B, draws], numbers in [0, 1).
        """


@dataclass(frozen=True, slots=True, init=False)
class RandomResizedCrop:
    """Crop a random part of an image, resize it, and randomly flip it.

    Crops have the same distribution as those of torchvision's RandomResizedCrop followed by
    RandomHorizontalFlip: the area is uniform and the aspect ratio log-uniform. If no crop fits
    in ten tries, the largest central crop with an allowed aspect ratio is used.

    Args:
        size: height and width of the output, or one number for both.
        scale: minimum and maximum of the crop's share of the image area.
        ratio: minimum and maximum aspect ratio (width / height) of the crop.
        flip: probability of a horizontal flip.
        antialias: whether each pixel of the output averages all pixels under it, as torchvision's
            does. Without it, which is the default, large JPEGs may be decoded at a part of their
            size. With it, decoding and resizing photos of
            64 KB takes about 1.15 times the time.
        interpolation: "bilinear", "bicubic" or "nearest"; "nearest" never averages.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: float
    antialias: bool
    interpolation: Interpolation

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        antialias: bool = False,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        check_range("scale", scale, most=1)
        check_range("ratio", ratio, most=10**6)
        assign(
            self,
            size=size_pair(size),
            scale=tuple(scale),
            ratio=tuple(ratio),
            flip=probability("flip", flip),
            **resampling_arguments(antialias=antialias, interpolation=interpolation),
        )

    @property
    def draws(self) -> int:
        """Number of uniform random numbers: one for the flip, two for the position, two per try."""
        return 3 + 2 * _TRIES

    def crop(self, height: int, width: int, uniforms: Sequence[float]) -> Crop:
        """Choose a random crop of an image."""
        resampling = Resampling(self.interpolation, self.antialias)
        flip = uniforms[0] < self.flip
        log_ratio = math.log(self.ratio[0]), math.log(self.ratio[1])
        for at in range(3, 3 + 2 * _TRIES, 2):
            area = height * width * between(*self.scale, uniforms[at])
            ratio = math.exp(between(*log_ratio, uniforms[at + 1]))
            crop_width = round(math.sqrt(area * ratio))
            crop_height = round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = int(uniforms[1] * (height - crop_height + 1))
                left = int(uniforms[2] * (width - crop_width + 1))
                return Crop(top, left, crop_height, crop_width, flip, resampling=resampling)
        crop_height, crop_width = self._central(height, width)
        top, left = _start(height, crop_height), _start(width, crop_width)
        return Crop(top, left, crop_height, crop_width, flip, resampling=resampling)

    def crops(
        self,
        heights: NDArray[np.int64],
        widths: NDArray[np.int64],
        uniforms: NDArray[np.float64],
    ) -> Crops:
        """Choose random crops of the images of a batch."""
        found = np.zeros((4, len(heights)), np.int64)
        open_ = np.arange(len(heights))  # images that no crop of a try has fitted yet
        for at in range(3, 3 + 2 * _TRIES, 2):
            sides = heights[open_], widths[open_]
            crops = self._try(*sides, uniforms[open_, at], uniforms[open_, at + 1])
            fit = ((crops > 0) & (crops <= sides)).all(axis=0)
            found[2:, open_[fit]] = crops[:, fit]
            open_ = open_[~fit]
            if not len(open_):
                break
        found[0] = (uniforms[:, 1] * (heights - found[2] + 1)).astype(np.int64)
        found[1] = (uniforms[:, 2] * (widths - found[3] + 1)).astype(np.int64)
        for at in open_.tolist():
            size = int(heights[at]), int(widths[at])
            crop_size = self._central(*size)
            found[:, at] = (
                *(_start(*both) for both in zip(size, crop_size, strict=True)),
                *crop_size,
            )
        top, left, crop_heights, crop_widths = found
        return Crops(
            top,
            left,
            crop_heights,
            crop_widths,
            uniforms[:, 0] < self.flip,
            resampling=Resampling(self.interpolation, self.antialias),
        )

    def _try(
        self,
        heights: NDArray[np.int64],
        widths: NDArray[np.int64],
        areas: NDArray[np.float64],
        ratios: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """Return heights and widths of crops that may not fit, int64 [2, B], by random numbers."""
        area = heights * widths * between(*self.scale, areas)
        logs = between(math.log(self.ratio[0]), math.log(self.ratio[1]), ratios)
        ratio = np.array([math.exp(log) for log in logs.tolist()])  # numpy.exp rounds otherwise
        return np.rint(np.sqrt([area / ratio, area * ratio])).astype(np.int64)

    def _central(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the largest central crop with an allowed aspect ratio."""
        if width / height < self.ratio[0]:
            return max(1, round(width / self.ratio[0])), width
        if width / height > self.ratio[1]:
            return height, max(1, round(height * self.ratio[1]))
        return height, width


def _start(side: int, kept: int) -> int:
    """Return where a central crop starts along a side."""
    return (side - kept) // 2


@dataclass(frozen=True, slots=True)
class Place(Generic[Whole]):
    """Rectangle of an image, or rectangles of several; see Crop."""

    top: Whole
    left: Whole
    height: Whole
    width: Whole
    resized: tuple[Whole, Whole] | None = None
    window: tuple[Whole, Whole] | None = None


class PlacedTransform(ABC):
    """Transform whose rectangle depends on the size of an image, and on `moves` random numbers."""

    __slots__ = ()

    moves: ClassVar[int] = 0
    flip: float

    @abstractmethod
    def _place(self, height: Whole, width: Whole, drawn: Sequence[Any]) -> Place[Whole]:
        """Return the rectangle of an image, or those of several.

        Args:
            height: height of the image, or heights of several.
            width: width of the image, or widths of several.
            drawn: `moves` random numbers, each one number or float64 [B].
        """

    @abstractmethod
    def _how(self) -> Resampling:
        """Return the method of resizing."""

    @property
    def draws(self) -> int:
        """Number of uniform random numbers: one if the flip is random, and those of the place."""
        return int(self.flip > 0) + self.moves

    def crop(self, height: int, width: int, uniforms: Sequence[float] = ()) -> Crop:
        """Choose the rectangle of an image."""
        place = self._place(height, width, uniforms[self.draws - self.moves :])
        return Crop(
            place.top,
            place.left,
            place.height,
            place.width,
            self.flip > 0 and uniforms[0] < self.flip,
            place.resized,
            place.window or (0, 0),
            self._how(),
            getattr(self, "fill", 0),
        )

    def crops(
        self,
        heights: NDArray[np.int64],
        widths: NDArray[np.int64],
        uniforms: NDArray[np.float64],
    ) -> Crops:
        """Choose the rectangles of the images of a batch."""
        place = self._place(heights, widths, [*uniforms.T[self.draws - self.moves :]])
        return Crops(
            place.top,
            place.left,
            place.height,
            place.width,
            uniforms[:, 0] < self.flip if self.flip > 0 else np.zeros(len(heights), np.bool_),
            None if place.resized is None else np.stack(place.resized, axis=1),
            None if place.window is None else np.stack(place.window, axis=1),
            self._how(),
            getattr(self, "fill", 0),
        )


class ResizedTransform(PlacedTransform):
    """Transform that resizes by a method that its arguments say."""

    __slots__ = ()

    antialias: bool
    interpolation: Interpolation

    def _how(self) -> Resampling:
        return Resampling(self.interpolation, self.antialias)


@dataclass(frozen=True, slots=True, init=False)
class CenterCrop(ResizedTransform):
    """Resize the shorter side of an image and crop the centre, as evaluation does.

        shardio.CenterCrop(224, resize=256)

    Equivalent to torchvision's Resize(256) followed by CenterCrop(224), in one step. Only what the
    centre needs is computed.

    Args:
        size: height and width of the output, or one number for both.
        resize: length of the resized shorter side, at least the larger of height and width. It must
            be given, since torchvision's CenterCrop does not resize.
        flip: probability of a horizontal flip.
        antialias: whether each pixel of the output averages all pixels under it, which makes it
            torchvision's to one grey level. Without it, the edges of the crop are rounded to whole
            pixels of the source, and large JPEGs may be decoded at a part of their size.
            With averaging, decoding and resizing photos of 64 KB takes about 1.3 times the time.
        interpolation: "bilinear", "bicubic" or "nearest"; "nearest" never averages.
    """

    size: tuple[int, int]
    resize: int
    flip: float
    antialias: bool
    interpolation: Interpolation

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        resize: int | None = None,
        flip: float = 0.0,
        antialias: bool = True,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        pair = size_pair(size)
        if resize is None:
            shown = pair[0] if pair[0] == pair[1] else pair
            raise UsageError(
                f"CenterCrop({shown}) does not say to what size images are resized before",
                remedy=f"write CenterCrop({shown}, resize={round(max(pair) * 256 / 224)})",
            )
        resize = whole_number("resize", resize, least=max(pair))
        assign(
            self,
            size=pair,
            resize=resize,
            flip=probability("flip", flip),
            **resampling_arguments(antialias=antialias, interpolation=interpolation),
        )

    def _place(self, height: Whole, width: Whole, drawn: Sequence[Any] = ()) -> Place[Whole]:
        del drawn
        shorter = least(height, width)
        rows, columns = self._resized(height, shorter), self._resized(width, shorter)
        window = _half(rows - self.size[0]), _half(columns - self.size[1])
        if self.antialias:
            return Place(0 * height, 0 * width, height, width, (rows, columns), window)
        top, crop_height = span(self.size[0], window[0], rows, height)
        left, crop_width = span(self.size[1], window[1], columns, width)
        return Place(top, left, crop_height, crop_width)

    def _resized(self, side: Whole, shorter: Whole) -> Whole:
        return self.resize * side // shorter


@dataclass(frozen=True, slots=True, init=False)
class Resize(ResizedTransform):
    """Resize the whole image to one size, without keeping its aspect ratio.

        shardio.Resize((224, 224))

    Args:
        size: height and width of the output. One number is refused: with torchvision's Resize it
            is the length of the shorter side, which gives images of several sizes.
        flip: probability of a horizontal flip.
        antialias: whether each pixel of the output averages all pixels under it, which makes it
            torchvision's to one grey level. Without it, large JPEGs may be decoded at a part of
            their size. With averaging, decoding and resizing photos of 64 KB takes about 1.2 times
            the time.
        interpolation: "bilinear", "bicubic" or "nearest"; "nearest" never averages.
    """

    size: tuple[int, int]
    flip: float
    antialias: bool
    interpolation: Interpolation

    def __init__(
        self,
        size: tuple[int, int],
        *,
        flip: float = 0.0,
        antialias: bool = True,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        if is_whole(size, least=1):
            raise UsageError(
                f"size={size}: torchvision's Resize({size}) gives images of several sizes, as "
                f"{size} is the length of the shorter side, and the images of a batch have one",
                remedy=f"write Resize(({size}, {size})), which does not keep the aspect ratio, or "
                f"CenterCrop({size}, resize={size}), which does",
            )
        assign(
            self,
            size=size_pair(size),
            flip=probability("flip", flip),
            **resampling_arguments(antialias=antialias, interpolation=interpolation),
        )

    def _place(self, height: Whole, width: Whole, drawn: Sequence[Any] = ()) -> Place[Whole]:
        del drawn
        return Place(0 * height, 0 * width, height, width)


Uniform = TypeVar("Uniform", float, NDArray[np.float64])


def between(low: float, high: float, uniform: Uniform) -> Uniform:
    """Return the number between two that a random number chooses."""
    return low + (high - low) * uniform


def least(one: Whole, other: Whole) -> Whole:
    """Return the smaller of two whole numbers, or of each two."""
    return one - (one > other) * (one - other)


def rounded(dividend: Whole, divisor: Whole) -> Whole:
    """Return a quotient to the nearest whole number, halves to the even one, as Python rounds."""
    quotient, rest = dividend // divisor, 2 * (dividend % divisor)
    rounded: Whole = quotient + ((rest > divisor) | ((rest == divisor) & (quotient % 2 == 1)))
    return rounded


def _half(number: Whole) -> Whole:
    return rounded(number, number * 0 + 2)


def span(kept: int | Whole, window: Whole, resized: Whole, side: Whole) -> tuple[Whole, Whole]:
    """Return the start and the length of a crop along one side of the source, in whole pixels.

    Args:
        kept: number of pixels in the slot.
        window: first of the resized pixels that are kept.
        resized: number of pixels that the side is resized to.
        side: number of pixels of the source.
    """
    length = rounded(kept * side, resized)
    length = length + (length == 0)
    return least(rounded(window * side, resized), side - length), length


def _listed(numbers: NDArray[np.int64]) -> list[Any]:
    listed: list[Any] = np.asarray(numbers, np.int64).tolist()
    return listed


def _two(numbers: NDArray[np.int64]) -> tuple[int, int]:
    return int(numbers[0]), int(numbers[1])


def resampling_arguments(*, antialias: bool, interpolation: Interpolation) -> dict[str, object]:
    """Check the arguments that say how pixels are resampled."""
    return {
        "antialias": flag("antialias", antialias),
        "interpolation": one_of("interpolation", interpolation, get_args(Interpolation)),
    }


def size_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width, given one number for both or a pair."""
    pair = size if isinstance(size, tuple | list) else (size, size)
    good = len(pair) == 2 and all(is_whole(side, least=1) for side in pair)
    require(good, "size", size, "a whole number or a pair (height, width), at least 1")
    height, width = map(int, pair)
    require(height * width <= MAX_RESIZED_PIXELS, "size", size, "at most 2**30 - 1 pixels")
    return height, width


def check_range(name: str, given: Any, *, most: float) -> None:
    """Refuse what are not two numbers above 0, the smaller one first, up to the greatest."""
    good = isinstance(given, tuple | list) and len(given) == 2
    good = good and all(isinstance(each, Real) and not isinstance(each, bool) for each in given)
    if not (good and 0 < given[0] <= given[1] <= most):
        raise UsageError(f"{name} must be two numbers with 0 < min <= max <= {most}, not {given}")


def assign(transform: object, **values: object) -> None:
    """Set the fields of a frozen dataclass, as the generated __init__ would."""
    for name, value in values.items():
        object.__setattr__(transform, name, value)

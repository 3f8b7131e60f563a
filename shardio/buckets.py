"""Buckets: a transform of images of many aspect ratios to several sizes, one of them a step.

An image's bucket follows from the ratio of its sides alone, by arithmetic that every machine rounds
alike, since the order of an epoch depends on it. Which step has which bucket is planned in
shardio.planning.buckets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from shardio.checks import flag, one_of, probability, require, whole_number
from shardio.fields.geometry import Crop, Interpolation, Resampling
from shardio.fields.limits import MAX_RESIZED_PIXELS
from shardio.transforms import Crops, SizedTransform

Place = Literal["random", "center"]
_MOST_SIZES = 1 << 10


@dataclass(frozen=True, slots=True)
class Buckets:
    """Give all images of a step, on all ranks, one of several sizes, near their own aspect ratio.

        art = shardio.Buckets(area=1024**2, step=64)
        shardio.ShardDataset("art", transform=art, shuffle=True, global_batch_size=1024)

    The largest part of an image that has the aspect ratio of its bucket is cropped and resized. The
    sizes have sides that are multiples of `step`: for each length of one side, the other one is as
    long as `area` allows. What is left of a bucket at the end of an epoch, less than a global
    batch, is an incomplete step, to which `tail` of ShardDataset applies.

    Args:
        area: greatest number of pixels of a size.
        step: number whose multiples the sides are.
        ratio: greatest ratio of the longer side to the shorter one.
        place: place of the part that is shown: "random" or "center".
        flip: probability of a horizontal flip.
        antialias: whether each pixel of the output averages all pixels under it, as
            RandomResizedCrop says.
        interpolation: "bilinear", "bicubic" or "nearest"; "nearest" never averages.

    Attributes:
        sizes: height and width of each bucket, from the widest to the highest.

    Raises:
        UsageError: an argument is invalid.
    """

    area: int = 1024**2
    _: KW_ONLY
    step: int = 64
    ratio: float = 2.0
    place: Place = "random"
    flip: float = 0.0
    antialias: bool = True
    interpolation: Interpolation = "bilinear"
    sizes: tuple[tuple[int, int], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        step = whole_number("step", self.step, least=1)
        area = whole_number("area", self.area, least=step * step)
        require(area <= MAX_RESIZED_PIXELS, "area", area, "at most 2**30 - 1")
        good = isinstance(self.ratio, int | float) and 1 <= self.ratio < math.inf
        require(good, "ratio", self.ratio, "a number, at least 1")
        one_of("place", self.place, get_args(Place))
        one_of("interpolation", self.interpolation, get_args(Interpolation))
        flag("antialias", self.antialias)
        probability("flip", self.flip)
        longest = min(math.isqrt(int(area * self.ratio)), area // step)
        require(longest // step <= _MOST_SIZES, "step", step, "larger for so large an area")
        wide = {(area // side // step * step, side) for side in range(step, longest + 1, step)}
        both = wide | {(width, height) for height, width in wide}
        sizes = [size for size in both if max(size) <= self.ratio * min(size)]
        require(sizes, "ratio", self.ratio, f"larger, as no size with area={area} is so square")
        ordered = tuple(sorted(sizes, key=lambda size: (size[0] / size[1], size)))
        object.__setattr__(self, "sizes", ordered)

    def assign(self, heights: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Return the buckets whose aspect ratios are nearest to those of images.

        Args:
            heights: int64 [n], height of each image, after its orientation is applied.
            widths: int64 [n], width of each image.
        """
        # Division and square root are rounded alike on every machine; logarithms are not.
        ratios = np.array([height / width for height, width in self.sizes])
        borders = np.sqrt(ratios[1:] * ratios[:-1])
        return np.searchsorted(borders, heights / widths, side="right").astype(np.uint16)

    def of(self, bucket: int) -> SizedTransform:
        """Return the transform of the images of one bucket."""
        resampling = Resampling(self.interpolation, self.antialias)
        return _Cover(self.sizes[bucket], self.place, self.flip, resampling)


@dataclass(frozen=True, slots=True)
class _Cover:
    """Crop the largest part of an image that has the aspect ratio of a size, and resize it to that.

    Attributes:
        size: height and width of the output.
        place: see Buckets.
        flip: see Buckets.
        resampling: method of resizing.
    """

    size: tuple[int, int]
    place: Place
    flip: float
    resampling: Resampling

    @property
    def draws(self) -> int:
        """Number of uniform random numbers: one for the flip, two for the place."""
        return 3

    def crop(self, height: int, width: int, uniforms: Sequence[float]) -> Crop:
        """Choose the part of an image."""
        sides = np.array([[height], [width]], np.int64)
        return self.crops(sides[0], sides[1], np.array(uniforms, np.float64)[None])[0]

    def crops(
        self,
        heights: NDArray[np.int64],
        widths: NDArray[np.int64],
        uniforms: NDArray[np.float64],
    ) -> Crops:
        """Choose the parts of the images of a batch."""
        rows, columns = self.size
        # The side that goes with all of the other one, rounded half up.
        crop_heights = np.clip((2 * widths * rows + columns) // (2 * columns), 1, heights)
        crop_widths = np.clip((2 * heights * columns + rows) // (2 * rows), 1, widths)
        tops, lefts = heights - crop_heights, widths - crop_widths
        if self.place == "center":
            tops, lefts = tops // 2, lefts // 2
        else:
            tops = (uniforms[:, 1] * (tops + 1)).astype(np.int64)
            lefts = (uniforms[:, 2] * (lefts + 1)).astype(np.int64)
        flips = uniforms[:, 0] < self.flip
        return Crops(tops, lefts, crop_heights, crop_widths, flips, resampling=self.resampling)

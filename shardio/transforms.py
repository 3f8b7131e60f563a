"""Transforms of images: crops that are fused with decoding, and normalization of batches.

A crop transform maps the size of an image and some uniform random numbers to a rectangle. It never
sees pixels, so the decoder knows the crop before it decodes. The random numbers are passed in, so
a sample of an epoch gets the same crop in any thread, worker or machine.

Batches are normalized as a whole, on their device. There, or compiled into the network, this
costs almost nothing. Image by image on the CPU, it takes nearly half as long as decoding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch

from shardio.checks import is_whole, probability, require, whole_number
from shardio.errors import UsageError, counted
from shardio.fields.geometry import Crop

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
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: float

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise UsageError(f"scale must be two numbers with 0 < min <= max <= 1, not {scale}")
        if not 0 < ratio[0] <= ratio[1] < math.inf:
            raise UsageError(f"ratio must be two numbers with 0 < min <= max, not {ratio}")
        _assign(
            self,
            size=_pair(size),
            scale=tuple(scale),
            ratio=tuple(ratio),
            flip=probability("flip", flip),
        )

    @property
    def draws(self) -> int:
        """Number of uniform random numbers: one for the flip, two for the position, two per try."""
        return 3 + 2 * _TRIES

    def crop(self, height: int, width: int, uniforms: Sequence[float]) -> Crop:
        """Choose a random crop of an image."""
        flip = uniforms[0] < self.flip
        log_ratio = math.log(self.ratio[0]), math.log(self.ratio[1])
        for at in range(3, 3 + 2 * _TRIES, 2):
            area = height * width * _between(*self.scale, uniforms[at])
            ratio = math.exp(_between(*log_ratio, uniforms[at + 1]))
            crop_width = round(math.sqrt(area * ratio))
            crop_height = round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = int(uniforms[1] * (height - crop_height + 1))
                left = int(uniforms[2] * (width - crop_width + 1))
                return Crop(top, left, crop_height, crop_width, flip)
        return self._central(height, width, flip=flip)

    def _central(self, height: int, width: int, *, flip: bool) -> Crop:
        """Return the largest central crop with an allowed aspect ratio."""
        crop_height, crop_width = height, width
        if width / height < self.ratio[0]:
            crop_height = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            crop_width = max(1, round(height * self.ratio[1]))
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        return Crop(top, left, crop_height, crop_width, flip)


@dataclass(frozen=True, slots=True, init=False)
class CenterCrop:
    """Resize the shorter side of an image and crop the centre, as torchvision's evaluation does.

    Both steps are done at once: the part of the source that would remain is cropped, with its
    edges rounded to whole pixels, and resized.

    Args:
        size: height and width of the output, or one number for both.
        resize: length of the resized shorter side, at least the larger of height and width;
            by default 256 / 224 times that.
        flip: probability of a horizontal flip.
    """

    size: tuple[int, int]
    resize: int
    flip: float

    def __init__(
        self, size: int | tuple[int, int], *, resize: int | None = None, flip: float = 0.0
    ) -> None:
        pair = _pair(size)
        if resize is None:
            resize = round(max(pair) * 256 / 224)
        resize = whole_number("resize", resize, least=max(pair))
        _assign(self, size=pair, resize=resize, flip=probability("flip", flip))

    @property
    def draws(self) -> int:
        """Number of uniform random numbers: one if the flip is random."""
        return int(self.flip > 0)

    def crop(self, height: int, width: int, uniforms: Sequence[float] = ()) -> Crop:
        """Choose the central crop of an image."""
        shorter = min(height, width)
        top, crop_height = self._span(self.size[0], height, shorter)
        left, crop_width = self._span(self.size[1], width, shorter)
        return Crop(top, left, crop_height, crop_width, self.draws > 0 and uniforms[0] < self.flip)

    def _span(self, kept: int, side: int, shorter: int) -> tuple[int, int]:
        """Return the start and the length of the crop along one side of the source."""
        resized = self.resize * side // shorter
        start = round((resized - kept) / 2) * side / resized
        length = min(side, max(1, round(kept * side / resized)))
        return min(round(start), side - length), length


@dataclass(frozen=True, slots=True, init=False)
class Resize:
    """Resize the whole image to one size, without keeping its aspect ratio.

    Args:
        size: height and width of the output, or one number for both.
        flip: probability of a horizontal flip.
    """

    size: tuple[int, int]
    flip: float

    def __init__(self, size: int | tuple[int, int], *, flip: float = 0.0) -> None:
        _assign(self, size=_pair(size), flip=probability("flip", flip))

    @property
    def draws(self) -> int:
        """Number of uniform random numbers: one if the flip is random."""
        return int(self.flip > 0)

    def crop(self, height: int, width: int, uniforms: Sequence[float] = ()) -> Crop:
        """Choose the whole image."""
        return Crop(0, 0, height, width, self.draws > 0 and uniforms[0] < self.flip)


def _between(low: float, high: float, uniform: float) -> float:
    return low + (high - low) * uniform


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width, given one number for both or a pair."""
    pair = size if isinstance(size, tuple | list) else (size, size)
    good = len(pair) == 2 and all(is_whole(side, least=1) for side in pair)
    require(good, "size", size, "a whole number or a pair (height, width), at least 1")
    return int(pair[0]), int(pair[1])


def _assign(transform: object, **values: object) -> None:
    """Set the fields of a frozen dataclass, as the generated __init__ would."""
    for name, value in values.items():
        object.__setattr__(transform, name, value)


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_float(images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Scale images from the range 0 to 255 to the range 0 to 1, as torchvision's ToTensor does.

    Args:
        images: uint8 tensor of any shape.
        dtype: floating point dtype of the result.

    Returns:
        Tensor of the same shape, device and memory format.

    Raises:
        UsageError: the images are not uint8.
    """
    _check(images)
    return (images.to(torch.float32) / 255).to(dtype)


@dataclass(frozen=True, slots=True, init=False)
class Normalize:
    """Scale images to the range 0 to 1, subtract the mean, and divide by the standard deviation.

        normalize = shardio.Normalize()
        output = network(normalize(batch["image"]))

    Equivalent to torchvision's ToTensor and Normalize, as one multiplication and one addition.

    Args:
        mean: mean of each channel, from 0 to 1; by default ImageNet's.
        std: standard deviation of each channel, above 0; by default ImageNet's.
        dtype: floating point dtype of the result, which is computed in float32.

    Raises:
        UsageError: mean and std differ in length, a mean is not between 0 and 1, a std is not
            above 0, or the dtype is not a floating point one.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: torch.dtype

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if len(mean) != len(std) or not all(deviation > 0 for deviation in std):
            raise UsageError(
                f"mean={mean} and std={std}: give one number of each per channel, std above 0"
            )
        if not all(0 <= value <= 1 for value in mean):
            raise UsageError(
                f"mean={mean}: each mean must be between 0 and 1",
                remedy="divide a mean on the scale of 0 to 255, and its std, by 255",
            )
        if not dtype.is_floating_point:
            raise UsageError(f"dtype={dtype}: it must be floating point, such as torch.float16")
        for name, value in {"mean": tuple(mean), "std": tuple(std), "dtype": dtype}.items():
            object.__setattr__(self, name, value)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalize a batch of images.

        Args:
            images: uint8 tensor of shape [B, C, H, W] or [C, H, W].

        Returns:
            Tensor of the same shape, device and memory format, and of the given dtype.

        Raises:
            UsageError: the images are not uint8, or their number of channels differs from that
                of mean and std.
        """
        _check(images)
        if images.ndim < 3 or images.shape[-3] != len(self.mean):
            raise UsageError(
                f"expected images of shape [B, {len(self.mean)}, H, W], as mean and std have "
                f"{counted(len(self.mean), 'number')}, got {list(images.shape)}"
            )
        scale, shift = _scale_and_shift(self.mean, self.std, images.device)
        return images.to(torch.float32).mul_(scale).add_(shift).to(self.dtype)


def _check(images: torch.Tensor) -> None:
    if images.dtype != torch.uint8:
        raise UsageError(
            f"images must be uint8, not {images.dtype}", remedy="pass them before they are scaled"
        )


@lru_cache(maxsize=32)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    means, deviations = (
        torch.tensor(part, dtype=torch.float64)[:, None, None] for part in (mean, std)
    )
    scale, shift = 1 / (255 * deviations), -means / deviations
    return scale.to(device, torch.float32), shift.to(device, torch.float32)

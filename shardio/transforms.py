"""What is fused with decoding: which rectangle of a picture fills a slot of the batch.

A transform is a value that turns a picture's size, and uniform numbers drawn elsewhere, into a
crop; it never sees pixels. So the same sample of the same epoch gives the same crop on any thread,
worker or machine, and the decoder knows the crop before it decodes.

From uint8 batches to what a network takes: once a batch, on the batch's device.

An image at a time on the CPU this costs nearly half as much as decoding; on a device, or fused
into a compiled network, next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch

from shardio.checks import is_whole, probability, require, whole_number
from shardio.errors import UsageError
from shardio.fields.image import Crop

_TRIES = 10


@runtime_checkable
class SizedTransform(Protocol):
    """What makes pictures of any size fill slots of one size."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what comes out."""

    @property
    def draws(self) -> int:
        """How many uniform numbers a sample needs; 0 if nothing is random."""

    def crop(self, height: int, width: int, uniforms: Sequence[float]) -> Crop:
        """Choose the rectangle of a picture that fills the slot.

        Args:
            height: rows of the picture as shown.
            width: columns of the picture as shown.
            uniforms: `draws` numbers in [0, 1).

        Returns:
            A crop inside the picture, of at least one pixel.
        """


@dataclass(frozen=True, slots=True, init=False)
class RandomResizedCrop:
    """Crop a random part of a picture, resize it, mirror it or not.

    Crops are distributed as those of torchvision's RandomResizedCrop followed by its
    RandomHorizontalFlip: area uniform, aspect ratio log-uniform, ten tries, then the largest
    central crop whose aspect ratio is allowed.

    Args:
        size: height and width of what comes out, or one number for both.
        scale: least and greatest part of the picture's area that is kept.
        ratio: least and greatest width / height of the crop.
        flip: probability of mirroring left to right.
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
        """One for mirroring, two for the place, and for each try two for area and ratio."""
        return 3 + 2 * _TRIES

    def crop(self, height: int, width: int, uniforms: Sequence[float]) -> Crop:
        """Choose a random crop of a picture of height x width."""
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
        """The largest central crop whose aspect ratio is allowed."""
        crop_height, crop_width = height, width
        if width / height < self.ratio[0]:
            crop_height = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            crop_width = max(1, round(height * self.ratio[1]))
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        return Crop(top, left, crop_height, crop_width, flip)


@dataclass(frozen=True, slots=True, init=False)
class CenterCrop:
    """Resize a picture's shorter side, keep the centre: torchvision's recipe for evaluation.

    Both steps are one: the part of the source that would survive them is cropped, its edges
    rounded to whole pixels, and resized once.

    Args:
        size: height and width of what comes out, or one number for both.
        resize: what the shorter side would be resized to, at least the greater of height and
            width; by default 256 / 224 times that.
        flip: probability of mirroring left to right.
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
        """One for mirroring, if that is random."""
        return int(self.flip > 0)

    def crop(self, height: int, width: int, uniforms: Sequence[float] = ()) -> Crop:
        """Choose the central crop of a picture of height x width."""
        shorter = min(height, width)
        top, crop_height = self._span(self.size[0], height, shorter)
        left, crop_width = self._span(self.size[1], width, shorter)
        return Crop(top, left, crop_height, crop_width, self.draws > 0 and uniforms[0] < self.flip)

    def _span(self, kept: int, side: int, shorter: int) -> tuple[int, int]:
        """Where the crop starts along one side of the source, and how long it is there."""
        resized = self.resize * side // shorter
        start = round((resized - kept) / 2) * side / resized
        length = min(side, max(1, round(kept * side / resized)))
        return min(round(start), side - length), length


@dataclass(frozen=True, slots=True, init=False)
class Resize:
    """Squeeze or stretch the whole picture to one size.

    Args:
        size: height and width of what comes out, or one number for both.
        flip: probability of mirroring left to right.
    """

    size: tuple[int, int]
    flip: float

    def __init__(self, size: int | tuple[int, int], *, flip: float = 0.0) -> None:
        _assign(self, size=_pair(size), flip=probability("flip", flip))

    @property
    def draws(self) -> int:
        """One for mirroring, if that is random."""
        return int(self.flip > 0)

    def crop(self, height: int, width: int, uniforms: Sequence[float] = ()) -> Crop:
        """Choose the whole picture."""
        return Crop(0, 0, height, width, self.draws > 0 and uniforms[0] < self.flip)


def _between(low: float, high: float, uniform: float) -> float:
    return low + (high - low) * uniform


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Take one number for both height and width."""
    pair = size if isinstance(size, tuple | list) else (size, size)
    good = len(pair) == 2 and all(is_whole(side, least=1) for side in pair)
    require(good, "size", size, "a whole number or a pair (height, width), at least 1")
    return int(pair[0]), int(pair[1])


def _assign(transform: object, **values: object) -> None:
    """Set the fields of a frozen dataclass, as its own __init__ would."""
    for name, value in values.items():
        object.__setattr__(transform, name, value)


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_float(images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Scale images from 0 to 255 to 0 to 1, as torchvision's ToTensor does.

    Args:
        images: uint8, any shape.
        dtype: of the result, a floating one.

    Returns:
        The same shape, device and memory format.

    Raises:
        UsageError: the images are not uint8.
    """
    _check(images)
    return (images.to(torch.float32) / 255).to(dtype)


@dataclass(frozen=True, slots=True, init=False)
class Normalize:
    """Scale images to 0 to 1, subtract the mean of each channel, divide by its deviation.

        normalize = shardio.Normalize()
        output = network(normalize(batch["image"]))

    The same as torchvision's ToTensor and Normalize, computed as one multiplication and addition.

    Args:
        mean: of each channel, 0 to 1; by default ImageNet's.
        std: standard deviation of each channel, above 0; by default ImageNet's.
        dtype: of the result, a floating one; it is computed in float32.

    Raises:
        UsageError: mean and std do not have one number a channel, a mean is not between 0 and 1,
            or a std is not above 0.
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
                f"mean={mean} and std={std}: give one number of each a channel, std above 0"
            )
        if not all(0 <= value <= 1 for value in mean):
            raise UsageError(
                f"mean={mean}: it is of channels scaled to 0 to 1",
                remedy="divide means of 0 to 255, and their std, by 255",
            )
        if not dtype.is_floating_point:
            raise UsageError(f"dtype={dtype}: it must be a floating one, as torch.float16")
        for name, value in {"mean": tuple(mean), "std": tuple(std), "dtype": dtype}.items():
            object.__setattr__(self, name, value)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalize a batch.

        Args:
            images: uint8 [B, C, H, W] or [C, H, W].

        Returns:
            The same shape, device and memory format, of this dtype.

        Raises:
            UsageError: the images are not uint8, or have another number of channels.
        """
        _check(images)
        if images.ndim < 3 or images.shape[-3] != len(self.mean):
            raise UsageError(
                f"images of shape {list(images.shape)}: they must be [B, {len(self.mean)}, H, W], "
                f"as mean and std have {len(self.mean)} numbers"
            )
        scale, shift = _scale_and_shift(self.mean, self.std, images.device)
        return images.to(torch.float32).mul_(scale).add_(shift).to(self.dtype)


def _check(images: torch.Tensor) -> None:
    if images.dtype != torch.uint8:
        raise UsageError(f"images must be uint8, not {images.dtype}: they were scaled before?")


@lru_cache(maxsize=32)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    means, deviations = (
        torch.tensor(part, dtype=torch.float64)[:, None, None] for part in (mean, std)
    )
    scale, shift = 1 / (255 * deviations), -means / deviations
    return scale.to(device, torch.float32), shift.to(device, torch.float32)

"""From uint8 batches to what a network takes: once a batch, on the batch's device.

An image at a time on the CPU this costs nearly half as much as decoding; on a device, or fused
into a compiled network, next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from shardio.errors import UsageError

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
                f"mean={mean}: it is of channels scaled to 0 to 1; divide means of 0 to 255, and "
                "their std, by 255"
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

"""Operations on whole batches, on their device: normalizing, and mixing samples with each other.

There, or compiled into the network, normalizing costs almost nothing. Image by image on the CPU, it
takes nearly half as long as decoding.

Mixing is that of two papers: mixup (Zhang and others, "mixup: Beyond Empirical Risk Minimization",
2018) and CutMix (Yun and others, "CutMix: Regularization Strategy to Train Strong Classifiers with
Localizable Features", 2019). One share is drawn for a batch, as in torchvision and timm. Every
sample is mixed with the one that stands a random number of places behind it, among those that are
valid. The random numbers of a batch follow from the seed, its epoch and step, and the keys of its
samples. So a run that was interrupted mixes as one that was not, ranks with other samples mix
otherwise, and those with the same samples, as of a tensor-parallel group, mix alike. The numbers
are drawn on the CPU, and where the valid samples are is computed on the device, so that the device
never waits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray

from shardio.checks import positive, probability, require, seed_of_order, whole_number
from shardio.errors import UsageError, counted, quoted
from shardio.planning.order import derive_key

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


@dataclass(frozen=True)
class _Mixing(ABC):
    """Mix each valid sample of a batch with another one; see MixUp."""

    num_classes: int
    alpha: float = 1.0
    _: KW_ONLY
    p: float = 1.0
    label_smoothing: float = 0.0
    seed: int = 0
    image: str = "image"
    label: str = "label"

    def __post_init__(self) -> None:
        whole_number("num_classes", self.num_classes, least=1)
        positive("alpha", self.alpha)
        probability("p", self.p)
        probability("label_smoothing", self.label_smoothing)
        seed_of_order(self.seed)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Mix the samples of a batch.

        Args:
            batch: batch of a dataset or loader, which is left as it is. Images are [B, …, H, W], of
                uint8 or a floating point dtype; labels are whole numbers [B], or distributions
                [B, num_classes] of a floating point dtype.

        Returns:
            The batch with mixed images, of the same dtype, device and memory format, and with
            labels float32 [B, num_classes]. Mixed uint8 is rounded to the nearest. Samples that
            are not valid, or lack the image or label, stay as they are, and are nobody's partner.

        Raises:
            UsageError: the batch lacks an entry, or one is not as described.
        """
        images, given = _entry(batch, self.image), _entry(batch, self.label)
        labels = self._distributions(given, len(images)).to(images.device, non_blocking=True)
        if not (images.dtype == torch.uint8 or images.is_floating_point()) or images.ndim < 3:
            raise UsageError(
                f"{quoted(self.image)} must be uint8 or floating point, [B, …, H, W], not "
                f"{images.dtype} {[*images.shape]}"
            )
        rng = _generator(self, batch)
        if rng.random_sample() < self.p:
            partners = _partners(
                self._sound(batch, len(images)), images, int(rng.random_sample() * (1 << 31))
            )
            images, kept = self._mix(images, partners, float(rng.beta(self.alpha, self.alpha)), rng)
            labels = _blend(labels, labels[partners], kept)
        return {**batch, self.image: images, self.label: labels}

    @abstractmethod
    def _mix(
        self, images: torch.Tensor, partners: torch.Tensor, kept: float, rng: np.random.RandomState
    ) -> tuple[torch.Tensor, float]:
        """Mix images with those of their partners; return them and the share that they keep."""

    def _sound(self, batch: Mapping[str, Any], count: int) -> list[torch.Tensor]:
        """Return flags of the samples, bool [B] each: whether they are valid and lack no field."""
        names = "valid", f"has_{self.image}", f"has_{self.label}"
        flags = {name: _entry(batch, name) for name in names if name in batch}
        for name, each in flags.items():
            if each.dtype != torch.bool or each.shape != (count,):
                raise UsageError(
                    f"{quoted(name)} must be bool [{count}], not {each.dtype} {[*each.shape]}"
                )
        return [*flags.values()]

    def _distributions(self, labels: torch.Tensor, count: int) -> torch.Tensor:
        """Return labels as distributions, float32 [B, num_classes], smoothed."""
        numbers = not labels.is_floating_point()
        wanted = (count,) if numbers else (count, self.num_classes)
        if labels.shape != wanted or labels.dtype == torch.bool or labels.is_complex():
            raise UsageError(
                f"{quoted(self.label)} must be whole numbers [{count}] or distributions "
                f"[{count}, {self.num_classes}], not {labels.dtype} {[*labels.shape]}"
            )
        if numbers:
            labels = labels.long()
            if labels.device.type == "cpu" and count:  # elsewhere scatter_ checks it
                low, high = (int(each) for each in torch.aminmax(labels))
                if low < 0 or high >= self.num_classes:
                    raise UsageError(
                        f"{quoted(self.label)} has class numbers from {low} to {high}, and "
                        f"num_classes={self.num_classes} stands for 0 to {self.num_classes - 1}"
                    )
            found = torch.zeros(count, self.num_classes, device=labels.device)
            labels = found.scatter_(1, labels[:, None], 1.0)
        return labels.float() * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes


@dataclass(frozen=True)
class MixUp(_Mixing):
    """Blend each valid sample of a batch with another one, image and label alike.

        mix = shardio.MixUp(num_classes=1000, alpha=0.2)
        for batch in shardio.Loader(dataset, device="cuda"):
            batch = mix(batch)
            logits = network(normalize(batch["image"]))
            loss = softmax_cross_entropy(logits, batch["label"], valid=batch["valid"])

    The formula is that of torchvision's MixUp. Whatever else a batch holds stays as it is.

    Args:
        num_classes: number of classes.
        alpha: parameter of the symmetric Beta distribution of the share that a sample keeps.
        p: probability that a batch is mixed. Labels become distributions in any case.
        label_smoothing: share of each label that is spread over all classes, from 0 to 1.
        seed: seed of the random numbers.
        image: name of the entry of images.
        label: name of the entry of labels.

    Raises:
        UsageError: an argument is invalid.
    """

    def _mix(
        self, images: torch.Tensor, partners: torch.Tensor, kept: float, rng: np.random.RandomState
    ) -> tuple[torch.Tensor, float]:
        del rng
        return _blend(images, images[partners], kept), kept


@dataclass(frozen=True)
class CutMix(_Mixing):
    """Paste a box of another valid sample into each valid sample of a batch.

    The box is that of torchvision's CutMix: the same in all images, centred anywhere, cut off at
    the edges. Labels are mixed by the exact area that is left of it. See MixUp for an example.

    Args:
        num_classes: number of classes.
        alpha: parameter of the symmetric Beta distribution of the share that a sample keeps.
        p: probability that a batch is mixed. Labels become distributions in any case.
        label_smoothing: share of each label that is spread over all classes, from 0 to 1.
        seed: seed of the random numbers.
        image: name of the entry of images.
        label: name of the entry of labels.

    Raises:
        UsageError: an argument is invalid.
    """

    def _mix(
        self, images: torch.Tensor, partners: torch.Tensor, kept: float, rng: np.random.RandomState
    ) -> tuple[torch.Tensor, float]:
        height, width = images.shape[-2:]
        (top, bottom), (left, right) = (_cut(side, kept, rng) for side in (height, width))
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = images[..., top:bottom, left:right][partners]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)


@dataclass(frozen=True)
class RandomChoice:
    """Mix each batch by one of several operations, chosen at random.

        mix = shardio.RandomChoice([shardio.MixUp(1000, 0.8), shardio.CutMix(1000)])

    Args:
        operations: MixUp and CutMix operations; the seed is that of the first one.
        p: weights of the operations; None for equal ones.

    Raises:
        UsageError: an argument is invalid.
    """

    operations: Sequence[_Mixing]
    p: Sequence[float] | None = None

    def __post_init__(self) -> None:
        given = self.operations if isinstance(self.operations, Sequence) else ()
        mixing = given and all(isinstance(each, _Mixing) for each in given)
        require(mixing, "operations", self.operations, "a list of MixUp and CutMix operations")
        ends = self._ends()
        good = ends.shape == (len(given),) and bool(np.all(np.diff(ends, prepend=0) >= 0))
        good = good and bool(0 < ends[-1] < math.inf)
        require(good, "p", self.p, "one weight for each operation, none below 0, one above")

    def _ends(self) -> NDArray[np.float64]:
        """Return the sum of the weights up to each operation; none if they are not numbers."""
        weights = (1,) * len(self.operations) if self.p is None else self.p
        try:
            found = np.asarray(weights, np.float64)
        except (TypeError, ValueError, OverflowError):
            return np.empty(0)
        with np.errstate(over="ignore"):
            return np.cumsum(found) if found.ndim == 1 else np.empty(0)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Mix the samples of a batch; see MixUp.

        Raises:
            UsageError: the batch lacks an entry, or one is not as it should be.
        """
        ends = self._ends()
        drawn = _generator(self.operations[0], batch, _CHOICE).random_sample() * ends[-1]
        return self.operations[int(np.searchsorted(ends, drawn, side="right"))](batch)


_MIX, _CHOICE = 1, 2


def _generator(
    mixing: _Mixing, batch: Mapping[str, Any], purpose: int = _MIX
) -> np.random.RandomState:
    """Return a generator for one purpose with one batch.

    NumPy's RandomState is frozen: its numbers are the same in all versions.
    """
    try:
        place = int(batch["__epoch__"]), int(batch["__step__"])
        samples = crc32("\n".join(batch["__key__"]).encode("utf-8", "surrogateescape"))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            "the batch has no '__epoch__', '__step__' and '__key__', from which its random numbers "
            "follow",
            remedy="pass a batch as a dataset with batch_size yields it",
        ) from error
    key = derive_key(mixing.seed, *place, samples, purpose)
    return np.random.RandomState([key & 0xFFFFFFFF, key >> 32])


def _entry(batch: Mapping[str, Any], name: str) -> torch.Tensor:
    """Return a tensor of a batch."""
    found = batch.get(name)
    if not isinstance(found, torch.Tensor) or found.ndim == 0:
        raise UsageError(
            f"the batch has no tensor {quoted(name)} ({', '.join(map(quoted, batch))})",
            remedy="name its entries with image= and label=",
        )
    return found


def _cut(side: int, kept: float, rng: np.random.RandomState) -> tuple[int, int]:
    """Return start and end of a box along one side: centred anywhere, and cut off at the edges."""
    centre, half = int(rng.random_sample() * side), int(0.5 * math.sqrt(1 - kept) * side)
    return max(centre - half, 0), min(centre + half, side)


def _partners(flags: Sequence[torch.Tensor], images: torch.Tensor, turn: int) -> torch.Tensor:
    """Return each sample's partner, int64 [B]: itself for one that is not valid, or the only one.

    Args:
        flags: bool [B] each, of which a sample needs all to be valid.
        images: images of the batch, which tell number and device.
        turn: random number, of which the distance of partners follows.
    """
    places = torch.arange(len(images), device=images.device)
    valid = torch.ones_like(places, dtype=torch.bool)
    for flag in flags:
        valid &= flag.to(images.device, non_blocking=True)
    order = (~valid).to(torch.uint8).argsort(stable=True)  # those that are valid come first
    count = valid.sum()
    distance = 1 + turn % (count - 1).clamp(min=1)
    after = torch.where(places < count, (places + distance) % count.clamp(min=1), places)
    return torch.empty_like(places).scatter_(0, order, order[after])


def _blend(values: torch.Tensor, others: torch.Tensor, kept: float) -> torch.Tensor:
    """Return kept × values + (1 - kept) × others, computed in float32 at least."""
    wide = torch.promote_types(values.dtype, torch.float32)
    blended = torch.lerp(others.to(wide), values.to(wide), kept)
    return (blended if values.is_floating_point() else blended.round_()).to(values.dtype)

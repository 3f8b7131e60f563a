"""Which samples go into which shard, and how large stored images are: arithmetic alone.

Samples are divided by their counts, labels and sizes, without a look at their data. The geometry of
resizing is here too, without pixels, so that importing it costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from shardio.checks import is_whole, one_of, whole_number
from shardio.errors import PackError, UsageError, argument, in_words, quoted
from shardio.fields.limits import MAX_PIXELS, MAX_RESIZED_PIXELS
from shardio.packing.layout import SHARD_PATTERN, WHOLE, is_split_name
from shardio.planning.order import KeyedPermutation, derive_key
from shardio.tar.writer import END_OF_ARCHIVE

_PACKING, _SPLITTING = 4, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How samples are divided into shards, by exactly one of three numbers.

    Attributes:
        shards: number of shards; splits share them by their sizes, with at least one each.
        or_fewer: whether to take fewer shards where there are fewer samples.
        samples_per_shard: maximum number of samples in a shard; they are spread evenly.
        shard_size: maximum number of bytes of a shard, unless one sample is larger; the bytes are
            spread evenly.

    Raises:
        UsageError: none or several are given, or one is below 1.
    """

    shards: int | None = None
    or_fewer: bool = False
    samples_per_shard: int | None = None
    shard_size: int | None = None

    def __post_init__(self) -> None:
        names = first, second, third = ("shards", "samples_per_shard", "shard_size")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if len(given) != 1:
            raise UsageError(
                f"how many shards? Give {argument(first)}, {argument(second)} or "
                f"{argument(third)}, as {argument(first, 8)}, not "
                f"{' and '.join(map(argument, given)) or 'none'}"
            )
        ((name, number),) = given.items()
        object.__setattr__(self, name, whole_number(name, number, least=1))


def as_split() -> str:
    """Spell an example of fractions by name as the reader knows it."""
    return in_words("as {'train': 0.9, 'val': 0.1}", "as train=0.9,val=0.1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Parts that the samples are divided into.

    Attributes:
        fractions: fraction of each part by its name; they add up to 1.
        stratify: whether to divide the samples of each class in these fractions.

    Raises:
        UsageError: the fractions do not add up to 1, or a name cannot be that of a folder.
    """

    fractions: Mapping[str, float]
    stratify: bool = False

    def __post_init__(self) -> None:
        for name in self.fractions:
            if not is_split_name(name):
                raise UsageError(
                    f"{quoted(name)} cannot be the name of a folder of a split",
                    where=argument("split"),
                )
        values = [*self.fractions.values()]
        if not values or min(values) <= 0 or abs(sum(values) - 1) > 1e-9:
            raise UsageError(
                f"the fractions {', '.join(map(str, values))} must be above 0 and add up to 1",
                where=argument("split"),
                remedy=f"give them {as_split()}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """One shard to write.

    Attributes:
        part: name of its split.
        name: name of its file.
        numbers: numbers of its samples in order, int64 [n].
    """

    part: str
    name: str
    numbers: NDArray[np.int64]


def split_samples(
    count: int,
    splits: Splits | None,
    *,
    seed: int,
    labels: NDArray[np.int64],
    groups: NDArray[np.int64] | None,
) -> dict[str, NDArray[np.int64]]:
    """Divide samples into parts.

    Args:
        count: number of samples.
        splits: parts to divide them into; None for one part with all.
        seed: seed of the random choice.
        labels: label of each sample, int64 [count].
        groups: lowest number in the group of each sample, int64 [count]; groups stay together.
            None if each sample stands for itself.

    Returns:
        Numbers of samples by part, ascending. Of one class, or of all, each part has its
        fraction to within one sample; or to within a group.
    """
    if splits is None:
        return {WHOLE: np.arange(count)}
    groups = np.arange(count) if groups is None else groups
    heads = np.flatnonzero(groups == np.arange(count))
    weights = np.bincount(groups, minlength=count)[heads]
    order = KeyedPermutation(len(heads), derive_key(seed, _SPLITTING))(np.arange(len(heads)))
    if splits.stratify:
        order = order[np.argsort(labels[heads[order]], kind="stable")]
    ends = np.cumsum([*splits.fractions.values()])
    strata = labels[heads[order]] if splits.stratify else np.zeros(len(order), np.int64)
    part_of = np.empty(count, np.int64)
    bounds = [0, *(np.flatnonzero(np.diff(strata)) + 1).tolist(), len(order)]
    for start, end in pairwise(bounds):
        inside = order[start:end]
        middles = np.cumsum(weights[inside]) - weights[inside] / 2
        total = weights[inside].sum()
        part_of[heads[inside]] = np.searchsorted(np.rint(ends * total), middles, side="left")
    part_of = np.minimum(part_of[groups], len(ends) - 1)
    return {name: np.flatnonzero(part_of == part) for part, name in enumerate(splits.fractions)}


def plan_shards(
    parts: Mapping[str, NDArray[np.int64]],
    sharding: Sharding,
    *,
    seed: int | None,
    sizes: NDArray[np.int64],
) -> list[PlannedShard]:
    """Divide the samples of each part into shards.

    Args:
        parts: numbers of samples by part.
        sharding: number or size of the shards.
        seed: seed of the order; None keeps the samples as they are.
        sizes: bytes that each sample takes in a shard, int64 [count]; used for `shard_size` only.

    Raises:
        PackError: there are fewer samples than shards, or a part gets none.
    """
    if sharding.shards is not None:
        counts = {name: len(some) for name, some in parts.items()}
        total = min(sharding.shards, sum(counts.values())) if sharding.or_fewer else sharding.shards
        shards = _share_shards(total, counts)
    planned = []
    for name, numbers in parts.items():
        if not len(numbers):
            raise PackError(
                f"the split {quoted(name)} would have no samples",
                remedy="give it a larger fraction, or samples that can be packed",
            )
        order = numbers
        if seed is not None:
            permutation = KeyedPermutation(len(numbers), derive_key(seed, _PACKING))
            order = numbers[permutation(np.arange(len(numbers)))]
        if sharding.shards is not None:
            pieces = np.array_split(order, shards[name])
        elif sharding.samples_per_shard is not None:
            pieces = np.array_split(order, -(-len(order) // sharding.samples_per_shard))
        else:
            limit = (sharding.shard_size or 0) - len(END_OF_ARCHIVE)
            if len(order) and limit < (least := int(sizes[order].min())):
                raise PackError(
                    f"no sample fits into shards of {sharding.shard_size:,} bytes: the "
                    f"smallest takes {least + len(END_OF_ARCHIVE):,}",
                    remedy=f"give a larger {argument('shard_size')}",
                )
            pieces = _cut_by_size(order, sizes[order], limit)
        planned += [
            PlannedShard(part=name, name=SHARD_PATTERN.replace("*", f"{i:06d}"), numbers=piece)
            for i, piece in enumerate(pieces)
        ]
    return planned


def _share_shards(shards: int, counts: Mapping[str, int]) -> dict[str, int]:
    """Share shards among parts: one each, and of the others what comes nearest to its size."""
    total = sum(counts.values())
    if shards > total:
        raise PackError(
            f"{total} samples do not fill {shards} shards", remedy=f"give at most {total} shards"
        )
    if shards < len(counts):
        raise PackError(
            f"{len(counts)} splits need as many shards", remedy=f"give at least {len(counts)}"
        )
    shared = dict.fromkeys(counts, 1)
    for _ in range(shards - len(counts)):
        room = [name for name in counts if shared[name] < counts[name]]
        neediest = max(room, key=lambda name: counts[name] / shared[name])
        shared[neediest] += 1
    return shared


def _cut_by_size(
    order: NDArray[np.int64], sizes: NDArray[np.int64], limit: int
) -> list[NDArray[np.int64]]:
    """Cut into as few pieces as the limit allows, and as even as that number allows."""
    ends = np.cumsum(sizes)
    least = len(_cuts(ends, limit))
    low, high = min(int(ends[-1]) // least, limit), limit
    while low < high:
        middle = (low + high) // 2
        if len(_cuts(ends, middle)) <= least:
            high = middle
        else:
            low = middle + 1
    return np.split(order, _cuts(ends, high)[:-1])


def _cuts(ends: NDArray[np.int64], limit: int) -> list[int]:
    """Find the ends of pieces that take all that fits, and at least one sample."""
    cuts: list[int] = []
    before = 0
    while not cuts or cuts[-1] < len(ends):
        start = cuts[-1] if cuts else 0
        cut = max(int(np.searchsorted(ends, before + limit, side="right")), start + 1)
        cuts.append(cut)
        before = int(ends[cut - 1])
    return cuts


ImageStorage = Literal["original", "raw"]


class Cut(NamedTuple):
    """A rectangle of an upright image, and the height and width at which it is stored.

    Attributes:
        top: first row of the rectangle.
        left: first column of the rectangle.
        height: number of its rows.
        width: number of its columns.
        size: height and width in the shard.
    """

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEncoding:
    """How the images of a pack are stored.

    Attributes:
        store: "original" for image files, "raw" for pixels as NumPy arrays.
        resize: new length of the shorter side, or exact height and width; None for no resizing.
        max_side: maximum length of the longer side; None for no resizing.
        quality: quality of JPEG and WebP files, which are all encoded anew; None encodes only
            resized images anew.
        max_pixels: maximum number of pixels of an image, see shardio.fields.limits; as it is by
            default, images that are resized may have more.

    Raises:
        UsageError: a value is invalid.
    """

    store: ImageStorage = "original"
    resize: int | tuple[int, int] | None = None
    max_side: int | None = None
    quality: int | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        whole_number("max_pixels", self.max_pixels, least=1)
        one_of("store", self.store, get_args(ImageStorage))
        if self.resize is not None:
            self._check_resize(self.resize)
        if self.max_side is not None:
            whole_number("max_side", self.max_side, least=1)
        if self.resize is not None and self.max_side is not None:
            raise UsageError(
                f"{argument('resize')} and {argument('max_side')} exclude each other",
                remedy="give one of them",
            )
        if self.quality is not None:
            whole_number("quality", self.quality, least=1, most=100)
        if self.store == "raw" and self.quality is not None:
            raise UsageError(
                "it applies to image files",
                where=argument("quality"),
                remedy=f"leave it out; {argument('store', 'raw')} stores pixels",
            )

    @property
    def decodes(self) -> bool:
        """Tell whether images have to be decoded."""
        given = (self.resize, self.max_side, self.quality)
        return self.store == "raw" or any(value is not None for value in given)

    @property
    def limit(self) -> int:
        """Maximum number of pixels of an image before it is resized."""
        resizes = self.resize is not None or self.max_side is not None
        is_default = self.max_pixels == MAX_PIXELS
        return MAX_RESIZED_PIXELS if resizes and is_default else self.max_pixels

    def crop(self, height: int, width: int) -> Cut:
        """Choose the part of an image of height x width that is stored, and its size there."""
        if isinstance(self.resize, tuple):
            rows, columns = self.resize
            kept_height = min(height, max(1, round(width * rows / columns)))
            kept_width = min(width, max(1, round(height * columns / rows)))
            top, left = (height - kept_height) // 2, (width - kept_width) // 2
            return Cut(top, left, kept_height, kept_width, self.resize)
        wanted = self.resize if self.max_side is None else self.max_side
        side = min(height, width) if self.max_side is None else max(height, width)
        if wanted is None or side <= wanted:
            return Cut(0, 0, height, width, (height, width))
        rows, columns = (max(1, round(length * wanted / side)) for length in (height, width))
        return Cut(0, 0, height, width, (rows, columns))

    def _check_resize(self, resize: int | tuple[int, int]) -> None:
        sides = resize if isinstance(resize, tuple) else (resize, resize)
        command = f"{argument('resize')} {'x'.join(map(str, sides))}"
        where = in_words(f"resize={quoted(resize)}", command)
        if len(sides) != 2 or not all(is_whole(side, least=1) for side in sides):
            raise UsageError(
                "it must be a whole number for the shorter side, or "
                f"{in_words('a tuple (height, width)', 'HxW')}, all at least 1",
                where=where,
            )
        if isinstance(resize, tuple) and sides[0] * sides[1] > self.max_pixels:
            raise UsageError(
                f"more pixels than {argument('max_pixels', self.max_pixels)} allows an image",
                where=where,
            )

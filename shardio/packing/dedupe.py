"""Finding duplicates: samples with the same content, or with images that look alike.

Content is compared by a 128-bit hash of each sample's images, or of all its data but the class
number where it has no image. Pictures are alike if their perceptual hashes differ in at most some
bits. Such pairs are found without comparing all: hashes of 64 bits that differ in d bits are equal
in at least one of d + 1 pieces, so only samples with an equal piece are compared. What is alike in
pairs makes groups, and in each the first sample stands for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shardio.checks import whole_number
from shardio.errors import CodecError
from shardio.fields.base import LABEL_FIELD, FieldType
from shardio.fields.defaults import type_of
from shardio.fields.formats import probe_image
from shardio.packing.engine import Ticker
from shardio.packing.sources.base import Problem, SourceSample, UnpackableError
from shardio.packing.sources.reader import SourceReader, in_memory
from shardio.packing.task import SampleTask, decoding

Likeness = Literal["exact", "perceptual"]

_BITS = 64
_AT_ONCE = 1 << 22  # pairs compared at once
_ONES = np.array([byte.bit_count() for byte in range(256)], np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dedupe:
    """Treatment of duplicates: which samples count as the same, and what becomes of them.

    Attributes:
        likeness: "exact" for equal content, "perceptual" for images that look alike too.
        distance: bits of 64 in which the hashes of alike images may differ.
        keep: whether to pack all, those of one group in one split.

    Raises:
        UsageError: the distance is not 0 to 16.
    """

    likeness: Likeness
    distance: int
    keep: bool

    def __post_init__(self) -> None:
        whole_number("dedupe_distance", self.distance, least=0, most=16)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FingerprintTask(SampleTask):
    """Samples to fingerprint.

    Attributes:
        perceptual: whether to hash what their images look like, too.
    """

    perceptual: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fingerprints:
    """The fingerprints of the samples of a task.

    Attributes:
        prints: two halves of the hash of the content, and the perceptual hash, uint64 [n, 3].
        problems: why samples cannot be read or do not decode, by their numbers in the task.
    """

    prints: NDArray[np.uint64]
    problems: Mapping[int, Problem]


def fingerprint(task: FingerprintTask, ticker: Ticker) -> Fingerprints:
    """Fingerprint samples."""
    if not task.perceptual:
        return _fingerprint(task, ticker, lambda _: 0)
    from shardio.fields.image import Scratch  # noqa: PLC0415  loads OpenCV
    from shardio.packing.images import perceptual_hash  # noqa: PLC0415

    scratch = Scratch()

    def look(data: memoryview) -> int:
        return perceptual_hash(data, probe_image(data, max_pixels=task.images.limit), scratch)

    with decoding():
        return _fingerprint(task, ticker, look)


def _fingerprint(
    task: SampleTask, ticker: Ticker, hash_picture: Callable[[memoryview], int]
) -> Fingerprints:
    prints = np.zeros((len(task), 3), np.uint64)
    problems: dict[int, Problem] = {}
    with SourceReader(task.root, stored=task.stored) as files:
        for number, sample in enumerate(task.samples):
            found = _fingerprint_of(sample, files, task.types, hash_picture)
            if isinstance(found, Problem):
                problems[number] = found
            else:
                prints[number] = found
            ticker.tick(1)
    return Fingerprints(prints=prints, problems=problems)


def _fingerprint_of(
    sample: SourceSample,
    files: SourceReader,
    types: Mapping[str, FieldType],
    hash_picture: Callable[[memoryview], int],
) -> tuple[int, int, int] | Problem:
    images = [
        field
        for field in sample.fields
        if field.name is None or type_of(field.name, given=types).image_file
    ]
    others = [field for field in sample.fields if field.name != LABEL_FIELD]
    content, picture = blake2b(digest_size=16), 0
    try:
        for number, field in enumerate(images or others):
            data = files.read(field.origin, in_memory)
            content.update(len(data).to_bytes(8, "little"))
            content.update(data)
            if images and not number:
                picture = hash_picture(data)
    except (UnpackableError, CodecError) as error:
        return Problem.of(sample.path, error)
    halves = content.digest()
    return int.from_bytes(halves[:8], "little"), int.from_bytes(halves[8:], "little"), picture


def group_alike(prints: NDArray[np.uint64], distance: int | None) -> NDArray[np.int64]:
    """Group samples that are the same.

    Args:
        prints: fingerprints, uint64 [n, 3]; see Fingerprints.
        distance: bits in which perceptual hashes may differ; None compares content alone.

    Returns:
        Lowest number in the group of each sample, int64 [n].
    """
    groups = _Groups(len(prints))
    order = np.lexsort((prints[:, 1], prints[:, 0]))
    content = prints[order, :2]
    groups.join_runs(order, (content[1:] == content[:-1]).all(axis=1))
    if distance is not None:
        order = np.argsort(prints[:, 2], kind="stable")
        hashes = prints[order, 2]
        same = hashes[1:] == hashes[:-1]
        same &= hashes[1:] != 0  # an image of one colour looks like nothing
        groups.join_runs(order, same)
        first = np.append(hashes[:1] != 0, ~same & (hashes[1:] != 0))
        _join_alike(groups, order[first], hashes[first], distance)
    return groups.heads()


def hamming(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Count the bits in which hashes differ, int64 [n]."""
    differing = np.ascontiguousarray(one ^ other).view(np.uint8).reshape(-1, 8)
    count: NDArray[np.int64] = _ONES[differing].sum(axis=1, dtype=np.int64)
    return count


class _Groups:
    """Numbers that are joined to groups."""

    def __init__(self, count: int) -> None:
        self._parents = np.arange(count)

    def join_runs(self, order: NDArray[np.int64], same: NDArray[np.bool_]) -> None:
        """Join each number with the one before it in an order, where they are the same."""
        for at in np.flatnonzero(same).tolist():
            self.join(int(order[at]), int(order[at + 1]))

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self._head(one), self._head(other)))
        self._parents[high] = low

    def heads(self) -> NDArray[np.int64]:
        """Return the lowest number in the group of each."""
        heads = self._parents
        while not np.array_equal(above := heads[heads], heads):
            heads = above
        return heads

    def _head(self, number: int) -> int:
        while (above := int(self._parents[number])) != number:
            self._parents[number] = self._parents[above]
            number = above
        return number


def _join_alike(
    groups: _Groups, numbers: NDArray[np.int64], hashes: NDArray[np.uint64], distance: int
) -> None:
    """Join numbers whose hashes, all different, differ in few bits."""
    bounds = [round(_BITS * piece / (distance + 1)) for piece in range(distance + 2)]
    for low, high in pairwise(bounds):
        pieces = hashes >> np.uint64(low) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(pieces, kind="stable")
        ends = np.flatnonzero(np.diff(pieces[order])) + 1
        for start, end in zip([0, *ends.tolist()], [*ends.tolist(), len(order)], strict=True):
            inside = order[start:end]
            step = max(1, _AT_ONCE // max(len(inside), 1))
            for first in range(0, len(inside) - 1, step):
                some = inside[first : first + step]
                differing = hashes[some][:, None] ^ hashes[inside][None, :]
                alike = hamming(differing.ravel(), np.zeros(1, np.uint64)) <= distance
                for one, other in zip(*np.nonzero(alike.reshape(differing.shape)), strict=True):
                    groups.join(int(numbers[some[one]]), int(numbers[inside[other]]))

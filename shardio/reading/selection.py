"""Parts of a dataset: samples chosen by number, by predicate, by key or by fractions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardio.checks import is_whole
from shardio.errors import UsageError, quoted
from shardio.indexing.catalog import Catalog
from shardio.indexing.shard_index import ShardIndex
from shardio.planning.samples import Samples
from shardio.reading.settings import list_keys

Choice = ArrayLike | Callable[[str, int], Any]


def choose(catalog: Catalog, samples: Samples, choice: Choice) -> Samples:
    """Select some of the samples of a dataset.

    Args:
        catalog: shards of the dataset.
        samples: samples of the dataset.
        choice: distinct numbers in any order, negative ones counted from the end; or a predicate
            on key and number.

    Raises:
        UsageError: the numbers are not whole, repeat or lie outside the dataset.
    """
    if callable(choice):
        pairs = enumerate(list_keys(catalog, samples))
        numbers = np.array([number for number, key in pairs if choice(key, number)], np.int64)
        return samples.choose(numbers)
    try:
        given = np.asarray(choice)
    except ValueError:
        given = np.empty((0, 0))
    if given.ndim != 1 or (given.size and not np.issubdtype(given.dtype, np.integer)):
        raise UsageError(
            "subset takes a list of whole numbers, or a predicate on key and index",
            remedy="for a mask, pass its flatnonzero",
        )
    outside = given[(given < -len(samples)) | (given >= len(samples))]
    if outside.size:
        raise UsageError(f"subset: index {outside[0]} is outside the {len(samples)} samples")
    numbers = given.astype(np.int64)
    numbers = np.sort(np.where(numbers < 0, numbers + len(samples), numbers))
    again = numbers[1:][numbers[1:] == numbers[:-1]]
    if again.size:
        raise UsageError(
            f"subset: index {again[0]} comes twice, but each sample is delivered once an epoch"
        )
    return samples.choose(numbers)


def split(samples: Samples, fractions: Sequence[float], seed: int, contents: str) -> list[Samples]:
    """Split samples into disjoint random parts.

    Args:
        samples: samples of the dataset.
        fractions: fraction of each part; a single one leaves the rest to a second part.
        seed: random seed.
        contents: digest of the samples.

    Raises:
        UsageError: the fractions are negative or do not add up to 1.
    """
    numbers = all(isinstance(part, int | float) for part in fractions)
    parts = list(fractions) if numbers else []
    if len(parts) == 1:
        parts.append(1 - parts[0])
    if not (parts and min(parts) >= 0 and abs(sum(parts) - 1) <= 1e-9):
        raise UsageError(
            f"split({', '.join(map(repr, fractions))}): give one fraction between 0 and 1, or "
            "several that add up to 1, as split(0.8, 0.1, 0.1)"
        )
    return samples.split(parts, seed, contents)


def find_number(dataset: Any, samples: Samples, index: int) -> int:
    """Return the number of the sample at an index, which may count from the end.

    Raises:
        IndexError: the index is outside the samples of the dataset.
        UsageError: the index is not a whole number.
    """
    if not is_whole(index):
        raise UsageError(
            f"ds[{quoted(index)}]: give one whole number",
            remedy="ds.subset(range(…)) takes several, ds.by_key(key) a key",
        )
    if not -len(samples) <= index < len(samples):
        raise IndexError(f"{dataset}: index {index} is outside its {len(samples)} samples")
    return int(index) % len(samples)


def find_key(catalog: Catalog, samples: Samples, key: str) -> int | None:
    """Find the number of the first sample with a key, in all indexes.

    Raises:
        UsageError: the key is not text.
    """
    if not isinstance(key, str):
        raise UsageError(f"by_key({quoted(key)}): a key is text", remedy="ds[index] takes a number")
    try:
        wanted = np.frombuffer(key.encode("utf-8", "surrogateescape"), np.uint8)
    except UnicodeEncodeError:  # no member name can have it
        return None
    for shard, entry in enumerate(catalog.shards):
        if samples.counts[shard]:
            for sample in _find_in_shard(entry.load_index(), wanted):
                number = samples.number(shard, sample)
                if number is not None:
                    return number
    return None


def _find_in_shard(index: ShardIndex, wanted: NDArray[np.uint8]) -> list[int]:
    """Compare keys of the right length byte by byte from the end, where they differ most."""
    starts = index.key_ends[:-1]
    found = np.flatnonzero(np.diff(index.key_ends) == len(wanted))
    for byte in reversed(range(len(wanted))):
        found = found[index.keys[starts[found] + byte] == wanted[byte]]
    samples: list[int] = found.tolist()
    return samples

"""From the arguments of a dataset to its order and store; what does not fit together is refused.

Nothing here needs torch, so that the command line plans what a training loop would read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardio.buckets import Buckets
from shardio.checks import is_whole, require
from shardio.errors import (
    CodecError,
    SampleError,
    ShardioError,
    SituationError,
    UsageError,
    argument,
    counted,
    in_words,
    quoted,
)
from shardio.fields.base import LABEL_FIELD, FieldType, picture_info
from shardio.indexing.catalog import Catalog
from shardio.indexing.labels import LabelReader
from shardio.indexing.shard_index import ShardIndex
from shardio.planning.buckets import Bucketing
from shardio.planning.draws import MOST_DRAWS, Weights
from shardio.planning.epoch import Shuffle, Tail, count_steps, halve_rest
from shardio.planning.samples import Samples
from shardio.processes import Threads
from shardio.reading.shards import ShardPool

_LOG = logging.getLogger("shardio")
_PROBES = 16  # pictures that are read at once
_MOST_DIGITS = 20  # of a label in text; int64 has fewer

WeightsGiven = (
    Literal["balanced"] | Mapping[Any, float] | Callable[[str, int | None], float] | ArrayLike
)
"""Weights as ShardDataset takes them, see its `weights`."""


def make_shuffle(
    shuffle: bool | Literal["full"],
    *,
    seed: int,
    window: int,
    streams: int,
    epoch_size: int | None = None,
    weights: Weights | None = None,
) -> Shuffle:
    """Make the order that the arguments of ShardDataset ask for."""
    return Shuffle(
        seed=seed,
        on=bool(shuffle),
        window=None if shuffle == "full" else window,
        streams=streams,
        epoch_size=epoch_size,
        weights=weights,
    )


def list_keys(catalog: Catalog, samples: Samples) -> Iterator[str]:
    """Yield the key of each sample of a dataset, in packed order."""
    for shard, entry in enumerate(catalog.shards):
        if samples.counts[shard]:
            index = entry.load_index()
            yield from map(index.key, samples.in_shard(shard).tolist())


def read_labels(
    catalog: Catalog, samples: Samples, field: str = LABEL_FIELD
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Find the class numbers of the samples of a dataset, see shardio.indexing.labels.

    Returns:
        Class number of each sample, int64 [n], and whether it has one, bool [n].

    Raises:
        TarError: a shard has to be read, and is missing or changed.
    """
    reader = LabelReader(len(catalog.classes or ()), field=field)
    numbers, known = np.zeros(len(samples), np.int64), np.zeros(len(samples), np.bool_)
    at = 0
    for shard, entry in enumerate(catalog.shards):
        chosen = samples.in_shard(shard)
        if chosen.size:
            found, part = reader.read(entry, entry.load_index()), slice(at, at + chosen.size)
            numbers[part], known[part] = found.numbers[chosen], found.known[chosen]
            at += chosen.size
    return numbers, known


def list_targets(catalog: Catalog, samples: Samples, fields: Sequence[str]) -> list[int]:
    """List the class number of each sample of a dataset, in packed order.

    Args:
        catalog: shards of the dataset.
        samples: samples of the dataset.
        fields: fields of the entry "label".

    Raises:
        UsageError: it is not one field, or a sample has no class number there.
        TarError: a shard has to be read, and is missing or changed.
    """
    if len(fields) != 1:
        raise UsageError(
            "targets are the class numbers in the field of the entry 'label'",
            remedy="name it, as fields={'image': 'jpg', 'label': 'cls'}",
        )
    numbers, known = read_labels(catalog, samples, fields[0])
    if not known.all():
        without = int(np.flatnonzero(~known)[0])
        raise UsageError(f"targets: sample {without} has no class number in {quoted(fields[0])}")
    found: list[int] = numbers.tolist()
    return found


def weigh(
    given: WeightsGiven,
    catalog: Catalog,
    samples: Samples,
    draws: int | None,
    *,
    field: str = LABEL_FIELD,
) -> Weights | None:
    """Find the weight of each sample of a dataset.

    Labels are told by the indexes where these have checksums, and otherwise read once, one small
    read a sample. A function is called once for each sample, with keys from the indexes.

    Args:
        given: weights, see ShardDataset.
        catalog: shards of the dataset.
        samples: samples of the dataset.
        draws: number of draws in an epoch; None for one a sample.
        field: field that holds the class number.

    Returns:
        The weights; None for a dataset without samples.

    Raises:
        UsageError: they are not weights of these samples.
    """
    if isinstance(given, str | Mapping):
        _check_kind(given)
        weights = _by_label(given, catalog, samples, field) if len(samples) else np.empty(0)
    elif callable(given):
        weights = _by_function(given, catalog, samples, field)
    else:
        weights = _as_weights(given)
    if weights.shape != (len(samples),):
        raise UsageError(
            f"weights has {counted(len(weights), 'number')} for {counted(len(samples), 'sample')}",
            remedy="give one for each sample, in packed order",
        )
    wrong = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if wrong.size:
        raise UsageError(
            f"weights gives sample {wrong[0]} the weight {weights[wrong[0]]:g}",
            remedy="a weight is a number, at least 0",
        )
    if not len(samples):
        return None
    if not weights.any():
        raise UsageError("weights gives every sample the weight 0")
    draws = len(samples) if draws is None else draws
    if draws > MOST_DRAWS:
        raise UsageError(f"weights draws at most {MOST_DRAWS:,} samples an epoch, not {draws:,}")
    return Weights(samples, weights, draws)


def _check_kind(given: str | Mapping[Any, float]) -> None:
    wanted = "'balanced', a mapping of labels, a function or one number a sample"
    require(given == "balanced" or isinstance(given, Mapping), "weights", given, wanted)


def _as_weights(given: Any) -> NDArray[np.float64]:
    try:
        found = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given, np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last one of torch
        found = np.empty((0, 0))
    if found.ndim != 1:
        raise UsageError(
            "weights are not numbers",
            remedy="give 'balanced', a mapping of labels, a function or one number a sample",
        )
    return found


def _by_function(
    given: Callable[[str, int | None], float], catalog: Catalog, samples: Samples, field: str
) -> NDArray[np.float64]:
    numbers, known = read_labels(catalog, samples, field)
    labels = [label if has else None for label, has in zip(numbers.tolist(), known, strict=True)]
    keys = [*list_keys(catalog, samples)]
    try:
        found = [*map(given, keys, labels)]
    except ShardioError:
        raise
    except Exception as error:  # of the user's function, and of nothing else
        raise UsageError(
            f"the function given as weights raised {type(error).__name__}: {error}",
            remedy="it takes the key and the label of a sample",
        ) from error
    return _as_weights(found)


def _by_label(
    given: str | Mapping[Any, float], catalog: Catalog, samples: Samples, field: str
) -> NDArray[np.float64]:
    numbers, known = read_labels(catalog, samples, field)
    if not known.all():
        without = int(np.flatnonzero(~known)[0])
        raise SituationError(
            f"sample {without} has no label in the field {quoted(field)}, by which weights "
            "are given",
            remedy="pass a function of key and label, or one number a sample",
        )
    labels, which, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    if isinstance(given, str):
        return (1 / counts)[which]
    by_number: dict[int, float] = {}
    for given_label, each in given.items():
        number = _number_of(given_label, catalog.classes, labels)
        if number in by_number:
            name = name_label(number, catalog.classes)
            raise UsageError(f"weights has two for the label {name}", remedy="give it one")
        by_number[number] = each
    missing = [label for label in labels.tolist() if label not in by_number]
    if missing:
        raise UsageError(
            f"weights has none for the label {name_label(missing[0], catalog.classes)}",
            remedy="give each label a weight; 0 leaves its samples out",
        )
    return _as_weights([by_number[label] for label in labels.tolist()])[which]


def name_label(label: int, classes: tuple[str, ...] | None) -> str:
    """Return a label for messages and tables, with the name of its class where it is known."""
    known = classes is not None and 0 <= label < len(classes)
    return str(label) if classes is None or not known else f"{label} ({quoted(classes[label])})"


def _number_of(label: object, classes: tuple[str, ...] | None, labels: NDArray[np.int64]) -> int:
    """Return the number of a label given by the name of its class, or by number, in text too."""
    if label in (classes or ()):
        return (classes or ()).index(str(label))
    text = label if isinstance(label, str) else ""
    if is_whole(label) or (text.isdecimal() and len(text) < _MOST_DIGITS):
        number = int(str(label))
        if classes is None or 0 <= number < len(classes) or number in labels:
            return number
    raise UsageError(
        f"weights has the label {quoted(label)}, which is no class of the dataset",
        remedy="use the numbers of batch['label'], or the names in ds.classes",
    )


def find_buckets(
    buckets: Buckets, catalog: Catalog, samples: Samples, pictures: Mapping[str, FieldType]
) -> Bucketing:
    """Find the bucket of each sample of a dataset.

    Sizes are those of the indexes. Pictures whose sizes are not there are read once, in threads;
    `shardio index` writes them into the indexes. Samples without a picture, or with a damaged one,
    are of the first bucket.

    Args:
        buckets: buckets of aspect ratios.
        catalog: shards of the dataset.
        samples: samples of the dataset.
        pictures: types of the fields whose picture decides, by field name; the first that a sample
            has.

    Raises:
        TarError: a shard has to be read, and is missing or changed.
    """
    small = len(buckets.sizes) <= 1 << 8
    numbers: NDArray[Any] = np.zeros(len(samples), np.uint8 if small else np.uint16)
    pool, read, at = ShardPool(catalog.shards), 0, 0
    threads = Threads("probe", _PROBES)
    try:
        for shard, entry in enumerate(catalog.shards):
            chosen = samples.in_shard(shard)
            if not chosen.size:
                continue
            sizes, there = _known_sizes(entry.load_index(), pictures)
            lacking = np.flatnonzero(there[chosen] & ~sizes[chosen].all(axis=1))
            probe = partial(_probe, pool, shard, pictures)
            asked = [threads.submit(probe, sample) for sample in chosen[lacking].tolist()]
            found = [future.result() for future in asked]
            sizes[chosen[lacking]] = np.array(found, np.int64).reshape(-1, 2)
            known = np.flatnonzero(sizes[chosen].all(axis=1))
            heights, widths = sizes[chosen[known]].T
            numbers[at + known] = buckets.assign(heights, widths)
            read += lacking.size
            at += chosen.size
    finally:
        threads.end()
    if read:
        _LOG.warning(
            "%s read for the size of the picture, which the index lacks; `shardio index` adds it",
            counted(read, "sample was", "samples were"),
        )
    return Bucketing(samples, numbers, repr(buckets.sizes))


def _known_sizes(
    index: ShardIndex, pictures: Mapping[str, FieldType]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return what an index knows of the pictures of its samples.

    Returns:
        Height and width of each picture, int64 [n, 2], 0 where they are not known; and whether
        there is a picture, bool [n].
    """
    sizes, there = np.zeros((len(index), 2), np.int64), np.zeros(len(index), np.bool_)
    for name, type_ in pictures.items():
        firsts = index.samples_of(name)
        firsts = firsts[~there[firsts]]
        there[firsts] = True
        if type_.sized and name in index.pictures and index.heights is not None:
            column = index.pictures.index(name)
            assert index.widths is not None  # noqa: S101  an index has all three or none
            assert index.orientations is not None  # noqa: S101
            firsts = firsts[index.orientations[firsts, column] > 0]
            sizes[firsts, 0] = index.heights[firsts, column]
            sizes[firsts, 1] = index.widths[firsts, column]
    return sizes, there


def _probe(
    pool: ShardPool, shard: int, pictures: Mapping[str, FieldType], sample: int
) -> tuple[int, int]:
    """Read the size of the picture of a sample; (0, 0) for a damaged one, which reading tells."""
    try:
        (stored,) = pool.get(shard).read(sample, ((*pictures,),))
        if stored is not None:
            info = picture_info(pictures[stored.field], stored.data)
            return info.height, info.width
    except (CodecError, SampleError):
        pass
    return 0, 0


def describe_weights(given: WeightsGiven) -> str:
    """Describe weights in a few words, as given."""
    if isinstance(given, str):
        return given
    if isinstance(given, Mapping):
        return ",".join(f"{label}={weight:g}" for label, weight in given.items())
    return "a function" if callable(given) else "one a sample"


def ranks_of(group: Any, rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return rank and world size of this process in a group.

    Args:
        group: process group, or device mesh of one dimension, of torch.distributed.
        rank: rank given beside it, which must be None.
        world_size: world size given beside it, which must be None.

    Raises:
        UsageError: the group is none of these, or this process is not in it.
    """
    if rank is not None or world_size is not None:
        raise UsageError("group says rank and world_size, which exclude it", remedy="give one")
    if (dimensions := getattr(group, "ndim", 1)) != 1:
        raise UsageError(
            f"group={group}: the device mesh has {dimensions} dimensions",
            remedy='give that of the ranks with different samples, as mesh["dp"]; several become '
            'one by mesh["dp_replicate", "dp_shard"]._flatten("dp")',
        )
    rank_in = getattr(group, "get_local_rank", getattr(group, "rank", None))  # mesh or group
    if not (callable(rank_in) and callable(getattr(group, "size", None))):
        raise UsageError(
            f"group={group!r}: it must be a process group or a device mesh of torch.distributed "
            "that this process is in"
        )
    return int(rank_in()), int(group.size())


def divide_batch(global_batch_size: int, world_size: int) -> int:
    """Return the samples of one rank in a step.

    Raises:
        UsageError: they are not a whole number.
    """
    share, rest = divmod(global_batch_size, world_size)
    if rest:
        raise UsageError(
            f"{argument('global_batch_size', global_batch_size)} does not divide among "
            f"{counted(world_size, 'rank')}",
            remedy=f"make it a multiple of {world_size}",
        )
    return share


def check_plan(
    dataset: object,
    samples: Samples,
    shuffle: Shuffle,
    *,
    tail: Tail,
    world_size: int,
    global_batch_size: int,
    buckets: Bucketing | None = None,
) -> int:
    """Count the steps of an epoch; refuse one without steps, or with unequal ones for the ranks.

    Args:
        dataset: dataset or its source, to be named by an error.
        samples: samples of the dataset.
        shuffle: order of the samples.
        tail: rule for the end of an epoch, see shardio.planning.epoch.
        world_size: number of ranks.
        global_batch_size: samples of all ranks in a step.
        buckets: buckets of the samples.

    Raises:
        UsageError: there is no such plan.
    """
    count = shuffle.epoch_length(samples)
    if not len(samples):
        raise SituationError("the dataset has no samples", where=dataset)
    if tail == "short" and world_size > 1:
        raise UsageError(
            f"{argument('tail', 'short')} with {world_size} ranks would give them unequal steps, "
            "or batches of unequal size",
            remedy=f"pass {argument('tail', 'exact')}, {argument('tail', 'even')} and weigh by "
            f"batch['valid'], or {argument('tail', 'drop')}",
        )
    if tail == "exact":
        _check_exact(count, shuffle, world_size, global_batch_size, buckets)
    _check_streams(dataset, shuffle, min(count, len(samples)), world_size, global_batch_size)
    if buckets is None:
        steps = count_steps(count, global_batch_size, tail)
    else:
        _check_order_of_buckets(shuffle)
        steps = buckets.count_steps(global_batch_size, whole=tail == "drop")
    if not steps:
        raise SituationError(
            f"{counted(count, 'sample')} do not fill one global batch, which "
            f"{argument('tail', 'drop')} leaves out",
            where=dataset,
            remedy=f"make the batch smaller or pass {argument('tail', 'pad')}",
        )
    if buckets is not None and tail == "drop":
        _warn_of_rare_buckets(buckets, global_batch_size)
    return steps


def _warn_of_rare_buckets(buckets: Bucketing, global_batch_size: int) -> None:
    """Log how many samples come in no epoch, once."""
    rare = buckets.count_rare(global_batch_size)
    if rare > _warned.get(buckets, 0):
        _warned[buckets] = rare
        _LOG.warning(
            "%s in buckets that never fill a global batch of %s, and %s leaves them out of every "
            "epoch; %s and %s deliver them",
            counted(rare, "sample is", "samples are"),
            f"{global_batch_size:,}",
            *(argument("tail", tail) for tail in ("drop", "pad", "even")),
        )


_warned: WeakKeyDictionary[Bucketing, int] = WeakKeyDictionary()


def _check_exact(
    count: int,
    shuffle: Shuffle,
    world_size: int,
    global_batch_size: int,
    buckets: Bucketing | None,
) -> None:
    """Refuse tail="exact" where a rank would have a step without a sample."""
    if buckets is not None or shuffle.streams > 1:
        raise UsageError(
            f"{argument('tail', 'exact')} divides the last two steps of an epoch anew, and "
            f"excludes {argument('streams') if buckets is None else 'buckets'}",
            remedy=f"pass {argument('tail', 'even')} and weigh by batch['valid']",
        )
    last = halve_rest(count, global_batch_size)
    if last and len(last[-1]) < world_size:
        raise UsageError(
            f"{argument('tail', 'exact')} leaves {counted(len(last[-1]), 'sample')} for the last "
            f"step of {world_size} ranks",
            remedy=f"pass {argument('batch_size', 2)} or more, or {argument('tail', 'even')} and "
            "weigh by batch['valid']",
        )


def _check_streams(
    dataset: object, shuffle: Shuffle, count: int, world_size: int, global_batch_size: int
) -> None:
    """Refuse streams that do not divide among ranks, batches and samples."""
    streams = shuffle.streams
    given = argument("streams", streams)
    if streams > 1 and streams % world_size:
        raise UsageError(
            f"{world_size} ranks do not divide {given}: each rank reads whole streams, so use "
            f"{_divisors(streams)} ranks, or {argument('streams', 1)} for any number"
        )
    if global_batch_size % streams:
        raise UsageError(
            f"{given} do not divide the global batch size {global_batch_size}: "
            "each stream fills an equal part of it",
            remedy=f"make it a multiple of {streams}",
        )
    if streams > 1 and shuffle.weights is not None:
        raise UsageError(
            f"{argument('weights')} with {given}: each stream fills an equal part of a batch, "
            "whatever the weights of its samples",
            remedy="leave out one of the two",
        )
    if streams > count:
        raise SituationError(f"{given} are more than its {count} samples", where=dataset)


def _check_order_of_buckets(shuffle: Shuffle) -> None:
    """Refuse orders that would have other numbers of steps in each epoch, or unequal streams."""
    bucketed = in_words("transform=Buckets(…)", argument("bucket_area"))
    for name, used in (
        ("streams", shuffle.streams > 1),
        ("weights", shuffle.weights is not None),
        ("epoch_size", shuffle.epoch_size is not None),
    ):
        if used:
            raise UsageError(
                f"{argument(name)} with {bucketed}: the steps that buckets fill would differ from "
                f"{'stream to stream' if name == 'streams' else 'epoch to epoch'}",
                remedy="leave out one of the two",
            )


def _divisors(number: int) -> str:
    found = [str(part) for part in range(1, number + 1) if number % part == 0]
    return f"{', '.join(found[:-1])} or {found[-1]}"

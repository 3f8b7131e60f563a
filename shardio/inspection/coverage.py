"""Prove what an epoch delivers by walking its plan.

Each step of every rank and worker is planned, and its samples are counted, so "exactly once" is
observed rather than assumed. The walk also shows which shards each node reads and how well the
order is mixed. Only counts and keys are read, no shard.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import islice
from os import PathLike, fspath
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from shardio.buckets import Buckets
from shardio.checks import flag, one_of, require, seed_of_order, whole_number
from shardio.errors import UsageError, argument, counted, without_secrets
from shardio.indexing.catalog import Catalog, open_catalog
from shardio.indexing.shard_index import ShardIndex, encode_index
from shardio.options import with_options
from shardio.planning.epoch import DEFAULT_WINDOW, EpochPlan, References, Tail, steps_of_worker
from shardio.planning.order import SampleSequence
from shardio.planning.samples import Samples
from shardio.planning.traffic import fetched_bytes, shards_by_window, window_that_fits
from shardio.reading.entries import deciding_pictures
from shardio.reading.settings import (
    WeightsGiven,
    check_plan,
    describe_weights,
    divide_batch,
    find_buckets,
    make_shuffle,
    name_label,
    read_labels,
    weigh,
)
from shardio.storage.base import size_in_bytes
from shardio.storage.location import Options

_POSITIONS_AT_ONCE = 1 << 16
_MOST_SAMPLES, _MOST_PROCESSES = 1 << 31, 1 << 20
_BATCHES_LOOKED_AT = 100
_WINDOWS_LOOKED_AT = 10
_SAMPLES_OF_WINDOW = 200
_MOST_READ = 1.1
_EPOCHS = 2  # after the first, of which the mean is taken
_BATCHES_IN_WINDOW = 4  # fewer in a window and neighbours in packed order share batches


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOrder:
    """Order of a training run: the arguments that its ShardDataset was given.

    Attributes:
        batch_size: number of samples of one rank in a step.
        ranks: number of ranks, world_size in torch.
        shuffle: True, False or "full".
        seed: seed of the shuffle.
        window: number of shards in a window.
        streams: number of canonical streams; with more than one, each node reads a share of the
            shards.
        epoch_size: number of samples in an epoch; None for all.
        weights: weights of samples that are drawn, as ShardDataset takes them; None for each
            sample once. Text in results.
        buckets: buckets of aspect ratios, the transform of the dataset; None for another. Text in
            results.
        tail: "pad", "even", "exact", "drop" or "short", for the last step.
        epoch: number of the epoch, from 0.
        allow_empty: whether to accept tars whose members belong to no sample.
        storage_options: settings of the store of a URL, as ShardDataset takes them; None
            in results, since they may hold secrets.
    """

    batch_size: int | None = None
    ranks: int = 1
    shuffle: bool | Literal["full"] = False
    seed: int = 0
    window: int = DEFAULT_WINDOW
    streams: int = 1
    epoch_size: int | None = None
    weights: WeightsGiven | None = None
    buckets: Buckets | str | None = None
    tail: Tail = "pad"
    epoch: int = 0
    allow_empty: bool = False
    storage_options: Options | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings(RunOrder):
    """Source and order of a training run, see RunOrder.

    Attributes:
        source: packed folder, or anything else that ShardDataset reads.
        batch_size: number of samples of one rank in a step.
    """

    source: str
    batch_size: int

    def open(self) -> tuple[Catalog, EpochPlan]:
        """Find the shards and plan the epoch.

        Raises:
            UsageError: the source does not exist, or the settings do not fit together.
            IndexFileError: a manifest or index is corrupt or stale.
            TarError: a shard without an index is corrupt.
        """
        catalog = open_catalog(
            self.source, options=self.storage_options, allow_empty=self.allow_empty
        )
        samples = Samples([shard.samples for shard in catalog.shards])
        weights = None
        if self.weights is not None:
            weights = weigh(self.weights, catalog, samples, self.epoch_size)
        shuffle = make_shuffle(
            self.shuffle,
            seed=self.seed,
            window=self.window,
            streams=self.streams,
            epoch_size=self.epoch_size,
            weights=weights,
        )
        buckets = None
        if self.buckets is not None and not isinstance(self.buckets, str):
            pictures = deciding_pictures(
                {name: {name: each} for name, each in catalog.types.items()}
            )
            buckets = find_buckets(self.buckets, catalog, samples, pictures)
        size = self.batch_size * self.ranks
        check_plan(
            self.source,
            samples,
            shuffle,
            tail=self.tail,
            world_size=self.ranks,
            global_batch_size=size,
            buckets=buckets,
        )
        plan = EpochPlan(
            samples,
            shuffle,
            global_batch_size=size,
            epoch=self.epoch,
            tail=self.tail,
            buckets=buckets,
        )
        return catalog, plan

    def as_shown(self) -> PlanSettings:
        """Return the settings without secrets, for results."""
        weights = None if self.weights is None else describe_weights(self.weights)
        source = without_secrets(self.source)
        buckets = None if self.buckets is None else str(self.buckets)
        return replace(self, source=source, storage_options=None, weights=weights, buckets=buckets)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderOptions(RunOrder):
    """Options of an order, see RunOrder.

    Attributes:
        global_batch_size: number of samples of all ranks in a step, in place of batch_size.

    Raises:
        UsageError: a value is outside its bounds, or does not fit another.
    """

    global_batch_size: int | None = None

    def __post_init__(self) -> None:
        whole_number("ranks", self.ranks, least=1, most=_MOST_PROCESSES)
        for name in ("window", "streams"):
            whole_number(name, getattr(self, name), least=1)
        if self.epoch_size is not None:
            whole_number("epoch_size", self.epoch_size, least=1)
        seed_of_order(self.seed)
        whole_number("epoch", self.epoch, least=0)
        known = isinstance(self.shuffle, bool) or self.shuffle == "full"
        require(known, "shuffle", self.shuffle, "True, False or 'full'")
        one_of("tail", self.tail, get_args(Tail))
        flag("allow_empty", self.allow_empty)
        self._share()

    def of(self, source: str | PathLike[str]) -> PlanSettings:
        """Return the settings of a run over a source."""
        given = {each.name: getattr(self, each.name) for each in fields(RunOrder)}
        return PlanSettings(source=fspath(source), **given | {"batch_size": self._share()})

    def _share(self) -> int:
        """Return the samples of one rank in a step."""
        if (self.batch_size is None) == (self.global_batch_size is None):
            names = argument("batch_size"), argument("global_batch_size")
            raise UsageError(f"give either {' or '.join(names)}")
        if self.batch_size is not None:
            return whole_number("batch_size", self.batch_size, least=1, most=_MOST_SAMPLES)
        size = whole_number(
            "global_batch_size", self.global_batch_size, least=1, most=_MOST_SAMPLES
        )
        return divide_batch(size, self.ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions(OrderOptions):
    """Options of `shardio.plan`: the order (see OrderOptions) and its readers.

    Attributes:
        workers: number of DataLoader workers of each rank; 0 for the training process itself.
        nodes: number of machines, over which the ranks are spread evenly and in order.
        progress: callback for the number of ranks; it returns a callback for the number of ranks
            just finished.

    Raises:
        UsageError: a value is outside its bounds, or does not fit another.
    """

    workers: int = 0
    nodes: int = 1
    progress: Callable[[int], Callable[[int], None]] | None = None

    def __post_init__(self) -> None:
        OrderOptions.__post_init__(self)
        whole_number("workers", self.workers, least=0, most=_MOST_PROCESSES)
        whole_number("nodes", self.nodes, least=1, most=_MOST_PROCESSES)
        if self.ranks % self.nodes:
            raise UsageError(f"{self.ranks} ranks do not divide among {self.nodes} nodes")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankShare:
    """Share of one rank in an epoch.

    Attributes:
        rank: number of the rank.
        steps: number of steps.
        samples: number of valid samples.
        pads: number of repeats that fill the tail.
        samples_of_workers: number of valid samples by worker.
        pads_of_workers: number of repeats by worker.
    """

    rank: int
    steps: int
    samples: int
    pads: int
    samples_of_workers: tuple[int, ...]
    pads_of_workers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShare:
    """Share of one node, which has consecutive ranks, in an epoch.

    Attributes:
        node: number of the node.
        shards: number of shards it reads.
        bytes: size of these shards.
        window_bytes: size of the windows that are open at once, two of each stream: memory, or
            room in the cache for shards of a store.
        later_bytes: number of bytes that it fetches from a store in each later epoch, if its cache
            has the cache_limit of storage_options; without a cache, and in the first epoch, that
            is `bytes`. None if there is no limit.
    """

    node: int
    shards: int
    bytes: int
    window_bytes: int
    later_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnClass:
    """Draws of one class in an epoch with weights.

    Attributes:
        label: class number, with the name of the class where it is known; None for samples
            without a class number.
        samples: number of samples in the dataset.
        draws: number of valid samples delivered.
    """

    label: str | None
    samples: int
    draws: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketShare:
    """Share of one bucket in an epoch.

    Attributes:
        height: height of its images in a batch.
        width: width of its images in a batch.
        samples: number of samples in the dataset.
        steps: number of steps of every rank.
        pads: number of repeats that fill its last step, on all ranks together.
    """

    height: int
    width: int
    samples: int
    steps: int
    pads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Contents of an epoch.

    Attributes:
        settings: source and order.
        samples: number of samples in the dataset.
        shards: number of shards in the dataset.
        bytes: size of the shards.
        steps: number of steps of every rank.
        delivered_once: number of samples delivered exactly once.
        delivered_again: number of samples delivered more than once, apart from pads.
        left_out: number of samples delivered to no rank.
        epoch_samples: number of samples in an epoch; others than `samples` with epoch_size or
            weights.
        unexpected: number of samples that come more often than the order says, or less often,
            unless tail="drop" leaves them out.
        drawn_classes: draws of each class, with weights; None without.
        buckets: shares of the buckets that have samples, from the widest to the highest; None
            without buckets.
        ranks: shares by rank.
        nodes: shares by node.
        bytes_read: bytes read by all nodes together, as a multiple of the dataset's size.
        remote: whether shards are of a store.
        cache_limit: bytes that shards may take in the cache of each node; None if not given.
        neighbour_distance: mean distance in packed order of samples that follow one another in a
            batch, as a share of the dataset; 1/3 is a random order. None for batches of one.
        batch_entropy: mean entropy of the classes in a batch, in bits; None if unknown.
        classes_entropy: entropy of the classes of the same samples together, in bits.
        one_class_windows: number of windows, among the first ten, that hold one class only.
        warnings: likely problems, one sentence each.
    """

    settings: PlanSettings
    samples: int
    shards: int
    bytes: int
    steps: int
    delivered_once: int
    delivered_again: int
    left_out: int
    epoch_samples: int
    unexpected: int
    drawn_classes: tuple[DrawnClass, ...] | None = None
    buckets: tuple[BucketShare, ...] | None = None
    ranks: tuple[RankShare, ...]
    nodes: tuple[NodeShare, ...]
    bytes_read: float
    neighbour_distance: float | None
    batch_entropy: float | None = None
    classes_entropy: float | None = None
    one_class_windows: int | None = None
    warnings: tuple[str, ...]
    remote: bool = False
    cache_limit: int | None = None

    @property
    def exact(self) -> bool:
        """Whether each sample comes as often as it should, which is once, in equal steps.

        With epoch_size it may come once more or less in an epoch that begins inside an order, and
        with weights as often as its share says, to within one; tail="drop" may leave it out.
        """
        return {share.steps for share in self.ranks} == {self.steps} and not self.unexpected


@with_options(PlanOptions)
def plan(source: str | PathLike[str], options: PlanOptions) -> Coverage:
    """Prove what an epoch delivers, as `shardio.plan("out", batch_size=64)`; no data are read.

    Args:
        source: packed folder, or anything else that ShardDataset reads.
        options: keywords, see PlanOptions.

    Raises:
        UsageError: the source does not exist, or the options do not fit together.
        IndexFileError: a manifest or index is corrupt or stale.
        TarError: a shard without an index is corrupt.
    """
    settings = options.of(source)
    catalog, plan = settings.open()
    walk = _Walk(catalog, plan, settings, options.nodes)
    done = (options.progress or (lambda _: lambda _: None))(settings.ranks)
    ranks = []
    for rank in range(settings.ranks):
        ranks.append(walk.rank(rank, max(options.workers, 1)))
        done(1)
    mixing = _mixing(catalog, plan, settings.ranks)
    limit = (settings.storage_options or {}).get("cache_limit")
    limit = None if limit is None else size_in_bytes("cache_limit", limit)
    shares = walk.nodes(limit)
    bytes_read = sum(share.bytes for share in shares) / catalog.size
    warnings = _warnings(catalog, plan, settings, options)
    if mixing.get("one_class_windows") and len(catalog.classes or ()) > 1:
        remedy = argument("shuffle", "full")
        warnings.append(f"windows hold one class only; pack with shuffling, or use {remedy}")
    if settings.streams > 1 and bytes_read > _MOST_READ:
        warnings.append(
            f"nodes read {bytes_read:.2f} × the dataset, since shards that two of them share are "
            "read twice; pack at least 10 shards for each node"
        )
    if limit is not None:
        warnings += _small_cache(catalog, plan, walk, limit)
    return Coverage(
        settings=settings.as_shown(),
        samples=len(plan.samples),
        shards=len(catalog.shards),
        bytes=catalog.size,
        steps=plan.num_steps,
        delivered_once=int(np.count_nonzero(walk.delivered == 1)),
        delivered_again=int(np.count_nonzero(walk.delivered > 1)),
        left_out=int(np.count_nonzero(walk.delivered == 0)),
        epoch_samples=plan.num_samples,
        unexpected=walk.count_unexpected(),
        drawn_classes=walk.drawn_classes(catalog),
        buckets=walk.buckets(),
        ranks=tuple(ranks),
        nodes=shares,
        bytes_read=bytes_read,
        neighbour_distance=walk.neighbour_distance(),
        warnings=tuple(warnings),
        remote=catalog.is_remote,
        cache_limit=limit,
        **mixing,
    )


class _Walk:
    """Walk through an epoch that counts the samples of every rank and worker.

    Attributes:
        sizes: size of each shard, int64 [shards].
        delivered: number of times each sample was delivered as a valid one, int32 [samples].
    """

    def __init__(
        self, catalog: Catalog, plan: EpochPlan, settings: PlanSettings, nodes: int
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._counts = np.array([shard.samples for shard in catalog.shards])
        self.sizes = np.array([shard.size for shard in catalog.shards])
        self._starts = np.cumsum(self._counts) - self._counts
        self.delivered = np.zeros(len(plan.samples), np.int32)
        self._touched = np.zeros((nodes, len(self._counts)), np.bool_)
        self._distance = self._pairs = 0
        self._pads_of_steps = np.zeros(plan.num_steps, np.int64)

    def rank(self, rank: int, workers: int) -> RankShare:
        """Walk the steps of one rank, worker by worker, and return its share."""
        samples, pads, steps = [], [], 0
        at_once = max(_POSITIONS_AT_ONCE // self._settings.batch_size, 1)
        node = rank * len(self._touched) // self._settings.ranks
        for worker in range(workers):
            valid = total = 0
            rest = iter(steps_of_worker(0, self._plan.num_steps, worker, workers))
            while some := [*islice(rest, at_once)]:
                positions = self._plan.share(some, rank, self._settings.ranks)
                references = self._plan.references(positions)
                self._count(references, node)
                valid += int(references.valid.sum())
                total += len(references)
                steps += len(some)
            samples.append(valid)
            pads.append(total - valid)
        return RankShare(
            rank=rank,
            steps=steps,
            samples=sum(samples),
            pads=sum(pads),
            samples_of_workers=tuple(samples),
            pads_of_workers=tuple(pads),
        )

    def nodes(self, limit: int | None) -> tuple[NodeShare, ...]:
        """Return the shares of the nodes, after the walk.

        Args:
            limit: bytes that shards may take in the cache of each; None if that is not asked.
        """
        streams, nodes = len(self._plan.orders), len(self._touched)
        windows = [self._window_bytes(order) for order in self._plan.orders]
        fetched = lru_cache(maxsize=1)(self._fetched_later)  # nodes may share their streams
        found = []
        for node, touched in enumerate(self._touched):
            mine = slice(node * streams // nodes, -(-(node + 1) * streams // nodes))
            found.append(
                NodeShare(
                    node=node,
                    shards=int(touched.sum()),
                    bytes=int(self.sizes[touched].sum()),
                    window_bytes=sum(windows[mine]),
                    later_bytes=None if limit is None else fetched(mine.start, mine.stop, limit),
                )
            )
        return tuple(found)

    def _fetched_later(self, first: int, end: int, limit: int) -> int:
        """Return the mean of the bytes fetched in epochs after the first, of some streams."""
        shuffle, samples = self._plan.shuffle, self._plan.samples
        epochs = [
            shards_by_window(shuffle.order(samples, self._settings.epoch + later)[first:end])
            for later in range(_EPOCHS + 2)
        ]
        return round(sum(fetched_bytes(epochs, self.sizes, limit)[1:]) / _EPOCHS)

    def count_unexpected(self) -> int:
        """Count the samples that Coverage describes, after the walk."""
        least, most = self._plan.bounds()
        wrong = self.delivered > most
        if self._settings.tail != "drop":
            wrong |= self.delivered < least
        return int(np.count_nonzero(wrong))

    def drawn_classes(self, catalog: Catalog) -> tuple[DrawnClass, ...] | None:
        """Return the draws of each class, after the walk."""
        if self._plan.shuffle.weights is None:
            return None
        numbers, known = read_labels(catalog, self._plan.samples)
        found = []
        for label in np.unique(numbers[known]).tolist():
            of_class = known & (numbers == label)
            found.append((name_label(label, catalog.classes), of_class))
        unknown = [(None, ~known)] if not known.all() else []
        return tuple(
            DrawnClass(
                label=label,
                samples=int(of_class.sum()),
                draws=int(self.delivered[of_class].sum()),
            )
            for label, of_class in [*found, *unknown]
        )

    def buckets(self) -> tuple[BucketShare, ...] | None:
        """Return the shares of the buckets, after the walk."""
        bucketing, of = self._plan.bucketing, self._plan.buckets
        given = self._settings.buckets
        if bucketing is None or of is None or given is None or isinstance(given, str):
            return None
        pads = np.bincount(of, self._pads_of_steps, len(given.sizes)).astype(np.int64)
        steps = np.bincount(of, minlength=len(given.sizes))
        return tuple(
            BucketShare(
                height=given.sizes[bucket][0],
                width=given.sizes[bucket][1],
                samples=int(bucketing.counts[bucket]),
                steps=int(steps[bucket]),
                pads=int(pads[bucket]),
            )
            for bucket in np.flatnonzero(bucketing.counts).tolist()
        )

    def neighbour_distance(self) -> float | None:
        """Return the distance that Coverage describes."""
        return self._distance / self._pairs / len(self.delivered) if self._pairs else None

    def _count(self, references: References, node: int) -> None:
        pads = references.positions[~references.valid]
        size = self._settings.batch_size * self._settings.ranks
        np.add.at(self._pads_of_steps, pads // size, 1)
        numbers = self._starts[references.shards] + references.indices
        np.add.at(self.delivered, numbers[references.valid], 1)
        self._touched[node][references.shards] = True
        if self._settings.batch_size > 1:
            whole = len(numbers) // self._settings.batch_size * self._settings.batch_size
            distances = np.abs(np.diff(numbers[:whole].reshape(-1, self._settings.batch_size)))
            self._distance += int(distances.sum())
            self._pairs += distances.size

    def _window_bytes(self, order: SampleSequence) -> int:
        """Return the largest size of two windows, one being read and one read ahead."""
        sizes: list[int] = []
        while runs := order.runs_of_window(len(sizes)):
            shares = runs.lengths / np.maximum(self._counts[runs.shards], 1)
            sizes.append(int((shares * self.sizes[runs.shards]).sum()))
        return max(map(sum, zip(sizes, [*sizes[1:], 0], strict=True)), default=0)


class _Classes:
    """Classes of samples, from the first folder of each key, where pack writes the class."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._classes = set(catalog.classes or ())
        self._indexes: dict[int, ShardIndex] = {}

    def count(self, shards: NDArray[np.int64], indices: NDArray[np.int64]) -> Counter[str] | None:
        """Count the samples of each class; None if a key names no class."""
        counts = Counter[str]()
        for shard, index in zip(shards.tolist(), indices.tolist(), strict=True):
            if shard not in self._indexes:
                self._indexes[shard] = self._catalog.shards[shard].load_index()
            counts[self._indexes[shard].key(index).partition("/")[0]] += 1
        return counts if self._classes.issuperset(counts) else None


def _mixing(catalog: Catalog, plan: EpochPlan, ranks: int) -> dict[str, Any]:
    """Return the fields of Coverage about classes; the first batches and windows stand for all."""
    classes = _Classes(catalog)
    entropies, together = [], Counter[str]()
    for step in range(min(plan.num_steps, _BATCHES_LOOKED_AT)):
        references = plan.references(plan.share([step], 0, ranks))
        batch = classes.count(references.shards, references.indices)
        if batch is None:
            return {}
        entropies.append(_entropy(batch))
        together += batch
    windows = []
    for window in range(_WINDOWS_LOOKED_AT):
        runs = plan.orders[0].runs_of_window(window)
        offsets = np.linspace(0, 1, _SAMPLES_OF_WINDOW // max(len(runs), 1) + 2)
        indices = (runs.firsts[:, None] + offsets * (runs.lengths[:, None] - 1)).astype(np.int64)
        shards = np.repeat(runs.shards, len(offsets))
        there = np.repeat(runs.lengths > 0, len(offsets))
        windows.append(classes.count(shards[there], indices.ravel()[there]))
    return {
        "batch_entropy": sum(entropies) / len(entropies),
        "classes_entropy": _entropy(together),
        "one_class_windows": sum(window is not None and len(window) == 1 for window in windows),
    }


def _entropy(counts: Counter[str]) -> float:
    total = sum(counts.values())
    return sum(count / total * math.log2(total / count) for count in counts.values())


def _warnings(
    catalog: Catalog, plan: EpochPlan, settings: PlanSettings, options: PlanOptions
) -> list[str]:
    shards, streams = len(catalog.shards), settings.streams
    workers, nodes = options.workers, options.nodes
    global_batch_size = settings.batch_size * settings.ranks
    found = []
    if nodes > 1 and streams == 1:
        found.append(
            f"every node reads every shard; {argument('streams', settings.ranks)} gives each node "
            "a share"
        )
    if shards < nodes:
        found.append(
            f"{counted(shards, 'shard')} for {nodes} nodes are too few; pack at least 10 for each"
        )
    windows = shards / streams / settings.window
    batches = plan.num_samples / max(windows, 1) / global_batch_size
    if settings.shuffle is True and windows > 1 and batches < _BATCHES_IN_WINDOW:
        found.append(f"a window holds {batches:.1f} global batches; a larger window mixes better")
    if workers > plan.num_steps:
        found.append(f"{workers - plan.num_steps} of {workers} workers have no step to take")
    if settings.shuffle is False and len(catalog.classes or ()) > 1:
        found.append(f"samples come in packed order; {argument('shuffle', True)} shuffles them")
    if settings.epoch_size is not None and settings.weights is None and settings.tail == "drop":
        found.append(
            "what the tail leaves out of an epoch comes in none of the same order; choose an "
            f"{argument('epoch_size', 'N')} that is a multiple of the global batch size"
        )
    pads = plan.num_steps * global_batch_size - plan.num_samples
    if settings.tail == "pad" and pads > plan.num_samples / 100:
        found.append(
            f"{counted(pads, 'pad')}, {pads / plan.num_samples:.0%} of the samples; "
            f"{argument('tail', 'even')} has at most one for each rank"
        )
    return found


def _small_cache(catalog: Catalog, plan: EpochPlan, walk: _Walk, limit: int) -> list[str]:
    """Warn of a cache that has no room for the open windows and all indexes."""
    first, shares = catalog.shards[0].load_index(), walk.nodes(None)
    indexes = sum(map(len, encode_index(first))) * len(plan.samples) // max(len(first), 1)
    needed = max(share.window_bytes for share in shares) + indexes
    if limit >= needed:
        return []
    streams = math.ceil(len(plan.orders) / len(shares))
    fitting = window_that_fits(walk.sizes, streams, limit - indexes)
    fits = 0 < fitting < (plan.shuffle.window or 0)
    way = f" or use {argument('window', fitting)}, which fits" * fits
    wanted = argument("cache_limit", f"{math.ceil(needed / 1e5) / 10:.1f}MB")
    return [
        f"a cache of {limit / 1e6:,.1f} MB has no room for the windows that are open at once, so "
        f"training reads samples one by one, with a request for each; give {wanted}{way}"
    ]

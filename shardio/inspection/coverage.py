"""What a plan does, proved by walking all of it: no shard is read, only counts and keys.

Every rank and worker is asked for each of its steps, and each sample that they name is counted,
so that "exactly once" is a finding and not a claim. On the way it is seen which shards each node
touches and how well the order is mixed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardio.errors import UsageError
from shardio.indexing.catalog import Catalog
from shardio.indexing.shard_index import ShardIndex
from shardio.planning.epoch import EpochPlan, References, steps_of_worker
from shardio.planning.order import Order
from shardio.reading.settings import PlanSettings, open_plan

_POSITIONS_AT_ONCE = 1 << 16
_BATCHES_LOOKED_AT = 100
_WINDOWS_LOOKED_AT = 10
_SAMPLES_OF_WINDOW = 200
_MOST_READ = 1.1
_BATCHES_IN_WINDOW = 4  # fewer in a window and neighbours in packed order share batches


@dataclass(frozen=True, slots=True, kw_only=True)
class RankShare:
    """What one rank gets in an epoch.

    Attributes:
        rank: which.
        steps: taken.
        samples: valid ones.
        pads: repeats that fill the tail.
        samples_of_workers: valid ones of each worker.
        pads_of_workers: repeats of each worker.
    """

    rank: int
    steps: int
    samples: int
    pads: int
    samples_of_workers: tuple[int, ...]
    pads_of_workers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShare:
    """What one node, with consecutive ranks, reads in an epoch.

    Attributes:
        node: which.
        shards: that it touches.
        bytes: of these shards, whole.
        window_bytes: of the windows that it reads from at once, two of each stream.
    """

    node: int
    shards: int
    bytes: int
    window_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """The findings.

    Attributes:
        settings: of the plan.
        samples: of the dataset.
        shards: of the dataset.
        bytes: of the dataset.
        steps: of every rank.
        delivered_once: samples that come exactly once.
        delivered_again: samples that come more than once, pads not counted.
        left_out: samples that no rank gets.
        ranks: by rank.
        nodes: by node.
        bytes_read: by all nodes together, as a multiple of the dataset's bytes.
        neighbour_distance: mean distance in packed order of samples that follow one another in a
            batch, as a share of the dataset; 1/3 is a random order. None for batches of one.
        batch_entropy: mean entropy of the classes in a batch, in bits; None where not known.
        classes_entropy: of the classes of the same samples together, in bits.
        one_class_windows: how many of the first windows hold one class only.
        warnings: sentences.
    """

    settings: PlanSettings
    samples: int
    shards: int
    bytes: int
    steps: int
    delivered_once: int
    delivered_again: int
    left_out: int
    ranks: tuple[RankShare, ...]
    nodes: tuple[NodeShare, ...]
    bytes_read: float
    neighbour_distance: float | None
    batch_entropy: float | None = None
    classes_entropy: float | None = None
    one_class_windows: int | None = None
    warnings: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether each sample comes once, or was left out by tail="drop", and steps are equal."""
        equal = {share.steps for share in self.ranks} == {self.steps}
        left_out = self.left_out == 0 or self.settings.tail == "drop"
        return equal and left_out and not self.delivered_again


def check_coverage(
    settings: PlanSettings,
    *,
    workers: int,
    nodes: int,
    progress: Callable[[int], Callable[[int], None]] | None = None,
) -> Coverage:
    """Walk the plan of an epoch.

    Args:
        settings: of the plan.
        workers: of each rank; 0 is the loading process itself.
        nodes: that the ranks are spread over evenly, in order.
        progress: takes the number of ranks and returns what is called with how many more are done.

    Raises:
        UsageError: the settings do not fit together.
        IndexFileError: a manifest or index is damaged or stale.
        TarError: a shard without index is damaged.
    """
    if settings.ranks % nodes:
        raise UsageError(f"{settings.ranks} ranks do not divide among {nodes} nodes")
    catalog, plan = open_plan(settings)
    walk = _Walk(catalog, plan, settings, nodes)
    done = (progress or (lambda _: lambda _: None))(settings.ranks)
    ranks = []
    for rank in range(settings.ranks):
        ranks.append(walk.rank(rank, max(workers, 1)))
        done(1)
    mixing = _mixing(catalog, plan, settings.ranks)
    warnings = _warnings(catalog, plan, settings, nodes, workers)
    if mixing.get("one_class_windows") and len(catalog.classes or ()) > 1:
        warnings.append("windows hold one class only; pack with shuffling, or use --shuffle full")
    shares = walk.nodes()
    total = sum(shard.size for shard in catalog.shards)
    bytes_read = sum(share.bytes for share in shares) / total
    if settings.streams > 1 and bytes_read > _MOST_READ:
        warnings.append(
            f"nodes read {bytes_read:.2f} × the dataset, since shards that two of them share are "
            "read twice; pack at least 10 shards for each node"
        )
    return Coverage(
        settings=settings,
        samples=plan.num_samples,
        shards=len(catalog.shards),
        bytes=total,
        steps=plan.num_steps,
        delivered_once=int(np.count_nonzero(walk.delivered == 1)),
        delivered_again=int(np.count_nonzero(walk.delivered > 1)),
        left_out=int(np.count_nonzero(walk.delivered == 0)),
        ranks=tuple(ranks),
        nodes=shares,
        bytes_read=bytes_read,
        neighbour_distance=walk.neighbour_distance(),
        warnings=tuple(warnings),
        **mixing,
    )


class _Walk:
    """Counts what every rank and worker gets.

    Attributes:
        delivered: how often each sample came as a valid one, uint8 [samples].
    """

    def __init__(
        self, catalog: Catalog, plan: EpochPlan, settings: PlanSettings, nodes: int
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._counts = np.array([shard.samples for shard in catalog.shards])
        self._sizes = np.array([shard.size for shard in catalog.shards])
        self._starts = np.cumsum(self._counts) - self._counts
        self.delivered = np.zeros(plan.num_samples, np.uint8)
        self._touched = np.zeros((nodes, len(self._counts)), np.bool_)
        self._distance = self._pairs = 0

    def rank(self, rank: int, workers: int) -> RankShare:
        """Walk the steps of one rank, worker by worker."""
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

    def nodes(self) -> tuple[NodeShare, ...]:
        """What each node read."""
        orders, nodes = self._plan.orders, len(self._touched)
        windows = [self._window_bytes(order) for order in orders]
        found = []
        for node, touched in enumerate(self._touched):
            mine = windows
            if len(orders) > 1:
                mine = windows[node * len(orders) // nodes : (node + 1) * len(orders) // nodes]
            found.append(
                NodeShare(
                    node=node,
                    shards=int(touched.sum()),
                    bytes=int(self._sizes[touched].sum()),
                    window_bytes=sum(mine),
                )
            )
        return tuple(found)

    def neighbour_distance(self) -> float | None:
        """See Coverage."""
        return self._distance / self._pairs / len(self.delivered) if self._pairs else None

    def _count(self, references: References, node: int) -> None:
        numbers = self._starts[references.shards] + references.indices
        np.add.at(self.delivered, numbers[references.valid], 1)
        self._touched[node][references.shards] = True
        if self._settings.batch_size > 1:
            whole = len(numbers) // self._settings.batch_size * self._settings.batch_size
            distances = np.abs(np.diff(numbers[:whole].reshape(-1, self._settings.batch_size)))
            self._distance += int(distances.sum())
            self._pairs += distances.size

    def _window_bytes(self, order: Order) -> int:
        """The most that two windows, one read and one read ahead, hold."""
        sizes: list[int] = []
        while runs := order.runs_of_window(len(sizes)):
            shares = runs.lengths / np.maximum(self._counts[runs.shards], 1)
            sizes.append(int((shares * self._sizes[runs.shards]).sum()))
        return max(map(sum, zip(sizes, [*sizes[1:], 0], strict=True)), default=0)


class _Classes:
    """Classes of samples where keys tell them: the first folder of a key, as pack makes it."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._classes = set(catalog.classes or ())
        self._indexes: dict[int, ShardIndex] = {}

    def count(self, shards: NDArray[np.int64], indices: NDArray[np.int64]) -> Counter[str] | None:
        """How often each class comes among samples; None if a key names none."""
        counts = Counter[str]()
        for shard, index in zip(shards.tolist(), indices.tolist(), strict=True):
            if shard not in self._indexes:
                self._indexes[shard] = self._catalog.shards[shard].load_index()
            counts[self._indexes[shard].key(index).partition("/")[0]] += 1
        return counts if self._classes.issuperset(counts) else None


def _mixing(catalog: Catalog, plan: EpochPlan, ranks: int) -> dict[str, Any]:
    """Fields of Coverage about classes; the first batches and windows stand for all."""
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
    catalog: Catalog, plan: EpochPlan, settings: PlanSettings, nodes: int, workers: int
) -> list[str]:
    shards, streams = len(catalog.shards), settings.streams
    global_batch_size = settings.batch_size * settings.ranks
    found = []
    if nodes > 1 and streams == 1:
        found.append(
            f"every node reads every shard; --streams {settings.ranks} gives each node a share"
        )
    if shards < nodes:
        found.append(f"{shards} shards are fewer than {nodes} nodes; pack at least 10 for each")
    windows = shards / streams / settings.window
    batches = plan.num_samples / max(windows, 1) / global_batch_size
    if settings.shuffle is True and windows > 1 and batches < _BATCHES_IN_WINDOW:
        found.append(f"a window holds {batches:.1f} global batches; a larger --window mixes better")
    if workers > plan.num_steps:
        found.append(f"{workers - plan.num_steps} of {workers} workers have no step to take")
    if settings.shuffle is False and len(catalog.classes or ()) > 1:
        found.append("the order is as packed; --shuffle true shuffles, as shuffle=True does")
    pads = plan.num_steps * global_batch_size - plan.num_samples
    if settings.tail == "pad" and pads > plan.num_samples / 100:
        found.append(f"{pads:,} pads are {pads / plan.num_samples:.0%} of the samples")
    return found

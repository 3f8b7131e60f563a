"""ShardDataset: shards as a torch dataset, each sample exactly once an epoch.

The whole read pipe is `_read_steps`: plan → references → reader → batch. Everything that an
epoch's order depends on is in the plan; this module finds out which rank, worker and epoch it
serves and hands the plan's slices to a reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal, get_args

import torch
from torch.utils.data import IterableDataset, get_worker_info

from shardio.errors import UsageError
from shardio.index.catalog import Catalog, Source, open_catalog
from shardio.plan.epoch import DEFAULT_WINDOW, EpochPlan, steps_of_worker
from shardio.plan.shuffle import derive_key
from shardio.plan.tail import Tail
from shardio.reading.ahead import ReadAhead
from shardio.reading.columns import Transform
from shardio.reading.epochs import EpochCounter
from shardio.reading.fields import Fields, default_fields, parse_fields
from shardio.reading.reader import SampleReader
from shardio.reading.shards import ShardPool
from shardio.reading.times import StageTimes
from shardio.reading.topology import find_ranks, find_worker
from shardio.transforms import SizedTransform

OnBadSample = Literal["raise", "skip"]
_TRANSFORMS = 3
_SAMPLES_PLANNED_AT_ONCE = 64


class ShardDataset(IterableDataset[dict[str, Any]]):
    """Samples of tar shards, in a planned order, for any number of ranks and workers.

    With `batch_size` it yields whole batches; give it to DataLoader with `batch_size=None`. The
    batches are then the same, in the same order, for any number of workers. Without, it yields
    samples for DataLoader to batch.

    An entry is uint8 [B, 3, H, W] (channels-last memory) for images, int64 [B] for labels, a
    tensor [B, …] for npy, a list of B values otherwise (str for txt, bytes where no decoder is
    known). Images of several sizes need a transform that makes them equal. "valid" is bool [B]:
    False for repeats that pad the last step and for replaced bad samples. "__key__" is a list of
    B str. A sample has the same entries without B.

    Every loop over it is the next epoch, in another order if shuffled, also inside a DataLoader.

    Args:
        source: a packed folder, a folder of tars, a shard, a glob, a brace pattern such as
            `out/shard-{000000..000007}.tar`, or a list of these.
        fields: entries of a sample and the fields that fill them, `{"image": "jpg;png"}`. By
            default images become `image`, `cls` becomes `label`, the rest keep their names.
        decode: False leaves every field as bytes.
        transform: for images: shardio.RandomResizedCrop and its like, or a callable from a
            uint8 tensor [3, H, W] to a tensor.
        batch_size: samples of one rank in a step. The global batch is batch_size × world_size.
        shuffle: True permutes shards, then samples inside windows of shards; "full" permutes
            all samples; False keeps the packed order.
        seed: of the shuffle and of random transforms.
        window: shards in a window.
        tail: "pad" repeats samples, marked in "valid", to fill the last step of every rank;
            "drop" leaves that step out.
        rank: of this process, by default from torch.distributed or torchrun.
        world_size: number of ranks, like rank.
        on_bad_sample: "raise", or "skip" to put another sample with valid=False in its place.

    Attributes:
        catalog: the shards.
        classes: class names by label; None where they are not known.
        fields: entries of a sample and the alternatives that fill them.
        batch_size: as given.
        times: where the time of reading went, in this process.

    Raises:
        UsageError: an argument cannot be meant, or nothing is at the source.
        IndexFileError: a manifest or index is damaged or stale.
        TarError: a shard without index is damaged.
    """

    def __init__(
        self,
        source: Source,
        *,
        fields: Mapping[str, str] | None = None,
        decode: bool = True,
        transform: Transform | None = None,
        batch_size: int | None = None,
        shuffle: bool | Literal["full"] = False,
        seed: int = 0,
        window: int = DEFAULT_WINDOW,
        tail: Tail = "pad",
        rank: int | None = None,
        world_size: int | None = None,
        on_bad_sample: OnBadSample = "raise",
    ) -> None:
        whole = batch_size is None or (isinstance(batch_size, int) and batch_size >= 1)
        _check("batch_size", batch_size, whole, "a whole number, at least 1")
        _check("seed", seed, isinstance(seed, int), "a whole number")
        _check("fields", fields, fields is None or isinstance(fields, Mapping),
               "a mapping such as {'image': 'jpg;png'}")  # fmt: skip
        usable = callable(transform) or isinstance(transform, SizedTransform)
        usable = transform is None or (usable and not isinstance(transform, type))
        _check("transform", transform, usable, "callable, such as shardio.CenterCrop(224)")
        _check("transform", transform, decode or transform is None, "left out with decode=False")
        _check("shuffle", shuffle, shuffle in (True, False, "full"), "True, False or 'full'")
        _check("window", window, window >= 1, "at least 1 shard")
        _check("tail", tail, tail in get_args(Tail), "'pad' or 'drop'")
        _check("on_bad_sample", on_bad_sample, on_bad_sample in get_args(OnBadSample),
               "'raise' or 'skip'")  # fmt: skip
        self.catalog: Catalog = open_catalog(source)
        self.classes = self.catalog.classes
        self.fields = self._map_fields(fields)
        self.batch_size = batch_size
        self._name = str(source)
        self._missing_ok = fields is None and batch_size is None
        self._decode = decode
        self._transform = transform
        self._shuffle = shuffle
        self._seed = seed
        self._window = window
        self._tail: Tail = tail
        self._ranks = (rank, world_size)
        self._skip = on_bad_sample == "skip"
        self._epochs = EpochCounter()
        self.times = StageTimes()
        find_ranks(rank, world_size)

    def __len__(self) -> int:
        """Batches that this rank takes in an epoch; samples if there is no batch_size."""
        return self.plan(0).num_steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = self._epochs.begin()
        pool = ShardPool(self.catalog.shards)
        try:
            yield from self._read_steps(self.plan(epoch), epoch, pool)
        finally:
            pool.close()

    def __getstate__(self) -> dict[str, Any]:
        ranks = find_ranks(*self._ranks)
        return {**vars(self), "_ranks": (ranks.rank, ranks.world_size)}

    def set_epoch(self, epoch: int) -> None:
        """Make the next loop that epoch; later loops count on from it."""
        _check("epoch", epoch, epoch >= 0, "at least 0")
        self._epochs.set_next(epoch)

    @property
    def num_bad_samples(self) -> int:
        """Bad samples replaced so far, in all worker processes, under on_bad_sample="skip"."""
        return self._epochs.num_bad_samples

    def plan(self, epoch: int) -> EpochPlan:
        """The plan of an epoch for the current number of ranks.

        Raises:
            UsageError: the dataset is empty, or no step is left of it.
        """
        counts = [shard.samples for shard in self.catalog.shards]
        if not any(counts):
            raise UsageError(f"{self._name}: the dataset has no samples")
        plan = EpochPlan(
            counts,
            global_batch_size=(self.batch_size or 1) * find_ranks(*self._ranks).world_size,
            seed=self._seed,
            epoch=epoch,
            shuffle=bool(self._shuffle),
            window=len(counts) if self._shuffle == "full" else self._window,
            tail=self._tail,
        )
        if plan.num_steps == 0:
            raise UsageError(
                f"{self._name}: {plan.num_samples} samples do not fill one global batch, which "
                "tail='drop' leaves out; make the batch smaller or pass tail='pad'"
            )
        return plan

    def _read_steps(self, plan: EpochPlan, epoch: int, pool: ShardPool) -> Iterator[dict[str, Any]]:
        ranks, (worker, num_workers) = find_ranks(*self._ranks), find_worker()
        steps = iter(steps_of_worker(plan.num_steps, worker, num_workers))
        reader, key = self._reader(pool), derive_key(self._seed, epoch, _TRANSFORMS)
        ahead = ReadAhead(plan, pool, worker, num_workers)
        at_once = 1 if self.batch_size else _SAMPLES_PLANNED_AT_ONCE
        while some := list(islice(steps, at_once)):
            if self._shuffle != "full":
                ahead.enter(some[0])
            references = plan.references(plan.share(some, ranks.rank, ranks.world_size))
            if self.batch_size:
                yield reader.read(references, key)
            else:
                yield from (_sample(reader.read(single, key)) for single in references.split())

    def _reader(self, pool: ShardPool) -> SampleReader:
        return SampleReader(
            pool,
            fields=self.fields,
            decode=self._decode,
            transform=self._transform,
            missing_ok=self._missing_ok,
            on_replaced=self._epochs.count_bad_sample if self._skip else None,
            times=self.times,
            shared=self.batch_size is not None and get_worker_info() is not None,
        )

    def _map_fields(self, fields: Mapping[str, str] | None) -> Fields:
        names = self.catalog.fields
        if fields is not None:
            return parse_fields(fields, names)
        first = next((shard for shard in self.catalog.shards if shard.samples), None)
        together = []
        if first is not None:
            index = first.load_index()
            together = [
                [name for name, offset in zip(index.fields, row, strict=True) if offset >= 0]
                for row in index.offsets[:1000]
            ]
        return default_fields(names, together)


def _check(name: str, value: object, good: bool, wanted: str) -> None:
    if not good:
        raise UsageError(f"{name}={value!r}: it must be {wanted}")


def _sample(batch: dict[str, Any]) -> dict[str, Any]:
    sample = {name: value[0] for name, value in batch.items()}
    return {
        name: value.item() if isinstance(value, torch.Tensor) and value.ndim == 0 else value
        for name, value in sample.items()
    }

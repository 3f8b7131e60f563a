"""ShardDataset: shards as a torch dataset, each sample exactly once an epoch.

The dataset knows its shards, samples, order and arguments. Which steps of an epoch are read where
is the matter of `ResumableDataset`; how a step becomes a batch is `SampleReader.read`. Samples are
chosen by number, by predicate, by key or by fractions: a chosen part is a dataset with other
`Samples`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from shardio.buckets import Buckets
from shardio.checks import require, seed_of_order, whole_number
from shardio.errors import UsageError, counted, quoted
from shardio.fields.base import BYTES, FieldType
from shardio.fields.limits import MAX_PIXELS
from shardio.fields.recorded import require_available
from shardio.indexing.catalog import Catalog, open_catalog
from shardio.indexing.parts import ShardPaths, absolute_parts
from shardio.planning.buckets import Bucketing
from shardio.planning.draws import Weights
from shardio.planning.epoch import DEFAULT_WINDOW, EpochPlan, Shuffle, Tail, in_growing_parts
from shardio.planning.order import SampleSequence, derive_key
from shardio.planning.samples import Samples
from shardio.reading.arguments import OnBadSample, check_arguments, store_options
from shardio.reading.columns import Types
from shardio.reading.delivery import Delivery, Replacements, Shared
from shardio.reading.entries import (
    Fields,
    deciding_pictures,
    default_fields,
    entry_types,
    label_field,
    optional_entries,
    parse_fields,
)
from shardio.reading.geometry import SampleGeometry
from shardio.reading.handover import Allocate, Recycler
from shardio.reading.libraries import is_known
from shardio.reading.loop import (
    Identity,
    ResumableDataset,
    UnfinishedBatches,
    finish_in_turn,
    to_sample,
)
from shardio.reading.mapping import Collate, MapFunctions, find_functions
from shardio.reading.picture_columns import Transform
from shardio.reading.ranks import Share, find_worker, refuse_subset
from shardio.reading.readahead import ReadAhead
from shardio.reading.reader import SampleReader
from shardio.reading.selection import Choice, choose, find_key, find_number, split
from shardio.reading.settings import (
    WeightsGiven,
    check_plan,
    find_buckets,
    list_targets,
    make_shuffle,
    weigh,
)
from shardio.reading.shards import ShardPool
from shardio.reading.times import StageTimes, Stopwatch
from shardio.storage.base import Storage

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

_NO_ARGUMENTS = frozenset({"self", "source", "__class__"})
_TRANSFORMS = 3
_MOST_PLANNED, _ALONE = 4096, 64  # samples planned at once; of single ones, asked for at once


class ShardDataset(ResumableDataset):
    """Samples of tar shards, in a planned order, for any number of ranks and workers.

    With `batch_size` it yields whole batches; give it to DataLoader with `batch_size=None`. The
    batches are then the same, in the same order, for any number of workers. Without, it yields
    samples for DataLoader to batch.

    An entry is uint8 [B, 3, H, W] (channels-last memory) for images, int64 [B] for labels, a
    tensor [B, …] for npy, a list of B values otherwise (str for txt, bytes where no decoder is
    known). Images of several sizes need a transform that makes them equal. "valid" is bool [B]:
    False for repeats that pad the last step and for replaced bad samples. `__key__` is a list of
    B str; `__epoch__` and `__step__` are int. A sample has all but these two, without B.

    Every loop over it is the next epoch, in another order if shuffled, also inside a DataLoader.

    Args:
        source: a packed folder, a folder of tars, a shard, a glob, a brace pattern such as
            `out/shard-{000000..000007}.tar`, or a list of these.
        fields: entries of a sample and the fields that fill them, `{"image": "jpg;png"}`, with "?"
            where samples may lack them, as "json?"; or field types that name them, see
            shardio.FieldType. Text stands for the types that the packed folder records. By default
            images become `image`, `cls` becomes `label`, the rest keep their names.
        decode: False leaves every field as bytes.
        transform: transform of images: shardio.RandomResizedCrop and its like, or a callable
            from a uint8 tensor [3, H, W] to a tensor. torchvision's Compose with ToTensor gets PIL
            images, and so does any function in shardio.FromPIL. With shardio.Buckets the images of
            a step have one of several sizes.
        map: function from a sample to a sample, `map(sample)` or `map(sample, rng)`, or a list of
            such functions, applied after transform and before samples are joined. A sample is
            what a dataset without batch_size yields. The function may add, change and remove
            entries. What it returns is joined as default_collate does: arrays, tensors and numbers
            are stacked, other values listed. `rng` is a numpy.random.Generator that depends on
            seed, epoch and position of the sample alone. `raise shardio.Skip("why")` puts another
            sample with valid=False in the sample's place. A transform of torchvision.transforms.v2
            or albumentations may stand for a function: it gets pictures, masks, boxes and points
            together, and its random numbers are seeded for each sample.
        collate: function from the list of a batch's samples to the entries of the batch, by name,
            in place of joining them by kind; `valid` and `__key__` are added.
        nondeterministic: True lets a Loader's threads run torchvision's random transforms, which
            share generators, so that no two runs are the same.
        batch_size: samples of one rank in a step. The global batch is batch_size × world_size.
        global_batch_size: samples of all ranks in a step, in place of batch_size: the batches
            are then the same for every world_size that divides it.
        shuffle: True permutes shards, then samples inside windows of shards; "full" permutes
            all samples; False keeps the packed order.
        seed: seed of the shuffle and of random transforms.
        window: shards in a window, of each stream.
        streams: canonical streams. With 1 every rank reads from every shard of a window. With
            more, each rank reads the same share of the shards in every epoch, for nodes that
            cache them; world_size must divide streams, and streams the global batch size.
        epoch_size: samples in an epoch, by default all. Epochs of another size follow one another
            through the orders that epochs have otherwise, each of which is delivered whole before
            the next begins: no sample comes again before all others have come, and none is lost
            between epochs, except to tail="drop".
        weights: samples drawn instead of delivered once each: an epoch has `epoch_size` draws, by
            default as many as samples, and a sample with 1.3 times the mean weight comes once or
            twice in one of that default size. "balanced" gives all labels equal parts; a mapping
            gives each label (number, or name in `classes`) the weight of its samples; a function
            takes key and label (None where there is none); or give one number a sample, in packed
            order. Labels are told by indexes with checksums, else read once when it is opened. It
            takes 16 bytes a sample.
        tail: "pad" repeats samples, marked in "valid", to fill the last step of every rank;
            "even" makes it smaller, of one size for all ranks, with at most one pad each; "exact"
            halves it and the one before, without pads, so that ranks differ by one sample at most;
            "drop" leaves it out; "short" makes it smaller, for one rank alone.
        rank: rank of this process, by default from torch.distributed or torchrun when a loop
            begins.
        world_size: number of ranks, like rank.
        group: data-parallel group in place of rank and world_size: a process group, or a device
            mesh of one dimension, as mesh["dp"]. Ranks that are equal in it, as those of a tensor-
            or pipeline-parallel group, get the same samples.
        on_bad_sample: "raise", or "skip" to put another sample with valid=False in its place.
        reduced_decoding: decode a JPEG whose crop is at least 3.75, 4.5 or 8 times as large as
            what it becomes at 1/2, 1/4 or 1/8 of its size: faster, and nearer to an antialiased
            resize than plain linear interpolation. False decodes every pixel of the crop.
        allow_empty: take tars that have members, none of which is a field of a sample.
        max_pixels: greatest number of pixels of an image. Larger ones are bad samples, and so are
            files that ask for far more work than real images of their size; a greater number
            raises all these limits in proportion, see shardio.fields.limits.
        crops: True adds the entry `__crop__`, which says for each sample which part of its picture
            is shown: "box", float32 [B, 4] with its left, top, right and bottom in pixels, "flip",
            bool [B], and "size", int64 [B, 2] with the picture's height and width.
        as_tuple: names of entries, such as ("image", "label"), of which batches and samples are
            tuples then, as scripts for other datasets expect. The state is that of a
            shardio.Loader, since such a batch does not tell its step.
        storage: storage of the source, see shardio.storage.base; None chooses it by the scheme of
            a URL.
        storage_options: credentials and other settings of the store of a URL, by name; by default
            those that its usual environment and files give. The arguments that follow may be here
            instead, not in both places.
        cache_dir: folder for whole shards of stores, by default the usual cache folder.
        cache_limit: bytes that they may take there, or a size such as "500GB"; by default three
            quarters of the free space.
        predownload: number of windows ahead whose shards are fetched from stores.
        download_retry: number of further attempts after a request fails.
        download_timeout: seconds without a byte after which a request has failed.

    Attributes:
        catalog: shards.
        fields: entries of a sample and the alternatives that fill them.
        samples: samples of the shards that belong to it.
        shuffle: order of the samples.
        times: totals of the time of reading, in this process.
        stopwatch: makes the stopwatch of each chunk of samples; see timed_by.

    Raises:
        UsageError: an argument is invalid, or nothing is at the source.
        IndexFileError: a manifest or index is damaged or stale.
        TarError: a shard without index is damaged, or one holds no samples.
    """

    stopwatch: Callable[[], Stopwatch]
    _targets: list[int] | None = None

    def __init__(
        self,
        source: ShardPaths,
        *,
        fields: Mapping[str, str | FieldType] | None = None,
        decode: bool = True,
        transform: Transform | Buckets | None = None,
        map: MapFunctions | None = None,  # noqa: A002  the field's word for it
        collate: Collate | None = None,
        nondeterministic: bool = False,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        shuffle: bool | Literal["full"] = False,
        seed: int = 0,
        window: int = DEFAULT_WINDOW,
        streams: int = 1,
        epoch_size: int | None = None,
        weights: WeightsGiven | None = None,
        tail: Tail = "pad",
        rank: int | None = None,
        world_size: int | None = None,
        group: ProcessGroup | DeviceMesh | None = None,
        on_bad_sample: OnBadSample = "raise",
        reduced_decoding: bool = True,
        allow_empty: bool = False,
        max_pixels: int = MAX_PIXELS,
        crops: bool = False,
        as_tuple: Sequence[str] | None = None,
        storage: Storage | None = None,
        storage_options: Mapping[str, Any] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int | str | None = None,
        predownload: int = 1,
        download_retry: int = 6,
        download_timeout: float = 30.0,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in _NO_ARGUMENTS}
        given = check_arguments(**given)
        options = store_options(given)
        sizes = given["batch_size"], given["global_batch_size"]
        super().__init__(
            batch_sizes=sizes, ranks=(given["rank"], given["world_size"]), as_tuple=as_tuple
        )
        self.catalog: Catalog = open_catalog(
            source, storage=storage, options=options, allow_empty=allow_empty
        )
        self.catalog.check_cache()
        self._arguments, self._tail = given, tail
        self.fields = self._map_fields(fields)
        self.times, self.stopwatch, self._replacements = StageTimes(), Stopwatch, Replacements()
        self._source, self._parts = source, absolute_parts(source, storage, options)
        self._types = self._find_types()
        self._geometries = {0: SampleGeometry(self._types, self._transform(0))}
        self._functions = find_functions(given, self._types)
        self.samples = Samples([shard.samples for shard in self.catalog.shards])
        self.shuffle, self._buckets = self._make_shuffle(), self._find_buckets()
        self._digest = self.catalog.digest()
        self._singles: tuple[EpochPlan, ShardPool] | None = None  # for ds[i]
        self._check_early()
        self._seal(*given)

    def _check_early(self) -> None:
        """Refuse what does not fit the ranks that are given, or any number of ranks."""
        if len(self.samples) and self._ranks != (None, None):
            self.num_steps()
        elif len(self.samples):
            streams = self.shuffle.streams
            some = range(2, min(streams, len(self.samples)) + 1)
            try:
                self._count_steps(self._share_of(0, 1))
            except UsageError:  # which is meant unless more ranks fit
                for ranks in (each for each in some if streams % each == 0):
                    with suppress(UsageError):
                        self._count_steps(self._share_of(0, ranks))
                        return
                raise

    @property
    def transform(self) -> Transform | None:
        """Transform of images; one that is set takes effect in the next loop."""
        return cast("Transform | None", self._arguments["transform"])

    @transform.setter
    def transform(self, transform: Transform | None) -> None:
        if isinstance(transform, Buckets) or self._buckets is not None:
            raise UsageError(
                "ds.transform: the sizes of Buckets decide the order of the samples",
                remedy="make another dataset by ds.replace(transform=…)",
            )
        given = check_arguments(**{**self._arguments, "transform": transform})
        self._geometries = {0: SampleGeometry(self._types, transform)}
        self._functions, self._arguments = find_functions(given, self._types), given
        self._epochs.count_change()

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names by label; None where they are not known."""
        return self.catalog.classes

    @property
    def class_to_idx(self) -> dict[str, int] | None:
        """Label of each class, by name; None where the names are not known."""
        return None if self.classes is None else {name: i for i, name in enumerate(self.classes)}

    @property
    def targets(self) -> list[int]:
        """Labels of the samples in packed order; read when first asked for.

        Raises:
            UsageError: there is no entry "label", or a sample has no class number there.
            TarError: a shard has to be read, and is missing or changed.
        """
        if self._targets is None:
            named = self.fields.get("label", ())
            self._targets = list_targets(self.catalog, self.samples, named)
        return self._targets

    def __repr__(self) -> str:
        is_local = all(part.is_local for part in self._parts)  # a URL may have secrets
        source = f"{self._source if is_local else ', '.join(map(str, self._parts))!s:.100}"
        held = sum(shard.samples for shard in self.catalog.shards)
        what, shards = counted(held, "sample"), counted(len(self.catalog.shards), "shard")
        some = f"{len(self.samples):,} of " if len(self.samples) < held else ""
        drawn, size = self.shuffle.weights is not None, self.shuffle.epoch_length(self.samples)
        kind = ", weighted draws" if drawn else ""
        epoch = f"; {size:,} an epoch{kind}" if drawn or size != len(self.samples) else ""
        return f"ShardDataset({quoted(source)}: {some}{what} in {shards}{epoch})"

    def __getitem__(self, index: int) -> Any:
        """Read a sample by number in packed order, never a stand-in.

        Its crop is always the same, but new in every epoch of a DataLoader that reads by number, as
        it does for torch's Subset.

        Raises:
            IndexError: index is outside the dataset.
            UsageError: index is not a whole number.
            SampleError: the sample cannot be delivered.
        """
        return self._read_one(index, stand_ins=False)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Read the samples of a batch for torch's Subset, where others replace bad ones."""
        return [*map(partial(self._read_one, stand_ins=True), indices)]

    def _read_one(self, index: int, *, stand_ins: bool) -> Any:
        refuse_subset(self, len(self.samples))
        number = find_number(self, self.samples, index)
        if self._singles is None:
            order, buckets = Shuffle(on=False), self._buckets
            packed = EpochPlan(self.samples, order, global_batch_size=1, buckets=buckets)
            self._singles = packed, ShardPool(self.catalog.shards)
        packed, pool = self._singles
        pool.compare_anew()
        at, key = np.array([number]), self.transform_key(0, *self._epoch_by_number())
        reader = self.reader(pool, Recycler(), packed.bucket_of(at), stand_ins=stand_ins)
        (batch,) = finish_in_turn(reader.read(packed, [at], key, alone=True))
        self._end_loop()
        sample = self._choose_entries(to_sample(batch))
        return sample if self._as_tuple is None else (*sample.values(),)

    def by_key(self, key: str) -> Any:
        """Read a sample by its key, like ds[index]; the first one if shards share keys.

        Raises:
            KeyError: no sample has that key.
            SampleError: the sample cannot be delivered.
        """
        number = find_key(self.catalog, self.samples, key)
        if number is None:
            raise KeyError(f"{self}: no sample has the key {quoted(key)}")
        return self[number]

    def subset(self, choice: Choice) -> ShardDataset:
        """Make a dataset of some of the samples, in packed order unless it shuffles.

        Args:
            choice: distinct indices as in ds[index], or a predicate on key and index of a sample.

        Raises:
            UsageError: an index is outside the dataset or comes twice.
        """
        return self._part(choose(self.catalog, self.samples, choice))

    def split(self, *fractions: float, seed: int = 0) -> tuple[ShardDataset, ...]:
        """Make datasets of disjoint random parts, whose sizes are exact to the sample.

        Args:
            fractions: fraction of each part: 0.9 gives 90 % and the rest; several add up to 1.
            seed: random seed; the parts depend on nothing else.

        Raises:
            UsageError: the fractions are negative or do not add up to 1.
        """
        parts = split(self.samples, fractions, seed_of_order(seed), self.contents)
        return tuple(map(self._part, parts))

    def replace(self, **changes: Any) -> ShardDataset:
        """Open the same samples with other arguments; epochs begin anew.

            central = shardio.CenterCrop(224, resize=256)
            held_out = held_out.replace(transform=central, shuffle=False)

        Args:
            changes: arguments of ShardDataset, except source.

        Raises:
            UsageError: an argument is invalid, or the shards have changed meanwhile.
        """
        unknown = changes.keys() - self._arguments.keys()
        if unknown:
            raise UsageError(f"replace: ShardDataset has no argument {', '.join(sorted(unknown))}")
        if changes.get("group") is not None:
            changes = {"rank": None, "world_size": None, **changes}
        arguments = {**self._arguments, **changes}
        weights = arguments.pop("weights")  # of the samples that are chosen
        other = ShardDataset(self._parts, **arguments)
        if other._digest != self._digest:
            raise UsageError(
                "the shards have changed since it was opened", where=self, remedy="open it again"
            )
        other._source = self._source
        return other._with(self.samples, weights)

    def repeated(self, times: int) -> ShardDataset:
        """Repeat the samples several times in an epoch, one after the other; for measuring.

        Args:
            times: number of times, at least 1.
        """
        times = whole_number("times", times, least=1)
        shards, samples = self.catalog.shards * times, self.samples
        chosen = None if samples.chosen is None else np.tile(samples.chosen, times)
        drawn = self.shuffle.weights
        weights = None if drawn is None else np.tile(drawn.given, times)
        numbers = np.tile(np.arange(len(samples)), times)
        part = self._with(Samples(np.tile(samples.counts, times), chosen), weights, numbers)
        vars(part)["catalog"] = catalog = replace(self.catalog, shards=shards)
        part._digest = catalog.digest()
        return part

    @contextmanager
    def timed_by(self, stopwatch: Callable[[], Stopwatch]) -> Iterator[None]:
        """Time the chunks that loops read inside the context by other stopwatches.

        Args:
            stopwatch: function that makes one for a chunk, in the thread that reads it; it goes to
                workers too.

        Raises:
            UsageError: the dataset is timed already.
        """
        if self.stopwatch is not Stopwatch:
            raise UsageError(
                "the dataset is timed already", where=self, remedy="leave the other context first"
            )
        vars(self)["stopwatch"] = stopwatch
        try:
            yield
        finally:
            vars(self)["stopwatch"] = Stopwatch

    @property
    def contents(self) -> str:
        """16 hexadecimal digits that tell these samples of these shards from others."""
        return self.samples.digest(self._digest)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_singles": None, "_targets": None}

    def plan(self, epoch: int) -> EpochPlan:
        """Plan an epoch for the current number of ranks.

        Raises:
            UsageError: the dataset is empty, no step is left of it, or its arguments do not fit
                the number of ranks.
        """
        share = self.share
        self._count_steps(share)
        return self._plan(epoch, share)

    def _plan(self, epoch: int, share: Share) -> EpochPlan:
        size = share.global_batch_size
        return EpochPlan(
            self.samples,
            self.shuffle,
            global_batch_size=size,
            epoch=epoch,
            tail=self._tail,
            buckets=self._buckets,
        )

    def _count_steps(self, share: Share) -> int:
        return check_plan(
            self,
            self.samples,
            self.shuffle,
            tail=self._tail,
            world_size=share.world_size,
            global_batch_size=share.global_batch_size,
            buckets=self._buckets,
        )

    def _read_steps(
        self, epoch: int, steps: Sequence[int], share: Share, allocate: Allocate
    ) -> UnfinishedBatches:
        plan, pool = self._plan(epoch, share), ShardPool(self.catalog.shards)
        alone = not self._makes_batches
        most = 1 if plan.buckets is not None else max(1, _MOST_PLANNED // share.batch_size)
        share_of = partial(plan.share, rank=share.rank, world_size=share.world_size)
        key, shared = self.transform_key(epoch), Shared()
        reader_of = lru_cache(None)(partial(self.reader, pool, allocate, shared=shared))
        ahead = self.read_ahead(plan.orders, pool, epoch)
        try:
            asked = ahead if len(steps) > 1 else None
            for some in in_growing_parts(steps, _ALONE if alone else 1, most):
                each = _ALONE if alone else 1  # steps of which samples are read together
                batches = [share_of(some[at : at + each]) for at in range(0, len(some), each)]
                reader = reader_of(plan.bucket_of(batches[0]))
                yield from reader.read(plan, batches, key, asked, alone=alone)
            ahead.finish()
            pool.finish()
        except BaseException:  # else the last batches may still be read
            pool.close()  # before the threads of `ahead` end, which may wait for a store
            raise
        finally:
            ahead.close()

    def read_ahead(
        self, orders: Sequence[SampleSequence], pool: ShardPool, epoch: int
    ) -> ReadAhead:
        """Make a ReadAhead for a loop over an epoch of this dataset."""
        some = orders if self.shuffle.window is not None else ()
        later = partial(self.shuffle.order, self.samples, epoch + 1)
        windows = self._arguments["predownload"]
        return ReadAhead(some, self.samples, pool, find_worker(), self.times, later, windows)

    def _end_loop(self) -> None:
        self._replacements.close()

    def _identity(self) -> Identity:
        return {
            "shards": len(self.catalog.shards),
            "samples": len(self.samples),
            "contents": self.contents,
            "global_batch_size": self.global_batch_size,
            **self.shuffle.identity(),
            "tail": self._tail,
            **({} if self._buckets is None else {"buckets": self._buckets.digest()}),
        }

    def _part(self, samples: Samples) -> ShardDataset:
        """Return a dataset of some of the samples, which keep the weights that are given by one."""
        weights = self._arguments["weights"]
        if weights is not None and not isinstance(weights, str | Mapping) and not callable(weights):
            weights = np.asarray(weights)[self.samples.find(samples)]
        return self._with(samples, weights)

    def _with(
        self,
        samples: Samples,
        weights: WeightsGiven | None,
        numbers: NDArray[np.int64] | None = None,
    ) -> ShardDataset:
        """Return a dataset of other samples; their numbers in this one, if not chosen of it."""
        part = self._copy()
        vars(part).update(times=StageTimes(), samples=samples)
        part._singles = part._targets = None
        part._arguments = {**self._arguments, "weights": weights}
        vars(part)["shuffle"] = replace(self.shuffle, weights=part._weigh(samples))
        if self._buckets is not None:
            numbers = self.samples.find(samples) if numbers is None else numbers
            of = self._buckets.numbers[numbers]
            part._buckets = Bucketing(samples, of, self._buckets.origin)
        return part

    def _weigh(self, samples: Samples) -> Weights | None:
        """Find the weights of some samples, with labels where their type says."""
        weights = self._arguments["weights"]
        if weights is None:
            return None
        draws = self._arguments["epoch_size"]
        found = weigh(weights, self.catalog, samples, draws, field=label_field(self._types))
        if callable(weights) and found is not None:  # which other processes need not know
            self._arguments = {**self._arguments, "weights": found.given}
        return found

    def optional_entries(self) -> frozenset[str]:
        """Names of the entries that samples may lack."""
        return optional_entries(self._arguments["fields"])

    def padded_entries(self) -> frozenset[str]:
        """Names of the entries that are padded to the longest value of a batch."""
        firsts = {name: next(iter(types.values())) for name, types in self._types.items()}
        return frozenset(name for name, each in firsts.items() if each.batching == "padded")

    def describe_entries(self) -> dict[str, str]:
        """Say what a batch holds for each entry."""
        return {name: next(iter(types.values())).holds for name, types in self._types.items()}

    def _find_types(self) -> dict[str, Types]:
        """Find the types of the alternatives of each entry, by field name."""
        if not self._arguments["decode"]:
            return {name: dict.fromkeys(some, BYTES) for name, some in self.fields.items()}
        given, most = self._arguments["fields"], self._arguments["max_pixels"]
        found: dict[str, Types] = {}
        for name, some in self.fields.items():
            types = entry_types(name, some, given, self.catalog.types)
            for field, each in types.items():
                require_available(field, each)
            found[name] = {field: each.limited(most) for field, each in types.items()}
        return found

    def transform_key(self, epoch: int, *by_number: int) -> int:
        """Return the key of the random numbers for transforms in an epoch."""
        return derive_key(self.shuffle.seed, epoch, _TRANSFORMS, *by_number)

    def _make_shuffle(self) -> Shuffle:
        names = "shuffle", "seed", "window", "streams", "epoch_size"
        orders = {name: self._arguments[name] for name in names}
        return make_shuffle(**orders, weights=self._weigh(self.samples))

    def _find_buckets(self) -> Bucketing | None:
        """Find the buckets of the samples, if the transform has buckets."""
        transform = self._arguments["transform"]
        if not isinstance(transform, Buckets):
            return None
        pictures = deciding_pictures(self._types)
        require(bool(pictures), "transform", transform, "left out where samples have no picture")
        return find_buckets(transform, self.catalog, self.samples, pictures)

    def _transform(self, bucket: int) -> Transform | None:
        """Return the transform of the samples of a bucket."""
        transform: Transform | Buckets | None = self._arguments["transform"]
        return transform.of(bucket) if isinstance(transform, Buckets) else transform

    def _geometry(self, bucket: int) -> SampleGeometry:
        """Return what chooses the crops of the samples of a bucket."""
        if bucket not in self._geometries:
            self._geometries[bucket] = SampleGeometry(self._types, self._transform(bucket))
        return self._geometries[bucket]

    def reader(
        self,
        pool: ShardPool,
        allocate: Allocate,
        bucket: int | None = None,
        *,
        shared: Shared | None = None,
        stand_ins: bool = True,
    ) -> SampleReader:
        """Make a reader of this dataset's samples from a pool of its shards.

        Args:
            pool: pool of the shards.
            allocate: makes the arrays of batches.
            bucket: bucket of the samples; by default the largest one, if there are any.
            shared: objects in common with the readers of other buckets.
            stand_ins: whether other samples replace those that are bad or left out.
        """
        if bucket is None:
            bucket = 0 if self._buckets is None else int(np.argmax(self._buckets.counts))
        transform, shared = self._transform(bucket), shared or Shared()
        several = {name: found for name, found in self.fields.items() if len(found) > 1}
        delivery = Delivery(
            pool=pool,
            samples=self.samples,
            fields=self.fields,
            several=several if self._arguments["fields"] is None else {},
            missing_ok=self._arguments["fields"] is None and not self._makes_batches,
            optional=self.optional_entries(),
            geometry=self._geometry(bucket),
            crops=self._arguments["crops"],
            functions=self._functions,
            skip_bad=self._arguments["on_bad_sample"] == "skip",
            stand_ins=stand_ins,
            on_replaced=self._epochs.count_bad_sample,
            replacements=self._replacements,
            times=self.times,
            stopwatch=self.stopwatch,
            lock=shared.lock,
        )
        return SampleReader(
            delivery,
            types=self._types,
            transform=None if is_known(transform) else transform,
            reduced=self._arguments["reduced_decoding"],
            allocate=allocate,
            scratch=shared.scratch,
        )

    def check_threads(self) -> None:
        """Refuse a function that draws from generators which the threads of a process share."""
        if not self._arguments["nondeterministic"]:
            self._functions.check_threads()

    def _map_fields(self, fields: Mapping[str, str | FieldType] | None) -> Fields:
        types = {name: self.catalog.types[name] for name in self.catalog.fields}
        if fields is not None:
            return parse_fields(fields, types, decode=self._arguments["decode"])
        return default_fields(types, self.catalog.shards)

"""Write one batch of a training run to a folder, as it is in the shards.

The plan gives the samples of the batch, and their members are copied without decoding. Keys and
fields may come from untrusted shards, so only harmless characters of them get into file names.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path

from shardio.checks import whole_number
from shardio.errors import SampleError, SituationError, UsageError, counted, quoted
from shardio.inspection.coverage import OrderOptions, PlanSettings
from shardio.options import with_options
from shardio.planning.epoch import References
from shardio.reading.shards import OpenShard, ShardPool
from shardio.storage.folder import Folder
from shardio.storage.local import refuse_url

LISTING_NAME = "batch.json"
_LONGEST_NAME = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedSample:
    """One sample of the batch.

    Attributes:
        slot: slot in the batch.
        key: key of the sample.
        valid: False for a repeat that pads the tail.
        shard: path of the shard.
        index: number of the sample in its shard.
        files: names of the written files, by field.
        problem: reason why a member could not be written; None if all were written.
    """

    slot: int
    key: str
    valid: bool
    shard: str
    index: int
    files: dict[str, str]
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedBatch:
    """Contents of batch.json.

    Attributes:
        step: step of the epoch.
        rank: rank of the batch; None for the global batch.
        settings: source and order.
        samples: samples by slot.
    """

    step: int
    rank: int | None
    settings: PlanSettings
    samples: tuple[ReplayedSample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions(OrderOptions):
    """Options of `shardio.replay`: the order, see OrderOptions, and the batch.

    Attributes:
        step: step of the epoch, from 0; "__step__" of a batch.
        rank: rank whose batch is written; None for the global batch, of all ranks.

    Raises:
        UsageError: a value is outside its bounds, or does not fit another.
    """

    step: int
    rank: int | None = None

    def __post_init__(self) -> None:
        OrderOptions.__post_init__(self)
        whole_number("step", self.step, least=0)
        if self.rank is not None and whole_number("rank", self.rank, least=0) >= self.ranks:
            raise UsageError(f"rank {self.rank} is outside 0 to {self.ranks - 1} (ranks - 1)")


@with_options(ReplayOptions)
def replay(
    source: str | PathLike[str], out: str | PathLike[str], options: ReplayOptions
) -> ReplayedBatch:
    """Write the samples of one batch of a training run to a folder.

    As with `shardio.replay("out", "batch", batch_size=64, shuffle=True, step=117)`. Each member is
    a file, and batch.json lists them.

    Args:
        source: packed folder, or anything else that ShardDataset reads.
        out: new or empty folder.
        options: keywords, see ReplayOptions.

    Raises:
        UsageError: there is no such step or rank, or the folder is not empty.
        TarError: a shard was changed or truncated.
        OutputError: something other than a file has the name of a file to write.
        OSError: a file cannot be read or written.
    """
    settings, step, rank = options.of(source), options.step, options.rank
    catalog, plan = settings.open()
    if step >= plan.num_steps:
        raise SituationError(
            f"step {step} is outside the {counted(plan.num_steps, 'step')} of an epoch",
            where=source,
            remedy=f"give a step from 0 to {plan.num_steps - 1}",
        )
    refuse_url(fspath(out))
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise SituationError("it is a file", where=out, remedy="name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SituationError("the folder is not empty", where=out, remedy="name a new one")
    positions = plan.share([step], rank or 0, 1 if rank is None else settings.ranks)
    references = plan.references(positions)
    with Folder.open(folder) as held:
        samples = _write_samples(references, ShardPool(catalog.shards), held)
        batch = ReplayedBatch(
            step=step,
            rank=rank,
            settings=settings.as_shown(),
            samples=samples,
        )
        with held.create(LISTING_NAME) as stream:
            stream.write(json.dumps(asdict(batch), indent=1).encode() + b"\n")
    return batch


def _write_samples(
    references: References, pool: ShardPool, folder: Folder
) -> tuple[ReplayedSample, ...]:
    digits, samples = len(str(len(references) - 1)), []
    for slot, number in enumerate(references.shards.tolist()):
        shard, index = pool.get(number), int(references.indices[slot])
        files, problem = _write(shard, index, folder, f"{slot:0{digits}}")
        samples.append(
            ReplayedSample(
                slot=slot,
                key=shard.index.key(index),
                valid=bool(references.valid[slot]),
                shard=shard.name,
                index=index,
                files=files,
                problem=problem,
            )
        )
    return tuple(samples)


def _write(
    shard: OpenShard, index: int, folder: Folder, slot: str
) -> tuple[dict[str, str], str | None]:
    """Write the members of a sample.

    Returns:
        The names of the files by field, and the reason why a member could not be written.
    """
    key = re.sub(r"[^A-Za-z0-9_-]+", "_", shard.index.key(index))[-_LONGEST_NAME:]
    written: dict[str, str] = {}
    problem = None
    for number, field in enumerate(shard.index.cells(index)):
        try:
            (stored,) = shard.read(index, ((field,),))
        except SampleError as error:
            problem = f"field {quoted(field)}: {error.what}"
            continue
        if stored is not None:
            suffix = re.sub(r"[^A-Za-z0-9_.-]+", "_", field)[-_LONGEST_NAME:]
            name = f"{slot}-{key}.{suffix}"
            while name in written.values():
                name = f"{slot}-{key}.{number}.{len(written)}.{suffix}"
            written[field] = name
            with folder.create(written[field]) as stream:
                stream.write(stored.data)
    return written, problem

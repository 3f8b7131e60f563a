"""One batch of a plan, written to a folder as it lies in the shards, to be looked at."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from shardio.errors import SampleError, SituationError, UsageError
from shardio.planning.epoch import References
from shardio.reading.settings import PlanSettings, open_plan
from shardio.reading.shards import OpenShard, ShardPool
from shardio.storage.folder import Folder
from shardio.storage.local import refuse_url

LISTING_NAME = "batch.json"
_LONGEST_NAME = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedSample:
    """One sample of the batch.

    Attributes:
        slot: place in the batch.
        key: of the sample.
        valid: False for a repeat that pads the tail.
        shard: path of its shard.
        index: its position in the shard.
        files: what was written, by field.
        problem: why a member of it could not be written; None where all were.
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
    """What was written, as batch.json has it.

    Attributes:
        step: of the epoch.
        rank: whose batch; None is the global batch.
        settings: of the plan.
        samples: by slot.
    """

    step: int
    rank: int | None
    settings: PlanSettings
    samples: tuple[ReplayedSample, ...]


def replay(settings: PlanSettings, *, step: int, rank: int | None, out: str) -> ReplayedBatch:
    """Write the members of one batch's samples, and a listing in batch.json.

    Args:
        settings: of the training run.
        step: of the epoch, from 0.
        rank: whose batch; None is the global batch.
        out: a new or empty folder.

    Raises:
        UsageError: there is no such step or rank, or the folder is not empty.
        TarError: a shard was changed or cut off.
        OutputError: something else than a file took the place of one that was to be written.
        OSError: a file cannot be read or written.
    """
    catalog, plan = open_plan(settings)
    if not 0 <= step < plan.num_steps:
        raise SituationError(f"step {step} is outside the {plan.num_steps} steps of an epoch")
    if rank is not None and not 0 <= rank < settings.ranks:
        raise UsageError(f"rank {rank} is outside the {settings.ranks} ranks")
    refuse_url(out)
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
        batch = ReplayedBatch(step=step, rank=rank, settings=settings, samples=samples)
        with held.create(LISTING_NAME) as stream:
            stream.write(json.dumps(asdict(batch), indent=1).encode() + b"\n")
    return batch


def _write_samples(
    references: References, pool: ShardPool, folder: Folder
) -> tuple[ReplayedSample, ...]:
    digits, samples = len(str(len(references) - 1)), []
    for slot, single in enumerate(references.split(1)):
        shard, index = pool.get(int(single.shards[0])), int(single.indices[0])
        files, problem = _write(shard, index, folder, f"{slot:0{digits}}")
        samples.append(
            ReplayedSample(
                slot=slot,
                key=shard.index.key(index),
                valid=bool(single.valid[0]),
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

    Keys and fields come from a shard, so names are made of harmless characters alone.

    Returns:
        The names of the files by field, and why a member could not be written.
    """
    key = re.sub(r"[^A-Za-z0-9_-]+", "_", shard.index.key(index))[-_LONGEST_NAME:]
    written: dict[str, str] = {}
    problem = None
    for number, field in enumerate(shard.index.fields):
        try:
            (stored,) = shard.read(index, ((field,),))
        except SampleError as error:
            problem = str(error)
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

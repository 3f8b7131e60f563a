"""One batch of a plan, written to a folder as it lies in the shards, to be looked at."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from shardio.errors import UsageError
from shardio.reading.planning import PlanSettings, open_plan
from shardio.reading.shards import OpenShard, ShardPool

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
    """

    slot: int
    key: str
    valid: bool
    shard: str
    index: int
    files: dict[str, str]


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
        SampleError: a member is not what was packed.
        OSError: a file cannot be read or written.
    """
    catalog, plan = open_plan(settings)
    if not 0 <= step < plan.num_steps:
        raise UsageError(f"step {step} is outside the {plan.num_steps} steps of an epoch")
    if rank is not None and not 0 <= rank < settings.ranks:
        raise UsageError(f"rank {rank} is outside the {settings.ranks} ranks")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{out}: it is a file; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UsageError(f"{out}: the folder is not empty; name a new one")
    positions = plan.share([step], rank or 0, 1 if rank is None else settings.ranks)
    references = plan.references(positions)
    digits = len(str(len(references) - 1))
    samples = []
    pool = ShardPool(catalog.shards)
    for slot, single in enumerate(references.split()):
        shard, index = pool.get(int(single.shards[0])), int(single.indices[0])
        samples.append(
            ReplayedSample(
                slot=slot,
                key=shard.index.key(index),
                valid=bool(single.valid[0]),
                shard=shard.name,
                index=index,
                files=_write(shard, index, folder, f"{slot:0{digits}}"),
            )
        )
    batch = ReplayedBatch(step=step, rank=rank, settings=settings, samples=tuple(samples))
    text = json.dumps(asdict(batch), indent=1)
    (folder / LISTING_NAME).write_text(text + "\n", encoding="utf-8")
    return batch


def _write(shard: OpenShard, index: int, folder: Path, slot: str) -> dict[str, str]:
    """Keys and fields come from a shard, so names are made of harmless characters alone."""
    key = re.sub(r"[^A-Za-z0-9_-]+", "_", shard.index.key(index))
    written = {}
    for field in shard.index.fields:
        stored = shard.read(index, (field,))
        if stored is not None:
            suffix = re.sub(r"[^A-Za-z0-9_.-]+", "_", field)
            written[field] = f"{slot}-{key[-_LONGEST_NAME:]}.{suffix[-_LONGEST_NAME:]}"
            (folder / written[field]).write_bytes(stored.data)
    return written

"""One measurement, in a process of its own: settings as JSON in, results as JSON out."""

from __future__ import annotations

import json
import sys
import time
import warnings
from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader

from shardio.errors import ShardioError
from shardio.plan.samples import Samples
from shardio.reading.dataset import ShardDataset
from shardio.reading.times import StageTimes
from shardio.transforms import RandomResizedCrop

_MOST_SAMPLES_PER_SECOND = 200_000
_INDEXES_READ = 16


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Measure one number of workers.

    Args:
        request: the settings and "workers"; see shardio.profiling.profile.

    Returns:
        The measured attributes of shardio.profiling.profile.Run.

    Raises:
        ShardioError: the dataset cannot be read.
    """
    workers, seconds = request["workers"], request["seconds"]
    dataset = _long_dataset(request)
    # More workers than cores are measured to show what they cost.
    warnings.filterwarnings("ignore", "This DataLoader will create")
    start = time.perf_counter()
    batches = iter(DataLoader(dataset, batch_size=None, num_workers=workers))
    next(batches)
    first_batch = time.perf_counter() - start
    for _ in range(2 * workers):
        next(batches)
    before, start, samples, elapsed = replace(dataset.times), time.perf_counter(), 0, 0.0
    for batch in batches:
        samples += len(batch["__key__"])
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            break
    return {
        "images_per_second": samples / elapsed,
        "megabytes_per_second": samples / elapsed * _bytes_per_sample(dataset) / 1e6,
        "first_batch_seconds": first_batch,
        "stages": None if workers else _stages(before, dataset.times, elapsed),
    }


def _long_dataset(request: dict[str, Any]) -> ShardDataset:
    """The dataset, repeated so that an epoch outlasts the measuring."""
    dataset = ShardDataset(
        request["source"],
        transform=RandomResizedCrop(request["size"]) if request["size"] else None,
        batch_size=request["batch_size"],
        shuffle=True,
        on_bad_sample="skip",
    )
    shards = dataset.catalog.shards
    wanted = int(request["seconds"] * _MOST_SAMPLES_PER_SECOND)
    repeats = -(-wanted // sum(shard.samples for shard in shards))
    dataset.catalog = replace(dataset.catalog, shards=shards * repeats)
    dataset.samples = Samples([shard.samples for shard in dataset.catalog.shards])
    return dataset


def _bytes_per_sample(dataset: ShardDataset) -> float:
    wanted = {name for alternatives in dataset.fields.values() for name in alternatives}
    stored = samples = 0
    for shard in dataset.catalog.shards[:_INDEXES_READ]:
        index = shard.load_index()
        columns = [column for column, name in enumerate(index.fields) if name in wanted]
        stored += int(index.sizes[:, columns].sum())
        samples += len(index)
    return stored / samples


def _stages(before: StageTimes, after: StageTimes, elapsed: float) -> dict[str, float]:
    """Microseconds of a sample by stage; what no stage counts is the making of batches."""
    samples = after.samples - before.samples
    stages = {
        stage: (getattr(after, stage) - getattr(before, stage)) / samples / 1e3
        for stage in ("read", "decode", "transform")
    }
    return stages | {"batch": elapsed / samples * 1e6 - sum(stages.values())}


if __name__ == "__main__":
    try:
        answer = measure(json.loads(sys.argv[1]))
    except ShardioError as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer))

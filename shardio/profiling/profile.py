"""Measuring a packed folder under DataLoader with several numbers of workers.

Every number of workers is measured in a process of its own, so that memory and start-up are its
own too. The dataset is repeated to make one long epoch; the batches that fill the pipeline are
not counted. Memory is what the process and its workers hold themselves, page cache left out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from shardio.errors import ShardioError, UsageError
from shardio.index.catalog import Catalog, open_catalog
from shardio.profiling.memory import tree_memory

DEFAULT_WORKERS = (0, 1, 2, 4)
_WARM_BYTES = 1 << 30
_SECONDS_BETWEEN_LOOKS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is held equal between the runs.

    Attributes:
        source: packed folder or shards.
        batch_size: samples in a batch.
        size: images are cropped and resized to size × size; 0 leaves them as they are.
        seconds: of measuring, each run.
    """

    source: str
    batch_size: int = 64
    size: int = 224
    seconds: float = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Microseconds of a sample, in the process that reads it.

    Attributes:
        read: bytes from storage, checked.
        decode: bytes to pixels or values.
        transform: crop, resize, user's transform.
        batch: everything else of making a batch.
    """

    read: float
    decode: float
    transform: float
    batch: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One number of workers.

    Attributes:
        workers: num_workers of the DataLoader; 0 reads in the training process.
        images_per_second: in steady state.
        megabytes_per_second: of stored bytes, in steady state; 1 MB is 10^6 bytes.
        first_batch_seconds: from asking for an iterator to having a batch.
        peak_memory: bytes of the process and its workers; None where it cannot be measured.
        stages: with 0 workers only, where they can be told apart.
    """

    workers: int
    images_per_second: float
    megabytes_per_second: float
    first_batch_seconds: float
    peak_memory: int | None
    stages: Stages | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """All runs.

    Attributes:
        settings: held equal.
        cores: of this machine.
        samples: of the dataset.
        shards: of the dataset.
        runs: one a number of workers, in the order asked for.
    """

    settings: Settings
    cores: int
    samples: int
    shards: int
    runs: tuple[Run, ...]


def profile(
    settings: Settings,
    *,
    workers: Sequence[int] = DEFAULT_WORKERS,
    on_run: Callable[[int], None] | None = None,
) -> Profile:
    """Measure a dataset; the machine should be idle.

    Args:
        settings: held equal between the runs.
        workers: numbers of workers to measure.
        on_run: called with 1 after each of them.

    Raises:
        UsageError: nothing is at the source, or it has no samples.
        ShardioError: a run failed; the message is the run's.
    """
    catalog = open_catalog(settings.source)
    samples = sum(shard.samples for shard in catalog.shards)
    if not samples:
        raise UsageError(f"{settings.source}: the dataset has no samples to measure")
    _warm(catalog)
    runs = []
    for number in workers:
        runs.append(_measure(settings, number))
        if on_run is not None:
            on_run(1)
    return Profile(
        settings=settings,
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        samples=samples,
        shards=len(catalog.shards),
        runs=tuple(runs),
    )


def _warm(catalog: Catalog) -> None:
    """Read shards into the page cache, so that the first run is not the slowest."""
    left = _WARM_BYTES
    for shard in catalog.shards:
        with Path(shard.path).open("rb") as stream:
            while left > 0 and (piece := stream.read(1 << 20)):
                left -= len(piece)


def _measure(settings: Settings, workers: int) -> Run:
    command = [sys.executable, "-m", "shardio.profiling.run"]
    request = json.dumps({**asdict(settings), "workers": workers})
    with subprocess.Popen(  # noqa: S603  our own module
        [*command, request], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, peak = _watch(process)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    answer = json.loads(output or '{"error": "the measuring process died"}')
    if "error" in answer:
        raise ShardioError(answer["error"])
    stages = answer.pop("stages")
    return Run(
        workers=workers,
        peak_memory=peak or None,
        stages=Stages(**stages) if stages else None,
        **answer,
    )


def _watch(process: subprocess.Popen[str]) -> tuple[str, int]:
    """What a process prints, and the most memory that it and its workers had."""
    peak = 0
    while (output := _output_within(process, _SECONDS_BETWEEN_LOOKS)) is None:
        peak = max(peak, tree_memory(process.pid) or 0)
    return output, peak


def _output_within(process: subprocess.Popen[str], seconds: float) -> str | None:
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        return None

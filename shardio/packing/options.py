"""Arguments that the functions which write shards share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Literal, get_args

from shardio.errors import PackError, UsageError
from shardio.packing.engine import Engine, LocalEngine
from shardio.packing.ray_engine import RayEngine
from shardio.packing.samples import FromFile, FromMemory, SourceSample
from shardio.tar.header import BLOCK

OnError = Literal["raise", "skip"]
EngineName = Literal["local", "ray"]


def check_output(
    out: str | PathLike[str],
    *,
    seed: int,
    on_error: OnError,
    split: Mapping[str, float] | None,
    stratify: bool,
) -> None:
    """Check what packing and resharding are asked for alike.

    Raises:
        UsageError: an argument cannot be meant.
        PackError: the output has no name.
    """
    if not isinstance(seed, int):
        raise UsageError(f"seed={seed!r}: it must be a whole number")
    if on_error not in get_args(OnError):
        raise UsageError(f"on_error={on_error!r}: it must be 'raise' or 'skip'")
    if stratify and split is None:
        raise UsageError("stratify is of splits; give split, as {'train': 0.9, 'val': 0.1}")
    if not fspath(out):
        raise PackError("the name of the output folder is empty; name a folder")


def make_engine(name: EngineName, jobs: int | None) -> Engine:
    """What runs tasks.

    Raises:
        UsageError: there is no such engine, or no such number of jobs.
    """
    if name not in get_args(EngineName):
        raise UsageError(f"engine={name!r}: it must be 'local' or 'ray'")
    if jobs is not None and (type(jobs) is not int or jobs < 1):
        raise UsageError(f"jobs={jobs!r}: it must be a whole number, at least 1")
    if name == "ray" and jobs is not None:
        raise UsageError("jobs is for engine='local'; a Ray cluster runs as many as it has cores")
    return RayEngine() if name == "ray" else LocalEngine(jobs)


class Measure:
    """Says how many bytes samples take in a shard.

    Args:
        root: folder that relative paths start from.
    """

    def __init__(self, root: str) -> None:
        self._root = os.fsencode(root)

    def __call__(self, sample: SourceSample) -> int:
        """Headers and padding included; files that are not there count as empty."""
        total = 0
        for _, origin in sample.fields:
            if isinstance(origin, FromMemory):
                size = len(origin.data)
            elif isinstance(origin, FromFile):
                try:
                    size = os.stat(os.path.join(self._root, origin.path)).st_size  # noqa: PTH116, PTH118
                except OSError:  # packing tells it
                    size = 0
            else:
                size = origin.size
            total += BLOCK + size + -size % BLOCK
        return total

"""Every sample once, in one order and with its bytes, from stores that fail, in real processes.

What is read, how, and what fails is in tools/check/grid.py. Here some combinations cover every pair
of values; the campaign `remote` runs all. Each runs in a process of its own, with a limit of time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch.distributed
from torch.utils.data import DataLoader

import children
import grid
from servers import Missing, Nginx, SeaweedS3

COMBINATIONS = grid.pairwise(grid.all_combinations())
MOST = 40  # requests among which some fail


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grid.Sets]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # a child would wait for threads that it has not
    yield grid.Sets(tmp_path_factory.mktemp("sets"))
    cv2.setNumThreads(threads)


@pytest.fixture(scope="module")
def bucket(s3: SeaweedS3, sets: grid.Sets) -> grid.Bucket:
    return grid.Bucket(s3, sets)


def in_child(function: Callable[[], Any], *args: Any) -> Any:
    """Call a function in a child, which must end in time and raise nothing."""
    ended = children.in_child(partial(function, *args)).check()
    if ended.error == "Missing":
        pytest.skip(ended.message)
    assert not ended.error, f"{ended.error}: {ended.message}"
    return ended.value


def test_the_combinations_cover_every_pair() -> None:
    assert len(COMBINATIONS) >= 20
    assert {each.fault for each in COMBINATIONS if each.way == "spawn"} == {*grid.FAULTS}
    assert {each.fault for each in COMBINATIONS if each.kind == "compressed"} == {*grid.FAULTS}


@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_each_sample_comes_once_as_from_local_files(
    combination: grid.Combination,
    sets: grid.Sets,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    bucket = request.getfixturevalue("bucket") if combination.store == "s3" else None
    in_child(partial(combination.run, tmp_path, sets, bucket, MOST))


def read_as_rank(
    sets: grid.Sets, url: str, folder: Path, rank: int, workers: int
) -> tuple[list[str], int]:
    """Read an epoch as one of two ranks, each with a cache of its own; returns keys and steps."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    dataset = grid.open_set(
        url, rank, 2, streams=2, window=1, cache_dir=folder / f"cache-{rank}", rank_of_group=True
    ) if False else _open_streams(url, folder / f"cache-{rank}")
    keys: list[str] = []
    steps = 0
    for batch in grid.load(dataset, "fork", workers):
        valid = batch["valid"].tolist()
        keys += [key for key, real in zip(batch["__key__"], valid, strict=True) if real]
        steps += 1
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return keys, steps

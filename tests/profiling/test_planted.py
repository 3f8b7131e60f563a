"""Bottlenecks that are planted are named; tools/check/bottlenecks.py plants more of them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

import shardio
from shardio.profiling import monitor
from shardio.profiling.verdict import judge
from shardio.storage.local import LocalShard


def bottleneck(loader: Iterable[Any]) -> str | None:
    """What limits the loop once it has started, which takes long where much else runs."""
    with monitor(loader, live=False) as seen:
        for _ in seen:
            pass
    return judge(replace(seen.evidence, starting=0.0)).bottleneck


def sleep(image: torch.Tensor) -> torch.Tensor:
    time.sleep(0.005)
    return image


def sleep_in_one(image: torch.Tensor) -> torch.Tensor:
    worker = get_worker_info()
    if worker is not None and worker.id == 1:
        time.sleep(0.005)
    return image


def opened(packed: Path, transform: Any = None) -> shardio.ShardDataset:
    return shardio.ShardDataset(packed, batch_size=10, shuffle=True, transform=transform)


@pytest.mark.usefixtures("python_path")
@pytest.mark.parametrize("cached", [1.0, 0.0, None])
def test_slow_storage_is_named_and_whether_it_was_cold(
    packed: Path, monkeypatch: pytest.MonkeyPatch, cached: float | None
) -> None:
    read = LocalShard.read

    def slow(shard: LocalShard, offset: int, size: int) -> bytes:
        time.sleep(0.005)
        return read(shard, offset, size)

    monkeypatch.setattr(LocalShard, "read", slow)
    monkeypatch.setattr("shardio.profiling.monitoring.cached_share", lambda _: cached)
    expected = "cold" if cached == 0.0 else "storage"
    assert bottleneck(shardio.Loader(opened(packed), threads=2)) == expected


def test_a_transform_that_waits_is_named(packed: Path) -> None:
    assert bottleneck(shardio.Loader(opened(packed, sleep), threads=2)) == "transform"


def test_a_map_that_waits_is_named_and_not_the_crop(packed: Path) -> None:
    def late(sample: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.005)
        return sample

    cropped = opened(packed, shardio.RandomResizedCrop(16)).replace(map=late)
    assert bottleneck(shardio.Loader(cropped, threads=2)) == "map"


def test_one_slow_worker_is_named(packed: Path) -> None:
    dataset = opened(packed, sleep_in_one)
    assert bottleneck(DataLoader(dataset, batch_size=None, num_workers=2)) == "worker"


def test_a_tiny_dataset_is_named(packed: Path) -> None:
    few = opened(packed).subset(range(20))
    with monitor(DataLoader(few, batch_size=None, num_workers=1), live=False) as seen:
        for _ in seen:
            pass
    assert seen.verdict.bottleneck == "start"

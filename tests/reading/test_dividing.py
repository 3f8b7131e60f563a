"""A dataset divides its samples among the ranks; that nobody divides them again is looked after."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, IterableDataset

import shardio
from shardio.testing import make_shard

REFUSED = r"divides among the ranks what this dataset has divided already.* rank=0, world_size=1"


class IterableDatasetShard(IterableDataset[Any]):
    """What accelerate and transformers make of an iterable dataset, for batches of one sample."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        for number, element in enumerate(self.dataset):
            if number % 2 == 0:
                yield element


class Told(IterableDataset[Any]):
    """Yields an error instead of raising it: torch takes seconds to end a worker that raised."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.dataset
        except shardio.UsageError as error:
            yield str(error)


class Numbered(IterableDataset[Any]):
    """A dataset of a user's around a dataset of shardio."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        yield from enumerate(self.dataset)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return make_shard(tmp_path / "a.tar", {f"{i:02}": {"cls": b"%d" % i} for i in range(48)})


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", ["samples", "batches", "Loader", "Mix", "Numbered"])
def test_a_second_division_is_refused_wherever_it_reads(
    shard: Path, kind: str, num_workers: int
) -> None:
    batch_size = None if kind in {"samples", "Numbered"} else 4
    dataset = shardio.ShardDataset(shard, batch_size=batch_size, rank=0, world_size=2)
    wrapped: Any = dataset
    if kind == "Loader":
        wrapped = shardio.Loader(dataset, threads=1)
    elif kind == "Mix":
        wrapped = shardio.Mix([dataset, dataset.replace(seed=1)], weights=[0.5, 0.5])
    elif kind == "Numbered":
        wrapped = Numbered(dataset)
    told = Told(IterableDatasetShard(wrapped))
    (message,) = DataLoader(told, batch_size=None, num_workers=num_workers)
    assert re.search(REFUSED, message)


def test_a_wrapper_that_only_sets_the_epoch_is_refused_too(shard: Path) -> None:
    dataset = shardio.ShardDataset(shard, rank=1, world_size=2)
    with pytest.raises(shardio.UsageError, match=REFUSED):
        IterableDatasetShard(dataset).set_epoch(3)
    dataset.set_epoch(3)
    assert len([*dataset]) == 24


def test_a_dataset_for_one_rank_is_divided_once(shard: Path) -> None:
    dataset = shardio.ShardDataset(shard, rank=0, world_size=1)
    assert len([*IterableDatasetShard(dataset)]) == 24


def test_batches_for_one_rank_are_not_divided_among_two(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate would fail on their text on one rank, and wait for ever on the other."""
    dataset = shardio.ShardDataset(shard, batch_size=4, rank=0, world_size=1)
    assert len([*IterableDatasetShard(dataset)]) == 6
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(shardio.UsageError, match=r"what are batches already.*a shardio\.Loader"):
        next(iter(IterableDatasetShard(dataset)))
    assert len([*dataset]) == 12

"""Shards in a storage that is no file system: read and verified through the public functions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

import shardio
from shardio.indexing import shard_index
from tests.storage.memory import MemoryStorage

OUT = "memory://bucket/out"
_buckets = count()


@pytest.fixture
def memory() -> MemoryStorage:
    return MemoryStorage(f"remote {next(_buckets)}")


@pytest.fixture
def copied(memory: MemoryStorage, packed: Path) -> MemoryStorage:
    """The packed images, copied as they are."""
    for path in packed.rglob("*"):
        if path.is_file():
            memory.publish(f"{OUT}/{path.relative_to(packed)}", path)
    return memory


def read_all(dataset: shardio.ShardDataset, workers: int = 0) -> list[tuple[str, int, bytes]]:
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    return [
        (key, int(label), image.numpy().tobytes())
        for batch in loader
        for key, label, image in zip(batch["__key__"], batch["label"], batch["image"], strict=True)
    ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", [OUT, f"{OUT}/", f"{OUT}/shardio.json", [OUT]])
def test_batches_are_those_of_local_files(
    copied: MemoryStorage, packed: Path, source: str | list[str], workers: int
) -> None:
    options: dict[str, Any] = {"batch_size": 50, "shuffle": True, "seed": 3}
    there = shardio.ShardDataset(source, storage=copied, **options)
    here = shardio.ShardDataset(packed, **options)
    assert there.contents == here.contents
    assert read_all(there, workers) == read_all(here)


def test_large_indexes_are_read_too(
    copied: MemoryStorage, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_index, "_MOST_READ", 0)
    dataset = shardio.ShardDataset(OUT, storage=copied, batch_size=50)
    assert all(entry.load_index().file is None for entry in dataset.catalog.shards)
    assert read_all(dataset) == read_all(shardio.ShardDataset(packed, batch_size=50))


def test_rows_of_equal_size_are_read(memory: MemoryStorage, tmp_path: Path) -> None:
    rows = [np.full(4, number, np.float32) for number in range(40)]
    samples = [{"__key__": f"{number:03d}", "x.npy": row} for number, row in enumerate(rows)]
    shardio.pack(samples, tmp_path / "out", shards=2, shuffle=False)
    for path in (tmp_path / "out").rglob("*.*"):
        memory.publish(f"{OUT}/{path.relative_to(tmp_path / 'out')}", path)
    dataset = shardio.ShardDataset(OUT, storage=memory, batch_size=40)
    (batch,) = dataset
    assert np.array_equal(batch["x.npy"].numpy(), np.stack(rows))


def test_other_arguments_and_parts_keep_the_storage(copied: MemoryStorage) -> None:
    dataset = shardio.ShardDataset(OUT, storage=copied, batch_size=50)
    part, _ = dataset.replace(batch_size=10).split(0.5, 0.5)
    assert len(read_all(part)) == 300
    assert dataset.by_key("class03/image0005")["label"] == 3


def test_it_verifies(copied: MemoryStorage) -> None:
    found = shardio.verify(OUT, storage=copied, jobs=2)
    assert found.sound
    assert (found.shards, found.samples, found.findings) == (8, 600, ())


def flip(memory: MemoryStorage, name: str) -> None:
    data = bytearray(memory.files[f"{OUT}/{name}"])
    data[len(data) // 2] ^= 1
    memory.publish(f"{OUT}/{name}", bytes(data))


DAMAGES: dict[str, tuple[Callable[[MemoryStorage], None], str]] = {
    "shard flipped": (lambda memory: flip(memory, "shard-000003.tar"), "CRC-32 differs"),
    "shard missing": (
        lambda memory: memory.remove(f"{OUT}/shard-000003.tar"), "the shard is missing"
    ),
    "index flipped": (
        lambda memory: flip(memory, "index/shard-000003.tar.idx"), "its checksum differs"
    ),
    "index missing": (
        lambda memory: memory.remove(f"{OUT}/index/shard-000003.tar.idx"), "the index is missing"
    ),
    "manifest flipped": (lambda memory: flip(memory, "shardio.json"), "the manifest is damaged"),
    "temporary file": (
        lambda memory: memory.publish(f"{OUT}/.shard-000000.tar.1-2.tmp", b""),
        "a temporary file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(copied: MemoryStorage, damage: str) -> None:
    harm, told = DAMAGES[damage]
    harm(copied)
    found = shardio.verify(OUT, storage=copied, jobs=1)
    assert [finding for finding in found.problems if told in finding.what], found.findings


def test_a_shard_that_changes_in_an_epoch_is_an_error(copied: MemoryStorage) -> None:
    steps = iter(shardio.ShardDataset(OUT, storage=copied, batch_size=10))
    next(steps)
    for number in range(8):
        flip(copied, f"shard-{number:06d}.tar")
    with pytest.raises(shardio.ShardioError, match="changed after it was opened"):
        for _ in steps:
            pass


def test_what_is_no_packed_folder_is_told(copied: MemoryStorage) -> None:
    copied.remove(f"{OUT}/shardio.json")
    with pytest.raises(shardio.SituationError, match="no packed folder is there"):
        shardio.ShardDataset(OUT, storage=copied)
    with pytest.raises(shardio.SituationError, match="no such folder or shard"):
        shardio.verify("memory://bucket/missing", storage=copied)


def test_urls_without_a_storage_are_refused_as_ever() -> None:
    with pytest.raises(shardio.UsageError, match="memory storage is not read or written yet"):
        shardio.ShardDataset(OUT)

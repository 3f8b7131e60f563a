"""Exactly once, equal steps, one order: with real DataLoaders and worker processes."""

from __future__ import annotations

import copy
import multiprocessing
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import shardio
from tests import programs

SHARDS = (1, 2, 7, 16)
RANKS = (1, 2, 3, 5)
WORKERS = (0, 1, 2, 3)


@pytest.fixture(scope="session")
def folders(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("folders")
    for shards in SHARDS:
        shardio.pack(images, root / str(shards), shards=shards)
    return {shards: root / str(shards) for shards in SHARDS}


def load(dataset: shardio.ShardDataset, workers: int, **options: Any) -> DataLoader[Any]:
    options.setdefault("batch_size", None)
    if workers:
        options.setdefault("multiprocessing_context", "fork")
    return DataLoader(dataset, num_workers=workers, **options)


def keys_of(batches: Iterable[dict[str, Any]]) -> list[list[str]]:
    """Keys of each batch, those of samples that are not valid in brackets."""
    return [
        [
            key if valid else f"({key})"
            for key, valid in zip(batch["__key__"], batch["valid"].tolist(), strict=True)
        ]
        for batch in batches
    ]


@pytest.mark.parametrize(
    ("shards", "ranks", "workers"),
    [
        (shards, ranks, WORKERS[(one + other) % 4])  # every pair of two values once
        for one, shards in enumerate(SHARDS)
        for other, ranks in enumerate(RANKS)
    ],
)
def test_each_sample_comes_exactly_once_in_batches(
    folders: dict[int, Path], shards: int, ranks: int, workers: int
) -> None:
    counts: Counter[str] = Counter()
    steps = set()
    for rank in range(ranks):
        dataset = shardio.ShardDataset(
            folders[shards], shuffle=True, decode=False, batch_size=7, rank=rank, world_size=ranks
        )
        batches = keys_of(load(dataset, workers))
        assert len(batches) == len(dataset)
        assert {len(batch) for batch in batches} == {7}
        steps.add(len(batches))
        counts.update(key for batch in batches for key in batch if not key.startswith("("))
    assert set(counts.values()) == {1}
    assert len(counts) == 600
    assert steps == {-(-600 // (7 * ranks))}


@pytest.mark.parametrize(
    ("shards", "ranks", "workers"),
    [
        ((1, 7)[(one + other) % 2], ranks, workers)
        for one, ranks in enumerate((1, 3))
        for other, workers in enumerate((0, 1, 5))
    ],
)
def test_each_sample_comes_exactly_once_as_samples(
    folders: dict[int, Path], shards: int, ranks: int, workers: int
) -> None:
    counts: Counter[str] = Counter()
    steps = set()
    for rank in range(ranks):
        dataset = shardio.ShardDataset(
            folders[shards], shuffle=True, fields={"label": "cls"}, rank=rank, world_size=ranks
        )
        batches = keys_of(load(dataset, workers, batch_size=16))
        assert sum(map(len, batches)) == len(dataset) == -(-600 // ranks)
        steps.add(len(batches))
        counts.update(key for batch in batches for key in batch if not key.startswith("("))
    assert set(counts.values()) == {1}
    assert len(counts) == 600
    assert len(steps) == 1


def test_batches_do_not_depend_on_the_number_of_workers(packed: Path) -> None:
    def batches(workers: int) -> list[dict[str, Any]]:
        dataset = shardio.ShardDataset(
            packed,
            shuffle=True,
            seed=5,
            batch_size=32,
            transform=shardio.RandomResizedCrop(6),
        )
        return [*load(dataset, workers)]

    alone = batches(0)
    for workers in (1, 2, 3):
        for one, other in zip(alone, batches(workers), strict=True):
            assert one["__key__"] == other["__key__"]
            for name in ("image", "label", "valid"):
                assert torch.equal(one[name], other[name])


def test_ranks_slice_the_global_batches_of_one_rank(packed: Path) -> None:
    whole = keys_of(shardio.ShardDataset(packed, shuffle=True, batch_size=12))
    for ranks in (2, 3, 4):
        parts = [
            keys_of(
                shardio.ShardDataset(
                    packed, shuffle=True, batch_size=12 // ranks, rank=rank, world_size=ranks
                )
            )
            for rank in range(ranks)
        ]
        assert [[*chain(*slices)] for slices in zip(*parts, strict=True)] == whole


def test_tail_drop_leaves_the_last_step_out(packed: Path) -> None:
    padded = keys_of(shardio.ShardDataset(packed, shuffle=True, batch_size=64))
    dataset = shardio.ShardDataset(packed, shuffle=True, batch_size=64, tail="drop")
    assert keys_of(dataset) == padded[:9]
    assert len(dataset) == 9
    assert padded[9][24:] == [f"({key})" for key in padded[0][:40]]


@pytest.mark.parametrize("shuffle", [True, "full"])
def test_a_second_loop_is_a_new_epoch_in_a_new_order(packed: Path, shuffle: Any) -> None:
    dataset = shardio.ShardDataset(packed, shuffle=shuffle, decode=False, batch_size=50)
    epochs = [keys_of(dataset) for _ in range(3)]
    assert len({str(epoch) for epoch in epochs}) == 3
    dataset.set_epoch(1)
    assert [keys_of(dataset), keys_of(dataset)] == epochs[1:]
    again = shardio.ShardDataset(packed, shuffle=shuffle, decode=False, batch_size=50)
    assert keys_of(again) == epochs[0]


def test_full_shuffle_mixes_all_shards_and_windows_mix_few(packed: Path) -> None:
    def shards_in_first_step(**options: Any) -> int:
        dataset = shardio.ShardDataset(packed, decode=False, batch_size=60, **options)
        plan = dataset.plan(0)
        return len(set(plan.references(plan.share([0], 0, 1)).shards.tolist()))

    assert shards_in_first_step(shuffle="full", window=1) == 8
    assert shards_in_first_step(shuffle=True, window=1) == 1
    assert shards_in_first_step(shuffle=True, window=2) == 2


def test_without_shuffle_samples_come_as_packed(images: Path, tmp_path: Path) -> None:
    shardio.pack(images, tmp_path / "out", shards=4, shuffle=False)
    keys = [sample["__key__"] for sample in shardio.ShardDataset(tmp_path / "out", decode=False)]
    assert keys == sorted(keys)
    assert len(keys) == 600


@pytest.mark.parametrize(
    ("method", "persistent"),
    [("fork", False), ("fork", True), ("forkserver", False), ("spawn", True)],
)
def test_epochs_advance_inside_a_dataloader(packed: Path, method: str, persistent: bool) -> None:
    expected = shardio.ShardDataset(packed, shuffle=True, decode=False, batch_size=40)
    dataset = shardio.ShardDataset(packed, shuffle=True, decode=False, batch_size=40)
    workers = 1 if method == "spawn" else 2  # it takes seconds to start one
    loader = load(dataset, workers, multiprocessing_context=method, persistent_workers=persistent)
    for _ in range(2):
        torch.manual_seed(0)  # as a script may do: DataLoader then gives all epochs one base seed
        assert keys_of(loader) == keys_of(expected)
    dataset.set_epoch(7)
    expected.set_epoch(7)
    assert keys_of(loader) == keys_of(expected)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_samples_come_exactly_once_under_every_start_method(packed: Path, method: str) -> None:
    dataset = shardio.ShardDataset(packed, shuffle=True)
    workers = 2 if method == "spawn" else 3
    batches = keys_of(load(dataset, workers, batch_size=20, multiprocessing_context=method))
    expected = keys_of(shardio.ShardDataset(packed, batch_size=60))
    assert sorted(chain(*batches)) == sorted(chain(*expected))


def test_a_loop_left_early_is_an_epoch_too(packed: Path) -> None:
    dataset = shardio.ShardDataset(packed, shuffle=True, decode=False, batch_size=40)
    expected = [keys_of(dataset) for _ in range(3)]
    dataset.set_epoch(0)
    loader = load(dataset, 2)
    torch.manual_seed(0)
    for _ in loader:
        break
    torch.manual_seed(0)
    assert keys_of(loader) == expected[1]
    dataset.set_epoch(1)
    for _ in dataset:
        break
    assert keys_of(loader) == expected[2]


def test_two_loaders_over_one_dataset_do_not_disturb_each_other(packed: Path) -> None:
    dataset = shardio.ShardDataset(packed, shuffle=True, decode=False, batch_size=40)
    expected = [keys_of(dataset), keys_of(dataset)]
    dataset.set_epoch(0)
    pairs = [*zip(load(dataset, 2), load(dataset, 3), strict=True)]
    found = [keys_of(one for one, _ in pairs), keys_of(other for _, other in pairs)]
    assert sorted(found) == sorted(expected)


def _keys_in_rank(rank: int, dataset: shardio.ShardDataset, folder: Path) -> None:
    dataset = copy.deepcopy(dataset) if rank % 2 else dataset
    loader = load(dataset, 2)
    for epoch in range(2):
        (folder / f"{epoch}-{rank}").write_text("\n".join(chain(*keys_of(loader))))


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_ranks_that_get_one_dataset_handed_count_their_epochs_alone(
    packed: Path, tmp_path: Path, method: str
) -> None:
    context: Any = multiprocessing.get_context(method)
    dataset = shardio.ShardDataset(packed, shuffle=True, decode=False, batch_size=100)
    processes = [
        context.Process(target=_keys_in_rank, args=(rank, dataset, tmp_path)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    expected = shardio.ShardDataset(packed, shuffle=True, decode=False, batch_size=100)
    for epoch in range(2):
        keys = "\n".join(chain(*keys_of(expected)))
        assert [(tmp_path / f"{epoch}-{rank}").read_text() for rank in range(2)] == [keys, keys]


@pytest.mark.parametrize("where", ["main", "workers"])
def test_datasets_leave_no_files_behind(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    code = (
        "import sys, shardio; from torch.utils.data import DataLoader;"
        "dataset = shardio.ShardDataset(sys.argv[1], decode=False, batch_size=100);"
        "first = list(dataset) if sys.argv[2] == 'main' else None;"
        "list(DataLoader(dataset, batch_size=None, num_workers=2))"
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = programs.run(code, packed, where)
    assert done.returncode == 0, done.stderr
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]

"""Killed on one topology, taken up on another: keys and pixels are those of one process.

Every case reads with real worker processes, and compares a digest of each global batch.
"""

from __future__ import annotations

import hashlib
from functools import cache
from itertools import compress, islice
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

import shardio
from shardio.indexing.entry import ShardEntry

GLOBAL_BATCH_SIZE = 48  # 600 samples are 12 and a half
TOPOLOGIES = ((1, 0), (1, 3), (2, 1), (3, 2), (4, 0), (8, 1))  # ranks, workers of each
ORDERS: dict[str, dict[str, Any]] = {
    "windows": {"shuffle": True, "window": 2},
    "full": {"shuffle": "full", "tail": "drop"},
    "streams": {"shuffle": True, "window": 1, "streams": 24},
    "packed": {"shuffle": False},
    "even": {"shuffle": True, "window": 2, "tail": "even"},
    "epoch_size": {"shuffle": True, "window": 2, "epoch_size": 620},
    "weights": {"shuffle": True, "window": 2, "weights": {0: 5, **dict.fromkeys(range(1, 10), 1)}},
}
Digests = dict[tuple[int, int], str]


@pytest.fixture(scope="module")
def folders(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("folders")
    for shards in (1, 7, 16):
        shardio.pack(images, root / str(shards), shards=shards)
    return {shards: root / str(shards) for shards in (1, 7, 16)}


@pytest.mark.parametrize("tail", ["pad", "even"])
@pytest.mark.parametrize("ranks", [1, 3, 7])
def test_a_mean_over_valid_samples_is_that_of_one_process(
    folders: dict[int, Path], ranks: int, tail: Any
) -> None:
    """vision#4559: samples that filled the last batch were counted twice in the accuracy."""
    total = count = 0
    for rank in range(ranks):
        share: dict[str, Any] = {"batch_size": 16, "rank": rank, "world_size": ranks}
        for batch in shardio.ShardDataset(folders[7], tail=tail, **share):
            total += int(batch["label"][batch["valid"]].square().sum())
            count += int(batch["valid"].sum())
    assert (total, count) == (60 * sum(n * n for n in range(10)), 600)


@pytest.mark.parametrize(("ranks", "tail"), [(2, "pad"), (2, "even"), (2, "drop"), (4, "even")])
def test_every_rank_has_as_many_batches_whatever_is_left(
    folders: dict[int, Path], ranks: int, tail: Any
) -> None:
    """datasets#6623: of five samples in batches of two the last rank got none, and the other hung.

    webdataset#188: with fewer shards than workers and ranks some had nothing to read.
    datasets#8079: of a single shard all ranks but the first got no sample.
    litData#233: ranks had different numbers of batches in spite of drop_last.
    """
    few = shardio.ShardDataset(folders[1]).subset([3, 100, 200, 300, 599])
    sizes, keys = set(), []
    for rank in range(ranks):
        part = few.replace(batch_size=2, rank=rank, world_size=ranks, tail=tail)
        batches = [*DataLoader(part, batch_size=None, num_workers=3)]
        assert len(batches) == len(part)
        sizes.add(tuple(len(batch["valid"]) for batch in batches))
        keys += [key for b in batches for key in compress(b["__key__"], b["valid"].tolist())]
    assert len(sizes) == 1
    assert len(keys) == len({*keys}) == (4 if tail == "drop" else 5)


def samples_of(batch: dict[str, Any]) -> list[bytes]:
    """Everything that a loop gets of each sample."""
    pixels = batch["image"].permute(0, 2, 3, 1).numpy()
    facts = zip(batch["__key__"], batch["valid"].tolist(), batch["label"].tolist(), strict=True)
    return [repr(fact).encode() + pixels[slot].tobytes() for slot, fact in enumerate(facts)]


def read(
    folder: Path,
    order: str,
    topology: tuple[int, int],
    *,
    state: dict[str, Any] | None = None,
    steps: int | None = None,
) -> tuple[Digests, dict[str, Any]]:
    """Digests of global batches by epoch and step, and the state after the last of them."""
    ranks, workers = topology
    parts: dict[tuple[int, int], list[bytes]] = {}
    for rank in range(ranks):
        dataset = shardio.ShardDataset(
            folder,
            transform=shardio.RandomResizedCrop(8),
            global_batch_size=GLOBAL_BATCH_SIZE,
            rank=rank,
            world_size=ranks,
            **ORDERS[order],
        )
        if state is not None:
            dataset.load_state_dict(state)
        options: Any = {"multiprocessing_context": "fork"} if workers else {}
        loader = DataLoader(dataset, batch_size=None, num_workers=workers, **options)
        for batch in islice(loader, steps):
            place = batch["__epoch__"], batch["__step__"]
            samples = samples_of(batch)
            if order == "even":  # whose pads depend on the ranks
                samples = [*compress(samples, batch["valid"].tolist())]
            parts.setdefault(place, []).extend(samples)
            after = dataset.state_dict(batch)
    digests = {place: hashlib.sha256(b"".join(part)).hexdigest() for place, part in parts.items()}
    return digests, after


@cache
def uninterrupted(folder: Path, order: str) -> Digests:
    return read(folder, order, (1, 0))[0]


@pytest.mark.parametrize(
    ("shards", "order", "case"),
    [
        ((1, 7, 16)[(number + case // 2) % 3], order, case)
        for number, order in enumerate(ORDERS)
        for case in range(number % 2, len(TOPOLOGIES), 2)  # of others `meaning` is the campaign
    ],
)
def test_a_run_goes_on_with_the_same_batches_on_other_ranks_and_workers(
    folders: dict[int, Path], shards: int, order: str, case: int
) -> None:
    before, then = TOPOLOGIES[case], TOPOLOGIES[case - 1]
    first, state = read(folders[shards], order, before, steps=2 * case + 1)
    rest, state = read(folders[shards], order, then, state=state)
    expected = uninterrupted(folders[shards], order)
    assert len(first) == 2 * case + 1
    assert first | rest == expected
    assert not first.keys() & rest.keys()
    assert len(expected) == (12 if order == "full" else 13)
    assert (state["epoch"], state["step"]) == (1, 0)


def test_a_mixture_goes_on_with_the_same_batches_on_other_ranks_and_workers(packed: Path) -> None:
    def keys(
        topology: tuple[int, int], state: Any, steps: int | None
    ) -> tuple[dict[int, list[Any]], dict[str, Any]]:
        ranks, workers = topology
        found: dict[int, list[Any]] = {}
        for rank in range(ranks):
            whole = shardio.ShardDataset(
                packed, shuffle=True, global_batch_size=24, rank=rank, world_size=ranks
            )
            mix = shardio.Mix(whole.split(0.6, 0.3, 0.1), weights=[0.5, 0.25, 0.25], stop="all")
            if state:
                mix.load_state_dict(state)
            options: Any = {"multiprocessing_context": "fork"} if workers else {}
            loader = DataLoader(mix, batch_size=None, num_workers=workers, **options)
            for batch in islice(loader, steps):
                found.setdefault(batch["__step__"], []).extend(
                    zip(batch["__key__"], batch["__source__"].tolist(), strict=True)
                )
                after = mix.state_dict(batch)
        return found, after

    expected, _ = keys((1, 0), None, None)
    for before, then, steps in zip(TOPOLOGIES[1:4], TOPOLOGIES[3:], (1, 5, 9), strict=True):
        first, state = keys(before, None, steps)
        rest, _ = keys(then, state, None)
        assert first | rest == expected
        assert not first.keys() & rest.keys()


def test_nodes_with_streams_open_few_shards_of_others(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four nodes of two ranks; with whole shards cached, they fetch 1.1 times the bytes at most."""
    shardio.pack(images, tmp_path / "out", shards=30)
    opened: set[str] = set()
    open_file = ShardEntry.open_file
    monkeypatch.setattr(
        ShardEntry,
        "open_file",
        lambda entry: opened.add(entry.name) or open_file(entry),  # type: ignore[func-returns-value]
    )
    fetched = []
    keys = []
    for node in range(4):
        opened.clear()
        for rank in (2 * node, 2 * node + 1):
            dataset = shardio.ShardDataset(
                tmp_path / "out", shuffle=True, window=2, streams=16, global_batch_size=48,
                decode=False, rank=rank, world_size=8,
            )  # fmt: skip
            for batch in [batch for _ in range(3) for batch in dataset]:
                keys += [k for k, v in zip(batch["__key__"], batch["valid"].tolist()) if v]  # noqa: B905
        fetched += [Path(name).stat().st_size for name in opened]
    total = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    assert total < sum(fetched) <= 1.1 * total
    assert len(keys) == 3 * 600
    assert len(set(keys)) == 600

"""What is asked for before it is read, on storage where every request takes long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import shardio
from shardio.planning.epoch import EpochPlan, Shuffle
from shardio.planning.samples import Samples
from shardio.reading.readahead import ReadAhead
from shardio.reading.shards import OpenShard, ShardPool
from shardio.reading.times import StageTimes
from shardio.storage.local import LocalShard
from shardio.testing import make_shard


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """The names of shards and the bytes of them that are asked for, in order."""
    pieces: list[tuple[str, int, int]] = []
    monkeypatch.setattr(
        LocalShard, "read_ahead", lambda shard, *span: pieces.append((shard.name, *span))
    )
    return pieces


def wait_until(condition: Callable[[], object]) -> None:
    """Asking happens in threads of its own."""
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not happen")


def whole(asked: list[tuple[str, int, int]]) -> list[str]:
    """The shards of which more was asked for than a sample."""
    return [*dict.fromkeys(name for name, start, end in asked if end - start > 2000)]


def test_the_pages_of_the_next_window_are_asked_for_ahead(
    packed: Path, asked: list[tuple[str, int, int]]
) -> None:
    dataset = shardio.ShardDataset(packed, shuffle=True, window=2, decode=False, batch_size=50)
    order = [
        dataset.catalog.shards[i].name
        for w in range(4)
        for i in dataset.plan(0).orders[0].runs_of_window(w).shards
    ]
    steps = iter(dataset)
    first = next(steps)
    wait_until(lambda: len(whole(asked)) == 4)
    assert whole(asked) == order[:4]
    samples = [(name, end - start) for name, start, end in asked if end - start <= 2000]
    assert len(samples) == len(first["__key__"])
    for _ in range(len(dataset) - 2):
        next(steps)  # not to the end: a loop that ends asks for nothing more
    wait_until(lambda: len(whole(asked)) == 8)
    assert whole(asked) == order


def test_large_shards_are_asked_for_in_pieces_that_the_kernel_grants(
    tmp_path: Path, asked: list[tuple[str, int, int]]
) -> None:
    samples = {f"{i}": {"bin": bytes(100_000)} for i in range(20)}
    shard = make_shard(tmp_path / "a.tar", samples)
    steps = iter(shardio.ShardDataset(shard, batch_size=4))
    next(steps)
    wait_until(lambda: any(end > 1_900_000 for _, _, end in asked))
    assert max(end - start for _, start, end in asked) == 128 << 10
    covered = sorted((start, end) for _, start, end in asked)
    assert all(start <= before for (_, before), (start, _) in pairwise(covered))


def test_headers_that_are_verified_are_asked_for_with_their_data(
    tmp_path: Path, asked: list[tuple[str, int, int]]
) -> None:
    shard = make_shard(tmp_path / "a.tar", {f"{i}": {"bin": bytes(7000)} for i in range(4)})
    steps = iter(shardio.ShardDataset(shard, batch_size=2))
    next(steps)
    wait_until(lambda: len(asked) >= 3)
    assert {(0, 7512), (7680, 15192)} < {(start, end) for _, start, end in asked}


def test_no_thread_that_asks_outlives_the_loop(packed: Path) -> None:
    steps = iter(shardio.ShardDataset(packed, batch_size=50, shuffle=True))
    next(steps)
    assert any(thread.name.startswith("shardio-ahead") for thread in threading.enumerate())
    del steps
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("shardio-ahead")])


@pytest.mark.parametrize("threads", [0, 2])
def test_no_thread_that_asks_outlives_an_error_that_is_kept(packed: Path, threads: int) -> None:
    def fail(_: object) -> object:
        raise ValueError("no")

    dataset = shardio.ShardDataset(packed, batch_size=50, shuffle=True, transform=fail)
    with pytest.raises(shardio.TransformError) as kept:
        list(shardio.Loader(dataset, threads=threads) if threads else dataset)
    assert not [t for t in threading.enumerate() if t.name.startswith("shardio-")]
    assert kept.value.shard is not None


def test_of_sparsely_chosen_samples_shards_are_not_read_ahead(
    packed: Path, asked: list[tuple[str, int, int]]
) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=20, window=1)
    list(dataset.subset(range(0, 600, 5)))
    assert not whole(asked)
    steps = iter(dataset.subset(range(30, 130)))
    next(steps)
    wait_until(lambda: len(whole(asked)) == 2)
    assert [name[-10:-4] for name in whole(asked)] == ["000000", "000001"]


def test_workers_share_the_asking(packed: Path, asked: list[tuple[str, int, int]]) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=20, window=8)
    plan = dataset.plan(0)
    references = plan.references(plan.share([0], 0, 1))
    shares: list[list[str]] = []
    for worker in range(3):
        asked.clear()
        pool = ShardPool(dataset.catalog.shards)
        ahead = ReadAhead(plan.orders, dataset.samples, pool, (worker, 3), dataset.times)
        with closing(ahead):
            ahead.enter(references, slice(0, len(references)))
            wait_until(lambda: len(whole(asked)) >= 2 + (worker < 2))  # noqa: B023  at once
        shares.append(whole(asked))
    assert [len(names) for names in shares] == [3, 3, 2]
    assert len({name for names in shares for name in names}) == 8


def test_batches_are_asked_for_until_reading_is_known_to_be_fast(
    packed: Path, asked: list[tuple[str, int, int]]
) -> None:
    """Each with four after it; batches that were asked for come quickly, which tells little."""
    dataset = shardio.ShardDataset(packed, batch_size=2)
    plan, times = dataset.plan(0), StageTimes()
    planned = plan.references(plan.share(range(200), 0, 1))
    pool = ShardPool(dataset.catalog.shards)
    with closing(ReadAhead([], dataset.samples, pool, (0, 1), times)) as ahead:
        for step in range(190):
            if step:
                of_a_sample = 1_000_000 if step == 2 else 50_000
                times.add(StageTimes(samples=2, read=2 * of_a_sample))
            ahead.enter(planned, slice(2 * step, 2 * step + 2))
            last = min(max(step, 2) + 5, 2 + 64 + 4) if step > 1 else 5
            wait_until(lambda: len(asked) >= 2 * last)  # noqa: B023  at once
    assert len(asked) == 2 * (2 + 64 + 4)


@pytest.mark.usefixtures("python_path")
def test_where_reading_is_slow_each_batch_is_asked_for(
    packed: Path, asked: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = LocalShard.read

    def slow(shard: LocalShard, offset: int, size: int) -> bytes:
        time.sleep(0.001)
        return read(shard, offset, size)

    monkeypatch.setattr(LocalShard, "read", slow)
    steps = iter(shardio.ShardDataset(packed, shuffle="full", batch_size=20))
    next(steps)
    next(steps)
    wait_until(lambda: len(asked) == 60)  # the second one with one after it
    assert not whole(asked)


def test_shards_that_cannot_be_read_ahead_are_told_by_the_reading(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no such thing")

    monkeypatch.setattr(LocalShard, "read_ahead", fail)
    assert len([*shardio.ShardDataset(packed, batch_size=50)]) == 12


def test_pads_of_the_first_window_do_not_fetch_it_again() -> None:
    """The fifth of five ranks has samples of all shards but the first, and then a pad of that."""

    class Pool:
        fetched: list[list[int]] = []  # noqa: RUF012  of this test alone

        def remote_keys(self) -> dict[str, int]:
            return {str(shard): shard for shard in range(8)}

        def get(self, shard: int, **_: Any) -> OpenShard:
            raise OSError(shard)

        def fetch(self, shards: list[int], _: Any) -> None:
            self.fetched.append(shards)

        def compare_anew(self) -> None:
            pass

        def wait_for_ranges(self) -> None:
            pass

        def hold(self, *, on: bool = True) -> None:
            pass

    samples, order = Samples([4] * 8), Shuffle(on=False, window=1)
    plan = EpochPlan(samples, order, global_batch_size=5)
    pool: Any = Pool()
    with closing(ReadAhead(plan.orders, samples, pool, (0, 1), StageTimes())) as ahead:
        for step in range(plan.num_steps):
            references = plan.references(plan.share([step], 4, 5))
            ahead.enter(references, slice(0, len(references)))
        assert references.shards.tolist() == [0]
        assert not references.valid.any()
        ahead.finish()
    fetched = {shard for shards in pool.fetched for shard in shards}
    assert 7 in fetched
    assert 0 not in fetched

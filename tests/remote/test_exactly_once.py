"""Every sample once, in one order and with its bytes, from stores that fail, in real processes.

What is read, how, and what fails is in tools/check/grid.py. Here some combinations cover every pair
of values, but for spawned workers, which take seconds to start; the campaign `stores` runs all.
Each runs in a process of its own, with a limit of time.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch.distributed

import children
import grid
from servers import Nginx, SeaweedS3

SPAWNING = [
    grid.Combination("http", "packed", "spawn", "cut"),
    grid.Combination("s3", "compressed", "spawn", "expired"),
]
COMBINATIONS = [
    *grid.pairwise(each for each in grid.all_combinations() if each.way != "spawn"),
    *SPAWNING,
]
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
    assert len(COMBINATIONS) >= 14
    for way in ("threads", "fork"):
        assert {each.fault for each in COMBINATIONS if each.way == way} == {*grid.FAULTS}
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


def together(*functions: Callable[[], Any]) -> list[Any]:
    """Call each function in a fork of its own, all at once, and return their values."""
    forking = multiprocessing.get_context("fork")
    values = forking.SimpleQueue()

    def call(number: int) -> None:
        values.put((number, functions[number]()))

    processes = [forking.Process(target=call, args=(number,)) for number in range(len(functions))]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = dict(values.get() for _ in functions)
    return [found[number] for number in range(len(functions))]


def keys_of(batches: Iterable[dict[str, Any]], after: Callable[[], object] = int) -> list[str]:
    """Return the keys of valid samples; calls a function after each batch."""
    found: list[str] = []
    for batch in batches:
        pairs = zip(batch["__key__"], batch["valid"].tolist(), strict=True)
        found += [key for key, valid in pairs if valid]
        after()
    return found


@pytest.mark.parametrize(("store", "workers"), [("http", 0), ("s3", 2)])
def test_with_streams_each_shard_is_read_by_one_rank_alone(
    sets: grid.Sets, request: pytest.FixtureRequest, tmp_path: Path, store: str, workers: int
) -> None:
    bucket = request.getfixturevalue("bucket") if store == "s3" else None

    def rank(number: int, url: str, options: dict[str, Any]) -> list[str]:
        """Read as torchrun's processes do, with a cache for each as if it were another node."""
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=number, world_size=2
        )
        dataset = grid.open_set(
            url, None, None, streams=2, cache_dir=tmp_path / f"node-{number}", **options
        )
        found = keys_of(grid.load(dataset, "fork", workers), torch.distributed.barrier)
        torch.distributed.destroy_process_group()
        return found

    def both() -> tuple[list[list[str]], dict[str, int], set[str]]:
        with grid.served(tmp_path / "web", store, sets, bucket, "packed") as (web, url, options):
            given = {"storage_options": options} if options else {}
            found = together(*(partial(rank, number, url, given) for number in range(2)))
            return found, grid.whole_gets(web), grid.shards_asked(web)

    found, gets, asked = in_child(both)
    first, second = ({*keys} for keys in found)
    assert not first & second
    assert max(Counter(chain(*found)).values()) == 1
    assert len(first) == len(second) == 96
    assert {*gets.values()} == {1}
    assert len(asked) == grid.SHARDS


@pytest.mark.parametrize("kind", grid.KINDS)
@pytest.mark.parametrize("way", ["ranks", "workers"])
def test_four_processes_of_a_node_fetch_each_shard_once(
    sets: grid.Sets, serve: Callable[..., Nginx], tmp_path: Path, kind: str, way: str
) -> None:
    web = serve(folder=sets[kind], latency=0.01, rate=2e6)
    source = sets.source(web.url, kind)

    def rank(number: int) -> list[str]:
        dataset = grid.open_set(source, number, 4, cache_dir=tmp_path / "cache")
        return keys_of(grid.load(dataset, "threads", 0))

    def read() -> list[str]:
        if way == "ranks":
            return [*chain(*together(*(partial(rank, number) for number in range(4))))]
        dataset = grid.open_set(source, cache_dir=tmp_path / "cache")
        return keys_of(grid.load(dataset, "fork", 4))

    keys = in_child(read)
    assert len({*keys}) == len(keys) == 192
    assert {*grid.whole_gets(web).values()} == {1}  # the first batches may need ranges alone
    assert len(grid.shards_asked(web)) == grid.SHARDS

"""A loop goes on exactly where it was left: any step, ranks, workers, loader."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import shardio
from shardio.planning.epoch import EpochPlan, Shuffle
from shardio.planning.samples import Samples

BATCHES = 20  # of 30 samples


def open_dataset(folder: Path, **options: Any) -> shardio.ShardDataset:
    options.setdefault("batch_size", 30)
    return shardio.ShardDataset(folder, **{"shuffle": True, "decode": False, "seed": 3} | options)


def load(dataset: Any, workers: int, **options: Any) -> DataLoader[Any]:
    if workers:
        options.setdefault("multiprocessing_context", "fork")
    return DataLoader(dataset, batch_size=None, num_workers=workers, **options)


def keys_of(batches: Iterable[dict[str, Any]]) -> list[list[str]]:
    return [batch["__key__"] for batch in batches]


def epochs_of(folder: Path, count: int, **options: Any) -> list[list[list[str]]]:
    dataset = open_dataset(folder, **options)
    return [keys_of(dataset) for _ in range(count)]


@pytest.mark.parametrize("step", [0, 1, 7, BATCHES - 1])
def test_a_loop_without_workers_goes_on_where_it_was_left(packed: Path, step: int) -> None:
    """streaming#437: another loader with the same state began the epoch again."""
    first, second = epochs_of(packed, 2)
    dataset = open_dataset(packed)
    assert keys_of(islice(dataset, step)) == first[:step]
    state = dataset.state_dict()
    again = open_dataset(packed)
    again.load_state_dict(state)
    assert again.state_dict() == state
    assert [keys_of(again), keys_of(again)] == [first[step:], second]


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_the_state_counts_what_the_loop_received_and_not_what_workers_read(
    packed: Path, method: str
) -> None:
    first, second = epochs_of(packed, 2)
    dataset = open_dataset(packed)
    loader = load(dataset, 3, prefetch_factor=4, multiprocessing_context=method)
    for batch in loader:
        if batch["__step__"] == 4:
            state = dataset.state_dict(batch)
            break
    again = open_dataset(packed)
    again.load_state_dict(json.loads(json.dumps(state)))
    loader = load(again, 2, multiprocessing_context=method)
    assert [keys_of(loader), keys_of(loader)] == [first[5:], second]


def test_a_running_dataset_goes_back_to_a_state(packed: Path) -> None:
    first, second = epochs_of(packed, 2)
    dataset = open_dataset(packed)
    loader = load(dataset, 2, persistent_workers=True)
    received = [*islice(loader, 6)]
    dataset.load_state_dict(dataset.state_dict(received[2]))
    assert [keys_of(loader), keys_of(loader)] == [first[3:], second]


def test_the_state_after_the_last_batch_is_the_next_epoch(packed: Path) -> None:
    _, second = epochs_of(packed, 2)
    dataset = open_dataset(packed)
    for workers in (0, 2):
        dataset.set_epoch(0)
        *_, last = load(dataset, workers)
        state = dataset.state_dict(last)
        assert (state["epoch"], state["step"]) == (1, 0)
        if not workers:
            assert dataset.state_dict() == state
        again = open_dataset(packed)
        again.load_state_dict(state)
        assert keys_of(again) == second


def test_without_the_batch_a_state_of_workers_is_refused(packed: Path) -> None:
    dataset = open_dataset(packed)
    next(iter(load(dataset, 2)))
    with pytest.raises(shardio.UsageError, match="pass the last batch that it received"):
        dataset.state_dict()
    dataset.set_epoch(2)
    assert dataset.state_dict()["epoch"] == 2
    with pytest.raises(shardio.UsageError, match="has no '__epoch__' and '__step__'"):
        dataset.state_dict({"image": 0})


def test_samples_resume_too(packed: Path) -> None:
    keys = [sample["__key__"] for sample in open_dataset(packed, batch_size=None)]
    dataset = open_dataset(packed, batch_size=None)
    loader = DataLoader(dataset, batch_size=16, collate_fn=list)
    received = [sample["__key__"] for batch in islice(loader, 5) for sample in batch]
    again = open_dataset(packed, batch_size=None)
    again.load_state_dict(dataset.state_dict())
    assert received + [sample["__key__"] for sample in again] == keys


@pytest.mark.parametrize(
    ("workers", "step"), [(0, 1), (0, BATCHES), (2, 7), (2, BATCHES), (3, 1), (3, 7)]
)
def test_torchdatas_stateful_loader_resumes(packed: Path, workers: int, step: int) -> None:
    def stateful() -> StatefulDataLoader[Any]:
        return StatefulDataLoader(open_dataset(packed), batch_size=None, num_workers=workers)

    first, second, third = epochs_of(packed, 3)
    loader = stateful()
    received = keys_of(islice(loader, step))
    again = stateful()
    again.load_state_dict(loader.state_dict())
    rest = [*keys_of(again), *keys_of(again), *keys_of(again)]
    assert (received + rest)[: 3 * BATCHES] == [*first, *second, *third]


@pytest.mark.parametrize("begun", [0, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_torchdatas_stateful_loader_resumes_after_a_finished_epoch(
    packed: Path, workers: int, begun: int
) -> None:
    """meta-pytorch/data#1437: a state that was loaded lost an epoch."""

    def stateful() -> StatefulDataLoader[Any]:
        dataset = open_dataset(packed)
        dataset.set_epoch(begun)
        return StatefulDataLoader(dataset, batch_size=None, num_workers=workers)

    epochs = epochs_of(packed, begun + 4)
    loader = stateful()
    assert keys_of(loader) == epochs[begun]
    again = stateful()
    again.load_state_dict(loader.state_dict())
    rest = [key for _ in range(3) for key in keys_of(again)]
    assert rest[: 2 * BATCHES] == [*epochs[begun + 1], *epochs[begun + 2]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stateful_loader_resumes_again_in_a_later_epoch(
    packed: Path, workers: int
) -> None:
    """KempnerForge#57: the second state of an epoch counted from the first one."""
    epochs = epochs_of(packed, 5)
    dataset = open_dataset(packed)
    dataset.set_epoch(3)
    received = []
    state = None
    for count in (3, 5):
        loader = StatefulDataLoader(dataset, batch_size=None, num_workers=workers)
        if state:
            loader.load_state_dict(state)
        received += keys_of(islice(loader, count))
        state = loader.state_dict()
        dataset = open_dataset(packed)
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=workers)
    loader.load_state_dict(state)
    assert [*received, *keys_of(loader)] == epochs[3]
    assert keys_of(loader) == epochs[4]
    if workers:
        with pytest.raises(shardio.UsageError, match="pass the last batch that it received"):
            dataset.state_dict()


@pytest.mark.parametrize("workers", [0, 2])
def test_loops_that_break_early_after_a_loaded_state_go_on_from_each_other(
    packed: Path, workers: int
) -> None:
    """litData#770: after a state was loaded, a loop that broke early was not resumed."""
    received, state = [], None
    for count in (3, 4, 2, BATCHES):
        dataset = open_dataset(packed)
        if state is not None:
            dataset.load_state_dict(state)
        for batch in islice(load(dataset, workers), count):
            received += batch["__key__"]
            state = dataset.state_dict(batch)
    assert received == [key for keys in epochs_of(packed, 1)[0] for key in keys]


def test_a_mixture_resumes_in_torchdatas_stateful_loader(packed: Path) -> None:
    def stateful() -> StatefulDataLoader[Any]:
        mix = shardio.Mix(open_dataset(packed).split(0.7), weights=[0.5, 0.5])
        return StatefulDataLoader(mix, batch_size=None, num_workers=2)

    wanted = keys_of(stateful())
    loader = stateful()
    received = keys_of(islice(loader, 5))
    again = stateful()
    again.load_state_dict(loader.state_dict())
    assert received + keys_of(again) == wanted


def test_a_worker_state_needs_as_many_workers(packed: Path) -> None:
    loader = StatefulDataLoader(open_dataset(packed), batch_size=None, num_workers=2)
    next(iter(loader))
    state = loader.state_dict()
    worker = state["_snapshot"]["_worker_snapshots"]["worker_0"]["dataset_state"]
    assert worker["worker"] == [0, 2]
    with pytest.raises(shardio.UsageError, match=r"is of worker and num_workers \[0, 2\]"):
        open_dataset(packed).load_state_dict(worker)


def test_a_state_is_small_and_plain_whatever_the_dataset(packed: Path) -> None:
    dataset = open_dataset(
        packed, shuffle="full", seed=np.uint64(2**64 - 1), window=10**9, tail="drop",
        global_batch_size=np.int64(60), batch_size=None,
    )  # fmt: skip
    dataset.set_epoch(10**9)
    for some in (dataset, *dataset.split(0.5), shardio.Mix([dataset] * 60, weights=[1 / 60] * 60)):
        state = some.state_dict()
        assert json.loads(json.dumps(state)) == state
        assert len(json.dumps(state)) < 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 60}, "was 30, is 60; pass global_batch_size=30 in place of batch_size, or"),
        ({"batch_size": 60, "seed": 4}, "was 30, is 60; seed was 3, is 4; open the dataset as it"),
        ({"batch_size": None}, "global_batch_size was 30, is 1; open the dataset as it was"),
        ({"seed": 4}, "seed was 3, is 4"),
        ({"shuffle": "full"}, "window was 16, is None"),
        ({"shuffle": False}, "shuffle was True, is False"),
        ({"window": 3}, "window was 16, is 3"),
        ({"streams": 2}, "streams was 1, is 2"),
        ({"tail": "drop"}, "tail was 'pad', is 'drop'"),
        ({"rank": 0, "world_size": 2}, "global_batch_size was 30, is 60"),
    ],
)
def test_a_state_of_another_plan_is_refused_by_name(
    packed: Path, change: dict[str, Any], message: str
) -> None:
    state = open_dataset(packed).state_dict()
    with pytest.raises(shardio.UsageError, match=message):
        open_dataset(packed, **change).load_state_dict(state)


def test_a_state_with_what_this_version_does_not_know_is_refused_by_name(packed: Path) -> None:
    state = {**open_dataset(packed).state_dict(), "order": "of a newer version"}
    with pytest.raises(shardio.UsageError, match="order was 'of a newer version', is None"):
        open_dataset(packed).load_state_dict(state)


def test_a_state_of_another_dataset_is_refused_by_name(
    packed: Path, images: Path, tmp_path: Path
) -> None:
    state = open_dataset(packed).state_dict()
    shardio.pack(images, tmp_path / "again", shards=8, seed=1)
    shardio.pack(images, tmp_path / "fewer", shards=4)
    with pytest.raises(shardio.UsageError, match=r"contents was '[0-9a-f]{16}', is '[0-9a-f]{16}'"):
        open_dataset(tmp_path / "again").load_state_dict(state)
    with pytest.raises(shardio.UsageError, match="shards was 8, is 4"):
        open_dataset(tmp_path / "fewer").load_state_dict(state)
    with pytest.raises(shardio.UsageError, match="samples was 600, is 540; contents was"):
        open_dataset(packed).split(0.9)[0].load_state_dict(state)


def test_the_same_shards_elsewhere_take_a_state(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").symlink_to(packed)
    state = open_dataset(packed).state_dict()
    open_dataset(tmp_path / "moved").load_state_dict(state)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "is not a state of a dataset"),
        ([1], "is not a state of a dataset"),
        ({"version": 2}, "the state has version 2, this shardio reads 1; install"),
        ({"version": 0}, "the state has version 0, this shardio reads 1; install"),
        ({"version": True}, "is not a state of a dataset"),
        ({"epoch": -1}, "the state has epoch -1 and step 0: it was changed"),
        ({"step": 21}, "the state has step 21, an epoch has 20: it was changed"),
        ({"step": "1"}, "the state has epoch 0 and step '1': it was changed"),
    ],
)
def test_what_is_no_state_of_this_version_is_refused(
    packed: Path, state: Any, message: str
) -> None:
    dataset = open_dataset(packed)
    changed = {**dataset.state_dict(), **state} if state and isinstance(state, dict) else state
    with pytest.raises(shardio.UsageError, match=message):
        dataset.load_state_dict(changed)


def test_a_position_in_a_billion_samples_is_found_without_the_steps_before() -> None:
    """Nothing is counted off: both ends of the epoch touch two windows and no more."""
    samples = Samples(np.full(1000, 1_000_000))
    for shuffle in (Shuffle(), Shuffle(window=None), Shuffle(streams=64)):
        plan = EpochPlan(samples, shuffle, global_batch_size=512)
        for step in (0, plan.num_steps - 1):
            references = plan.references(plan.share([step], 0, 1))
            pairs = {*zip(references.shards.tolist(), references.indices.tolist(), strict=True)}
            assert len(pairs) == 512


def test_one_batch_is_read_again_as_the_loop_got_it(packed: Path) -> None:
    crop = shardio.RandomResizedCrop(6)
    dataset = open_dataset(packed, decode=True, transform=crop)
    dataset.set_epoch(2)
    wanted = next(islice(dataset, 7, None))
    found = open_dataset(packed, decode=True, transform=crop).read_batch(epoch=2, step=7)
    assert found["__key__"] == wanted["__key__"]
    assert torch.equal(found["image"], wanted["image"])
    with pytest.raises(shardio.UsageError, match="step 20 is outside the 20 steps of an epoch"):
        dataset.read_batch(epoch=0, step=20)


def test_epoch_and_step_of_a_batch_are_saved_as_plain_numbers(packed: Path, tmp_path: Path) -> None:
    batch = next(iter(open_dataset(packed)))
    place = {name: batch[name] for name in ("__epoch__", "__step__")}
    torch.save(place, tmp_path / "checkpoint.pt")
    for found in (
        torch.load(tmp_path / "checkpoint.pt", weights_only=True),
        pickle.loads(pickle.dumps(place)),  # noqa: S301  our own
        json.loads(json.dumps(place)),
    ):
        assert found == {"__epoch__": 0, "__step__": 0}
        assert [*map(type, found.values())] == [int, int]


def test_values_are_cut_short_in_every_refusal(packed: Path) -> None:
    long: Any = {"a b": [b"\xff "] * 100_000}
    dataset = shardio.ShardDataset(packed, batch_size=10)
    refused: list[Callable[[], object]] = [
        lambda: dataset.load_state_dict(long),
        lambda: dataset.load_state_dict({**dataset.state_dict(), "epoch": long}),
        lambda: dataset.load_state_dict({**dataset.state_dict(), "contents": long}),
        lambda: dataset[long],
        lambda: dataset.by_key(long),
        lambda: shardio.Mix(long, weights=[1.0]),
        lambda: shardio.Mix([dataset], weights=long),
        lambda: shardio.Mix([long], weights=[1.0]),
        lambda: shardio.Mix([dataset], weights=[long]),
        lambda: dataset.replace(fields={"x": long}),
        lambda: dataset.replace(fields={"x": str(long)}),
        lambda: shardio.Loader(dataset, device=str(long)),
        lambda: shardio.ShardDataset(long),
    ]
    for number, call in enumerate(refused):
        with pytest.raises((shardio.UsageError, KeyError)) as caught:
            call()
        assert len(str(caught.value)) < 1500, number

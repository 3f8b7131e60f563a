"""Threads make the same batches, in order, and are gone when the loop is left."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from itertools import count, islice
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import shardio
from shardio.planning.epoch import EpochPlan, References
from shardio.reading import shards
from shardio.reading.batch import Batch
from shardio.testing import make_shard


def open_dataset(folder: Path, **options: Any) -> shardio.ShardDataset:
    options = {"shuffle": True, "batch_size": 40, "seed": 2} | options
    return shardio.ShardDataset(folder, transform=shardio.RandomResizedCrop(8), **options)


def threads_left() -> list[str]:
    gc.collect()
    return [thread.name for thread in threading.enumerate() if "shardio" in thread.name]


def assert_equal(found: Iterable[dict[str, Any]], wanted: Iterable[dict[str, Any]]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(one[name], value)
                assert one[name].stride() == value.stride()
            else:
                assert one[name] == value


@pytest.mark.parametrize("options", [{}, {"shuffle": "full"}, {"streams": 8}, {"tail": "short"}])
@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (2, 2), (5, 3)])
def test_batches_do_not_depend_on_the_number_of_threads(
    packed: Path, options: dict[str, Any], threads: int, prefetch: int
) -> None:
    dataset = open_dataset(packed, **options)
    loader = shardio.Loader(open_dataset(packed, **options), threads=threads, prefetch=prefetch)
    assert len(loader) == len(dataset)
    for _ in range(2):
        assert_equal(loader, dataset)
    assert not threads_left()


@pytest.mark.parametrize("before", ["loader", "workers"])
def test_a_loop_goes_on_with_threads_or_workers(packed: Path, before: str) -> None:
    wanted = [*open_dataset(packed)]
    dataset = open_dataset(packed)
    workers = {"batch_size": None, "num_workers": 2, "multiprocessing_context": "fork"}
    if before == "loader":
        first = shardio.Loader(dataset, threads=3)
        assert_equal(islice(first, 6), wanted[:6])
        state = first.state_dict()
        assert state == open_dataset(packed).state_dict() | {"step": 6}
        again = open_dataset(packed)
        again.load_state_dict(state)
        assert_equal(DataLoader(again, **workers), wanted[6:])  # type: ignore[arg-type]
    else:
        *_, last = islice(DataLoader(dataset, **workers), 6)  # type: ignore[arg-type]
        second = shardio.Loader(open_dataset(packed), threads=2)
        second.load_state_dict(dataset.state_dict(last))
        assert_equal(second, wanted[6:])
        assert second.state_dict()["epoch"] == 1


def test_a_mixture_is_loaded_by_threads(packed: Path) -> None:
    def mix() -> shardio.Mix:
        return shardio.Mix(open_dataset(packed).split(0.6, 0.4), weights=[0.3, 0.7], stop="all")

    assert_equal(shardio.Loader(mix(), threads=3), mix())


def test_values_of_all_kinds_are_filled_by_threads(tmp_path: Path) -> None:
    samples = {
        f"{i:03}": {"cls": b"%d" % i, "txt": b"t%d" % i, "bin": b"%d" % i} for i in range(90)
    }
    shard = make_shard(tmp_path / "a.tar", samples)
    dataset = shardio.ShardDataset(shard, batch_size=90, shuffle="full")
    (batch,) = shardio.Loader(dataset, threads=4)
    numbers = [int(key) for key in batch["__key__"]]
    assert batch["label"].tolist() == numbers
    assert batch["txt"] == [f"t{number}" for number in numbers]
    assert batch["bin"] == [b"%d" % number for number in numbers]


def test_no_more_batches_are_made_than_asked_for(packed: Path) -> None:
    made: list[int] = []

    def count(image: torch.Tensor) -> torch.Tensor:
        made.append(1)
        return image

    dataset = shardio.ShardDataset(packed, batch_size=20, transform=count)
    steps = iter(shardio.Loader(dataset, threads=2, prefetch=2))
    assert not made
    next(steps)
    deadline = time.monotonic() + 10
    while len(made) < 60 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 60  # the one that was given, and two ahead
    del steps
    assert not threads_left()


def test_small_batches_keep_all_threads_at_work(tmp_path: Path) -> None:
    samples = {f"{number}": {"cls": b"%d" % number} for number in range(512)}
    make_shard(tmp_path / "a.tar", samples)
    meeting, calls = threading.Barrier(8), count()

    def meet(sample: dict[str, Any]) -> dict[str, Any]:
        if next(calls) in range(512, 520):  # in the second epoch, when sizes are known
            meeting.wait(100)
        return sample

    ds = shardio.ShardDataset(tmp_path, fields={"label": "cls"}, map=meet, batch_size=64)
    with shardio.Loader(ds, threads=8) as loader:
        assert sum(len(batch["label"]) for _ in range(2) for batch in loader) == 1024


@pytest.mark.parametrize("how", ["break", "error", "dropped", "exhausted", "never begun"])
def test_no_thread_is_left_however_the_loop_ends(packed: Path, how: str) -> None:
    loader = shardio.Loader(open_dataset(packed), threads=3)
    steps = iter(loader)
    if how == "break":
        for _ in steps:
            break
    elif how == "error":
        with pytest.raises(ZeroDivisionError):
            _divide_by_zero(steps)
    elif how == "dropped":
        next(steps)
    elif how == "exhausted":
        assert len([*steps]) == 15
    del steps
    assert not threads_left()
    assert len([*loader]) == 15


def _divide_by_zero(steps: Iterable[Any]) -> None:
    for _ in steps:
        1 // 0  # noqa: B018


def test_an_error_in_a_transform_names_its_sample_and_comes_in_its_turn(packed: Path) -> None:
    keys = [batch["__key__"] for batch in shardio.ShardDataset(packed, batch_size=40)]
    images = [*shardio.ShardDataset(packed, batch_size=40)]
    bad = images[4]["image"][31]

    def check(image: torch.Tensor) -> torch.Tensor:
        if torch.equal(image, bad):
            raise RuntimeError("no luck")
        return image

    dataset = shardio.ShardDataset(packed, batch_size=40, transform=check)
    steps = iter(shardio.Loader(dataset, threads=3))
    received = [next(steps)["__key__"] for _ in range(4)]
    assert received == keys[:4]
    with pytest.raises(shardio.TransformError, match="the transform raised RuntimeError") as caught:
        next(steps)
    assert caught.value.key == keys[4][31]
    assert "shard-" in str(caught.value)
    del steps, caught
    assert not threads_left()


def test_bad_samples_are_replaced_and_counted_by_threads(tmp_path: Path) -> None:
    samples = {f"{i:03}": {"cls": b"%d" % i if i % 9 else b"none"} for i in range(100)}
    shard = make_shard(tmp_path / "a.tar", samples)
    dataset = shardio.ShardDataset(shard, batch_size=50, on_bad_sample="skip")
    alone = [batch["label"].tolist() for batch in dataset]
    assert dataset.num_bad_samples == 12
    again = shardio.ShardDataset(shard, batch_size=50, on_bad_sample="skip")
    assert [batch["label"].tolist() for batch in shardio.Loader(again, threads=4)] == alone
    assert again.num_bad_samples == 12


def test_threads_share_few_open_files(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them closes what another has just been given."""
    monkeypatch.setattr(shards, "_MOST_OPEN", 2)
    monkeypatch.setattr(shards, "_MOST_MAPPED", 3)
    dataset = open_dataset(packed, shuffle="full")
    loader = shardio.Loader(open_dataset(packed, shuffle="full"), threads=6, prefetch=4)
    for _ in range(4):
        assert_equal(loader, dataset)


def count_files() -> int:
    gc.collect()
    return len([*Path("/proc/self/fd").iterdir()])


def test_loops_that_are_left_leave_no_file_open(packed: Path) -> None:
    loader = shardio.Loader(open_dataset(packed), threads=3)
    next(iter(loader))
    before = count_files()
    for _ in range(30):
        next(iter(loader))
    assert count_files() <= before


def test_two_loops_at_once_are_two_epochs(packed: Path) -> None:
    loader = shardio.Loader(open_dataset(packed), threads=2)
    pairs = [*zip(loader, loader, strict=True)]
    dataset = open_dataset(packed)
    for number in range(2):
        assert_equal([pair[number] for pair in pairs], dataset)


def test_times_are_counted_for_all_threads(packed: Path) -> None:
    dataset = open_dataset(packed)
    for _ in shardio.Loader(dataset, threads=3):
        pass
    assert dataset.times.samples == 600
    assert min(dataset.times.read, dataset.times.decode, dataset.times.transform) > 0


class Threaded(IterableDataset[Any]):
    """A Loader in each worker of a DataLoader: processes × threads."""

    def __init__(self, dataset: shardio.ShardDataset) -> None:
        self.loader = shardio.Loader(dataset, threads=2)

    def __iter__(self) -> Any:
        return iter(self.loader)


def test_workers_and_threads_are_combined(packed: Path) -> None:
    loader = DataLoader(
        Threaded(open_dataset(packed)), batch_size=None, num_workers=2,
        multiprocessing_context="fork",
    )  # fmt: skip
    assert_equal(loader, open_dataset(packed))


def test_control_c_ends_a_loop_at_once(packed: Path) -> None:
    code = f"""
import signal, threading, time, shardio
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
dataset = shardio.ShardDataset({str(packed)!r}, batch_size=30,
                               transform=lambda image: time.sleep(0.02) or image)
try:
    for batch in shardio.Loader(dataset, threads=2):
        print("received", flush=True)
except KeyboardInterrupt:
    left = [t.name for t in threading.enumerate() if "shardio" in t.name]
    print("interrupted", left, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "received\n"
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    rest = process.communicate(timeout=60)[0].splitlines()
    assert rest[-1] == "interrupted []"
    assert len(rest) < 5
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads=0: it must be a whole number, at least 1"),
        ({"prefetch": 1.5}, "prefetch=1.5: it must be a whole number, at least 1"),
    ],
)
def test_numbers_that_cannot_be_meant_are_explained(
    packed: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(shardio.UsageError, match=message):
        shardio.Loader(open_dataset(packed), **options)


def test_a_dataset_of_samples_is_refused(packed: Path) -> None:
    for wrong in (shardio.ShardDataset(packed), [1, 2]):
        with pytest.raises(shardio.UsageError, match="give it a ShardDataset or Mix with batch_si"):
            shardio.Loader(wrong)  # type: ignore[arg-type]


def test_a_loop_closed_in_one_of_its_own_threads_does_not_wait_for_itself(packed: Path) -> None:
    """As the garbage collector may do."""
    closed = threading.Event()

    def close(image: torch.Tensor) -> torch.Tensor:
        time.sleep(0.005)  # so that chunks still run when the loop is dropped
        if box and not closed.is_set():
            closed.set()
            gc.collect()
        return image

    box: list[Any] = []
    dataset = shardio.ShardDataset(packed, batch_size=20, transform=close)
    steps = iter(shardio.Loader(dataset, threads=2))
    next(steps)
    cycle: list[Any] = [steps]
    cycle.append(cycle)
    box.append(True)
    gc.disable()
    try:
        del steps, cycle
        assert closed.wait(20)
        deadline = time.monotonic() + 20
        while threads_left() and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        gc.enable()
    assert not threads_left()


def test_an_error_keeps_no_batch_alive(packed: Path) -> None:
    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no luck")

    loader = shardio.Loader(shardio.ShardDataset(packed, batch_size=20, transform=fail), threads=2)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            with pytest.raises(shardio.TransformError):
                next(iter(loader))
        alive = [thing for thing in gc.get_objects() if type(thing) is Batch]
    finally:
        gc.enable()
    assert len(alive) == 0


def test_a_context_ends_its_loops(packed: Path) -> None:
    with shardio.Loader(shardio.ShardDataset(packed, batch_size=20), threads=2) as loader:
        loop = iter(loader)
        next(loop)
    assert not [t for t in threading.enumerate() if t.name.startswith("shardio-loader")]
    assert next(loop, None) is None


def test_a_dataloader_takes_a_loader_for_a_dataset(packed: Path) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=20, shuffle=True)
    loader = DataLoader(shardio.Loader(dataset, threads=2), batch_size=None, num_workers=2)
    found = [batch["__key__"] for batch in loader]
    dataset = shardio.ShardDataset(packed, batch_size=20, shuffle=True)
    assert found == [batch["__key__"] for batch in dataset]


def test_an_error_of_planning_comes_after_the_batches_before_it(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=20)
    references, calls = EpochPlan.references, []

    def fail(*arguments: Any) -> References:
        calls.append(1)
        if len(calls) == 3:  # after those of one batch, and of two
            raise OSError("the plan is gone")
        return references(*arguments)

    monkeypatch.setattr(EpochPlan, "references", fail)
    loop = iter(shardio.Loader(dataset, threads=1, prefetch=5))
    assert [len(next(loop)["__key__"]) for _ in range(3)] == [20] * 3
    with pytest.raises(OSError, match="the plan is gone"):
        next(loop)


def test_an_older_loop_does_not_move_the_place(packed: Path) -> None:
    loader = shardio.Loader(shardio.ShardDataset(packed, batch_size=20))
    older = iter(loader)
    next(older)
    loader.set_epoch(7)
    next(older)
    state = loader.state_dict()
    assert (state["epoch"], state["step"]) == (7, 0)


def test_opencv_has_its_threads_back_after_the_loop(packed: Path) -> None:
    before = cv2.getNumThreads()
    loop = iter(shardio.Loader(shardio.ShardDataset(packed, batch_size=20)))
    next(loop)
    assert cv2.getNumThreads() == 1
    loop.close()  # type: ignore[attr-defined]
    assert cv2.getNumThreads() == before


def loader_of(folder: Path, **options: Any) -> shardio.Loader:
    names = {
        name: options.pop(name) for name in ("workers", "threads", "device") if name in options
    }
    return shardio.Loader(open_dataset(folder, **options), **names)


@pytest.mark.parametrize(
    "options", [{"workers": 2}, {"workers": 3, "threads": 2}, {"workers": 1, "device": "cpu"}]
)
def test_workers_make_the_same_batches_and_the_loader_knows_where_it_is(
    packed: Path, options: dict[str, Any]
) -> None:
    dataset = open_dataset(packed)
    first, second, third = [*dataset], [*dataset], [*dataset]
    loader = loader_of(packed, **options)
    assert loader.state_dict()["step"] == 0
    assert_equal(loader, first)
    assert (loader.state_dict()["epoch"], loader.state_dict()["step"]) == (1, 0)
    steps = iter(loader)
    assert_equal(islice(steps, 6), second[:6])
    state = loader.state_dict()
    assert (state["epoch"], state["step"]) == (1, 6)
    del steps
    for again in (loader_of(packed, **options), loader_of(packed), loader):
        again.load_state_dict(state)
        assert again.state_dict() == state
        assert_equal(again, second[6:])
        assert_equal(again, third)


def test_a_loop_that_a_state_has_replaced_does_not_move_the_place(packed: Path) -> None:
    loader = loader_of(packed, workers=1)
    steps = iter(loader)
    next(steps)
    loader.set_epoch(4)
    next(steps)
    assert (loader.state_dict()["epoch"], loader.state_dict()["step"]) == (4, 0)
    assert next(iter(loader))["__epoch__"] == 4


def test_tuples_come_from_workers_and_the_loader_has_the_state(packed: Path) -> None:
    names = ("label", "image")
    wanted = [(batch["label"], batch["image"]) for batch in open_dataset(packed)]
    loader = loader_of(packed, workers=2, as_tuple=names)
    steps = iter(loader)
    found = [*islice(steps, 4)]
    state = loader.state_dict()
    del steps
    again = loader_of(packed, workers=1, device="cpu", as_tuple=names)
    again.load_state_dict(state)
    for one, other in zip([*found, *again], wanted, strict=True):
        assert [*map(torch.equal, one, other)] == [True, True]


def test_workers_end_with_the_context_and_have_no_workers(packed: Path) -> None:
    with loader_of(packed, workers=2) as loader:
        steps = iter(loader)
        next(steps)
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()
    inside = DataLoader(loader, batch_size=None, num_workers=1)
    with pytest.raises(shardio.UsageError, match="a Loader with workers is read by a worker of"):
        next(iter(inside))


def test_a_loop_that_sets_the_epoch_of_the_sampler_sets_that_of_the_loader(packed: Path) -> None:
    loader, other = loader_of(packed, shuffle=True), loader_of(packed, shuffle=True)
    loader.sampler.set_epoch(3)
    other.set_epoch(3)
    assert next(iter(loader))["__key__"] == next(iter(other))["__key__"]
    assert loader.batch_sampler is None
    assert len(loader.sampler) == len(loader.dataset)


def test_a_loop_that_would_skip_steps_of_a_loader_is_told_of_its_state(packed: Path) -> None:
    """accelerate#2859: skip_first_batches reads what it skips, and copies a DataLoader for it."""
    loader = loader_of(packed)
    assert not hasattr(loader, "drop_last")
    with pytest.raises(AttributeError, match=r"skip_first_batches .* loader\.load_state_dict"):
        loader.drop_last  # noqa: B018  reading it is the test


def test_what_does_not_fit_the_ranks_is_said_before_workers_start(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = loader_of(packed, workers=1, tail="short")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(shardio.UsageError, match=r"^tail='short' with 2 ranks"):
        iter(loader)

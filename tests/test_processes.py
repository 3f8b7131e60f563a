"""A forked child gets through, whatever the parent's threads hold, and reads the same batches."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import shardio
from shardio.indexing.entry import ShardEntry
from shardio.processes import Daemons, Threads
from shardio.reading.columns import Arrays
from shardio.reading.gather import Gatherer
from shardio.reading.handover import Sender
from shardio.reading.picture_columns import Transformed
from shardio.reading.times import StageTimes

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]
PATIENCE = 60  # seconds, against a hang alone
Batch = dict[str, Any]


def in_child(action: Callable[[], object]) -> None:
    """Call a function in a forked child; it must end there without an error."""
    process = multiprocessing.get_context("fork").Process(target=action)
    process.start()
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
        pytest.fail("the child hangs")
    assert process.exitcode == 0


def same(found: list[Batch], wanted: list[Batch]) -> bool:
    return [batch["__key__"] for batch in found] == [batch["__key__"] for batch in wanted] and all(
        torch.equal(one[name], value)
        for one, other in zip(found, wanted, strict=True)
        for name, value in other.items()
        if isinstance(value, torch.Tensor)
    )


class Hold:
    """Stops threads of this process in a method until the test ends.

    Args:
        method: replaced method.

    Attributes:
        passing: number of calls that go through before.
        calls: number of calls so far.
        reached: set when a thread is stopped.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method, self.passing = method, 0
        self._process, self._main = os.getpid(), threading.main_thread()
        self._end = threading.Event()
        self.calls, self.reached = 0, threading.Event()

    def __get__(self, instance: Any, _: type) -> Callable[..., Any]:
        return partial(self, instance)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        here = os.getpid() == self._process and threading.current_thread() is not self._main
        if here and self.calls > self.passing:
            self.reached.set()
            self._end.wait(PATIENCE)
        return self._method(*arguments, **options)

    def end(self) -> None:
        """Let the threads go on."""
        self._end.set()


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any, str], Hold]]:
    """Puts a Hold into the place of a method."""
    holds: list[Hold] = []

    def make(owner: Any, name: str) -> Hold:
        holds.append(Hold(getattr(owner, name)))
        monkeypatch.setattr(owner, name, holds[-1])
        return holds[-1]

    yield make
    for one in holds:
        one.end()


@pytest.fixture
def _opencv_threads() -> Iterator[None]:
    """OpenCV with threads at work."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(4)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 5)
    yield
    cv2.setNumThreads(before)


def begin(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("name", ["open_file", "load_index"])
def test_a_child_reads_a_sample_whose_shard_a_thread_of_the_parent_opens(
    packed: Path, hold: Callable[[Any, str], Hold], name: str
) -> None:
    dataset = shardio.ShardDataset(packed)
    held = hold(ShardEntry, name)
    thread = begin(lambda: dataset[0])
    assert held.reached.wait(PATIENCE)
    in_child(lambda: dataset[0]["label"])
    held.end()
    thread.join()


HELD: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "the count of the times": (StageTimes, "add", {}),
    "the gathering of rows": (Gatherer, "gather", {"fields": {"label": "cls"}}),
    "the first image of a batch": (Transformed, "_make", {"transform": torch.clone}),
    "the first array of a batch": (Arrays, "_prepare", {}),
}


@pytest.mark.parametrize("what", HELD)
def test_a_child_takes_up_a_loop_in_which_a_thread_of_the_parent_holds(
    packed: Path, hold: Callable[[Any, str], Hold], what: str
) -> None:
    owner, name, options = HELD[what]
    dataset = shardio.ShardDataset(packed, batch_size=15, **options)
    wanted = [*shardio.ShardDataset(packed, batch_size=15, **options)]
    held = hold(owner, name)
    next(iter(shardio.ShardDataset(packed, batch_size=15, **options)))
    held.passing = 2 * held.calls
    steps = iter(shardio.Loader(dataset, threads=1))
    next(steps)
    assert held.reached.wait(PATIENCE)
    in_child(lambda: check(same([*steps], wanted[1:])))
    held.end()
    assert same([*steps], wanted[1:])


def check(truth: bool) -> None:
    assert truth


def test_a_child_gets_shared_memory_while_a_thread_of_the_parent_gets_some(
    hold: Callable[[Any, str], Hold],
) -> None:
    sender = Sender()
    held = hold(Sender, "_take")
    begin(lambda: sender((1 << 20,), torch.uint8))
    assert held.reached.wait(PATIENCE)
    in_child(lambda: sender((1 << 20,), torch.uint8))


@pytest.mark.parametrize("how", ["closed", "dropped", "taken up"])
def test_a_child_does_not_wait_for_a_thread_of_its_parent_that_submits_a_task(
    packed: Path, how: str
) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=20)
    wanted = [*shardio.ShardDataset(packed, batch_size=20)]
    box: list[Any] = [iter(shardio.Loader(dataset, threads=3))]
    next(box[0])

    def leave() -> None:
        if how == "closed":
            box[0].close()
        elif how == "dropped":
            del box[0]
        else:
            assert same([*box[0]], wanted[1:])

    with ExitStack() as submitting:
        for pool in gc.get_objects():
            if type(pool) is ThreadPoolExecutor:
                submitting.enter_context(pool._shutdown_lock)
        in_child(leave)
    assert same([*box[0]], wanted[1:])


@pytest.mark.usefixtures("_opencv_threads")
def test_workers_with_threads_begin_after_opencv_had_threads(packed: Path) -> None:
    """As many as two epochs, since the setting comes back at the end of the first."""
    dataset = shardio.ShardDataset(packed, batch_size=60)
    loader = DataLoader(
        shardio.Loader(dataset, threads=2),
        batch_size=None,
        num_workers=1,
        multiprocessing_context="fork",
        persistent_workers=True,
    )
    in_child(lambda: check(len([*loader, *loader]) == 20))
    assert cv2.getNumThreads() == 4


@pytest.mark.usefixtures("_opencv_threads")
def test_a_child_has_a_loader_after_opencv_had_threads(packed: Path) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=60)
    in_child(lambda: check(len([*shardio.Loader(dataset)]) == 10))
    assert cv2.getNumThreads() == 4


def test_a_child_has_a_loader_while_one_begins_in_the_parent(
    packed: Path, hold: Callable[[Any, str], Hold]
) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=20)
    held = hold(cv2, "setNumThreads")
    thread = begin(lambda: next(iter(shardio.Loader(dataset))))
    assert held.reached.wait(PATIENCE)
    in_child(lambda: next(iter(shardio.Loader(dataset))))
    held.end()
    thread.join()


def test_a_collection_does_not_wait_for_threads_that_wait_for_what_it_interrupts(
    packed: Path,
) -> None:
    lock, waits, images = threading.Lock(), threading.Event(), itertools.count()

    def transform(image: torch.Tensor) -> torch.Tensor:
        if next(images) >= 20:
            waits.set()
            with lock:
                pass
        return image

    def leave_garbage() -> None:
        dataset = shardio.ShardDataset(packed, batch_size=20, transform=transform)
        steps = iter(shardio.Loader(dataset, threads=1))
        next(steps)
        cycle: list[Any] = [steps]
        cycle.append(cycle)

    def collect() -> None:
        gc.disable()
        with lock:
            leave_garbage()
            assert waits.wait(PATIENCE)
            gc.collect()

    in_child(collect)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system lists no threads")
def test_threads_that_were_ended_are_gone_so_that_a_fork_finds_none_of_their_locks() -> None:
    for _ in range(100):
        before = {*Path("/proc/self/task").iterdir()}
        threads = Threads("test", 4)
        for future in [threads.submit(sum, range(2000)) for _ in range(16)]:
            future.result()
        threads.end()
        assert {*Path("/proc/self/task").iterdir()} <= before


@pytest.mark.parametrize("busy", [True, False])
def test_work_whose_thread_cannot_start_is_refused_or_done_but_not_both(
    monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    daemons, goes_on, done = Daemons("test", 2), threading.Event(), list[str]()
    first = daemons.submit(goes_on.wait, PATIENCE) if busy else None
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        if busy:
            later = daemons.submit(done.append, "later")
        else:
            with pytest.raises(RuntimeError):
                daemons.submit(done.append, "later")
    goes_on.set()
    if first is not None:
        assert first.result(PATIENCE)
        later.result(PATIENCE)
    daemons.submit(done.append, "last").result(PATIENCE)
    assert done == (["later", "last"] if busy else ["last"])

"""How a pack ends early: by a bad file, by Ctrl-C, by a process that is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

import shardio
from shardio.packing import engine
from shardio.packing.engine import LocalEngine, Ticker
from shardio.testing import make_images


class Numbers(tuple[int, ...]):
    """A task."""

    __slots__ = ()


def tasks_of(count: int) -> list[Numbers]:
    return [Numbers([number]) for number in range(count)]


def fail_in_order(task: Sequence[int], ticker: Ticker) -> None:
    """The later a task, the sooner it fails."""
    del ticker
    time.sleep(0.3 if task[0] == 0 else 0)
    raise shardio.PackError(f"task {task[0]}")


def fail_one(begun: str, task: Sequence[int], ticker: Ticker) -> None:
    with Path(begun).open("a") as stream:
        stream.write(f"{task[0]}\n")
    if task[0] == task[1]:
        raise shardio.PackError(f"task {task[0]}")
    for _ in range(1000):
        time.sleep(0.01)
        ticker.tick(16)
    raise AssertionError("it was not stopped")


def kill_itself(task: Sequence[int], ticker: Ticker) -> None:
    del ticker
    if task[0] == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def double(task: Sequence[int], ticker: Ticker) -> int:
    ticker.tick(1)
    return 2 * task[0]


def process_of(task: Sequence[int], ticker: Ticker) -> int:
    del task, ticker
    return os.getpid()


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_results_come_in_the_order_of_the_tasks(jobs: int) -> None:
    counts: list[int] = []
    results = LocalEngine(jobs).run(double, tasks_of(50), counts.append)
    assert results == [*range(0, 100, 2)]
    assert sum(counts) == 50


def test_without_a_number_of_jobs_there_is_one_for_each_core(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cores in (1, 2):
        monkeypatch.setattr(engine, "count_cores", lambda cores=cores: cores)
        found = {*LocalEngine().run(process_of, tasks_of(20), None)}
        assert (os.getpid() in found) == (cores == 1)
        assert len(found) <= cores


def test_of_several_errors_the_first_in_order_of_tasks_is_raised() -> None:
    with pytest.raises(shardio.PackError, match="task 0"):
        LocalEngine(2).run(fail_in_order, tasks_of(2), None)


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_stops_the_other_tasks(tmp_path: Path, bad: int) -> None:
    """Those before it, too; and those that wait never begin."""
    tasks = [Numbers([number, bad]) for number in range(20)]
    begun = tmp_path / "begun"
    with pytest.raises(shardio.PackError, match=f"task {bad}"):
        LocalEngine(2).run(partial(fail_one, str(begun)), tasks, None)
    assert len(begun.read_text().split()) <= 2


class EndingEarly(list[Numbers]):
    """Tasks of which the last one cannot be made, as when Ctrl-C comes meanwhile."""

    def __iter__(self) -> Iterator[Numbers]:
        yield from super().__iter__()
        time.sleep(0.3)  # in which a process would begin
        raise KeyboardInterrupt


def test_no_task_begins_before_all_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_PATIENCE", 600.0)  # the test's own limit is 180
    begun = tmp_path / "begun"
    tasks = EndingEarly([Numbers([number, -1]) for number in range(20)])
    with pytest.raises(KeyboardInterrupt):
        LocalEngine(2).run(partial(fail_one, str(begun)), tasks, None)
    assert not begun.exists()


def test_a_process_that_is_killed_is_an_error_with_a_way_out() -> None:
    with pytest.raises(shardio.PackError, match=r"a process was killed.* again to go"):
        LocalEngine(2).run(kill_itself, tasks_of(4), None)


def test_a_process_that_is_killed_while_thousands_of_tasks_wait_is_one_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that the pool's thread and this one take turns
    try:
        for _ in range(5):
            with pytest.raises(shardio.PackError, match="with fewer jobs"):
                LocalEngine(2).run(kill_itself, tasks_of(1000), None)
    finally:
        sys.setswitchinterval(interval)
    assert capfd.readouterr().err == ""


def test_a_process_that_is_killed_after_the_last_task_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "_PATIENCE", 600.0)  # the test's own limit is 180
    for number in range(8):  # one of two holds the lock of their queue
        counts: list[int] = []

        def advance(count: int, number: int = number, counts: list[int] = counts) -> None:
            counts.append(count)
            if sum(counts) == 8:
                time.sleep(0.02)  # so that both have sent their results
                multiprocessing.active_children()[number % 2].kill()

        with suppress(shardio.PackError):  # of one that was slower than that
            assert LocalEngine(2).run(double, tasks_of(8), advance) == [*range(0, 16, 2)]


def sleep(pids: str, task: Sequence[int], ticker: Ticker) -> None:
    del ticker
    with Path(pids).open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    if task[0]:
        time.sleep(600)
    raise shardio.PackError("task 0")


def test_a_task_that_does_not_stop_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_PATIENCE", 0.2)
    pids = tmp_path / "pids"
    with pytest.raises(shardio.PackError, match="task 0"):
        LocalEngine(2).run(partial(sleep, str(pids)), tasks_of(2), None)
    assert not [pid for pid in pids.read_text().split() if Path("/proc", pid).exists()]


@pytest.mark.parametrize("jobs", [1, 2])
def test_images_are_decoded_in_processes_after_opencv_had_threads(
    tmp_path: Path, jobs: int
) -> None:
    """A fork has the pool of OpenCV's threads, and not the threads."""
    source = make_images(tmp_path / "in", classes=0, per_class=8, size=64)
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(4)
        cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 5)
        shardio.pack(source, tmp_path / "out", shards=2, resize=20, jobs=jobs)
        assert cv2.getNumThreads() == 4
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_stops_a_pack_that_can_be_taken_up(images: Path, tmp_path: Path, jobs: int) -> None:
    seen: list[int] = []

    def start(_: int) -> Callable[[int], None]:
        def advance(count: int) -> None:
            seen.append(count)
            if sum(seen) >= 100 > sum(seen[:-1]):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        return advance

    # A job in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            shardio.pack(images, tmp_path / "out", shards=30, jobs=jobs, progress=start)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "out/shardio.json").exists()
    shardio.pack(images, tmp_path / "out", shards=30)
    assert len(shardio.ShardDataset(tmp_path / "out")) == 600


KILLED = """
import os, signal, sys, time
import shardio

def start(_):
    def advance(count):
        print(os.getpid(), flush=True)
        time.sleep(60)
    return advance

shardio.pack(*sys.argv[1:], shards=40, jobs=2, progress=start)
"""


def test_nobody_writes_after_the_pack_was_killed(images: Path, tmp_path: Path) -> None:
    """Not the processes that it started, either: another pack takes the folder at once."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(images), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    shardio.pack(images, out, shards=40)
    left = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    time.sleep(0.3)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == left


def test_a_source_of_one_shard_needs_no_other_process(tmp_path: Path) -> None:
    source = make_images(tmp_path / "in", classes=0, per_class=4)
    pids: list[int] = []
    shardio.pack(
        source, tmp_path / "out", shards=1, progress=lambda _: lambda _: pids.append(os.getpid())
    )
    assert {*pids} == {os.getpid()}

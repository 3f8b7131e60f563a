"""How a pack ends early: by a bad file, by Ctrl-C."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

import shardio
from shardio.packing import engine
from shardio.packing.plan import ShardTask, plan_shards
from shardio.packing.shard import PackedShard, pack_shard
from shardio.packing.sources import list_files, make_samples
from shardio.packing.store import Store
from shardio.testing import make_images


def tasks_for(source: Path, out: Path, shards: int) -> list[ShardTask]:
    samples, _ = make_samples(list_files(str(source))[0], None)
    return plan_shards(
        samples, source=str(source), out=str(out), shards=shards, seed=None, store=Store()
    )


def test_ctrl_c_stops_the_shards_that_run_and_leaves_nothing(images: Path, tmp_path: Path) -> None:
    calls, numbers = [], itertools.count(1)

    def start(_: int) -> Callable[[], None]:
        def on_sample() -> None:
            number = next(numbers)
            calls.append(number)
            if number == 4:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.01)

        return on_sample

    # A job in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            shardio.pack(images, tmp_path / "out", shards=8, progress=start)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(calls) < 300
    assert not (tmp_path / "out").exists()


def test_a_bad_file_stops_the_other_shards(tmp_path: Path) -> None:
    source = make_images(tmp_path / "in", classes=0, per_class=400)
    (source / "image0000.png").write_bytes(b"no")
    calls = []

    def on_sample() -> None:
        calls.append(1)
        time.sleep(0.01)

    with pytest.raises(shardio.PackError, match=r"image0000\.png: not a JPEG"):
        shardio.pack(
            source, tmp_path / "out", shards=2, shuffle=False, progress=lambda _: on_sample
        )
    assert len(calls) < 100


def test_tasks_that_wait_never_begin_after_an_error(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def failing(task: ShardTask, _: object, stop: threading.Event) -> PackedShard:
        begun.append(task.name)
        if len(begun) > 1:
            stop.wait(10)
            raise CancelledError
        raise shardio.PackError(task.name)

    monkeypatch.setattr(engine, "pack_shard", failing)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    with pytest.raises(shardio.PackError, match=r"shard-000000\.tar"):
        engine.run_tasks(tasks_for(images, tmp_path, 100))
    assert len(begun) <= 3


def test_of_several_errors_the_first_in_order_of_tasks_is_raised(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2, timeout=10)

    def failing(task: ShardTask, *_: object) -> PackedShard:
        together.wait()
        if task.name.startswith("shard-000000"):
            time.sleep(0.05)
        raise shardio.PackError(task.name)

    monkeypatch.setattr(engine, "pack_shard", failing)
    with pytest.raises(shardio.PackError, match=r"shard-000000\.tar"):
        engine.run_tasks(tasks_for(images, tmp_path, 2))


def test_a_shard_that_is_stopped_is_not_published(images: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    (task,) = tasks_for(images, tmp_path, 1)
    with pytest.raises(CancelledError):
        pack_shard(task, stop.set, stop)
    assert [*tmp_path.iterdir()] == []

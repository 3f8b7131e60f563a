"""Threads that fill batches by the core seldom need the interpreter's lock."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import shardio
from shardio.native import status
from shardio.native.table import SampleTable
from shardio.testing import make_images

needs_core = pytest.mark.skipif(not status().active, reason=f"the native core is {status()}")
LETTING_GO = {"pread", "preadv", "crc32", "imdecode", "resize", "decode_jpeg", "sleep"}
"""Functions that let go of the lock and take it again."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    images = make_images(tmp_path / "images", classes=4, per_class=40, extension="jpg")
    shardio.pack(images, tmp_path / "out", shards=2)
    return tmp_path / "out"


def count_calls(loop: Any) -> Counter[str]:
    """Count the functions of the threads of a loader that let go of the lock."""
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in LETTING_GO:
            calls[function.__name__] += 1
        elif event == "call" and frame.f_code is SampleTable.fill.__code__:
            calls["fill"] += 1

    threading.setprofile(note)
    try:
        for _ in loop:
            pass
    finally:
        threading.setprofile(None)
    return calls


@needs_core
def test_a_chunk_of_samples_takes_the_lock_once(photos: Path) -> None:
    dataset = shardio.ShardDataset(
        photos, batch_size=32, shuffle=True, transform=shardio.RandomResizedCrop(8)
    )
    count_calls(shardio.Loader(dataset, threads=2))  # which opens the shards
    loader = shardio.Loader(dataset, threads=2)
    calls = count_calls(loader)
    assert calls["fill"] <= 2 * len(loader)  # chunks of 16 samples at first, then of 32
    del calls["fill"]
    assert calls.total() <= 2 * 4  # of indexes and shards that are opened, and none a sample


@pytest.mark.parametrize("ranks", ["", "2", "64", "x"])
def test_there_is_a_thread_for_each_core_of_a_rank(
    photos: Path, ranks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    monkeypatch.setattr("shardio.processes.count_cores", lambda: 24)
    dataset = shardio.ShardDataset(photos, batch_size=32)
    expected = {"": 24, "2": 12, "64": 1, "x": 24}[ranks]
    monkeypatch.setattr("shardio.reading.loader.is_active", lambda: True)
    assert shardio.Loader(dataset).threads == expected
    monkeypatch.setattr("shardio.reading.loader.is_active", lambda: False)
    assert shardio.Loader(dataset).threads == min(expected, 8)
    assert shardio.Loader(dataset, workers=2).threads == 1

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import shardio
from shardio.reading.handover import Recycler
from shardio.testing import make_shard

SHAPE = (64, 64, 64)
PIXELS = cv2.imencode(".png", np.zeros((16, 16, 3), np.uint8))[1].tobytes()


def test_memory_that_nobody_holds_is_lent_again() -> None:
    allocate = Recycler()
    first = allocate(SHAPE, torch.uint8)
    place = first.data_ptr()
    assert allocate(SHAPE, torch.uint8).data_ptr() != place
    view = first.permute(2, 0, 1)[:3]
    array = view.numpy()
    del first, view
    array[:] = 7
    other = allocate(SHAPE, torch.uint8)
    assert other.data_ptr() != place
    assert (array == 7).all()
    del array
    again = [allocate(SHAPE, torch.uint8) for _ in range(2)]
    assert place in {tensor.data_ptr() for tensor in again}


def test_tensors_have_the_shape_and_dtype_asked_for() -> None:
    allocate = Recycler()
    for dtype in (torch.uint8, torch.int64, torch.float16, torch.bool):
        for shape in (SHAPE, (3,), ()):
            tensor = allocate(shape, dtype)
            assert tensor.shape == shape
            assert tensor.dtype == dtype
            assert tensor.is_contiguous()
            tensor.fill_(1)


def test_memory_can_be_made_by_others() -> None:
    made: list[int] = []

    def make(size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        made.append(size)
        return np.zeros(size, np.uint8)

    allocate = Recycler(make)
    for _ in range(3):
        allocate(SHAPE, torch.float32)
    assert made == [4 * 64**3]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    make_shard(tmp_path / "a.tar", {f"k{n}": {"png": PIXELS, "cls": b"1"} for n in range(4)})
    return tmp_path


def endless(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "x": torch.zeros(1).expand(10**15)}


@pytest.mark.parametrize("skip", ["raise", "skip"])
@pytest.mark.parametrize("reading", ["dataset", "threads", "workers"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"batch_size": 2**31},
            "no memory for a batch of 2,147,483,648 samples; give a smaller batch_size",
        ),
        (
            {"batch_size": 10**7, "transform": shardio.Resize((10_000, 10_000))},
            "the 3,000,000,000,000,000 bytes of 'image' in a batch of 10,000,000 samples; give",
        ),
        ({"map": endless}, "the 16,000,000,000,000,000 bytes of 'x' in a batch of 4 samples"),
    ],
)
def test_a_batch_for_which_there_is_no_memory_is_one_sentence(
    photos: Path, arguments: dict[str, Any], message: str, reading: str, skip: Any
) -> None:
    given = {"transform": shardio.CenterCrop(8, resize=8), "batch_size": 4, **arguments}
    ways: dict[str, Any] = {"dataset": iter, "threads": shardio.Loader}
    read = ways.get(reading, partial(shardio.Loader, workers=1))
    with pytest.raises(shardio.ShardioError, match=message):
        next(iter(read(shardio.ShardDataset(photos, on_bad_sample=skip, **given))))


def test_an_image_for_which_there_is_no_memory_is_named(tmp_path: Path) -> None:
    code = """
import resource, sys, shardio
dataset = shardio.ShardDataset(sys.argv[1], on_bad_sample="skip")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 20_000_000, resource.RLIM_INFINITY))
try:
    list(dataset)
except shardio.ShardioError as error:
    print(error)
"""
    image = cv2.imencode(".png", np.zeros((3000, 5000, 3), np.uint8))[1].tobytes()
    make_shard(tmp_path / "a.tar", {"large": {"png": image}})
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"a\.tar: sample 'large': there is no memory to decode it: .*; ", done.stdout)

"""Measure what this machine can do at most, without any loader.

The decoding ceiling is the rate of two threads that decode, crop and resize images in memory, each
with a scratch buffer and slots for the results. If Python code holds the GIL, two processes are
used.

The ceiling of the mount is the rate of large parallel reads of the shards.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg

from peers.common import Pixels, be_busy, random_crop, use_one_thread
from sources import files_and_labels
from workloads import CORES_USED, Workload

READERS = 64
READ_SIZES = {"1 MiB": 1 << 20, "128 KiB": 1 << 17}


def decode_at_most(images: Path, workload: Workload, repeats: int) -> tuple[int, float]:
    """Decode images at the highest rate; return their number and the seconds."""
    found = sorted((path for path, _ in files_and_labels(images)), key=os.path.getsize)
    parts = [found[start::CORES_USED] for start in range(CORES_USED)]
    pool: Executor
    pool = ProcessPoolExecutor(CORES_USED) if workload.busy else ThreadPoolExecutor(CORES_USED)
    with pool:
        seconds = pool.map(decode_part, parts, [workload] * CORES_USED, [repeats] * CORES_USED)
        return len(found) * repeats, max(seconds)


def decode_part(paths: list[str], workload: Workload, repeats: int) -> float:
    """Decode what is in memory and return the seconds."""
    use_one_thread()
    part = [Path(path).read_bytes() for path in paths]
    sizes = [simplejpeg.decode_jpeg_header(data)[:2] for data in part]
    scratch = np.empty(max(height * width for height, width in sizes) * 3, np.uint8)
    slots: Pixels = np.empty((workload.batch, workload.size, workload.size, 3), np.uint8)
    start = time.perf_counter()
    for _ in range(repeats):
        for number, data in enumerate(part):
            pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=scratch)
            random_crop(pixels, workload.size, slots[number % workload.batch])
            if workload.busy:
                be_busy()
    return time.perf_counter() - start


def read_at_most(folder: Path, read_size: int) -> tuple[int, float]:
    """Read every shard of a folder once; return the bytes and the seconds."""
    shards = [os.open(path, os.O_RDONLY) for path in sorted(folder.glob("*.tar"))]
    reads = [
        (shard, offset)
        for shard in shards
        for offset in range(0, os.fstat(shard).st_size, read_size)
    ]
    start = time.perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        read = sum(pool.map(lambda place: len(os.pread(place[0], read_size, place[1])), reads))
    seconds = time.perf_counter() - start
    for shard in shards:
        os.close(shard)
    return read, seconds

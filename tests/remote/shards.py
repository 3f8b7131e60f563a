"""What the tests of the cache and of downloads share."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import shardio
from servers import Nginx

BYTES = 20_000
SAMPLES = 8  # in a shard
PACE = 0.004  # seconds of a step of training

Read = dict[str, bytes]
_FORKING = multiprocessing.get_context("fork")


def make_set(folder: Path, shards: int = 8, size: int = BYTES, samples: int = SAMPLES) -> Path:
    """Pack random bytes, the same in every run."""
    source = random.Random(shards * size)  # noqa: S311
    count = shards * samples
    stored = [{"__key__": f"{n:05d}", "bin": source.randbytes(size)} for n in range(count)]
    shardio.pack(stored, folder, shards=shards, shuffle=False)
    return folder


def open_set(web: Nginx, cache: Path, **options: Any) -> shardio.ShardDataset:
    given = {"batch_size": SAMPLES, "shuffle": True, "window": 2, "decode": False}
    return shardio.ShardDataset(f"{web.url}/", cache_dir=cache, **{**given, **options})


def read(dataset: Any, pause: float = 0.0) -> Read:
    """Read an epoch; no sample may come twice."""
    found: Read = {}
    for batch in dataset:
        pairs = zip(batch["__key__"], batch["bin"], batch["valid"].tolist(), strict=True)
        for key, data, valid in pairs:
            assert not (valid and key in found)
            if valid:
                found[key] = bytes(data)
        time.sleep(pause)
    return found


def local(folder: Path) -> Read:
    """Read the set from the local disk."""
    return read(shardio.ShardDataset(folder, batch_size=SAMPLES, decode=False))


def whole_gets(web: Nginx) -> Counter[str]:
    """Count the requests for whole shards by name."""
    return Counter(
        request.target.rpartition("/")[2]
        for request in web.requests()
        if request.target.endswith(".tar")
        and request.method == "GET"
        and "range" not in request.headers
    )


def ranges(web: Nginx) -> int:
    """Count the requests for ranges of shards."""
    targets = [each.target for each in web.requests() if "range" in each.headers]
    return sum(target.endswith(".tar") for target in targets)


def files(cache: Path) -> Counter[str]:
    """Count the files of a cache by their endings."""
    return Counter(path.suffix for path in (cache / "remote").rglob("*") if path.is_file())


def stored(cache: Path) -> list[Path]:
    """List the whole shards of a cache."""
    return sorted((cache / "remote").rglob("*.tar"))


def bytes_of(cache: Path) -> int:
    """Count the bytes of a cache, as du does."""
    return sum(map(_size_of, cache.rglob("*.*"))) if cache.exists() else 0


def _size_of(path: Path) -> int:
    with suppress(FileNotFoundError):  # it was just removed
        return path.lstat().st_size
    return 0


def start(function: Callable[..., object], *arguments: object) -> ForkProcess:
    """Fork a process that calls a function."""
    process = _FORKING.Process(target=function, args=arguments)
    process.start()
    return process


def end(*processes: ForkProcess) -> None:
    """Wait for processes, none of which may fail."""
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def until(done: Any, seconds: float = 30.0) -> None:
    """Wait until something is true."""
    latest = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < latest, "it never came"
        time.sleep(0.005)

"""Measure reading from a store once, in this process: the jobs that remote.py starts.

A place is the source that a reader takes, with an empty folder for what it keeps. Imports are done
before the time begins.
"""

from __future__ import annotations

import hashlib
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import torch
import urllib3

import shardio
import shardio.storage.http
from child import LOOKED_AT, check, cpu_seconds
from peers.common import Batch
from shardio.planning.epoch import DEFAULT_WINDOW
from shardio.storage.downloads import CONNECTIONS, Downloads, RemoteShard
from workloads import CORES_USED, WORKLOADS, Workload

PIECE = 1 << 20  # bytes that are read and written at once, by shardio too
BETWEEN_LOOKS = 0.01  # seconds
PHOTOS = "a"  # workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Source of a reader.

    Attributes:
        source: URL or path of the folder.
        shards: number of shards there.
        cache: empty folder for what is kept.
        options: storage options of shardio.
    """

    source: str
    shards: int
    cache: str
    options: dict[str, Any] = field(default_factory=dict)


Epoch = Callable[[], Iterator[Batch]]
"""Begins the next epoch."""


def open_shardio(place: Place, workload: Workload) -> shardio.ShardDataset:
    peer = importlib.import_module("peers.shardio_peer")
    cached = {"cache_dir": place.cache, "storage_options": place.options}
    dataset: shardio.ShardDataset = peer.open_dataset(
        place.source, workload, **(cached if "://" in place.source else {})
    )
    return dataset


def with_threads(place: Place, workload: Workload) -> Epoch:
    peer = importlib.import_module("peers.shardio_peer")
    loader = shardio.Loader(open_shardio(place, workload), threads=CORES_USED)
    return lambda: peer.deliver(loader)


def with_workers(place: Place, workload: Workload) -> Epoch:
    peer = importlib.import_module("peers.shardio_peer")
    dataset = open_shardio(place, workload)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=CORES_USED, persistent_workers=True
    )
    return lambda: peer.deliver(loader)


def with_webdataset(place: Place, workload: Workload) -> Epoch:
    peer = importlib.import_module("peers.webdataset_peer")
    names = [f"{place.source}/shard-{number:06d}.tar" for number in range(place.shards)]
    loader = peer.load([f"pipe:curl -sf {name}" for name in names], workload)
    return lambda: iter(loader)


def with_mosaicml(place: Place, workload: Workload) -> Epoch:
    peer = importlib.import_module("peers.mosaicml")
    loader = peer.load(peer.Stream(remote=place.source, local=place.cache), workload)
    return lambda: iter(loader)


def with_litdata(place: Place, workload: Workload) -> Epoch:
    peer = importlib.import_module("peers.litdata_peer")
    downloader = importlib.import_module("litdata.streaming.downloader")
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # it has no option for that
    options = {"storage_options": place.options, "cache_dir": place.cache}
    loader = peer.load(place.source, workload, max_cache_size="100GB", **options)
    return lambda: iter(loader)


def with_datago(place: Place, workload: Workload) -> Epoch:
    peer = importlib.import_module("peers.datago_peer")
    return lambda: peer.load(place.source, place.shards, workload)


@dataclass(frozen=True, slots=True)
class Reader:
    """Way to read photos from a store.

    Attributes:
        package: module to import before the time begins.
        open: constructs it.
    """

    package: str
    open: Callable[[Place, Workload], Epoch]


READERS = {
    "shardio Loader": Reader("peers.shardio_peer", with_threads),
    "shardio DataLoader": Reader("peers.shardio_peer", with_workers),
    "webdataset": Reader("peers.webdataset_peer", with_webdataset),
    "MosaicML streaming": Reader("peers.mosaicml", with_mosaicml),
    "LitData": Reader("peers.litdata_peer", with_litdata),
    "datago": Reader("peers.datago_peer", with_datago),
}


def photos(
    reader: str, place: dict[str, Any], wanted: Sequence[int], epochs: int, most: int | None
) -> dict[str, float]:
    """Deliver photos for some epochs, or the first batches of one.

    Args:
        reader: name of the reader.
        place: attributes of its place.
        wanted: number of samples of each class.
        epochs: number of epochs.
        most: number of batches after which to stop; None for all.
    """
    workload = WORKLOADS[PHOTOS]
    importlib.import_module(READERS[reader].package)
    cpu, start = cpu_seconds(), time.perf_counter()
    begin = READERS[reader].open(Place(**place), workload)
    found: dict[str, float] = {}
    for epoch in range(1, epochs + 1):
        counts = np.zeros(len(wanted), np.int64)
        first = first_images = 0.0
        for batches, (pixels, labels) in enumerate(begin(), 1):
            check(pixels, len(labels), workload)
            step = workload.size // LOOKED_AT
            np.asarray(pixels)[:, :, ::step, ::step].sum()
            counts += np.bincount(np.asarray(labels, np.int64).ravel(), minlength=len(wanted))
            if not first:
                first, first_images = time.perf_counter() - start, len(labels)
            if batches == most:
                return {"first": first, "images": float(counts.sum())}
        seconds = time.perf_counter() - start
        if counts.tolist() != [*wanted]:
            raise ValueError(f"it gave {counts.tolist()} samples of the classes, not {[*wanted]}")
        measured = {
            "images": float(counts.sum()),
            "seconds": seconds,
            "first": first,
            "first_images": first_images,
            "cpu": cpu_seconds() - cpu,
        }
        found |= {name if epoch == 1 else f"{name} {epoch}": of for name, of in measured.items()}
        cpu, start = cpu_seconds(), time.perf_counter()
    return found


def fields(
    place: dict[str, Any],
    epochs: int,
    window: int = DEFAULT_WINDOW,
    limit: int | None = None,
    forget: str | None = None,
) -> dict[str, float]:
    """Deliver fields as bytes, for some epochs.

    Args:
        place: attributes of the place.
        epochs: number of epochs.
        window: shards in a window.
        limit: bytes that the cache may take.
        forget: URL to ask for after the first epoch, so that the server counts the others alone.
    """
    here, workload = Place(**place), WORKLOADS[PHOTOS]
    cpu, start = cpu_seconds(), time.perf_counter()
    dataset = shardio.ShardDataset(
        here.source,
        decode=False,
        shuffle=True,
        batch_size=workload.batch,
        window=window,
        cache_dir=here.cache,
        cache_limit=limit,
        storage_options=here.options,
    )
    loader = shardio.Loader(dataset, threads=CORES_USED)
    size = 0
    for epoch in range(epochs):
        size = sum(len(data) for batch in loader for data in batch["image"])
        if forget and not epoch:
            urlopen(forget).close()  # noqa: S310  a server of remote.py
    return {
        "bytes": float(size),
        "seconds": time.perf_counter() - start,
        "cpu": cpu_seconds() - cpu,
    }


def fetch(place: dict[str, Any]) -> dict[str, float]:
    """Fetch whole shards into the cache, and read nothing."""
    here = Place(**place)
    dataset = shardio.ShardDataset(
        here.source, batch_size=1, cache_dir=here.cache, storage_options=here.options
    )
    shards = [remote for entry in dataset.catalog.shards if (remote := entry.remote)]
    cpu, start = cpu_seconds(), time.perf_counter()
    downloads = Downloads()
    downloads.want(shards, lambda _: 0.0)
    for shard in shards:
        wait_for(shard, downloads)
    found = {"seconds": time.perf_counter() - start, "cpu": cpu_seconds() - cpu}
    downloads.close()
    return {**found, "bytes": float(sum(shard.size for shard in shards))}


def wait_for(shard: RemoteShard, downloads: Downloads) -> None:
    """Wait until a shard is whole; raise what keeps it from coming."""
    while not shard.cache.path(shard).exists():
        if downloads.state_of(shard) == "no room":
            raise OSError("the cache has no room")
        time.sleep(BETWEEN_LOOKS)


def bare(place: dict[str, Any], *, hashed: bool) -> dict[str, float]:
    """Fetch shards by as many connections of urllib3 alone, and write the same files."""
    here = Place(**place)
    pool = urllib3.PoolManager(maxsize=CONNECTIONS)

    def receive(number: int) -> int:
        digest, size = hashlib.sha256(), 0
        buffer = memoryview(bytearray(PIECE))
        url = f"{here.source}/shard-{number:06d}.tar"
        answer = pool.request("GET", url, preload_content=False, decode_content=False)
        with (Path(here.cache) / f"{number}.tar").open("wb", buffering=0) as file:
            while got := answer.readinto(buffer):
                file.write(buffer[:got])
                if hashed:
                    digest.update(buffer[:got])
                size += got
        answer.release_conn()
        return size

    cpu, start = cpu_seconds(), time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        size = sum(threads.map(receive, range(here.shards)))
    found = {"seconds": time.perf_counter() - start, "cpu": cpu_seconds() - cpu}
    return {**found, "bytes": float(size)}


def writing(place: dict[str, Any]) -> dict[str, float]:
    """Write as many bytes as the shards have from memory, as those that come are written.

    The system counts what the memory of new files takes as time of who writes: on a virtual
    machine that may be more than all else.
    """
    here, piece = Place(**place), bytes(PIECE)
    sizes = [path.stat().st_size for path in Path(here.source).glob("*.tar")]

    def write(number: int) -> None:
        with (Path(here.cache) / f"{number}.tar").open("wb", buffering=0) as file:
            for start in range(0, sizes[number], PIECE):
                file.write(piece[: sizes[number] - start])

    cpu, start = cpu_seconds(), time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(write, range(len(sizes))))
    found = {"seconds": time.perf_counter() - start, "cpu": cpu_seconds() - cpu}
    return {**found, "bytes": float(sum(sizes))}


def hashing(place: dict[str, Any]) -> dict[str, float]:
    """Hash the shards of a local folder, in as large pieces as when they come."""
    size, buffer = 0, memoryview(bytearray(PIECE))
    cpu, start = 0.0, time.perf_counter()
    for path in sorted(Path(place["source"]).glob("*.tar")):
        with path.open("rb", buffering=0) as file:
            digest = hashlib.sha256()
            while got := file.readinto(buffer):
                before = time.thread_time()
                digest.update(buffer[:got])
                cpu += time.thread_time() - before
                size += got
    return {"seconds": time.perf_counter() - start, "cpu": cpu, "bytes": float(size)}


MEASURES: dict[str, Callable[..., dict[str, float]]] = {
    "photos": photos,
    "fields": fields,
    "fetch": fetch,
    "bare": bare,
    "hashing": hashing,
    "writing": writing,
}

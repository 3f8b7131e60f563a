"""What a store delivers: the wait for a first byte, and the rate of one connection and of many.

Shards are asked for as the loader does it, by requests of the storage's own client, but in ranges
and not through the cache, so that nothing is known of them beforehand. The rate with which bytes
come once they do is apart from the wait before, since a shard's size decides what the wait costs.
Time and bytes are bounded. What follows for samples per second is arithmetic.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from shardio.indexing.catalog import Catalog
from shardio.indexing.entry import ShardEntry
from shardio.reading.shards import ShardPool
from shardio.storage.downloads import CONNECTIONS, RemoteShard
from shardio.storage.remote import PIECE

MOST_SECONDS, MOST_BYTES = 5.0, 256 << 20
"""Bounds of what measuring a store takes."""

LARGE_SHARD = 256_000_000
"""Bytes of a shard, for which no store's wait before the first byte counts."""

_PROBES, _PROBE = 8, 4096  # requests for the wait, and their bytes
_PROBING, _ASKING = 0.15, 0.9  # shares of the time until no small, and no request is made
_LEVELS = ((1, 0.125), (4, 0.25), (CONNECTIONS, 0.625))  # connections, and share of the bytes
_RANGE = 8 << 20  # bytes of a request
_ENOUGH = 0.9  # of the highest rate
_GROWS = 1.5  # times the rate, with four times the connections
_LEAST_OF_TIME = 0.1  # share of the connections' time in which bytes come


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """Limits of a store, for the shards of a dataset.

    Attributes:
        first_byte: median seconds from a request to its first byte.
        rates: pairs of a number of connections, ascending, and the bytes per second that they
            deliver together once bytes come.
        shard_bytes: mean size of a shard in the store, where it may be compressed.
        sample_bytes: mean bytes of a shard there per sample.
        total_bytes: size of all shards in the cache.
        cache_bytes: bytes that the cache of shards may take on this machine.
        measured_bytes: bytes that measuring took.
        measured_seconds: seconds that it took.
        loaded: number of shards that were in the cache when the loaders were measured.
        loaded_bytes: size of these.
    """

    first_byte: float
    rates: tuple[tuple[int, float], ...]
    shard_bytes: float
    sample_bytes: float
    total_bytes: int
    cache_bytes: int
    measured_bytes: int
    measured_seconds: float
    loaded: int
    loaded_bytes: int

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StoreLimits:
        """Make the limits from their values as JSON has them."""
        rates = tuple((int(number), float(rate)) for number, rate in values["rates"])
        return cls(**{**values, "rates": rates})

    @property
    def connections(self) -> int:
        """Number of connections that a loader's process uses."""
        return self.rates[-1][0]

    @property
    def enough(self) -> int:
        """Number of connections beyond which the rate hardly grows: the limit of the link."""
        most = max(rate for _, rate in self.rates)
        return next(number for number, rate in self.rates if rate >= _ENOUGH * most)

    @property
    def grows(self) -> bool:
        """Whether the rate still grows with the number of connections."""
        (_, before), (_, last) = self.rates[-2:]
        return last > _GROWS * before

    def rate(self, shard_bytes: float | None = None) -> float:
        """Return bytes per second of fetching whole shards with all connections.

        Args:
            shard_bytes: size of the shards; by default theirs.
        """
        size = shard_bytes or self.shard_bytes
        number, together = self.rates[-1]
        return number * size / (self.first_byte + size * number / together)

    @property
    def waiting(self) -> float:
        """Share of the time of a shard's request that passes before its first byte."""
        return self.first_byte * self.rate() / (self.connections * self.shard_bytes)

    @property
    def samples_per_second(self) -> float:
        """Samples per second that the store delivers of these shards."""
        return self.rate() / self.sample_bytes

    @property
    def cached(self) -> float:
        """Share of the dataset that the cache may hold."""
        return min(self.cache_bytes / max(self.total_bytes, 1), 1.0)


def megabytes(rate: float) -> str:
    """Format bytes per second as MB/s, without the unit."""
    return f"{rate / 1e6:,.{1 if rate < 1e7 else 0}f}"


def count_loaded(shards: Iterable[ShardEntry], batch_size: int) -> int:
    """Return how many shards loaders are measured on, which are then in the cache.

    They are the first ones that hold MOST_BYTES, or all, and have a batch.
    """
    number = samples = size = 0
    for shard in shards:
        if size >= MOST_BYTES and samples >= batch_size:
            break
        number, samples, size = number + 1, samples + shard.samples, size + shard.size
    return number


def load_shards(catalog: Catalog, number: int) -> list[ShardEntry]:
    """Have the first shards of a dataset fetched into the cache, and return those that are there.

    Raises:
        RemoteError: the store fails or refuses.
        TarError: a shard is not what was packed.
    """
    pool = ShardPool(catalog.shards)
    try:
        pool.fetch(range(number), lambda _: 0.0)
        for shard in range(number):
            file = pool.get(shard, only="file").file()
            file.read(file.size - 1, 1)  # waits for all before it
    finally:
        pool.close()
    return [entry for entry in catalog.shards[:number] if is_cached(entry)]


def is_cached(entry: ShardEntry) -> bool:
    """Tell whether a shard of a store is in the cache."""
    remote = entry.remote
    return remote is not None and remote.cache.path(remote).exists()


def local_files(catalog: Catalog) -> list[str]:
    """List the local files of shards: of a store those in the cache."""
    found = []
    for shard in catalog.shards:
        remote = shard.remote
        path = Path(shard.path) if remote is None else remote.cache.path(remote)
        if remote is None or path.exists():
            found.append(str(path))
    return found


def measure_store(
    catalog: Catalog, number: int, seconds: float = MOST_SECONDS, most: int = MOST_BYTES
) -> dict[str, Any]:
    """Measure the StoreLimits of a dataset, as values for JSON; then have shards fetched.

    Args:
        catalog: catalog of the dataset, whose shards are of a store.
        number: number of the shards, the first ones, that loaders are then measured with.
        seconds: seconds that it may take.
        most: bytes that it may take.

    Raises:
        RemoteError: the store fails or refuses.
    """
    shards = [remote for entry in catalog.shards if (remote := entry.remote) and remote.size]
    start = time.perf_counter()
    waits = _waits(shards, start + _PROBING * seconds)
    first_byte, taken = median(waits), len(waits) * _PROBE
    rates = []
    for place, (connections, share) in enumerate(_LEVELS):
        rest = start + _ASKING * seconds - time.perf_counter()
        bound = int(share * most) - connections * PIECE  # each may take a piece more
        level = _Level(shards, rest / (len(_LEVELS) - place), bound)
        rates.append((connections, level.rate(connections, first_byte)))
        taken += level.received
    passed = time.perf_counter() - start
    total, loaded = sum(map(_object_size, shards)), load_shards(catalog, number)
    limits = StoreLimits(
        first_byte=first_byte,
        rates=tuple(rates),
        shard_bytes=total / len(shards),
        sample_bytes=total / max(sum(entry.samples for entry in catalog.shards), 1),
        total_bytes=sum(entry.size for entry in catalog.shards),
        cache_bytes=shards[0].cache.limit,
        measured_bytes=taken,
        measured_seconds=passed,
        loaded=len(loaded),
        loaded_bytes=sum(entry.size for entry in loaded),
    )
    return asdict(limits)


def _waits(shards: Sequence[RemoteShard], end: float) -> list[float]:
    """Return seconds of small requests, one after the other; the first one connects."""
    found: list[float] = []
    while len(found) <= _PROBES and (len(found) < 2 or time.perf_counter() < end):
        shard, start = _somewhere(shards, _PROBE)
        began = time.perf_counter()
        stop = min(start + _PROBE, _object_size(shard))
        shard.storage.download(shard.path, start, stop, shard.version, lambda _: None)
        found.append(time.perf_counter() - began)
    return found[1:]


def _somewhere(shards: Sequence[RemoteShard], size: int) -> tuple[RemoteShard, int]:
    """Choose a shard, and the first of some bytes in it."""
    shard = random.choice(shards)  # noqa: S311  no secret
    return shard, random.randrange(max(_object_size(shard) - size, 0) + 1)  # noqa: S311


def _object_size(shard: RemoteShard) -> int:
    """Return the size of a shard in the store."""
    return shard.size if shard.stored is None else shard.stored


class _EnoughError(Exception):
    """The bounds are reached."""


class _Level:
    """Requests of some connections at once, until a bound is reached.

    Args:
        shards: shards to ask for.
        seconds: seconds that it may take, unless no byte came.
        most: bytes after which no more is read.

    Attributes:
        received: number of bytes that came.
    """

    def __init__(self, shards: Sequence[RemoteShard], seconds: float, most: int) -> None:
        self.received = 0
        self._shards, self._most = shards, most
        self._requests, self._waited, self._streamed = 0, 0.0, 0
        self._lock = threading.Lock()
        self._start = self._latest = time.perf_counter()
        self._end = self._start + seconds

    def rate(self, connections: int, first_byte: float) -> float:
        """Return the bytes per second of all connections while bytes come.

        What comes after the first piece of each answer tells, unless answers are so short that
        most have one piece.

        Args:
            connections: number of connections.
            first_byte: seconds before a request's first byte.
        """
        with ThreadPoolExecutor(connections) as pool:
            for _ in pool.map(self._ask, range(connections)):
                pass
        whole = connections * (self._latest - self._start)
        if 2 * self._streamed > self.received:
            return connections * self._streamed / max(whole - self._waited, _LEAST_OF_TIME * whole)
        coming = max(whole - self._requests * first_byte, _LEAST_OF_TIME * whole)
        return connections * self.received / coming

    def _ask(self, _: int) -> None:
        """Make requests one after the other."""
        while not self._is_over():
            shard, start = _somewhere(self._shards, _RANGE)
            stop = min(start + _RANGE, _object_size(shard))
            try:
                shard.storage.download(shard.path, start, stop, shard.version, self._new_sink())
            except _EnoughError:
                return

    def _new_sink(self) -> Callable[[memoryview], None]:
        """Return what counts the bytes of a request that begins now."""
        began = time.perf_counter()
        is_first = True
        with self._lock:
            self._requests += 1

        def take(data: memoryview) -> None:
            nonlocal is_first
            with self._lock:
                self.received += len(data)
                self._latest = time.perf_counter()
                if is_first:
                    self._waited += self._latest - began
                else:
                    self._streamed += len(data)
            is_first = False
            if self._is_over():
                raise _EnoughError

        return take

    def _is_over(self) -> bool:
        late = time.perf_counter() >= self._end
        return self.received > 0 and (late or self.received >= self._most)

"""Datasets in stores that are read under faults by real processes, as combinations of what varies.

A combination is a store, a kind of shards, the way they are read, and a fault. It reads an epoch,
then begins it anew, leaves it in the middle, and goes on with other ranks and workers. The batches
must be those of local files, each once and in the same order. The campaign stores.py runs all
combinations, tests/remote/test_exactly_once.py some that cover every pair.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import zstandard
from torch.utils.data import DataLoader

import shardio
from campaign import Wrong
from servers import Keys, Nginx, Request, SeaweedS3
from shardio.testing import make_images

SHARDS, GLOBAL_BATCH_SIZE = 8, 24
STORES = ("http", "s3")
KINDS = ("packed", "tars", "compressed")
WAYS = ("threads", "fork", "spawn")
FAULTS = ("none", "busy", "cut", "stall", "restart", "small cache", "expired")
TOPOLOGIES = ((2, 2), (1, 0), (4, 1), (3, 0), (1, 3))  # ranks, workers of each, to go on with

Digests = dict[tuple[int, int], str]
"""Digests of global batches by epoch and step."""


class Sets:
    """The same samples as a packed folder, as plain shards and as compressed ones.

    Args:
        folder: empty folder.

    Attributes:
        expected: digests of an epoch, read from local files, by kind and window.
        shard_size: bytes of the largest shard.
    """

    def __init__(self, folder: Path) -> None:
        images = make_images(folder / "images", classes=4, per_class=48, size=40)
        self._folders = {kind: folder / kind for kind in KINDS}
        shardio.pack(images, self["packed"], shards=SHARDS)
        for kind in KINDS[1:]:
            self[kind].mkdir()
        tars = sorted(self["packed"].glob("*.tar"))
        for number, tar in enumerate(tars):
            shutil.copy(tar, self["tars"])
            data = tar.read_bytes()
            packed = zstandard.compress(data) if number % 2 else gzip.compress(data, 1)
            (self["compressed"] / f"{tar.name}{('.gz', '.zst')[number % 2]}").write_bytes(packed)
        self.shard_size = max(tar.stat().st_size for tar in tars)
        self.expected: dict[tuple[str, int], Digests] = {}
        for window in (1, 2):
            for kind in KINDS[:2]:
                local = open_set(str(self[kind]), window=window)
                self.expected[kind, window] = read([local], "here")
            self.expected["compressed", window] = self.expected["tars", window]

    def __getitem__(self, kind: str) -> Path:
        return self._folders[kind]

    def source(self, url: str, kind: str) -> str:
        """Return what a dataset takes for a set in a store."""
        if kind == "packed" or not url.startswith("http"):
            return url
        names = sorted(path.name for path in self[kind].iterdir())  # http lists nothing
        return f"{url}/{{{','.join(names)}}}"


def open_set(
    source: str, rank: int | None = 0, ranks: int | None = 1, **options: Any
) -> shardio.ShardDataset:
    """Open a set for one rank; None for that of torch.distributed."""
    given: dict[str, Any] = {
        "transform": shardio.RandomResizedCrop(8),
        "global_batch_size": GLOBAL_BATCH_SIZE,
        "shuffle": True,
        "window": 2,
        "seed": 5,
    }
    return shardio.ShardDataset(source, rank=rank, world_size=ranks, **{**given, **options})


def load(dataset: Any, way: str, workers: int) -> Iterable[dict[str, Any]]:
    """Return what yields the batches of a dataset; "here" in this thread, as before a fork."""
    if way == "here":
        return dataset  # type: ignore[no-any-return]
    if way == "threads" or not workers:
        return shardio.Loader(dataset, threads=2)
    return DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=way)


def samples_of(batch: Mapping[str, Any]) -> list[bytes]:
    """Return everything that a loop gets of each sample."""
    pixels = batch["image"].permute(0, 2, 3, 1).numpy()
    facts = zip(batch["__key__"], batch["valid"].tolist(), batch["label"].tolist(), strict=True)
    return [repr(fact).encode() + pixels[slot].tobytes() for slot, fact in enumerate(facts)]


def read(
    datasets: Iterable[Any],
    way: str = "threads",
    workers: int = 0,
    *,
    steps: int | None = None,
    then: Callable[[int], None] = lambda _: None,
) -> Digests:
    """Read an epoch, rank after rank, and leave each dataset with the state where it ended.

    Args:
        datasets: dataset of each rank.
        way: way of reading.
        workers: number of processes for each rank.
        steps: number of steps, or all.
        then: function that is called after each batch with its step.
    """
    parts: dict[tuple[int, int], list[bytes]] = {}
    for dataset in datasets:
        batches = iter(load(dataset, way, workers))
        for batch in islice(batches, steps):
            place = batch["__epoch__"], batch["__step__"]
            parts.setdefault(place, []).extend(samples_of(batch))
            after = dataset.state_dict(batch)
            then(batch["__step__"])
        del batches
        dataset.load_state_dict(after)
    return {place: hashlib.sha256(b"".join(part)).hexdigest() for place, part in parts.items()}


@dataclass(frozen=True)
class Combination:
    """What varies; see the module."""

    store: str
    kind: str
    way: str
    fault: str

    def __str__(self) -> str:
        return f"{self.store}, {self.kind}, {self.way}, {self.fault}"

    def run(self, folder: Path, sets: Sets, s3: Bucket | None, most: int | None = None) -> None:
        """Read a set, and raise Wrong if something else comes than from local files.

        Args:
            folder: empty folder.
            sets: the sets.
            s3: the sets in S3; None where the store is another.
            most: number of requests of each half among which some fail, or all.
        """
        with served(folder / "web", self.store, sets, s3, self.kind) as (web, url, options):
            world = _World(self, folder, web, sets, url, options, s3, most)
            world.read_whole()
            world.go_on_elsewhere()


def all_combinations() -> list[Combination]:
    """Return every combination that has a meaning."""
    found = [Combination(*each) for each in product(STORES, KINDS, WAYS, FAULTS)]
    return [each for each in found if each.store == "s3" or each.fault != "expired"]


def pairwise(combinations: Iterable[Combination]) -> list[Combination]:
    """Return some of the combinations, in which all pairs of two values occur."""
    left = [(each, _pairs(each)) for each in combinations]
    missing = set[tuple[int, str, int, str]]().union(*(pairs for _, pairs in left))
    found = []
    while missing:
        best, pairs = max(left, key=lambda each: len(each[1] & missing))
        found.append(best)
        missing -= pairs
    return found


def _pairs(combination: Combination) -> set[tuple[int, str, int, str]]:
    values = [*enumerate(vars(combination).values())]
    return {(*one, *other) for one in values for other in values if one < other}


class Bucket:
    """The sets in a bucket of S3.

    Args:
        s3: the store.
        sets: the sets.
    """

    def __init__(self, s3: SeaweedS3, sets: Sets) -> None:
        self.url, self.keys, self.other_keys = s3.url, s3.keys, s3.reader_keys
        self.name = s3.bucket()
        for kind in KINDS:
            s3.upload(sets[kind], self.name, f"{kind}/")

    def options(self, web: Nginx) -> dict[str, Any]:
        """Return the options for the store behind an nginx."""
        return {
            "endpoint_url": web.url,
            "key": self.keys.access,
            "secret": self.keys.secret,
            "region": "us-east-1",
        }


@contextlib.contextmanager
def served(
    work: Path, store: str, sets: Sets, s3: Bucket | None, kind: str
) -> Iterator[tuple[Nginx, str, dict[str, Any]]]:
    """Serve a set by an nginx of its own, and give it, the URL and the options of the store."""
    if store == "s3":
        assert s3 is not None
        with Nginx(work, upstream=s3.url) as web:
            yield web, f"s3://{s3.name}/{kind}", s3.options(web)
    else:
        with Nginx(work, folder=sets[kind]) as web:
            yield web, web.url, {}


class _World:
    """A set in a store, with a fault."""

    def __init__(
        self,
        what: Combination,
        folder: Path,
        web: Nginx,
        sets: Sets,
        url: str,
        store: Mapping[str, Any],
        s3: Bucket | None,
        most: int | None,
    ) -> None:
        self._what, self._folder, self._web, self._s3 = what, folder, web, s3
        self._most = most
        self._expected = sets.expected[what.kind, 2]
        self._source = sets.source(url, what.kind)
        self._store = dict(store)
        self._options: dict[str, Any] = {}
        self._keys: list[Keys] = []
        web.pace(latency=0.01, rate=3e6)
        if what.fault == "stall":
            self._options["download_timeout"] = 1
        elif what.fault == "small cache":
            self._options["cache_limit"] = int(2.3 * sets.shard_size)
        elif what.fault == "expired":
            assert s3 is not None
            self._keys = [s3.keys, s3.other_keys]
            del self._store["key"], self._store["secret"]
            self._renew()

    def read_whole(self) -> None:
        """Read an epoch as one rank, in a process that has read before."""
        self._begin_faults()
        cache = self._folder / "first"
        dataset = self._open(cache)
        dataset[17]
        next(iter(dataset))
        dataset.set_epoch(0)
        few = self._most is not None and self._what.way == "spawn"  # it takes seconds to start one
        found = read([dataset], self._what.way, 1 if few else 2, then=self._trouble)
        _compare(found, self._expected)
        self._check_cache(cache)

    def go_on_elsewhere(self) -> None:
        """Leave an epoch in the middle, and go on with other ranks, workers, and another cache."""
        self._begin_faults()
        number = [*all_combinations()].index(self._what)
        way = "fork" if self._what.way == "spawn" else self._what.way  # which is slow to start
        ranks, workers = TOPOLOGIES[number % len(TOPOLOGIES)]
        dataset = self._open(self._folder / "first")
        first = read([dataset], way, 2, steps=1 + number % 6)
        others = [self._open(self._folder / "second", rank, ranks) for rank in range(ranks)]
        for other in others:
            other.load_state_dict(dataset.state_dict())
        rest = read(others, "fork", workers, then=self._trouble)
        if first.keys() & rest.keys():
            raise Wrong("a step comes twice", sorted(first.keys() & rest.keys()))
        _compare(first | rest, self._expected)
        self._check_cache(self._folder / "second")

    def _open(self, cache: Path, rank: int = 0, ranks: int = 1) -> Any:
        options = {"storage_options": self._store} if self._store else {}
        dataset = open_set(self._source, rank, ranks, cache_dir=cache, **options, **self._options)
        for path in cache.rglob("*.tar"):  # shards of others have come to be indexed
            path.unlink()
        return dataset

    def _begin_faults(self) -> None:
        if self._what.fault == "busy":
            self._web.fail(status=503, probability=0.1, retry_after=1, times=self._most)
        elif self._what.fault == "cut":
            self._web.fail(cut=30_000, probability=0.3, times=self._most)
        elif self._what.fault == "stall":
            self._web.fail(stall=2.0, at=1000, probability=0.1, times=self._most)

    def _trouble(self, step: int) -> None:
        """Have the fault happen that happens once, in mid-epoch."""
        if step == 2 and self._what.fault == "restart":
            self._web.restart(0.3)
        if step == 2 and self._what.fault == "expired":
            self._renew()

    def _renew(self) -> None:
        """Write other credentials into AWS's file, and have the store refuse those before."""
        assert self._s3 is not None
        new, old = self._keys
        self._keys.reverse()
        path = self._folder / "credentials"
        path.with_suffix(".new").write_text(
            f"[default]\naws_access_key_id={new.access}\naws_secret_access_key={new.secret}\n"
        )
        path.with_suffix(".new").rename(path)
        os.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(path)
        said = "<Error><Code>ExpiredToken</Code><Message>it has expired</Message></Error>"
        self._web.fail(signed=f"Credential={old.access}/", status=400, text=said)

    def _check_cache(self, cache: Path) -> None:
        """Find what a loop leaves in the cache beside whole shards and their indexes."""
        found = [path for path in cache.rglob("*") if path.is_file() and path.name != "usage"]
        litter = [path.name for path in found if path.suffix not in (".tar", ".index")]
        if litter:
            raise Wrong("litter in the cache", litter)
        limit, size = self._options.get("cache_limit"), sum(path.stat().st_size for path in found)
        if limit is not None and size > limit:
            raise Wrong("the cache is larger than its limit", f"{size} > {limit}")


def _compare(found: Digests, expected: Digests) -> None:
    if found == expected:
        return
    missing, more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    other = sorted(
        place for place in found.keys() & expected.keys() if found[place] != expected[place]
    )
    raise Wrong("other batches than of local files", f"{missing=} {more=} {other=}")


def whole_gets(web: Nginx) -> Counter[str]:
    """Count the requests for whole shards by name."""
    return Counter(_shard_of(each) for each in _gets(web) if "range" not in each.headers)


def shards_asked(web: Nginx) -> set[str]:
    """Return the names of the shards of which anything was requested."""
    return {*map(_shard_of, _gets(web))}


def _gets(web: Nginx) -> list[Request]:
    gets = [each for each in web.requests() if each.method == "GET" and "?" not in each.target]
    shards = [each for each in gets if ".tar" in each.target and ".idx" not in each.target]
    return [each for each in shards if not each.target.endswith("shardio.json")]


def _shard_of(request: Request) -> str:
    return request.target.rpartition("/")[2]

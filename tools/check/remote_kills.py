"""What does SIGKILL leave of a reader of remote shards? It is killed while its shards come.

Readers of one cache are killed at random times: one alone, one of two that share the cache, or one
that has workers. The server is slow, and in some cases cuts bodies or refuses requests. Right: the
one that goes on, and the next, deliver every sample once, with its bytes; afterwards the cache has
whole shards and indexes alone, the limit holds, and the sum of the cache is true.

Needs nginx with Lua, see servers.py.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

import campaign
import children
import shardio
from servers import Missing, Nginx

KILLS = 50  # of each kind
SHARDS, SAMPLES, BYTES = 8, 8, 20_000
RATE = 150_000  # bytes per second of a connection
LONGEST = 1.0  # seconds until a kill
FORKING = multiprocessing.get_context("fork")


def pack(folder: Path) -> dict[str, bytes]:
    """Pack random bytes, and return their digests by key."""
    source = random.Random(0)  # noqa: S311
    stored = {f"{number:05d}": source.randbytes(BYTES) for number in range(SHARDS * SAMPLES)}
    samples = [{"__key__": key, "bin": data} for key, data in stored.items()]
    shardio.pack(samples, folder, shards=SHARDS, shuffle=False)
    return {key: hashlib.sha256(data).digest() for key, data in stored.items()}


def read(url: str, cache: Path, limit: int, num_workers: int = 0) -> dict[str, bytes]:
    """Read two epochs, each of which must have the same samples; returns digests by key."""
    options: dict[str, Any] = {"batch_size": 8, "shuffle": True, "window": 2, "decode": False}
    dataset = shardio.ShardDataset(url, cache_dir=cache, cache_limit=limit, **options)
    found: dict[str, bytes] = {}
    for epoch in range(2):
        for batch in DataLoader(dataset, batch_size=None, num_workers=num_workers):
            for key, data in zip(batch["__key__"], batch["bin"], strict=True):
                digest = hashlib.sha256(data).digest()
                if epoch == 0 and key in found:
                    raise campaign.Wrong("a sample came twice", key)
                if found.setdefault(key, digest) != digest:
                    raise campaign.Wrong("other bytes in the next epoch", key)
    return found


def check(web: Nginx, cache: Path, limit: int, expected: dict[str, bytes]) -> None:
    """Read all in another process, and look at what is left."""

    def look() -> None:
        if read(f"{web.url}/", cache, limit) != expected:
            raise campaign.Wrong("other samples")
        held = shardio.list_cache(cache_dir=cache)
        odd = [entry for entry in held.entries if entry.state not in ("shard", "index")]
        if odd:
            raise campaign.Wrong("something is left", odd)
        files = {str(path) for path in cache.rglob("*") if path.is_file()}
        litter = files - {entry.path for entry in held.entries} - {f"{held.folder}/usage"}
        if litter:
            raise campaign.Wrong("litter", litter)
        counted = int(Path(held.folder, "usage").read_text("ascii"))
        if counted != held.bytes or held.bytes > limit:
            raise campaign.Wrong("the sum is not true", (counted, held.bytes, limit))

    ended = children.in_child(look).check()
    if ended.error:
        raise campaign.Wrong(f"raises {ended.error}", ended.message)


def kill(
    packed: Path, limit: int, expected: dict[str, bytes], kind: str, trial: campaign.Trial
) -> None:
    try:
        with Nginx(trial.folder / "web", folder=packed, latency=0.005, rate=RATE) as web:
            kill_reader(web, limit, expected, kind, trial)
    except Missing as missing:
        raise campaign.SkipCase(str(missing)) from None


def kill_reader(
    web: Nginx, limit: int, expected: dict[str, bytes], kind: str, trial: campaign.Trial
) -> None:
    cache = trial.folder / "cache"
    faults: tuple[dict[str, Any], ...] = {}, {"cut": BYTES}, {"status": 503}
    if fault := trial.random.choice(faults):
        web.fail("*.tar", probability=0.2, **fault)
    num_workers = 2 * (kind == "workers")

    def train() -> None:
        os.setpgid(0, 0)
        read(f"{web.url}/", cache, limit, num_workers)

    readers = [FORKING.Process(target=train) for _ in range(1 + (kind == "two"))]
    for reader in readers:
        reader.start()
    time.sleep(trial.random.random() * LONGEST)
    readers[0].kill()
    readers[0].join()
    workers_of = [int(path) for path in _group(readers[0].pid or 0)]
    for reader in readers[1:]:
        reader.join()
        if reader.exitcode:
            raise campaign.Wrong("the other reader failed", reader.exitcode)
    left = len([*cache.rglob("*.part")])
    for process in workers_of:  # torch's notice the death of their parent in five seconds
        _end(process)
    web.heal()
    web.pace(latency=0.0, rate=0.0)
    check(web, cache, limit, expected)
    trial.right(f"{kind}, {'some' if left else 'no'} parts left")


def _group(leader: int) -> list[str]:
    """List the processes of a killed reader's group."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            member = os.getpgid(int(path.name)) == leader
        except OSError:
            continue
        if member:
            found.append(path.name)
    return found


def _end(process: int) -> None:
    try:
        os.kill(process, 9)
    except ProcessLookupError:
        return
    while Path(f"/proc/{process}/exe").exists():
        time.sleep(0.01)


def cases(folder: Path) -> list[campaign.Case]:
    packed = folder / "out"
    expected = pack(packed)
    size = max(path.stat().st_size for path in packed.glob("*.tar"))
    indexes = sum(path.stat().st_size for path in packed.rglob("*.idx"))
    found = []
    for number in range(KILLS):
        limit = indexes + size * (4 if number % 2 else SHARDS)
        for kind in ("one", "two", "workers"):
            run = partial(kill, packed, limit, expected, kind)
            found.append(campaign.Case(f"{kind} {number}", run))
    return found


if __name__ == "__main__":
    campaign.main(__doc__, cases)

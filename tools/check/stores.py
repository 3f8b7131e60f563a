"""Do datasets in stores come exactly once, whatever fails? And what do killed packs leave there?

Every combination of grid.py reads an epoch in real processes, and goes on from the middle of
another with other ranks and workers: two stores, three kinds of shards, three ways of reading, and
stores that refuse, cut bodies, fall silent, restart, or let credentials expire. Right: the batches
of local files, each once, and nothing but whole shards and indexes in the cache.

Packs to S3 are killed at random times. Right: no manifest, or all of it; the same pack, run again,
makes the objects of a local pack, and leaves no others, and no unfinished upload.

Objects are replaced, truncated, extended or damaged in mid-epoch. Right: batches of the dataset as
it was, then an error; never others.

Needs nginx with Lua and SeaweedFS, see servers.py.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import campaign
import children
import grid
import shardio
from servers import Missing, Nginx, SeaweedS3
from shardio.testing import digests, make_images

PACK_KILLS, CHANGES = 50, 20
SHARDS = 6
FORKING = multiprocessing.get_context("fork")


def in_child(function: Callable[[], Any]) -> Any:
    """Call a function in a child that may raise nothing."""
    ended = children.in_child(function).check()
    if ended.error == "Missing":
        raise campaign.SkipCase(ended.message)
    if ended.error:
        raise campaign.Wrong(f"raises {ended.error}", ended.message)
    return ended.value


class Store:
    """SeaweedFS with the sets of the grid; started when a case first needs it."""

    def __init__(self, folder: Path, sets: grid.Sets) -> None:
        self._folder, self._sets = folder, sets
        self._bucket: grid.Bucket | None = None
        self._server: SeaweedS3 | None = None

    @property
    def server(self) -> SeaweedS3:
        """Return the server."""
        if self._server is None:
            try:
                self._server = campaign.AT_END.enter_context(SeaweedS3(self._folder))
            except Missing as missing:
                raise campaign.SkipCase(str(missing)) from None
        return self._server

    @property
    def bucket(self) -> grid.Bucket:
        """Return the sets in a bucket."""
        if self._bucket is None:
            self._bucket = grid.Bucket(self.server, self._sets)
        return self._bucket


def read(what: grid.Combination, sets: grid.Sets, store: Store, trial: campaign.Trial) -> None:
    bucket = store.bucket if what.store == "s3" else None
    in_child(partial(what.run, trial.folder, sets, bucket))
    trial.right(what.fault)


def kill_pack(images: Path, expected: dict[str, str], store: Store, trial: campaign.Trial) -> None:
    s3 = store.server
    bucket, client = s3.bucket(), s3.client()
    options = {"key": s3.keys.access, "secret": s3.keys.secret, "region": "us-east-1"}
    spool = trial.folder / "spool"
    spool.mkdir()

    def pack(url: str) -> None:
        tempfile.tempdir = str(spool)
        given = {**options, "endpoint_url": url}
        shardio.pack(images, f"s3://{bucket}/out", shards=SHARDS, jobs=2, storage_options=given)

    def objects() -> dict[str, str]:
        found = client.list_objects_v2(Bucket=bucket).get("Contents", ())
        return {
            each["Key"].removeprefix("out/"): hashlib.sha256(
                client.get_object(Bucket=bucket, Key=each["Key"])["Body"].read()
            ).hexdigest()
            for each in found
        }

    with Nginx(trial.folder / "web", upstream=s3.url, latency=0.02) as web:
        process = FORKING.Process(target=pack, args=(web.url,))
        process.start()
        time.sleep(trial.random.random() * 1.5)
        process.kill()
        process.join()
        time.sleep(0.1)  # what is on its way arrives
        left = objects()
        if "shardio.json" in left and left != expected:
            raise campaign.Wrong("a manifest, and not all of the rest", sorted(left))
        in_child(partial(pack, web.url))
    if objects() != expected:
        raise campaign.Wrong("other objects after a rerun", sorted(objects()))
    if uploads := client.list_multipart_uploads(Bucket=bucket).get("Uploads"):
        raise campaign.Wrong("unfinished uploads", uploads)
    if litter := [str(path) for path in spool.rglob("*") if path.is_file()]:
        raise campaign.Wrong("litter in the temporary directory", litter)
    state = "had ended" if left == expected else f"{'some' if left else 'no'} objects"
    trial.right(f"pack to S3, killed: {state}")


def damage(data: bytes, how: str, choose: random.Random) -> bytes:
    """Return what a hostile store has in place of an object."""
    at = choose.randrange(len(data))
    if how == "truncated":
        return data[:at]
    if how == "longer":
        return data + bytes(512 * choose.randint(1, 40))
    if how == "damaged":
        return data[:at] + bytes([data[at] ^ (1 << choose.randrange(8))]) + data[at + 1 :]
    return choose.randbytes(len(data))


def change(kind: str, how: str, sets: grid.Sets, trial: campaign.Trial) -> None:
    folder = trial.folder / "objects"
    shutil.copytree(sets[kind], folder)
    shards = sorted(path for path in folder.iterdir() if ".tar" in path.name)
    step = trial.random.randrange(6)

    def train() -> tuple[grid.Digests, str]:
        found: grid.Digests = {}
        with Nginx(trial.folder / "web", folder=folder, latency=0.01, rate=2e6) as web:
            source = sets.source(web.url, kind)
            dataset = grid.open_set(source, cache_dir=trial.folder / "cache", window=1)
            for path in (trial.folder / "cache").rglob("*.tar"):
                path.unlink()
            try:
                for batch in shardio.Loader(dataset, threads=2):
                    place = batch["__epoch__"], batch["__step__"]
                    found[place] = hashlib.sha256(b"".join(grid.samples_of(batch))).hexdigest()
                    if batch["__step__"] == step:
                        for path in trial.random.sample(shards, 4):
                            data = damage(path.read_bytes(), how, trial.random)
                            path.with_suffix(".new").write_bytes(data)
                            path.with_suffix(".new").rename(path)
            except shardio.ShardioError as error:
                if "\n" in str(error):
                    raise campaign.Wrong("an error of several lines", error) from error
                return found, type(error).__name__
        return found, ""

    reference = sets.expected[kind, 1]
    found, error = in_child(train)
    if other := [place for place in found if found[place] != reference[place]]:
        raise campaign.Wrong("other data than was indexed", other)
    if error:
        trial.refused(f"{how}: {error}")
    elif len(found) < len(reference):
        raise campaign.Wrong("fewer batches in silence", len(found))
    else:
        trial.right(f"{how} after it was fetched")


def cases(folder: Path) -> list[campaign.Case]:
    for part in ("sets", "pack"):
        (folder / part).mkdir()
    sets = grid.Sets(folder / "sets")
    store = Store(folder / "s3", sets)
    images = make_images(folder / "pack" / "images", classes=4, per_class=20, size=60)
    shardio.pack(images, folder / "pack" / "out", shards=SHARDS)
    expected = digests(folder / "pack" / "out")
    found = [
        campaign.Case(str(each), partial(read, each, sets, store))
        for each in grid.all_combinations()
    ]
    for number in range(PACK_KILLS):
        run = partial(kill_pack, images, expected, store)
        found.append(campaign.Case(f"pack {number}", run))
    for number in range(CHANGES):
        for kind in grid.KINDS:
            for how in ("replaced", "truncated", "longer", "damaged"):
                run = partial(change, kind, how, sets)
                found.append(campaign.Case(f"{how}, {kind} {number}", run))
    return found


if __name__ == "__main__":
    campaign.main(__doc__, cases)

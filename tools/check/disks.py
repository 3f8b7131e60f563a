"""What happens if a disk is full? Packs, indexes, caches and readers run on small file systems.

The output, the cache, the temporary directory or /dev/shm is a tmpfs of 1/10 to 9/10 of the
required size, in a mount namespace of its own (Linux, root). Right: a one-line error and exit code
1, and no file under its final name with wrong contents. After the disk has grown, the same command
must give the same bytes as one that was not disturbed. Wrong: a traceback, a half-written file
under its final name, a crash (SIGBUS on a full /dev/shm), a hang, or other bytes. The idea is that
of SQLite's out-of-space tests.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

import campaign
import children
import shardio
from shardio.testing import digests, make_images, make_shard

SHARES = (0, 1, 2, 3, 5, 7, 9)  # tenths of what is needed
PUBLISHED = (".tar", ".idx", ".tfrecord", "shardio.json", "shardindex.json")
Words = Sequence[object]


class Inputs:
    """Inputs of the commands, made once.

    Attributes:
        images: folder with one subfolder per class.
        shards: other tars, without an index.
        packed: packed folder.
        damaged: copy of the packed folder without its first index, so that there is something to
            repair.
    """

    def __init__(self, folder: Path) -> None:
        self.images = make_images(folder / "images", classes=4, per_class=25, size=40)
        self.packed = folder / "packed"
        shardio.pack(self.images, self.packed, shards=4, jobs=1)
        self.damaged = folder / "damaged"
        shutil.copytree(self.packed, self.damaged)
        (self.damaged / "index" / "shard-000000.tar.idx").write_bytes(b"")
        self.shards = folder / "shards"
        self.shards.mkdir()
        for number in range(4):
            samples = {f"{number}-{each}": {"bin": bytes([each]) * 9_000} for each in range(20)}
            make_shard(self.shards / f"{number}.tar", samples)


COMMANDS: dict[str, Callable[[Inputs, Path], Words]] = {
    "pack": lambda given, out: ["pack", given.images, out, "--shards", 4, "--jobs", 1],
    "pack, 2 jobs": lambda given, out: ["pack", given.images, out, "--shards", 4, "--jobs", 2],
    "pack, split": lambda given, out: [
        *["pack", given.images, out, "--shards", 2, "--jobs", 1, "--split", "a=0.5,b=0.5"]
    ],
    "reshard": lambda given, out: ["reshard", given.packed, out, "--shards", 2, "--jobs", 1],
    "index": lambda _, out: ["index", out],
    "tfrecord": lambda given, out: ["convert", given.packed, out, "--to", "tfrecord"],
    "dali": lambda given, out: ["convert", given.packed, out, "--to", "dali"],
    "wids": lambda given, out: ["convert", given.packed, out, "--to", "wids"],
    "repair": lambda given, out: ["verify", given.damaged, "--fix", out, "--jobs", 1],
    "replay": lambda given, out: [
        *["replay", given.packed, "--global-batch-size", 50, "--step", 0, "--to", out]
    ],
}


def write_on_full_disk(given: Inputs, name: str, tenths: int, trial: campaign.Trial) -> None:
    campaign.need_root()
    out, whole = trial.folder / "disk" / "out", trial.folder / "whole" / "out"
    whole.parent.mkdir()
    prepare(given, name, whole)
    children.command(*COMMANDS[name](given, whole))
    expected = digests(whole)
    before = given.shards if name == "index" else None
    needed = sum(path.stat().st_size + 4096 for path in whole.rglob("*") if path.is_file())
    least = sum(path.stat().st_size + 4096 for path in before.glob("*")) if before else 0
    size = least + 8192 + (needed - least) * tenths // 10
    (trial.folder / "disk").mkdir()

    def attempt() -> str:
        children.mount_privately(trial.folder / "disk", size)
        prepare(given, name, out)
        ended = children.command(*COMMANDS[name](given, out))
        left = digests(out) if out.exists() else {}
        for path, digest in left.items():
            final = path.endswith(PUBLISHED) and not Path(path).name.startswith(".")
            if final and digest != expected.get(path):
                raise campaign.Wrong("half a file under its final name", path)
        if left == expected:
            return ""
        if not ended.value:
            raise campaign.Wrong("success without all files", ended.output)
        if "space" not in ended.output:
            raise campaign.Wrong("an error that says nothing of the disk", ended.output)
        children.mount_privately(trial.folder / "disk", needed * 4 + (1 << 20))
        if name == "replay":
            shutil.rmtree(out, ignore_errors=True)  # it wants a new folder
        again = children.command(*COMMANDS[name](given, out))
        if digests(out) != expected:
            raise campaign.Wrong("a rerun does not finish", again.output)
        return "refused"

    settle(trial, children.in_child(attempt))


def prepare(given: Inputs, name: str, out: Path) -> None:
    """Put the files that a command expects beside its output there."""
    if name == "index":
        shutil.copytree(given.shards, out)


def settle(trial: campaign.Trial, ended: children.Ended) -> None:
    ended.check()
    if ended.value or ended.error:
        if "\n" in ended.message and not ended.message.startswith("Caught "):  # by torch, with all
            raise campaign.Wrong("more than one line", ended.message)
        trial.refused(ended.error or "one line")
    else:
        trial.right("it was enough")


def read_all(source: Path, workers: int) -> int:
    dataset = shardio.ShardDataset(source, batch_size=10)
    batches = DataLoader(dataset, batch_size=None, num_workers=workers)
    return 0 * sum(len(batch["__key__"]) for _ in range(2) for batch in batches)


def read_with_full_cache(given: Inputs, compressed: bool, size: int, trial: campaign.Trial) -> None:
    campaign.need_root()
    cache, source = trial.folder / "cache", trial.folder / "source"
    cache.mkdir()
    shutil.copytree(given.shards, source)
    for path in [*source.iterdir()] if compressed else []:
        path.with_suffix(".tgz").write_bytes(gzip.compress(path.read_bytes(), 1))
        path.unlink()

    def attempt() -> int:
        children.mount_privately(cache, size)
        os.environ["SHARDIO_CACHE"] = str(cache)
        return read_all(source, 0)

    settle(trial, children.in_child(attempt))


def read_with_full_memory(given: Inputs, size: int, trial: campaign.Trial) -> None:
    campaign.need_root()

    def attempt() -> int:
        children.mount_privately(Path("/dev/shm"), size)  # noqa: S108
        dataset = shardio.ShardDataset(
            given.packed, batch_size=50, transform=shardio.Resize((96, 96))
        )
        for batch in DataLoader(dataset, batch_size=None, num_workers=2):
            batch["image"].sum()
        return 0

    settle(trial, children.in_child(attempt))


def read_with_full_temporary(given: Inputs, workers: int, trial: campaign.Trial) -> None:
    campaign.need_root()
    folder = trial.folder / "temporary"
    folder.mkdir()

    def attempt() -> Any:
        children.mount_privately(folder, 4096)
        (folder / "filler").write_bytes(b"")
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
        try:
            with (folder / "filler").open("wb", buffering=0) as stream:
                while stream.write(bytes(4096)):
                    pass
        except OSError:
            pass
        read_all(given.packed, workers)
        return shardio.verify(given.packed, jobs=1).sound and 0

    settle(trial, children.in_child(attempt))


def cases(folder: Path) -> list[campaign.Case]:
    given = Inputs(folder)
    found = [
        campaign.Case(f"{name}, {tenths}/10", partial(write_on_full_disk, given, name, tenths))
        for name in COMMANDS
        for tenths in SHARES
    ]
    for size in (4096, 1 << 15, 1 << 18, 1 << 20):
        for compressed in (False, True):
            name = f"cache of {size} for {'tgz' if compressed else 'tar'}"
            run = partial(read_with_full_cache, given, compressed, size)
            found.append(campaign.Case(name, run))
    for size in (1 << 15, 1 << 17, 1 << 19, 1 << 20, 3 << 20):
        run = partial(read_with_full_memory, given, size)
        found.append(campaign.Case(f"shared memory of {size}", run))
    for workers in (0, 2):
        run = partial(read_with_full_temporary, given, workers)
        found.append(campaign.Case(f"temporary directory, {workers} workers", run))
    return found


if __name__ == "__main__":
    campaign.main(__doc__, cases)

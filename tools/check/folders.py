"""Can a hostile folder make shardio write, overwrite or delete anything elsewhere?

Before a command runs, its output folder is filled with what an attacker or an accident may leave.
In place of each file and folder that a pack makes, there are symbolic links to a victim's file or
folder or to nothing, fifos, devices and hard links. There are locks with claims that name other
places, files of other owners, and entries of a shared cache that another user planted or can
change.

Right: everything of the victim's has the same bytes, mode and owner as before, whatever the command
says. Wrong: anything there was changed, removed or added; a traceback or a hang; samples from a
planted cache entry. The ideas are those of CWE-59 (link following), CWE-22 and CWE-379.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, product
from pathlib import Path

import campaign
import children
import shardio
from shardio.testing import make_images, make_shard

NOBODY, SOMEBODY = 65534, 65533
LOCK, WORK = ".shardio-pack", ".shardio-work"
PLACES = (
    *(LOCK, WORK, "index", "shardio.json", "skipped.jsonl", "renamed.jsonl", "duplicates.jsonl"),
    *("shard-000000.tar", "shard-000001.tar", "index/shard-000000.tar.idx", ".converting"),
    *(
        "shard-000000.tfrecord",
        "shard-000000.idx",
        "shardindex.json",
        "batch.json",
        "dropped.jsonl",
    ),
    *(f"{WORK}/samples.jsonl", f"{WORK}/receipts", f"{WORK}/receipts/shard-000000.tar.json"),
    *("a", "a/index", f"a/{LOCK}", ".shard-000000.tar.1-1.tmp"),
)
"""Names of files and folders that the commands make, and that are taken before."""


class Inputs:
    """Inputs of the commands, made once, with the text of a killed pack's lock."""

    def __init__(self, folder: Path) -> None:
        self.images = make_images(folder / "images", classes=2, per_class=4)
        self.packed = folder / "packed"
        shardio.pack(self.images, self.packed, shards=2, jobs=1)
        self.damaged = folder / "damaged"
        shutil.copytree(self.packed, self.damaged)
        (self.damaged / "index" / "shard-000000.tar.idx").write_bytes(b"")
        killed, ends = folder / "killed", count()

        def end(_: int) -> Callable[[int], None]:
            return lambda _: os._exit(0) if next(ends) == 5 else None

        children.in_child(
            lambda: shardio.pack(self.images, killed, shards=2, jobs=1, progress=end) and None
        )
        self.claim = (killed / LOCK).read_bytes().splitlines(keepends=True)[0]
        self.interrupted = killed


COMMANDS: dict[str, Callable[[Inputs, Path], Sequence[object]]] = {
    "pack": lambda given, out: ["pack", given.images, out, "--shards", 2, "--jobs", 1],
    "pack, split": lambda given, out: [
        *["pack", given.images, out, "--shards", 1, "--jobs", 1, "--split", "a=0.5,b=0.5"]
    ],
    "pack, skip": lambda given, out: [
        *["pack", given.images, out, "--shards", 2, "--jobs", 1, "--on-error", "skip"]
    ],
    "reshard": lambda given, out: ["reshard", given.packed, out, "--shards", 2, "--jobs", 1],
    "index": lambda _, out: ["index", out],
    "index, force": lambda _, out: ["index", out, "--force"],
    "tfrecord": lambda given, out: ["convert", given.packed, out, "--to", "tfrecord"],
    "dali": lambda given, out: ["convert", given.packed, out, "--to", "dali"],
    "wids": lambda given, out: ["convert", given.packed, out, "--to", "wids"],
    "repair": lambda given, out: ["verify", given.damaged, "--fix", out, "--jobs", 1],
    "replay": lambda given, out: [
        *["replay", given.packed, "--global-batch-size", 8, "--step", 0, "--to", out]
    ],
}


def link_to_file(place: Path, victim: Path) -> None:
    place.symlink_to(victim / "keep.txt")


def link_to_folder(place: Path, victim: Path) -> None:
    place.symlink_to(victim / "packed")


def link_to_nothing(place: Path, victim: Path) -> None:
    place.symlink_to(victim / "new")


def hard_link(place: Path, victim: Path) -> None:
    os.link(victim / "keep.txt", place)


def fifo(place: Path, _: Path) -> None:
    os.mkfifo(place)


def device(place: Path, _: Path) -> None:
    campaign.need_root()
    os.mknod(place, 0o666 | 0o020000, os.makedev(1, 3))


PLANTS = (link_to_file, link_to_folder, link_to_nothing, hard_link, fifo, device)


def claims(victim: Path) -> Iterator[bytes]:
    """Yield texts that may follow the claim in a lock."""
    for name in (
        str(victim / "packed"),
        "../victim/packed",
        "..",
        ".",
        "",
        "/",
        "a/../../victim/packed",
    ):
        yield ('["' + name + '"]').encode()
    yield from (
        b"5",
        b"[5]",
        b"[[]]",
        b'{"a": 1}',
        b"null",
        b"[" * 200_000,
        b"\xff\0",
        b'["\\u0000"]',
    )


def make_victim(trial: campaign.Trial, given: Inputs) -> Path:
    """Make a folder with another packed folder and a file, beside the output."""
    victim = trial.folder / "victim"
    shutil.copytree(given.packed, victim / "packed")
    (victim / "keep.txt").write_text("keep", "ascii")
    return victim


def judge(trial: campaign.Trial, victim: Path, words: Sequence[object]) -> None:
    before = children.tree(victim)
    try:
        ended = children.command(*words)
    finally:
        after = children.tree(victim)
        if after != before:
            names = sorted(n for n in {*before, *after} if before.get(n) != after.get(n))
            trial.wrong("the victim changed", f"{' '.join(map(str, words[:1]))}: {names[:5]}")
    if not trial.wrongs:
        if ended.value:
            trial.refused("one line")
        else:
            trial.right("the victim is as it was")


def planted(
    given: Inputs, name: str, plant: Callable[[Path, Path], None], place: str, trial: campaign.Trial
) -> None:
    victim, out = make_victim(trial, given), trial.folder / "out"
    if name.startswith("index"):
        shutil.copytree(given.packed, out)
    else:
        out.mkdir()
    inside = out / place
    inside.parent.mkdir(parents=True, exist_ok=True)
    if inside.is_dir() and not inside.is_symlink():
        shutil.rmtree(inside)
    inside.unlink(missing_ok=True)
    plant(inside, victim)
    if place != LOCK and name.startswith("pack"):  # else the pack stops at what is there
        (out / LOCK).write_bytes(given.claim + b'["a"]\n')
    judge(trial, victim, COMMANDS[name](given, out))


def claimed(given: Inputs, name: str, number: int, trial: campaign.Trial) -> None:
    """Try a lock with a hostile claim, beside the files of a killed pack."""
    victim, out = make_victim(trial, given), trial.folder / "out"
    shutil.copytree(given.interrupted, out)
    claim = [*claims(victim)][number]
    (out / LOCK).write_bytes(given.claim + claim + b"\n")
    judge(trial, victim, COMMANDS[name](given, out))


def of_other_owner(given: Inputs, name: str, trial: campaign.Trial) -> None:
    """Try an output folder that the user cannot write, or that another user owns."""
    campaign.need_root()
    victim, out = make_victim(trial, given), trial.folder / "out"
    out.mkdir(mode=0o755)
    trial.folder.chmod(0o755)
    words = COMMANDS[name](given, out if not name.startswith("index") else victim / "packed")
    before = children.tree(victim)
    ended = children.command(*words, user=NOBODY)
    if children.tree(victim) != before or [*out.iterdir()]:
        raise campaign.Wrong("written without a right to", ended.output)
    if not ended.value:
        raise campaign.Wrong("success without a right to write", ended.output)
    trial.refused("one line")


def planted_in_cache(owner: int, mode: int, trial: campaign.Trial) -> None:
    """Try a shared cache in which another user planted an entry with other samples."""
    campaign.need_root()
    trial.folder.chmod(0o755)
    cache, shard = trial.folder / "cache", trial.folder / "a.tar"
    samples = {f"{number}": {"cls": b"%d" % number} for number in range(8)}
    make_shard(shard, samples)
    other = make_shard(trial.folder / "b.tar", {key: samples[key] for key in reversed(samples)})
    cache.mkdir()
    cache.chmod(0o1777)

    def read(path: Path) -> list[tuple[str, int]]:
        os.environ["SHARDIO_CACHE"] = str(cache)
        return [(str(each["__key__"]), int(each["label"])) for each in shardio.ShardDataset(path)]

    planted = children.in_child(partial(read, shard), user=owner).check()
    if planted.error:
        trial.refused("a cache that others may write")
        return
    names = {*cache.rglob("*")}
    children.in_child(partial(read, other), user=owner).check()
    mine, others = [
        [p for p in group if p.is_file()] for group in (names, {*cache.rglob("*")} - names)
    ]
    if not mine or not others:
        raise campaign.SkipCase("no entry of a shared cache is to be found")
    for path in mine:
        shutil.copyfile(others[0], path)
        path.chmod(mode)
    ended = children.in_child(partial(read, shard), user=SOMEBODY).check()
    if ended.error:
        trial.refused(ended.error)
    elif any(int(key) != label for key, label in ended.value):
        raise campaign.Wrong("samples of a planted entry", ended.value[:3])
    else:
        trial.right("the planted entry is not believed")


def cases(folder: Path) -> list[campaign.Case]:
    given = Inputs(folder)
    found = [
        campaign.Case(
            f"{name}; {plant.__name__}; {place}", partial(planted, given, name, plant, place)
        )
        for name, plant, place in product(COMMANDS, PLANTS, PLACES)
    ]
    writers = [name for name in COMMANDS if name not in {"dali", "wids", "replay", "index, force"}]
    for name, number in product(writers, range(len([*claims(folder)]))):
        run = partial(claimed, given, name, number)
        found.append(campaign.Case(f"{name}; claim {number}", run))
    for name in COMMANDS:
        run = partial(of_other_owner, given, name)
        found.append(campaign.Case(f"{name}; other owner", run))
    for owner, mode in [(NOBODY, 0o644), (NOBODY, 0o600), (SOMEBODY, 0o666)]:
        run = partial(planted_in_cache, owner, mode)
        found.append(campaign.Case(f"cache of {owner}, mode {mode:o}", run))
    return found


if __name__ == "__main__":
    campaign.main(__doc__, cases)

"""Does `shardio verify` find all corruption of a small packed folder?

One bit of a tar, an index or the manifest is flipped 2,000 times, one of these files is truncated
500 times, and a block of 512 bytes of a tar is swapped with another, doubled, zeroed or dropped 200
times. The folder is verified after each change, and repaired after every tenth.

Right: the corruption is found, or changes nothing that the manifest says in JSON, such as white
space; a repaired folder is valid and has the original data. Wrong: corruption that is missed, or a
repaired folder with problems or other data. The same changes are made to a tar without its index,
where only headers and formats can reveal them. What is missed there counts as right, separately.
The idea is that of the fault injection of ZFS and of IRON file systems (SOSP 2005).
"""

from __future__ import annotations

import io
import json
import shutil
from functools import partial
from pathlib import Path

import cv2
import numpy as np

import campaign
import shardio
from shardio.indexing.manifest import MANIFEST_NAME
from shardio.testing import Damage, damaged, make_shard

CAMPAIGN: dict[Damage, int] = {
    "flip": 2000,
    "truncate": 500,
    "swap": 50,
    "double": 50,
    "zero": 50,
    "drop": 50,
}
SAMPLES, SHARDS = 40, 2
REPAIR_EVERY = 10


def make_folder(folder: Path) -> None:
    numbers = np.random.default_rng(1)
    samples: dict[str, dict[str, bytes]] = {}
    for number in range(SAMPLES):
        pixels = numbers.integers(0, 256, (16, 12, 3), np.uint8)
        extension = ("jpg", "png", "webp", "bmp")[number % 4]
        array = io.BytesIO()
        np.save(array, pixels[:, :, 0])
        samples[f"some/{number:04d}"] = {
            extension: cv2.imencode(f".{extension}", pixels)[1].tobytes(),
            "cls": b"%d" % (number % 7),
            "json": json.dumps({"number": number}).encode(),
            "npy": array.getvalue(),
        }
    shardio.pack(make_shard(folder.with_name("all.tar"), samples), folder, shards=SHARDS, jobs=1)


def contents(folder: Path) -> dict[tuple[str, str], bytes]:
    dataset = shardio.ShardDataset(folder, decode=False)
    return {
        (str(sample["__key__"]), field): bytes(data)
        for sample in dataset
        for field, data in sample.items()
        if isinstance(data, bytes)
    }


def says_the_same(path: Path, before: bytes, after: bytes) -> bool:
    """Return whether a changed manifest still says the same."""
    try:
        return path.name == MANIFEST_NAME and bool(json.loads(before) == json.loads(after))
    except ValueError:
        return False


def repair(trial: campaign.Trial, folder: Path, whole: dict[tuple[str, str], bytes]) -> None:
    new = trial.folder / "new"
    try:
        shardio.repair(folder, new, jobs=1)
    except shardio.PackError:
        trial.refused("nothing left to repair")
        return
    if not shardio.verify(new, jobs=1).sound:
        raise campaign.Wrong("a repaired folder has problems")
    kept = contents(new)
    keys = {key for key, _ in kept}
    if kept != {place: data for place, data in whole.items() if place[0] in keys}:
        raise campaign.Wrong("a repaired folder has other data")
    trial.right(f"repaired, {SAMPLES - len(keys)} samples lost")


def change(path: Path, damage: Damage, trial: campaign.Trial) -> bytes:
    """Corrupt a file and return its original contents."""
    numbers = np.random.default_rng(trial.random.randrange(1 << 32))
    before = after = path.read_bytes()
    while after == before:
        after = damaged(before, damage, numbers)
    path.write_bytes(after)
    return before


def attack_packed(
    folder: Path,
    whole: dict[tuple[str, str], bytes],
    damage: Damage,
    repaired: bool,
    trial: campaign.Trial,
) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    tars = [path for path in files if path.suffix == ".tar"]
    path = trial.random.choice(files if damage in {"flip", "truncate"} else tars)
    before = change(path, damage, trial)
    try:
        if not shardio.verify(folder, jobs=1).sound:
            trial.right("found")
        elif says_the_same(path, before, path.read_bytes()):
            trial.right("says the same")
        else:
            raise campaign.Wrong("missed", path.name)
        if repaired:
            repair(trial, folder, whole)
    finally:
        path.write_bytes(before)


def attack_foreign(tar: Path, damage: Damage, trial: campaign.Trial) -> None:
    before = change(tar, damage, trial)
    try:
        if shardio.verify(tar, jobs=1).findings:
            trial.right("without an index, found")
        elif shardio.verify(tar, jobs=1, deep=True).findings:
            trial.right("without an index, found by a deep look")
        else:
            trial.right("without an index, not noticed")
    finally:
        tar.write_bytes(before)


def cases(work: Path) -> list[campaign.Case]:
    folder, foreign = work / "out", work / "foreign.tar"
    make_folder(folder)
    if shardio.verify(folder, jobs=1, deep=True).findings:
        raise campaign.Wrong("the undamaged folder has problems")
    shutil.copy(next(folder.glob("*.tar")), foreign)
    whole = contents(folder)
    found = []
    for damage, times in CAMPAIGN.items():
        for number in range(times):
            run = partial(attack_packed, folder, whole, damage, number % REPAIR_EVERY == 0)
            found.append(campaign.Case(f"packed: {damage} {number}", run))
            other = partial(attack_foreign, foreign, damage)
            found.append(campaign.Case(f"foreign: {damage} {number}", other))
    return found


if __name__ == "__main__":
    campaign.main(__doc__, cases)

"""Does `shardio verify` find all damage? A campaign against a small packed folder.

2,000 times one bit of a tar, an index or the manifest is flipped, 500 times one of these is cut
off, and 200 times a block of 512 bytes of a tar is swapped with another, doubled, zeroed or
dropped. After each the folder is verified. Every tenth time it is repaired, too, and what the
repaired folder has must be sound, and what was packed. A change of the manifest that says the
same as before in JSON, such as other white space, is no damage and counted by itself.

The same is done to one of the tars without its index, where nothing but headers and formats can
tell, to say how much is found there.

Usage: python tools/check/damage.py [--scale 0.1]
"""

import argparse
import io
import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

import shardio
from shardio.index.manifest import MANIFEST_NAME
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
    """Whether a change of the manifest changes nothing that it says."""
    try:
        return path.name == MANIFEST_NAME and bool(json.loads(before) == json.loads(after))
    except ValueError:
        return False


def repair(folder: Path, whole: dict[tuple[str, str], bytes], tally: Counter[str]) -> None:
    new = folder.with_name("new")
    try:
        shardio.repair(folder, new, jobs=1)
    except shardio.PackError:
        tally["nothing left to repair"] += 1
        return
    assert shardio.verify(new, jobs=1).sound, "a repaired folder has problems"
    kept = contents(new)
    keys = {key for key, _ in kept}
    tally["repaired"] += 1
    tally["samples kept"] += len(keys)
    tally["of"] += SAMPLES
    expected = {place: data for place, data in whole.items() if place[0] in keys}
    tally["repaired with other data"] += kept != expected
    shutil.rmtree(new)


def attack_packed(folder: Path, scale: float) -> None:
    numbers = np.random.default_rng(2)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    tars = [path for path in files if path.suffix == ".tar"]
    whole = contents(folder)
    for damage, times in CAMPAIGN.items():
        tally: Counter[str] = Counter()
        for number in range(round(times * scale)):
            among = files if damage in {"flip", "truncate"} else tars
            path = among[numbers.integers(len(among))]
            before = after = path.read_bytes()
            while after == before:
                after = damaged(before, damage, numbers)
            path.write_bytes(after)
            found = not shardio.verify(folder, jobs=1).sound
            same = says_the_same(path, before, after)
            tally["found" if found else "says the same" if same else "MISSED"] += 1
            if number % REPAIR_EVERY == 0:
                repair(folder, whole, tally)
            path.write_bytes(before)
        print(f"packed   {damage:9} {dict(tally)}", flush=True)


def attack_foreign(tar: Path, scale: float) -> None:
    numbers = np.random.default_rng(3)
    before = tar.read_bytes()
    for damage, times in CAMPAIGN.items():
        tally: Counter[str] = Counter()
        for _ in range(round(times * scale)):
            after = before
            while after == before:
                after = damaged(before, damage, numbers)
            tar.write_bytes(after)
            tally["found"] += bool(shardio.verify(tar, jobs=1).findings)
            tally["found with deep"] += bool(shardio.verify(tar, jobs=1, deep=True).findings)
            tally["of"] += 1
        print(f"foreign  {damage:9} {dict(tally)}", flush=True)
    tar.write_bytes(before)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of the campaign to run")
    scale = parser.parse_args().scale
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "out")
        make_folder(folder)
        assert not shardio.verify(folder, jobs=1, deep=True).findings
        attack_packed(folder, scale)
        tar = Path(name, "foreign.tar")
        shutil.copy(next(folder.glob("*.tar")), tar)
        attack_foreign(tar, scale)


if __name__ == "__main__":
    main()

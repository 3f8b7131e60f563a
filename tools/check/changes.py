"""Are samples right while their shards change? Shards are changed during an epoch.

Readers are the training process, threads and worker processes. They read photos and rows of equal
size (an array of pixels), from packed folders and from other tars without an index. After some
batches, a shard is overwritten in place with its samples in another order (with its modification
time restored or not), truncated, appended to, zeroed, replaced by a rename, removed, or touched, or
its mode is changed; or its index is truncated or zeroed.

The class and the pixels of each sample identify its key. Right: every delivered sample has the
bytes of its key, or the epoch ends with an error of shardio. Wrong: bytes under another key,
silently fewer samples, another error, a crash (SIGBUS) or a hang; also an error if only the mode
changed. The idea is that of rsync and of object stores: a name does not guarantee the contents.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader

import campaign
import children
import shardio
from shardio.indexing.manifest import index_path
from shardio.testing import make_shard

SAMPLES, SHARDS, BATCH = 240, 4, 8
SAMPLE_SIZE = 5 * 512  # in a tar: the class in two blocks, the pixels in three
ROUNDS = 2


def samples(numbers: Iterable[int], kind: str) -> dict[str, dict[str, bytes]]:
    """Make samples with keys in class and pixels; all members of a kind have the same size."""
    made = {}
    for number in numbers:
        pixels = np.full((16, 16, 3), number % 256, np.uint8)
        if kind == "rows":
            field, data = "rgb.npy", npy(pixels)
        else:
            field, data = "bmp", cv2.imencode(".bmp", pixels)[1].tobytes()
        made[f"{number:06d}"] = {"cls": b"%06d" % number, field: data}
    return made


def npy(pixels: np.ndarray[Any, Any]) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {pixels.shape}, }}"
    text = (header.ljust(117) + "\n").encode()
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + pixels.tobytes()


def make(folder: Path, kind: str, origin: str) -> list[Path]:
    """Make a dataset and return its shards."""
    tars = folder / "tars"
    tars.mkdir()
    each = SAMPLES // SHARDS
    for shard in range(SHARDS):
        numbers = range(shard * each, shard * each + each)
        make_shard(tars / f"{shard}.tar", samples(numbers, kind))
    if origin == "foreign":
        return sorted(tars.glob("*.tar"))
    shardio.pack(tars, folder / "out", shards=SHARDS, jobs=1)
    return sorted((folder / "out").glob("*.tar"))


def overwrite(path: Path, *, restore: bool) -> None:
    """Exchange neighbouring samples in place, including their headers."""
    status, data = path.stat(), path.read_bytes()
    pairs = SAMPLES // SHARDS // 2 * 2
    order = np.arange(pairs).reshape(-1, 2)[:, ::-1].ravel()
    body = np.frombuffer(data, np.uint8)[: pairs * SAMPLE_SIZE].reshape(pairs, SAMPLE_SIZE)
    with path.open("r+b") as stream:
        stream.write(body[order].tobytes())
    if restore:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def append(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(path.read_bytes()[:2048])


def replace(path: Path, *, other: bool) -> None:
    new = path.with_name("new")
    shutil.copy2(path, new)
    if other:
        overwrite(new, restore=True)
    new.rename(path)


def empty(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def noise(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.write(bytes(path.stat().st_size))


CHANGES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "overwritten": (partial(overwrite, restore=False), False),
    "overwritten, its time restored": (partial(overwrite, restore=True), False),
    "cut off": (truncate, False),
    "appended to": (append, False),
    "zeroed": (empty, False),
    "replaced by another": (partial(replace, other=True), False),
    "replaced by its copy": (partial(replace, other=False), False),
    "removed": (Path.unlink, False),
    "touched": (Path.touch, False),
    "of another mode": (partial(Path.chmod, mode=0o600), True),
    "without most of its index": (lambda path: truncate(index_path(path)), False),
    "with noise for an index": (lambda path: noise(index_path(path)), False),
}
"""Changes, and whether the shard has to be read all the same."""


def loaders(dataset: shardio.ShardDataset) -> dict[str, Callable[[], Iterable[Any]]]:
    return {
        "main": lambda: dataset,
        "threads": lambda: shardio.Loader(dataset, threads=2),
        "workers": lambda: DataLoader(dataset, batch_size=None, num_workers=2),
    }


def epoch(
    folder: Path, reader: str, change: Callable[[], object], *, shuffle: bool, at: int
) -> int:
    """Read an epoch with a change in it; return the number of samples, which must all be right."""
    dataset = shardio.ShardDataset(folder, batch_size=BATCH, shuffle=shuffle, window=1)
    got = 0
    for number, batch in enumerate(loaders(dataset)[reader]()):
        if number == at:
            change()
        for key, label, pixels in zip(
            batch["__key__"], batch["label"], batch["image"], strict=True
        ):
            if int(key) != int(label):
                raise campaign.Wrong("a class under another key", f"{int(label)} under {key}")
            if int(key) % 256 != int(pixels.min()) or int(pixels.min()) != int(pixels.max()):
                raise campaign.Wrong("pixels under another key", f"{int(pixels.min())} under {key}")
        got += int(batch["valid"].sum())
    return got


def try_change(name: str, reader: str, kind: str, origin: str, trial: campaign.Trial) -> None:
    shards = make(trial.folder, kind, origin)
    change, must_read = CHANGES[name]
    if "index" in name and origin == "foreign":
        shardio.index(shards[0].parent)
    random = trial.random
    path, at, shuffle = random.choice(shards), random.randint(0, 20), random.random() < 0.5
    changing = partial(change, path)
    ended = children.in_child(partial(epoch, path.parent, reader, changing, shuffle=shuffle, at=at))
    ended.check()
    if ended.error:
        if must_read:
            raise campaign.Wrong(f"refuses a shard that was only {name}", ended.message)
        trial.refused(ended.error)
    elif ended.value != SAMPLES:
        raise campaign.Wrong("other number of samples in silence", f"{ended.value} of {SAMPLES}")
    else:
        trial.right("all samples under their keys")


def cases(_: Path) -> list[campaign.Case]:
    ways = product(
        range(ROUNDS),
        CHANGES,
        ("main", "threads", "workers"),
        ("rows", "photos"),
        ("packed", "foreign"),
    )
    return [
        campaign.Case(
            f"{name}; {reader}; {kind}; {origin}; {round_}",
            partial(try_change, name, reader, kind, origin),
        )
        for round_, name, reader, kind, origin in ways
    ]


if __name__ == "__main__":
    campaign.main(__doc__, cases)

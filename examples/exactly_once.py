"""Read tars with several workers: every sample twice, or once.

An IterableDataset is copied to each worker. If it does not check which worker it is in, each worker
reads everything, and two workers deliver every sample twice, without an error. Splitting the
shards by hand loses nothing only if they divide evenly. shardio's dataset splits by sample, so each
sample is delivered exactly once.
"""

import io
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader, IterableDataset

import shardio

SAMPLES, SHARDS, WORKERS = 30, 3, 2


class NaiveTars(IterableDataset[dict[str, Any]]):
    """Iterable dataset of the keys in some tars, as seen in tutorials."""

    def __init__(self, tars: list[Path]) -> None:
        self.tars = tars

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for path in self.tars:
            with tarfile.open(path) as tar:
                for member in tar:
                    yield {"__key__": member.name.removesuffix(".png")}


def write_tars(folder: Path) -> list[Path]:
    """Write some shards, each with its share of the images."""
    encoded, picture = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))
    assert encoded
    paths = []
    for number in range(SHARDS):
        paths.append(folder / f"part-{number}.tar")
        with tarfile.open(paths[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in range(number, SAMPLES, SHARDS):
                info = tarfile.TarInfo(f"{sample:03}.png")
                info.size = picture.size
                tar.addfile(info, io.BytesIO(picture.tobytes()))
    return paths


def report(name: str, keys: Iterable[str]) -> Counter[str]:
    counts = Counter(keys)
    twice = sum(count > 1 for count in counts.values())
    print(
        f"{name:34} {counts.total():3} samples, {SAMPLES - len(counts)} missing, {twice} repeated"
    )
    return counts


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tars = write_tars(Path(folder))
        naive = DataLoader(NaiveTars(tars), batch_size=None, num_workers=WORKERS)
        counts = report(f"naive, {WORKERS} workers", [sample["__key__"] for sample in naive])
        assert set(counts.values()) == {WORKERS}

        dataset = shardio.ShardDataset([str(path) for path in tars], batch_size=8)
        for workers in (0, 1, WORKERS):
            loader = DataLoader(dataset, batch_size=None, num_workers=workers)
            keys = [
                key
                for batch in loader
                for key, valid in zip(batch["__key__"], batch["valid"].tolist(), strict=True)
                if valid  # the last batch is filled up with repeats that are marked
            ]
            counts = report(f"shardio, {workers} workers", keys)
            assert set(counts.values()) == {1}
            assert len(counts) == SAMPLES


if __name__ == "__main__":
    main()

"""Does the verdict name what limits a loop? Bottlenecks are planted, measured and judged.

Each case is a loop over real photos (--photos, or photos made here) with one fault: slow storage,
slow decoding, a transform that holds the interpreter lock or does not, an expensive hand-over, a
slow consumer, one slow worker, a small prefetch, too many workers, OpenCV's own threads, a cold
page cache, or a tiny dataset. A loop without a fault must be limited by decoding. The machine must
be idle. The cold page cache needs a slow mount (Linux, root, fuse3 and mfusepy) and is otherwise
reported as skipped.

Usage: python tools/check/bottlenecks.py [--photos DIR] [--rounds 1] [--only NAME]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

import shardio
from shardio.profiling import monitor
from shardio.profiling.verdict import Verdict
from shardio.storage.local import LocalShard

SECONDS = 3.0
BATCH = 32
SLOW_MOUNT = Path(__file__).parents[1] / "bench" / "slow_mount.py"

Step = Callable[[Any], object]


def make_pictures(folder: Path) -> Path:
    """Make images like photos: blurred noise of 500 x 375 pixels, as JPEG."""
    numbers = np.random.default_rng(0)
    for number in range(400):
        noise = numbers.integers(0, 256, (375, 500, 3), np.uint8)
        inside = folder / f"class{number % 4}"
        inside.mkdir(parents=True, exist_ok=True)
        picture = cv2.normalize(cv2.GaussianBlur(noise, (9, 9), 2), None, 0, 255, cv2.NORM_MINMAX)  # type: ignore[call-overload]
        cv2.imwrite(str(inside / f"{number:04d}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return folder


def several(source: Path, folder: Path) -> Path:
    """Write each image four times, so that an epoch takes seconds."""
    for picture in sorted(source.rglob("*.jpg")):
        inside = folder / picture.parent.name
        inside.mkdir(parents=True, exist_ok=True)
        for copy in range(4):
            (inside / f"{copy}-{picture.name}").symlink_to(picture.absolute())
    return folder


def make_progressive(folder: Path) -> Path:
    """Make large progressive JPEGs."""
    numbers = np.random.default_rng(0)
    folder.mkdir()
    for number in range(20):
        noise = numbers.integers(0, 256, (900, 1200, 3), np.uint8)
        flags = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
        data = cv2.imencode(".jpg", cv2.GaussianBlur(noise, (5, 5), 1), flags)[1].tobytes()
        for copy in range(8):
            (folder / f"{copy}-{number:04d}.jpg").write_bytes(data)
    return folder


def photos(out: Path, transform: Any = None) -> shardio.ShardDataset:
    transform = transform or shardio.RandomResizedCrop(224)
    return shardio.ShardDataset(out, shuffle=True, transform=transform, batch_size=BATCH)


def workers(dataset: shardio.ShardDataset, number: int) -> DataLoader[Any]:
    """Return a loader whose workers persist over epochs, so that starting them takes no time."""
    return DataLoader(dataset, batch_size=None, num_workers=number, persistent_workers=True)


def nothing(batch: object) -> None:
    del batch


def for_seconds(loader: Iterable[Any], step: Step) -> Verdict:
    with monitor(loader, live=False) as seen:
        while seen.seconds < SECONDS:
            for batch in seen:
                step(batch)
                if seen.seconds >= SECONDS:
                    break
    return seen.verdict


def busy(seconds: float) -> None:
    """Hold the interpreter lock."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def shrink(image: torch.Tensor) -> torch.Tensor:
    return image[:, :224, :224].contiguous()


def hold_lock(image: torch.Tensor) -> torch.Tensor:
    busy(0.004)
    return shrink(image)


def blur(image: torch.Tensor) -> torch.Tensor:
    pixels = np.ascontiguousarray(image.numpy().transpose(1, 2, 0))
    return shrink(torch.from_numpy(cv2.medianBlur(pixels, 15)).permute(2, 0, 1))


def slow_in_one(image: torch.Tensor) -> torch.Tensor:
    worker = get_worker_info()
    if worker is not None and worker.id == 1:
        busy(0.006)
    return shrink(image)


class Heavy(Dataset[Any]):
    """Dataset of large float images that take no time to make; the DataLoader collates batches."""

    def __init__(self) -> None:
        self.picture = torch.ones(3, 448, 448)

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> Any:
        return self.picture


class ManyThreads(Dataset[Any]):
    """Dataset of images that OpenCV processes with threads of its own."""

    def __init__(self) -> None:
        self.picture = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> Any:
        cv2.setNumThreads(8)
        return torch.from_numpy(cv2.resize(cv2.GaussianBlur(self.picture, (15, 15), 3), (224, 224)))


def slow_storage(out: Path) -> Verdict:
    read = LocalShard.read

    def slow(shard: LocalShard, offset: int, size: int) -> bytes:
        time.sleep(0.006)
        return read(shard, offset, size)

    LocalShard.read = slow  # type: ignore[assignment, method-assign]
    try:
        return for_seconds(shardio.Loader(photos(out), threads=2), nothing)
    finally:
        LocalShard.read = read  # type: ignore[method-assign]


def slow_decoding(out: Path) -> Verdict:
    dataset = photos(out.with_name("progressive")).replace(batch_size=8)
    return for_seconds(shardio.Loader(dataset, threads=2), nothing)


def locking_transform(out: Path) -> Verdict:
    return for_seconds(shardio.Loader(photos(out, transform=hold_lock), threads=2), nothing)


def heavy_transform(out: Path) -> Verdict:
    return for_seconds(shardio.Loader(photos(out, transform=blur), threads=2), nothing)


def heavy_hand_over(_: Path) -> Verdict:
    return for_seconds(DataLoader(Heavy(), batch_size=BATCH, num_workers=2), nothing)


def slow_consumer(out: Path) -> Verdict:
    return for_seconds(shardio.Loader(photos(out), threads=2), lambda _: time.sleep(0.1))


def slow_worker(out: Path) -> Verdict:
    dataset = photos(out, transform=slow_in_one)
    return for_seconds(workers(dataset, 2), nothing)


def small_prefetch(out: Path) -> Verdict:
    numbers = iter(range(1 << 30))

    def step(_: object) -> None:
        if next(numbers) % 12 == 0:
            time.sleep(0.25)

    return for_seconds(shardio.Loader(photos(out), threads=2, prefetch=1), step)


def too_many_workers(out: Path) -> Verdict:
    return for_seconds(workers(photos(out), 3 * len(os.sched_getaffinity(0))), nothing)


def opencv_threads(_: Path) -> Verdict:
    return for_seconds(DataLoader(ManyThreads(), batch_size=BATCH, num_workers=2), nothing)


def cold_cache(out: Path) -> Verdict:
    with slow_mount(out) as mounted:
        return for_seconds(shardio.Loader(photos(mounted), threads=2), nothing)


def tiny_dataset(out: Path) -> Verdict:
    dataset = photos(out).subset(range(4 * BATCH))
    return for_seconds(DataLoader(dataset, batch_size=None, num_workers=2), nothing)


def nothing_wrong(out: Path) -> Verdict:
    return for_seconds(shardio.Loader(photos(out), threads=2), nothing)


PLANTS: dict[Callable[[Path], Verdict], str] = {
    slow_storage: "storage",
    slow_decoding: "decode",
    locking_transform: "lock",
    heavy_transform: "transform",
    heavy_hand_over: "handover",
    slow_consumer: "step",
    slow_worker: "worker",
    small_prefetch: "prefetch",
    too_many_workers: "cores",
    opencv_threads: "opencv",
    cold_cache: "cold",
    tiny_dataset: "start",
    nothing_wrong: "decode",
}


@contextmanager
def slow_mount(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as mounted:
        command = [sys.executable, str(SLOW_MOUNT), str(folder), mounted]
        command += ["--delay-ms", "400"]
        with subprocess.Popen(  # noqa: S603  our own script
            command, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                if process.stdout is None or process.stdout.readline().strip() != "mounted":
                    raise OSError("no slow mount: it needs Linux, root, fuse3 and mfusepy")
                yield Path(mounted)
            finally:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(5)


def main() -> int:
    warnings.filterwarnings("ignore", "This DataLoader will create")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="class folders of JPEGs")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", help="the name of one plant")
    options = parser.parse_args()
    named = tried = 0
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "out"
        source = options.photos or make_pictures(Path(work) / "pictures")
        shardio.pack(several(source, Path(work) / "source"), out, shards=8)
        shardio.pack(make_progressive(Path(work) / "large"), out.with_name("progressive"), shards=2)
        for plant, expected in [*PLANTS.items()] * options.rounds:
            if options.only not in {None, plant.__name__}:
                continue
            try:
                verdict = plant(out)
            except OSError as error:
                print(f"{plant.__name__:18} left out: {error}")
                continue
            tried += 1
            named += verdict.bottleneck == expected
            mark = "" if verdict.bottleneck == expected else f"WRONG, planted {expected}: "
            print(f"{plant.__name__:18} {mark}{verdict.bottleneck}: {verdict.sentence}", flush=True)
    print(f"{named} of {tried} named rightly")
    return int(named < tried)


if __name__ == "__main__":
    sys.exit(main())

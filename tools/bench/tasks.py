"""Compare loaders on tasks with several fields: segmentation, detection, stereo with depth.

Usage: python tools/bench/tasks.py [--photos DIR] [--tasks a,b] [--rounds 5] [--cache DIR]

The packages of tools/bench/requirements-peers.txt and an idle machine are required; on a busy one
the CPU time of a sample still tells. Without --photos (one subfolder per class), photos are made
from scikit-learn's two. In each round, every loader runs once, in a process of its own, and repeats
its data for about three seconds.

Held equal:

- two threads or two processes decode; OpenCV and torch start no threads of their own
- the same JPEG and PNG files; JPEGs are decoded by simplejpeg to all of their pixels, PNGs by
  OpenCV; the crops are those of shardio's transform, for all fields of a sample the same; images
  are resized linearly without antialiasing, masks and depth to the nearest pixel (cv2's
  INTER_NEAREST_EXACT); boxes become edges, are clipped, and leave with their labels
- batches of one size, images uint8 [B, 3, H, W] in channels-last memory, masks uint8 [B, H, W],
  depth float32 [B, 1, H, W], boxes a list of dictionaries

What differs:

- cv2 gives no indices of a palette, so the masks of the others are gray PNGs of the same indices
- shardio checks CRC-32 of every member, and of JPEGs decodes no rows below the crop
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import runs
from peers.tasks import LOADERS, TASKS
from results import Run, ratios, spread
from runs import RunError
from sources import files_and_labels, make_source

PHOTOS, QUICK = 600, 32
SECONDS = 3.0
CLASSES = 21
WIDE = (1242, 375)  # width and height of KITTI's pictures
MEASURED = 0.16  # share of pixels with depth
OURS = ("shardio Loader", "shardio DataLoader")
GOAL = 1.3


def write_png(path: Path, pixels: NDArray[Any]) -> None:
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def write_sample(task: str, files: Path, key: str, photo: Path, numbers: Any) -> None:
    """Write the files of a sample, as made from a photo."""
    pixels = np.asarray(cv2.imread(str(photo)))
    height, width, _ = pixels.shape
    if task == "stereo":
        wide = np.asarray(cv2.resize(pixels, WIDE, interpolation=cv2.INTER_CUBIC), np.uint8)
        write_png(files / f"{key}.left.png", wide)
        write_png(files / f"{key}.right.png", np.roll(wide, -9, axis=1))
        depth = np.linspace(80, 4, WIDE[1])[:, None] * 256 + numbers.integers(0, 99, WIDE[::-1])
        depth[numbers.random(depth.shape) > MEASURED] = 0
        write_png(files / f"{key}.depth.png", depth.astype(np.uint16))
        return
    (files / f"{key}.jpg").write_bytes(photo.read_bytes())
    if task == "detection":
        corners = np.sort(numbers.random((int(numbers.integers(1, 20)), 2, 2)), axis=1)
        low, high = (corners * [width, height]).round(2).swapaxes(0, 1)
        boxes = np.concatenate([low, high - low], axis=1)
        labels = numbers.integers(0, 80, len(boxes))
        found = {"boxes": boxes.round(2).tolist(), "labels": labels.tolist()}
        (files / f"{key}.json").write_text(json.dumps(found), "utf-8")
        return
    smooth = np.asarray(cv2.medianBlur(cv2.GaussianBlur(pixels, (0, 0), 6), 9))
    mask = (smooth @ np.array([1, 2, 1]) * CLASSES // 1024).astype(np.uint8)
    write_png(files.parent / "gray" / f"{key}.mask.png", mask)
    (files / f"{key}.mask.png").write_bytes(with_palette(mask, numbers))


def with_palette(mask: NDArray[np.uint8], numbers: Any) -> bytes:
    """Encode class numbers with a palette, as Pascal VOC has them."""
    image = Image.fromarray(mask, "L")
    image.putpalette(numbers.integers(0, 256, 768, np.uint8).tobytes())
    image.save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


def write_samples(task: str, folder: Path, photos: Path) -> Path:
    """Write the files of a task; an existing folder is complete."""
    files = folder / "files"
    if not (folder / "whole").exists():
        files.mkdir(parents=True, exist_ok=True)
        (folder / "gray").mkdir(exist_ok=True)
        numbers = np.random.default_rng(0)
        for number, (path, _) in enumerate(files_and_labels(photos)):
            write_sample(task, files, f"{number:05d}", Path(path), numbers)
        (folder / "whole").touch()
    return files


def measure(task: str, folder: Path, photos: Path, rounds: int, seconds: float) -> None:
    files = write_samples(task, folder, photos)
    count = len(files_and_labels(photos))
    found: dict[str, list[Run]] = {}
    repeats: dict[str, int] = {}
    for name, loader in LOADERS.items():
        request = {"task": task, "loader": name, "out": str(folder / loader.format)}
        try:
            if not (folder / loader.format).exists():
                runs.run_child(job="prepare_task", files=str(files), **request)
            first = runs.run_child(job="run_task", repeats=1, count=count, **request)
        except RunError as error:
            print(f"({task}) {name} is absent: {error}", file=sys.stderr, flush=True)
            continue
        repeats[name] = max(1, math.ceil(seconds / first["seconds"]))
        found[name] = []
    names = [*found]
    for number in range(rounds):
        first_name = number % len(names)
        for name in names[first_name:] + names[:first_name]:
            request = {"task": task, "loader": name, "out": str(folder / LOADERS[name].format)}
            times = repeats[name]
            run = runs.run_child(job="run_task", repeats=times, count=count * times, **request)
            found[name].append(run)
    show(task, found)


def show(task: str, found: dict[str, list[Run]]) -> None:
    print(f"\n### {task}: {TASKS[task].title}, batches of {TASKS[task].batch}\n")
    print("| loader | samples/s | CPU ms per sample | means of the entries |\n|---|---|---|---|")
    rates = {name: [run["images"] / run["seconds"] for run in of] for name, of in found.items()}
    costs = {name: [1e3 * run["cpu"] / run["images"] for run in of] for name, of in found.items()}
    for name, of in found.items():
        means = {key: value for key, value in of[0].items() if key.startswith("mean ")}
        shown = ", ".join(
            f"{key.removeprefix('mean ')} {value:.4g}" for key, value in means.items()
        )
        cost = spread(costs[name]).show(".3g")
        print(f"| {name} | {spread(rates[name]).show()} | {cost} | {shown} |")
    others = [name for name in found if name not in OURS]
    ours = [name for name in OURS if name in found]
    if not others or not ours:
        return
    mine = max(ours, key=lambda name: spread(rates[name]).median)
    theirs = max(others, key=lambda name: spread(rates[name]).median)
    faster = ratios(rates[mine], rates[theirs])
    mine = min(ours, key=lambda name: spread(costs[name]).median)
    cheapest = min(others, key=lambda name: spread(costs[name]).median)
    cheaper = ratios(costs[cheapest], costs[mine])
    if faster and cheaper:
        print(
            f"\nshardio is {faster.show('.2f')} times as fast as {theirs}, and the CPU time of "
            f"{cheapest} is {cheaper.show('.2f')} times that of {mine}; the goal is {GOAL}.",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=Path, help="a folder of photos, a subfolder a class")
    parser.add_argument("--tasks", default=",".join(TASKS), help="names, all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few samples, one round: a test")
    parser.add_argument("--cache", type=Path, help="keep the data there for the next time")
    arguments = parser.parse_args()
    print(__doc__[__doc__.index("Held equal") :])
    with tempfile.TemporaryDirectory() as temporary:
        cache = (arguments.cache or Path(temporary)).resolve()
        count = QUICK if arguments.quick else PHOTOS
        photos = cache / f"photos-{count}"
        cache.mkdir(parents=True, exist_ok=True)
        make_source("photos", photos, count, arguments.photos)
        rounds, seconds = (1, 0.1) if arguments.quick else (arguments.rounds, SECONDS)
        for task in arguments.tasks.split(","):
            measure(task, cache / f"{task}-{count}", photos, rounds, seconds)


if __name__ == "__main__":
    main()

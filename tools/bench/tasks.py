"""Compare loaders on tasks with several fields: segmentation, detection, stereo with depth.

Usage: python tools/bench/tasks.py [--photos DIR] [--only a,b] [--rounds 5] [--cache DIR]

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

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import rounds
from sources import files_and_labels

CLASSES = 21
WIDE = (1242, 375)  # width and height of KITTI's pictures
MEASURED = 0.16  # share of pixels with depth


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
    write_mask(files, key, pixels, numbers)


def write_mask(files: Path, key: str, pixels: NDArray[Any], numbers: Any) -> None:
    """Write a mask of a photo with a palette, and for the other loaders one in gray."""
    smooth = np.asarray(cv2.medianBlur(cv2.GaussianBlur(pixels, (0, 0), 6), 9))
    mask = (smooth @ np.array([1, 2, 1]) * CLASSES // 1024).astype(np.uint8)
    (files.parent / "gray").mkdir(exist_ok=True)
    write_png(files.parent / "gray" / f"{key}.mask.png", mask)
    (files / f"{key}.mask.png").write_bytes(with_palette(mask, numbers))


def with_palette(mask: NDArray[np.uint8], numbers: Any) -> bytes:
    """Encode class numbers with a palette, as Pascal VOC has them."""
    image = Image.fromarray(mask, "L")
    image.putpalette(numbers.integers(0, 256, 768, np.uint8).tobytes())
    image.save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


def write_samples(task: str, files: Path, photos: Path) -> None:
    """Write the files of a task."""
    numbers = np.random.default_rng(0)
    for number, (path, _) in enumerate(files_and_labels(photos)):
        write_sample(task, files, f"{number:05d}", Path(path), numbers)


if __name__ == "__main__":
    rounds.compare(__doc__, "tasks", write_samples)

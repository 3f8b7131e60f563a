"""Make the images of a workload: one folder per class, always the same.

Given images are copied under as many names as the workload has samples, so they repeat. Without
any, crops of scikit-learn's two photos are used.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib import resources
from itertools import cycle
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

CLASSES = 10
EXTENSIONS = {".jpg", ".jpeg", ".png"}
LARGE = ((2000, 3000), (2667, 4000), (4000, 6000))  # height and width: 6, 11 and 24 megapixels
Pixels = NDArray[np.uint8]


def make_source(source: str, folder: Path, count: int, given: Path | None) -> Path:
    """Make `count` images of a kind in a new folder.

    Args:
        source: kind of images: "photos", "large" or "tiny".
        folder: folder to create; an existing one is complete and is used as it is.
        count: number of images.
        given: images to use for photos and large ones.

    Returns:
        The folder.
    """
    if folder.exists():
        return folder
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    if given is not None and source != "tiny":
        copy_images(given, unfinished, count)
    else:
        write_images(unfinished, count, *MAKERS[source])
    return unfinished.rename(folder)


def copy_images(given: Path, folder: Path, count: int) -> None:
    """Link the images under as many names as needed; copy those that cannot be linked."""
    images = sorted(path for path in given.rglob("*") if path.suffix.lower() in EXTENSIONS)
    for number, image in zip(range(count), cycle(images), strict=False):
        name = image.parent.name if image.parent != given else "all"
        path = folder / name / f"{number:06d}{image.suffix.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, path)


def write_images(folder: Path, count: int, extension: str, draw: Callable[..., Pixels]) -> None:
    """Cut images from the two photos and encode them."""
    numbers = np.random.default_rng(0)
    found = resources.files("sklearn.datasets.images")
    photos = [np.asarray(cv2.imread(str(found / f"{name}.jpg"))) for name in ("china", "flower")]
    for number in range(count):
        pixels = draw(np.asarray(photos[number % len(photos)], np.uint8), numbers, number)
        path = folder / f"class{number % CLASSES}" / f"{number:06d}{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        options = [cv2.IMWRITE_JPEG_QUALITY, 92] if extension == ".jpg" else []
        cv2.imwrite(str(path), pixels, options)


def draw_photo(photo: Pixels, numbers: np.random.Generator, number: int) -> Pixels:  # noqa: ARG001
    return crop_at_random(photo, numbers, 375, 500)


def draw_large(photo: Pixels, numbers: np.random.Generator, number: int) -> Pixels:
    height, width = LARGE[number % len(LARGE)]
    part = crop_at_random(photo, numbers, 400, 600)
    return np.asarray(cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def draw_tiny(photo: Pixels, numbers: np.random.Generator, number: int) -> Pixels:  # noqa: ARG001
    part = crop_at_random(photo, numbers, 96, 96)
    return np.asarray(cv2.resize(part, (32, 32), interpolation=cv2.INTER_AREA), np.uint8)


def crop_at_random(photo: Pixels, numbers: np.random.Generator, height: int, width: int) -> Pixels:
    top = numbers.integers(photo.shape[0] - height + 1)
    left = numbers.integers(photo.shape[1] - width + 1)
    return photo[top : top + height, left : left + width]


MAKERS: dict[str, tuple[str, Callable[..., Pixels]]] = {
    "photos": (".jpg", draw_photo),
    "large": (".jpg", draw_large),
    "tiny": (".png", draw_tiny),
}


def files_and_labels(images: Path) -> list[tuple[str, int]]:
    """Return every image with the number of its folder among the sorted folders."""
    classes = sorted(entry.name for entry in os.scandir(images) if entry.is_dir())
    return [
        (os.path.join(images, name, file), label)  # noqa: PTH118  100,000 of them
        for label, name in enumerate(classes)
        for file in sorted(os.listdir(images / name))  # noqa: PTH208
    ]

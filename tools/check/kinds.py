"""Datasets of four kinds of tasks, as users read them: segmentation, detection, stereo, speech."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import shardio

Sample = dict[str, Any]
SIDE = 32  # of the crops


def png(pixels: NDArray[Any]) -> bytes:
    """Encode pixels, of colours in BGR."""
    return cv2.imencode(".png", pixels)[1].tobytes()


def jpeg(pixels: NDArray[Any]) -> bytes:
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def palette_png(indices: NDArray[np.uint8], numbers: np.random.Generator) -> bytes:
    """Encode indices with a palette of random colours."""
    image = Image.fromarray(indices, "L")
    image.putpalette(numbers.integers(0, 256, 768, np.uint8).tobytes())
    image.save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


def picture(numbers: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Draw a smooth picture with some noise."""
    coarse = numbers.integers(0, 256, (4, 5, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height)) // 2 + coarse[0, 0] // 2, np.uint8)


def size_of(numbers: np.random.Generator) -> tuple[int, int]:
    height, width = numbers.integers(20, 90, 2).tolist()
    return height, width


def segmentation(numbers: np.random.Generator) -> Sample:
    height, width = size_of(numbers)
    classes = numbers.integers(0, 21, (height // 4 + 1, width // 4 + 1), np.uint8)
    mask = np.kron(classes, np.ones((4, 4), np.uint8))[:height, :width]
    return {"jpg": jpeg(picture(numbers, height, width)), "mask.png": palette_png(mask, numbers)}


def detection(numbers: np.random.Generator) -> Sample:
    height, width = size_of(numbers)
    count = int(numbers.integers(0, 9))
    corners = numbers.random((count, 2, 2)) * [width, height]
    low, high = corners.min(axis=1), corners.max(axis=1)
    boxes = np.concatenate([low, high - low], axis=1).round(1).tolist()
    labels = numbers.integers(0, 80, count).tolist()
    document = json.dumps({"boxes": boxes, "labels": labels}).encode()
    return {"jpg": jpeg(picture(numbers, height, width)), "json": document}


def stereo(numbers: np.random.Generator) -> Sample:
    height, width = size_of(numbers)
    sample = {side: png(picture(numbers, height, width)) for side in ("left.png", "right.png")}
    if numbers.random() < 0.7:
        sample["depth.png"] = png(numbers.integers(0, 1 << 16, (height, width), np.uint16))
    return sample


def speech(numbers: np.random.Generator) -> Sample:
    """Make sound in one of two formats, rates and numbers of channels."""
    import soundfile  # noqa: PLC0415  of the extra audio

    container, rate = [("flac", 16000), ("wav", 8000)][int(numbers.integers(2))]
    sound = numbers.normal(0, 0.1, (int(numbers.integers(50, 900)), int(numbers.integers(1, 3))))
    soundfile.write(stream := io.BytesIO(), sound, rate, format=container.upper())
    return {container: stream.getvalue(), "txt": f"words {numbers.integers(1000)}".encode()}


SAMPLES: dict[str, Callable[[np.random.Generator], Sample]] = {
    "seg": segmentation,
    "coco": detection,
    "kitti": stereo,
    "speech": speech,
}

OPTIONS: dict[str, dict[str, Any]] = {
    "seg": {
        "fields": {"image": "jpg", "mask": shardio.Mask("mask.png")},
        "transform": shardio.RandomResizedCrop(SIDE),
    },
    "coco": {
        "fields": {
            "image": "jpg",
            "target": shardio.Boxes("json", boxes="boxes", format="xywh", also=["labels"]),
        },
        "transform": shardio.Resize((SIDE, SIDE)),
    },
    "kitti": {
        "fields": {
            "left": "left.png",
            "right": "right.png",
            "depth": shardio.Depth("depth.png?", scale=1 / 256),
        },
        "transform": shardio.RandomResizedCrop(SIDE, flip=0),
    },
    "speech": {"fields": {"audio": shardio.Audio("flac;wav", rate=16000), "text": "txt"}},
}
"""Arguments of ShardDataset."""


def make(kind: str, folder: Path, count: int, shards: int) -> Path:
    """Pack a dataset, the same ones always."""
    numbers = np.random.default_rng(0)
    samples = ({"__key__": f"{at:05d}", **SAMPLES[kind](numbers)} for at in range(count))
    shardio.pack(samples, folder, shards=shards, jobs=1)
    return folder


def digests(batch: Mapping[str, Any]) -> list[str]:
    """Return a digest of all entries of each sample of a batch; padding must be zero."""
    lengths = {name.removesuffix("_lengths"): name for name in batch if name.endswith("_lengths")}
    found = []
    for slot in range(len(batch["__key__"])):
        digest = hashlib.sha256()
        for name in sorted(batch):
            entry = batch[name]
            if isinstance(entry, int):
                continue  # of the whole batch
            value = entry[slot]
            if name in lengths:
                length = int(batch[lengths[name]][slot])
                assert not value[..., length:].any(), f"{name} is padded with other than zeros"
                value = value[..., :length]
            for part in parts(value):
                digest.update(f"{name} ".encode() + part)
        found.append(digest.hexdigest())
    return found


def parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        for name in sorted(value):
            yield name.encode()
            yield from parts(value[name])
    elif isinstance(value, torch.Tensor):
        yield f"{value.dtype} {[*value.shape]}".encode()
        yield value.contiguous().numpy().tobytes()
    else:
        yield repr(value).encode()

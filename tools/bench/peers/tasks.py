"""Loaders of tasks with several fields a sample: what shardio does, done by hand with cv2.

Each loader has a function that writes its data, once, and one that yields batches.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

import shardio
from peers.common import Pixels, cut_shards, decode, repeat, use_one_thread
from workloads import CORES_USED, SHARDS, SHUFFLE_BUFFER

Stored = dict[str, bytes]
Sample = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Samples and how they are processed.

    Attributes:
        title: one line for people.
        batch: number of samples in a batch.
        transform: transform of shardio, whose crops the others take too.
        fields: entries of a batch of shardio.
        files: fields that are packed, as `shardio pack --fields` takes them.
        make: function that makes a sample of the others from its bytes.
    """

    title: str
    batch: int
    transform: Any
    fields: dict[str, Any]
    files: str
    make: Callable[[Any, Stored], Sample]


def cut(pixels: Pixels, crop: Any, size: tuple[int, int], interpolation: int) -> Pixels:
    """Resize the crop of an image, a mask or depth, and perhaps mirror it."""
    part = pixels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    resized = cv2.resize(part, size[::-1], interpolation=interpolation)
    return np.asarray(cv2.flip(resized, 1, dst=resized) if crop.flip else resized)


def choose(transform: Any, pixels: Pixels) -> Any:
    height, width = pixels.shape[:2]
    return transform.crop(height, width, [random.random() for _ in range(transform.draws)])  # noqa: S311


def decode_values(data: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def make_segmentation(transform: Any, stored: Stored) -> Sample:
    image, mask = decode(stored["jpg"]), decode_values(stored["mask.png"])
    crop = choose(transform, image)
    return {
        "image": cut(image, crop, transform.size, cv2.INTER_LINEAR),
        "mask": cut(mask, crop, transform.size, cv2.INTER_NEAREST_EXACT),
    }


def make_detection(transform: Any, stored: Stored) -> Sample:
    image, found = decode(stored["jpg"]), json.loads(stored["json"])
    height, width = transform.size
    scale = np.array([width / image.shape[1], height / image.shape[0]] * 2)
    boxes = np.array(found["boxes"], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes = (boxes * scale).clip(0, [width, height] * 2).astype(np.float32)
    kept = (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
    target = {"boxes": boxes[kept], "labels": np.array(found["labels"])[kept]}
    crop = choose(transform, image)
    image = cut(image, crop, transform.size, cv2.INTER_LINEAR)
    return {"image": image, "target": {name: torch.from_numpy(of) for name, of in target.items()}}


def make_stereo(transform: Any, stored: Stored) -> Sample:
    left, right = decode(stored["left.png"]), decode(stored["right.png"])
    depth = decode_values(stored["depth.png"])
    crop = choose(transform, left)
    return {
        "left": cut(left, crop, transform.size, cv2.INTER_LINEAR),
        "right": cut(right, crop, transform.size, cv2.INTER_LINEAR),
        "depth": cut(depth, crop, transform.size, cv2.INTER_NEAREST_EXACT)[None]
        * np.float32(1 / 256),
    }


TASKS = {
    "segmentation": Task(
        title="photo and palette mask → random crop of 512",
        batch=16,
        transform=shardio.RandomResizedCrop(512),
        fields={"image": "jpg", "mask": shardio.Mask("mask.png")},
        files="jpg,mask.png",
        make=make_segmentation,
    ),
    "detection": Task(
        title="photo and boxes → 640×640",
        batch=16,
        transform=shardio.Resize((640, 640), antialias=False),
        fields={"image": "jpg", "target": shardio.Boxes("json", format="xywh", also=["labels"])},
        files="jpg,json",
        make=make_detection,
    ),
    "stereo": Task(
        title="two PNG pictures and 16 bits of depth → random crop of 384",
        batch=8,
        transform=shardio.RandomResizedCrop(384, flip=0),
        fields={
            "left": "left.png",
            "right": "right.png",
            "depth": shardio.Depth("depth.png", scale=1 / 256),
        },
        files="left.png,right.png,depth.png",
        make=make_stereo,
    ),
}


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Stack arrays, pictures to uint8 [B, 3, H, W] in channels-last memory; list the rest."""
    batch: dict[str, Any] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if isinstance(values[0], np.ndarray):
            batch[name] = torch.from_numpy(np.stack(values))
            if batch[name].shape[-1] == 3:
                batch[name] = batch[name].permute(0, 3, 1, 2)
        else:
            batch[name] = values
    return batch


def read_files(task: Task, files: Path, key: str) -> Stored:
    """Read the files of a sample for a peer, whose masks are gray, since cv2 reads no indices."""
    stored = {}
    for name in task.files.split(","):
        gray = files.parent / "gray" / f"{key}.{name}"
        stored[name] = (gray if gray.exists() else files / f"{key}.{name}").read_bytes()
    return stored


def keys_of(files: Path) -> list[tuple[str, int]]:
    """List the keys of all samples in random order."""
    found = sorted({path.name.partition(".")[0] for path in files.iterdir()})
    return [(found[place], 0) for place in np.random.default_rng(0).permutation(len(found))]


def prepare_shardio(task: Task, files: Path, out: Path) -> None:
    shardio.pack(files, out, shards=SHARDS, fields=task.files)


def shardio_threads(task: Task, out: Path, repeats: int) -> Iterator[dict[str, Any]]:
    return iter(shardio.Loader(open_dataset(task, out, repeats), threads=CORES_USED))


def shardio_workers(task: Task, out: Path, repeats: int) -> Iterator[dict[str, Any]]:
    dataset = open_dataset(task, out, repeats)
    return iter(DataLoader(dataset, batch_size=None, num_workers=CORES_USED))


def open_dataset(task: Task, out: Path, repeats: int) -> shardio.ShardDataset:
    return shardio.ShardDataset(
        [out] * repeats,
        shuffle=True,
        fields=task.fields,
        transform=task.transform,
        batch_size=task.batch,
        tail="short",
    )


def prepare_webdataset(task: Task, files: Path, out: Path) -> None:
    import webdataset  # noqa: PLC0415  loaded for its own data and runs alone

    out.mkdir()
    for shard, part in enumerate(cut_shards(keys_of(files))):
        with webdataset.TarWriter(str(out / f"{shard:06d}.tar")) as writer:
            for key, _ in part:
                writer.write({"__key__": key, **read_files(task, files, key)})


def webdataset_workers(task: Task, out: Path, repeats: int) -> Iterator[dict[str, Any]]:
    import webdataset  # noqa: PLC0415  as above

    shards = sorted(str(path) for path in out.glob("*.tar")) * repeats
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
        .shuffle(SHUFFLE_BUFFER)
        .map(partial(task.make, task.transform))
        .batched(task.batch, collation_fn=collate)
    )
    return iter(
        DataLoader(dataset, batch_size=None, num_workers=CORES_USED, worker_init_fn=use_one_thread)
    )


def prepare_litdata(task: Task, files: Path, out: Path) -> None:
    import litdata  # noqa: PLC0415  as above

    litdata.optimize(
        partial(_store, task, files),
        [key for key, _ in keys_of(files)],
        str(out),
        chunk_bytes="64MB",
        num_workers=1,
        reorder_files=False,
        verbose=False,
    )


def _store(task: Task, files: Path, key: str) -> Stored:
    return read_files(task, files, key)


def litdata_workers(task: Task, out: Path, repeats: int) -> Iterator[dict[str, Any]]:
    import litdata  # noqa: PLC0415  as above

    dataset = litdata.StreamingDataset(
        str(out), shuffle=True, drop_last=False, transform=partial(task.make, task.transform)
    )
    loader = litdata.StreamingDataLoader(
        dataset,
        batch_size=task.batch,
        num_workers=CORES_USED,
        persistent_workers=True,
        collate_fn=collate,
        worker_init_fn=use_one_thread,
    )
    return repeat(loader, repeats)


@dataclass(frozen=True, slots=True)
class Loading:
    """Loader in one configuration.

    Attributes:
        format: name of its data, which loaders with the same format share.
        prepare: function that writes the data.
        batches: function that yields batches.
    """

    format: str
    prepare: Callable[[Task, Path, Path], None]
    batches: Callable[[Task, Path, int], Iterator[dict[str, Any]]]


LOADERS = {
    "shardio Loader": Loading("shardio", prepare_shardio, shardio_threads),
    "shardio DataLoader": Loading("shardio", prepare_shardio, shardio_workers),
    "webdataset": Loading("webdataset", prepare_webdataset, webdataset_workers),
    "LitData": Loading("litdata", prepare_litdata, litdata_workers),
}

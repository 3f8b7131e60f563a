"""Loaders of tasks with several fields a sample: what shardio does, done by hand with cv2.

Each loader has a function that writes its data, once, and one that yields batches.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

import shardio
from peers import FILES
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
        make: function that makes a sample of the others from its bytes; None if there are no
            others.
        loaders: names of the loaders to compare.
        map: function of shardio on a sample.
        whole: function of shardio on a sample that does the work of the transform too.
    """

    title: str
    batch: int
    transform: Any
    fields: dict[str, Any]
    files: str
    make: Callable[[Any, Stored], Sample] | None
    loaders: tuple[str, ...] = ("shardio Loader", "shardio DataLoader", "webdataset", "LitData")
    map: Any = None
    whole: Any = None


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
    """Stack arrays, pictures to uint8 [B, 3, H, W] in channels-last memory; list dictionaries."""
    batch: dict[str, Any] = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        batch[name] = values if isinstance(first, dict) else default_collate(values)
        if isinstance(first, np.ndarray) and first.shape[-1] == 3:
            batch[name] = batch[name].permute(0, 3, 1, 2)
    return batch


def maker(task: Task) -> Callable[[Stored], Sample]:
    """Return the function that makes a sample of the others.

    Raises:
        ValueError: the task is one of shardio alone.
    """
    if task.make is None:
        raise ValueError("the task is one of shardio alone")
    return partial(task.make, task.transform)


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


def shardio_whole(task: Task, out: Path, repeats: int) -> Iterator[dict[str, Any]]:
    return shardio_workers(replace(task, transform=None, map=task.whole), out, repeats)


def shardio_unmapped(task: Task, out: Path, repeats: int) -> Iterator[dict[str, Any]]:
    return shardio_workers(replace(task, map=None), out, repeats)


def open_dataset(task: Task, out: Path, repeats: int) -> shardio.ShardDataset:
    return shardio.ShardDataset(
        [out] * repeats,
        shuffle=True,
        fields=task.fields,
        transform=task.transform,
        map=task.map,
        batch_size=task.batch,
        tail="short",
    )


class Files(Dataset[Sample]):
    """Dataset of the samples of a folder of files, each `repeats` times."""

    def __init__(self, task: Task, files: Path, repeats: int) -> None:
        self.keys = [key for key, _ in keys_of(files)] * repeats
        self.task, self.files, self.make = task, files, maker(task)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        return self.make(read_files(self.task, self.files, self.keys[index]))


def prepare_nothing(task: Task, files: Path, out: Path) -> None:
    """Leave the files as they are, which is what a Dataset of files reads."""


def files_workers(task: Task, out: Path, repeats: int) -> Iterator[dict[str, Any]]:
    return iter(
        DataLoader(
            Files(task, out, repeats),
            batch_size=task.batch,
            shuffle=True,
            num_workers=CORES_USED,
            collate_fn=collate,
            worker_init_fn=use_one_thread,
        )
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
        .map(maker(task))
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
        str(out), shuffle=True, drop_last=False, transform=maker(task)
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


def prepare_energon(task: Task, files: Path, out: Path) -> None:
    from megatron.energon.flavors.webdataset.prepare import (  # noqa: PLC0415  as above
        WebdatasetPreparator,
    )

    prepare_webdataset(task, files, out)
    WebdatasetPreparator.prepare_dataset(
        out,
        sorted(path.name for path in out.glob("*.tar")),
        split_parts_ratio=[("train", 1.0)],
        workers=1,
    )
    text = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
    (out / ".nv-meta" / "dataset.yaml").write_text(text, "utf-8")


def energon_workers(task: Task, out: Path, repeats: int) -> Iterator[dict[str, Any]]:
    from megatron import energon  # noqa: PLC0415  as above

    blend = out / f"repeated-{repeats}.yaml"
    blend.write_text(
        "__module__: megatron.energon\n__class__: MetadatasetV2\nsplits:\n  train:\n"
        f"    blend_epochized:\n      - repetitions: {repeats}\n        path: {out}\n",
        "utf-8",
    )
    use_one_thread()  # its workers, which are forks of this process, too
    workers = energon.WorkerConfig(rank=0, world_size=1, num_workers=CORES_USED)
    dataset = energon.get_train_dataset(
        blend,
        worker_config=workers,
        batch_size=task.batch,
        shuffle_buffer_size=SHUFFLE_BUFFER,
        max_samples_per_sequence=100,
        task_encoder=energon_encoder(task),
        repeat=False,
    )
    return iter(energon.get_loader(dataset))


def energon_encoder(task: Task) -> Any:
    """Make what Energon calls for each sample and batch."""
    from megatron import energon  # noqa: PLC0415  as above

    make = maker(task)

    def encode_sample(_: Any, sample: Any) -> Sample:
        return make(sample)

    def batch(_: Any, samples: list[Sample]) -> dict[str, Any]:
        return collate(samples)

    own = {function.__name__: energon.stateless(function) for function in (encode_sample, batch)}
    cookers = (energon.Cooker(energon.stateless(lambda sample: sample)),)
    methods = {**own, "decoder": None, "cookers": cookers}
    return type("Encoder", (energon.DefaultTaskEncoder,), methods)()


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


WHOLE, UNMAPPED = "shardio DataLoader, map alone", "shardio DataLoader, no map"

LOADERS = {
    "shardio Loader": Loading("shardio", prepare_shardio, shardio_threads),
    "shardio DataLoader": Loading("shardio", prepare_shardio, shardio_workers),
    WHOLE: Loading("shardio", prepare_shardio, shardio_whole),
    UNMAPPED: Loading("shardio", prepare_shardio, shardio_unmapped),
    "webdataset": Loading("webdataset", prepare_webdataset, webdataset_workers),
    "LitData": Loading("litdata", prepare_litdata, litdata_workers),
    "cv2 Dataset": Loading(FILES, prepare_nothing, files_workers),
    "Energon": Loading("energon", prepare_energon, energon_workers),
}

"""FFCV, with its own file format and compiled pipelines of threads.

FFCV's writer would re-encode photos; here, the file holds the same JPEGs that the others read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from ffcv.fields import IntField, NDArrayField, RGBImageField
from ffcv.fields.decoders import IntDecoder, NDArrayDecoder, RandomResizedCropRGBImageDecoder
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor
from ffcv.writer import DatasetWriter

from peers.common import Batch, decode, packed_order, repeat
from workloads import CORES_USED, Workload


class StoredJpegField(RGBImageField):  # type: ignore[misc]  # it ships no type information
    """Field that stores a JPEG unchanged."""

    def encode(self, destination: Any, data: bytes, malloc: Callable[[int], Any]) -> None:
        """Store the file's bytes."""
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        destination["mode"] = IMAGE_MODES["jpg"]
        destination["height"], destination["width"] = height, width
        destination["data_ptr"], storage = malloc(len(data))
        storage[:] = np.frombuffer(data, np.uint8)


class Samples:
    """Dataset for the writer: an image, as a file or as pixels, and its label."""

    def __init__(self, images: Path, workload: Workload) -> None:
        self.found = packed_order(images)
        self.workload = workload

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.found[index]
        data = Path(path).read_bytes()
        return (data if self.workload.crop else decode(data)), label


def prepare(images: Path, out: Path, workload: Workload) -> None:
    out.mkdir()
    shape = (workload.size, workload.size, 3)
    field = StoredJpegField() if workload.crop else NDArrayField(np.dtype(np.uint8), shape)
    writer = DatasetWriter(
        str(out / "samples.beton"), {"image": field, "label": IntField()}, num_workers=1
    )
    writer.from_indexed_dataset(Samples(images, workload))


def batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    image: list[Any] = [NDArrayDecoder(), ToTensor()]
    if workload.crop:
        crop = RandomResizedCropRGBImageDecoder((workload.size, workload.size))
        image = [crop, RandomHorizontalFlip(), ToTensor()]
    loader = Loader(
        str(out / "samples.beton"),
        batch_size=workload.batch,
        num_workers=CORES_USED,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=False,
        custom_fields={"image": StoredJpegField} if workload.crop else {},
        pipelines={"image": image, "label": [IntDecoder(), ToTensor(), Squeeze()]},
    )
    for images, labels in repeat(loader, repeats):
        yield images.permute(0, 3, 1, 2), labels

"""Workloads, the same for every peer."""

from __future__ import annotations

from dataclasses import dataclass

CORES_USED = 2  # threads plus processes that decode, of every peer
SHUFFLE_BUFFER = 1000  # samples, of the peers that shuffle in a buffer
SHARDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Images and how they are processed.

    Attributes:
        title: one line for people.
        source: kind of images: "photos", "large" or "tiny".
        count: number of images.
        quick: number of images with --quick.
        batch: number of samples in a batch.
        size: height and width of the output.
        crop: whether to crop and flip at random; if False, images are used as they are.
        raw: whether pixels are stored without a codec, in each peer's own form.
        busy: whether a Python function follows that holds the GIL for about 1 ms.
        slow: whether the data are on a slow mount, cold at the start of every run.
        single_files: number of images on the slow mount for peers that read single files.
    """

    title: str
    source: str
    count: int
    quick: int
    batch: int
    size: int
    crop: bool = True
    raw: bool = False
    busy: bool = False
    slow: bool = False
    single_files: int | None = None


WORKLOADS = {
    "a": Workload(title="photos → 224", source="photos", count=4800, quick=300, batch=64, size=224),
    "b": Workload(
        title="32×32 PNG",
        source="tiny",
        count=20_000,
        quick=3000,
        batch=256,
        size=32,
        crop=False,
    ),
    "c": Workload(
        title="32×32 raw",
        source="tiny",
        count=20_000,
        quick=3000,
        batch=512,
        size=32,
        crop=False,
        raw=True,
    ),
    "d": Workload(
        title="large photos → 224", source="large", count=120, quick=16, batch=16, size=224
    ),
    "e": Workload(
        title="photos → 224, then Python code that holds the GIL",
        source="photos",
        count=2400,
        quick=300,
        batch=64,
        size=224,
        busy=True,
    ),
    "f": Workload(
        title="photos → 224, from a slow mount, cold; those who read single files read 600",
        source="photos",
        count=9600,
        quick=600,
        batch=64,
        size=224,
        slow=True,
        single_files=600,
    ),
}

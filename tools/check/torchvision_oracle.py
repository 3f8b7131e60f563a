"""Compare shardio's transforms with torchvision's on random pictures, crops, flips, orientations.

    python tools/check/torchvision_oracle.py --samples 1000 --seed 0

It needs an environment with torchvision and Pillow beside shardio's own dependencies. Each sample
is a picture of random size, as PNG or JPEG, with a random EXIF orientation, and a random transform.
shardio decodes and resamples it as it does for a batch. Pillow decodes it and turns it, and version
2 of torchvision's transforms resamples it, as uint8 tensor, or for nearest pixels as Pillow's image
(on tensors, torchvision's 32-bit floats choose otherwise where a centre lies between two pixels).

With antialiasing, no value may differ by more than one grey level, and of nearest pixels none may
differ. Without antialiasing, OpenCV resamples; the table says how far it is from torchvision.
"""

from __future__ import annotations

import argparse
import io
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

import shardio
from shardio.fields.formats import probe_image
from shardio.fields.geometry import Crop
from shardio.fields.image import Scratch, decode_part, write_part
from shardio.transforms import SizedTransform

MODES = {
    "bilinear": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
    "nearest": v2.InterpolationMode.NEAREST_EXACT,
}
LONGEST = 700


def picture(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Noise, blurred noise and edges, at any size from one pixel on."""
    height, width = (int(2 ** rng.uniform(0, np.log2(LONGEST))) for _ in range(2))
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if rng.random() < 0.3:
        return noise
    smooth: NDArray[np.uint8] = np.asarray(
        cv2.GaussianBlur(noise, (0, 0), float(rng.uniform(0.5, 4))), np.uint8
    )
    return np.where(smooth > 127, 255, 0).astype(np.uint8) if rng.random() < 0.3 else smooth


def encoded(pixels: NDArray[np.uint8], rng: np.random.Generator) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(1, 9))
    out = io.BytesIO()
    name = "JPEG" if rng.random() < 0.5 else "PNG"
    Image.fromarray(pixels).save(out, name, quality=95, exif=exif)
    return out.getvalue()


def transform_of(rng: np.random.Generator) -> SizedTransform:
    size = (int(rng.integers(1, 300)), int(rng.integers(1, 300)))
    options: dict[str, Any] = {
        "interpolation": str(rng.choice(list(MODES))),
        "antialias": bool(rng.random() < 0.8),
        "flip": float(rng.choice([0.0, 0.5, 1.0])),
    }
    kind = rng.integers(3)
    if kind == 0:
        return shardio.Resize(size, **options)
    if kind == 1:
        options["antialias"] = True  # without, the crop is rounded to whole pixels
        resize = int(rng.integers(max(size), 2 * max(size)))
        return shardio.CenterCrop(size, resize=resize, **options)
    return shardio.RandomResizedCrop(size, scale=(0.001, 1), ratio=(0.2, 5), **options)


def ours(data: bytes, crop: Crop, size: tuple[int, int]) -> NDArray[np.uint8]:
    info, out = probe_image(data), np.zeros((*size, 3), np.uint8)
    part = decode_part(data, info, crop, size, scratch=Scratch(), reduced=False, verified=True)
    write_part(part, info, crop, out)
    return out


def theirs(data: bytes, crop: Crop, transform: Any) -> NDArray[np.uint8]:
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    nearest = transform.interpolation == "nearest"
    image = shown if nearest else torch.from_numpy(np.array(shown)).permute(2, 0, 1)
    how = {"interpolation": MODES[transform.interpolation], "antialias": transform.antialias}
    if isinstance(transform, shardio.CenterCrop):
        resized = v2.Resize(transform.resize, **how)(image)
        result = v2.CenterCrop(transform.size)(resized)
    elif isinstance(transform, shardio.Resize):
        result = v2.Resize(transform.size, **how)(image)
    else:
        place = crop.top, crop.left, crop.height, crop.width
        result = functional.resized_crop(image, *place, list(transform.size), **how)
    if crop.flip:
        result = functional.horizontal_flip(result)
    return np.array(result) if nearest else np.asarray(result.permute(1, 2, 0))


@dataclass
class Found:
    """Differences from torchvision of one kind of transform.

    Attributes:
        samples: number of samples.
        greatest: greatest difference of a value.
        counts: numbers of values, of those that differ, and of those that differ by more than 1.
    """

    samples: int = 0
    greatest: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))

    def add(self, one: NDArray[np.uint8], other: NDArray[np.uint8]) -> None:
        """Compare the pixels of a sample with torchvision's."""
        apart = np.abs(one.astype(int) - other)
        self.samples += 1
        self.greatest = max(self.greatest, int(apart.max()))
        self.counts += np.array([apart.size, (apart > 0).sum(), (apart > 1).sum()])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found: dict[tuple[str, str, bool], Found] = defaultdict(Found)
    for number in range(arguments.samples):
        rng = np.random.default_rng([arguments.seed, number])
        data, transform = encoded(picture(rng), rng), transform_of(rng)
        info = probe_image(data)
        crop = transform.crop(info.height, info.width, rng.random(transform.draws).tolist())
        kind = type(transform).__name__, crop.resampling.interpolation, crop.resampling.antialias
        found[kind].add(ours(data, crop, transform.size), theirs(data, crop, transform))
    wrong = 0
    print(
        "| transform | interpolation | antialias | samples | greatest | differ | by more than 1 |"
    )
    print("|---|---|---|---|---|---|---|")
    for (name, interpolation, antialias), seen in sorted(found.items()):
        every, other, far = seen.counts
        shares = f"{other / every:.3%} | {far / every:.4%}"
        print(
            f"| {name} | {interpolation} | {antialias} | {seen.samples} | {seen.greatest} "
            f"| {shares} |"
        )
        if interpolation == "nearest":
            wrong += seen.greatest > 0
        elif antialias:
            wrong += seen.greatest > 1
    print("nothing differs that should not" if not wrong else f"{wrong} kinds differ")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())

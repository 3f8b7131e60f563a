"""Pipelines that end outside of a loader: torchvision's RandAugment, CLIP's tokens, albumentations.

Each is a task of peers/tasks.py, with a function on the sample after the crop.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import albumentations
import cv2
import torch
from torchvision.transforms import v2

import shardio
from peers.common import decode, random_crop
from peers.tasks import UNMAPPED, WHOLE, Sample, Stored, Task, decode_values

SIZE, SMALL = 224, 32
BATCH = 64
OTHERS = ("webdataset", "LitData", "cv2 Dataset", "Energon")

rand_augment = v2.RandAugment()
colours = albumentations.RandomBrightnessContrast()
whole = albumentations.Compose(
    [
        albumentations.RandomResizedCrop((SIZE, SIZE), interpolation=cv2.INTER_LINEAR),
        albumentations.HorizontalFlip(),
        colours,
    ]
)


@lru_cache
def tokenizer() -> Any:
    """Return CLIP's tokenizer, without the models that `import open_clip` would load."""
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("open_clip_torch is not installed")
    spec = spec_from_file_location("clip_tokenizer", Path(package.origin).with_name("tokenizer.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


def tokens_of(caption: str) -> torch.Tensor:
    found: torch.Tensor = tokenizer()(caption)[0]
    return found


def tokenize_caption(sample: Sample) -> Sample:
    sample["caption"] = tokens_of(sample["caption"])
    return sample


def make_augmented(transform: Any, stored: Stored) -> Sample:
    pixels = random_crop(decode(stored["jpg"]), transform.size[0])
    picture = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return {"image": rand_augment(picture), "label": int(stored["cls"])}


def make_captioned(transform: Any, stored: Stored) -> Sample:
    pixels = random_crop(decode(stored["jpg"]), transform.size[0])
    return {"image": pixels, "caption": tokens_of(bytes(stored["txt"]).decode())}


def make_masked(transform: Any, stored: Stored) -> Sample:
    del transform
    return dict(whole(image=decode(stored["jpg"]), mask=decode_values(stored["mask.png"])))


def unchanged(sample: Sample) -> Sample:
    return sample


TASKS = {
    "randaugment": Task(
        title=f"photo → random crop of {SIZE} → v2.RandAugment",
        batch=BATCH,
        transform=shardio.RandomResizedCrop(SIZE),
        fields={"image": "jpg", "label": "cls"},
        files="jpg,cls",
        make=make_augmented,
        loaders=("shardio DataLoader", *OTHERS),
        map=rand_augment,
    ),
    "clip": Task(
        title=f"photo → random crop of {SIZE}, caption → tokens of CLIP",
        batch=BATCH,
        transform=shardio.RandomResizedCrop(SIZE),
        fields={"image": "jpg", "caption": "txt"},
        files="jpg,txt",
        make=make_captioned,
        loaders=("shardio DataLoader", *OTHERS),
        map=tokenize_caption,
    ),
    "albumentations": Task(
        title=f"photo and mask → random crop of {SIZE}, flip, RandomBrightnessContrast",
        batch=BATCH,
        transform=shardio.RandomResizedCrop(SIZE),
        fields={"image": "jpg", "mask": shardio.Mask("mask.png")},
        files="jpg,mask.png",
        make=make_masked,
        loaders=("shardio DataLoader", WHOLE, *OTHERS),
        map=albumentations.Compose([colours]),
        whole=whole,
    ),
    "identity": Task(
        title=f"picture of {SMALL}×{SMALL} → random crop, map=lambda s: s",
        batch=BATCH,
        transform=shardio.RandomResizedCrop(SMALL),
        fields={"image": "png", "label": "cls"},
        files="png,cls",
        make=None,
        loaders=("shardio DataLoader", UNMAPPED),
        map=unchanged,
    ),
}

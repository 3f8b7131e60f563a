"""Fields that hold classes as pixels are cut without blending, so no class appears in them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import shardio
from shardio.fields.defaults import type_of
from shardio.fields.geometry import Crop, View
from shardio.testing import make_shard, read_members
from shardio.transforms import SizedTransform

HEIGHT, WIDTH = 96, 128
TRANSFORMS: list[SizedTransform] = [
    shardio.Resize((50, 50)),
    shardio.Resize((300, 200), flip=1.0),
    shardio.CenterCrop(50, resize=57),
    shardio.RandomResizedCrop(50),
    shardio.RandomResizedCrop((7, 201), scale=(0.01, 0.2)),
]


@pytest.fixture(scope="module")
def classes() -> NDArray[np.uint8]:
    """A mask of five classes with borders at odd places and a speckle."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, 63:] = 255
    mask[30:60, 31:60] = 3
    mask[70:91, 10:51] = 1
    mask[np.random.default_rng(0).random(mask.shape) < 0.05] = 77
    return mask


def png(pixels: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def npy(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, pixels)
    return stream.getvalue()


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("field", ["mask.png", "seg.png", "left.panoptic.png", "labels.rgb.npy"])
def test_a_mask_is_cut_as_pillow_cuts_to_the_nearest_pixel(
    tmp_path: Path, classes: NDArray[np.uint8], field: str, transform: SizedTransform
) -> None:
    colours = field.endswith("npy")
    data = npy(np.repeat(classes[:, :, None], 3, axis=2)) if colours else png(classes)
    image = png(np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    samples = {f"{number}": {"png": image, field: data} for number in range(8)}
    shard = make_shard(tmp_path / "a.tar", samples)
    dataset = shardio.ShardDataset(shard, transform=transform, batch_size=8)
    (batch,) = dataset
    assert batch[field].dtype == torch.uint8
    assert batch[field].shape == (8, *[3] * colours, *transform.size)
    assert {*batch[field].unique().tolist()} <= {*np.unique(classes).tolist()}
    if isinstance(transform, shardio.RandomResizedCrop):
        return  # the crops themselves are looked at below
    crop = transform.crop(HEIGHT, WIDTH, [0.0] * transform.draws)
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    height, width = transform.size
    rows, columns = crop.resized or (height, width)
    resized = np.asarray(Image.fromarray(classes).crop(box).resize((columns, rows), 0))
    top, left = crop.window
    expected = resized[top : top + height, left : left + width]
    if crop.flip:
        expected = expected[:, ::-1]
    for found in batch[field].numpy():
        assert np.array_equal(found, np.broadcast_to(expected, found.shape))


@pytest.mark.parametrize("shape", [(1, 1), (50, 50), (96, 128), (333, 77)])
def test_any_crop_is_cut_as_pillow_cuts(classes: NDArray[np.uint8], shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        top, left = int(rng.integers(0, HEIGHT)), int(rng.integers(0, WIDTH))
        bottom = int(rng.integers(top, HEIGHT)) + 1
        right = int(rng.integers(left, WIDTH)) + 1
        crop = Crop(top, left, bottom - top, right - left)
        view = View(height=HEIGHT, width=WIDTH, size=shape, crop=crop)
        part = Image.fromarray(classes).crop((left, top, right, bottom))
        assert np.array_equal(view.nearest(classes), np.asarray(part.resize(shape[::-1], 0)))


def test_a_small_mask_shows_what_it_shows_when_enlarged(classes: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(1)
    for _ in range(3000):
        reduction = int(rng.choice([2, 4]))
        small = classes[: HEIGHT // reduction, : WIDTH // reduction]
        whole = small.repeat(reduction, axis=0).repeat(reduction, axis=1)
        top, left = int(rng.integers(0, HEIGHT)), int(rng.integers(0, WIDTH))
        bottom = int(rng.integers(top, HEIGHT)) + 1
        right = int(rng.integers(left, WIDTH)) + 1
        crop = Crop(top, left, bottom - top, right - left)
        size = (int(rng.integers(1, 100)), int(rng.integers(1, 100)))
        view = View(height=HEIGHT, width=WIDTH, size=size, crop=crop)
        assert np.array_equal(view.nearest(small), view.nearest(whole))


def test_image_and_mask_of_one_size_have_one_crop(tmp_path: Path) -> None:
    """Each pixel of the image says where it lies, in steps that blending does not cross.

    DALI#5086: image and mask of a sample had random crops of their own.
    """
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    place = np.stack([rows, columns, 0 * rows], axis=2).astype(np.uint8)
    samples = {f"{i}": {"rgb.npy": npy(place), "mask.rgb.npy": npy(place)} for i in range(16)}
    shard = make_shard(tmp_path / "a.tar", samples)
    transform = shardio.RandomResizedCrop(40, flip=0.5)
    (batch,) = shardio.ShardDataset(shard, transform=transform, batch_size=16)
    image, mask = batch["image"][:, :2].int(), batch["mask.rgb.npy"][:, :2].int()
    assert (image - mask).abs().max() <= 3
    assert {*mask[:, 0].diff(dim=1).sign().unique().tolist()} <= {0, 1}


def test_the_margin_of_a_mask_is_no_class(tmp_path: Path) -> None:
    """pytorch-deeplab-xception#50: the margin of a mask was class 0, which the loss counted."""
    zeros = np.zeros((20, 30), np.uint8)
    sample = {"png": png(np.full((20, 30, 3), 9, np.uint8)), "mask.png": png(zeros)}
    make_shard(tmp_path / "a.tar", {str(n): sample for n in range(4)})
    fields: dict[str, Any] = {"image": "png", "mask": shardio.Mask("mask.png", fill=255)}
    for transform in (
        shardio.RandomCrop(40, padding=5, fill=200),
        shardio.Letterbox((64, 32), fill=200),
        shardio.ScaleJitter(40, scale=(0.3, 0.9), fill=200),
    ):
        dataset = shardio.ShardDataset(tmp_path, fields=fields, transform=transform, batch_size=4)
        (batch,) = dataset
        assert {*batch["mask"].flatten().tolist()} == {0, 255}
        assert torch.equal(batch["mask"] == 255, (batch["image"] == 200).all(1))


def test_which_fields_are_masks() -> None:
    for field in ("mask.png", "seg.jpg", "a.b.instance.png", "semantic.rgb.npy", "label.webp"):
        assert type_of(field).geometry == "follows"
    for field in ("png", "jpg", "rgb.npy", "mask", "mask.left.png", "masks.png", "segment.png"):
        assert type_of(field).geometry in {"leads", None}


@pytest.mark.parametrize("extension", [".jpg", ".webp", ".bmp"])
def test_a_mask_in_colours_is_refused(tmp_path: Path, extension: str) -> None:
    data = cv2.imencode(extension, np.zeros((9, 9, 3), np.uint8))[1].tobytes()
    field = f"mask{extension}"
    shard = make_shard(tmp_path / "a.tar", {"a": {field: data}})
    with pytest.raises(shardio.SampleError, match=r"holds colours, not class numbers; save"):
        list(shardio.ShardDataset(shard))
    (sample,) = shardio.ShardDataset(shard, fields={"m": shardio.Image(field)})
    assert sample["m"].shape == (3, 9, 9)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"a.{field}").write_bytes(data)
    with pytest.raises(shardio.PackError, match="not class numbers"):
        shardio.pack(tmp_path / "in", tmp_path / "out", shards=1, fields=field)


@pytest.mark.parametrize("options", [{"resize": 8}, {"store": "raw"}, {"max_side": 8}])
def test_packing_resizes_no_mask_without_a_picture(
    tmp_path: Path, classes: NDArray[np.uint8], options: dict[str, Any]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.mask.png").write_bytes(png(classes))
    arguments: dict[str, Any] = {"shards": 1, "fields": "mask.png"}
    with pytest.raises(shardio.PackError, match=r"mask\.png belongs to a picture, and the "):
        shardio.pack(folder, tmp_path / "out", **arguments, **options)
    shardio.pack(folder, tmp_path / "out", **arguments)
    assert read_members(tmp_path / "out") == {"a.mask.png": png(classes)}

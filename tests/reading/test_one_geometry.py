"""One crop a sample: masks, depth, boxes, points and second pictures follow the first picture."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch.utils.data import DataLoader

import shardio
from shardio.testing import make_shard

HEIGHT, WIDTH = 60, 80
CROP = shardio.RandomResizedCrop((33, 47), scale=(0.2, 1))


def encode(pixels: NDArray[Any], mode: str | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    Pillow.fromarray(pixels, mode).save(stream, "PNG", **options)
    return stream.getvalue()


def places() -> NDArray[np.uint8]:
    """A picture whose red is its row and whose green is its column."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([rows, columns, 0 * rows], axis=2).astype(np.uint8)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.int32)
    palette = Pillow.fromarray((rows // 3).astype(np.uint8), "P")
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    palette.save(stream := io.BytesIO(), "PNG")
    points = [[10.0, 20.0], [70.0, 50.0]]
    boxes = {"boxes": [[10, 20, 30, 10], [0, 0, 4, 3]], "labels": [7, 1], "names": ["a", "b"]}
    fields = {
        "png": encode(places()),
        "mask.png": stream.getvalue(),
        "depth.png": encode((rows * 256 + columns).astype(np.uint16)),
        "small.mask.png": encode(((rows + columns) % 199)[::4, ::4].astype(np.uint8)),
        "right.png": encode(places()),
        "json": json.dumps(boxes).encode(),
        "points.json": json.dumps(points).encode(),
    }
    samples = {f"{number}": dict(fields) for number in range(24)}
    for number in range(0, 24, 3):
        del samples[f"{number}"]["depth.png"]
    return make_shard(tmp_path / "a.tar", samples)


FIELDS: dict[str, Any] = {
    "image": "png",
    "mask": shardio.Mask("mask.png", fill=255),
    "depth": shardio.Depth("depth.png?", scale=1 / 256),
    "small": shardio.Mask("small.mask.png", fill=255),
    "right": shardio.Image("right.png"),
    "target": shardio.Boxes("json", format="xywh", also=["labels", "names"]),
    "points": shardio.Points("points.json", flip_pairs=[(0, 1)]),
}


LACKING: dict[str, Any] = {
    "no_mask": shardio.Mask("no.mask.png?", dtype="int32"),
    "no_classes": shardio.MultiLabel("no.json?", classes=5),
    "no_sound": shardio.Audio("no.wav?"),
}


def batches(shard: Path, **options: Any) -> list[dict[str, Any]]:
    arguments: dict[str, Any] = {"fields": FIELDS, "transform": CROP, "batch_size": 8, "seed": 3}
    return [*shardio.ShardDataset(shard, **arguments | {"crops": True} | options)]


def inside_of(crop: dict[str, torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """Which pixels of the slots have their centre in the picture, bool [B, h, w]."""
    left, top, right, bottom = (crop["box"][:, edge, None] for edge in range(4))
    x = left + (right - left) * (torch.arange(size[1]) + 0.5) / size[1]
    x = torch.where(crop["flip"][:, None], x.flip(1), x)
    y = top + (bottom - top) * (torch.arange(size[0]) + 0.5) / size[0]
    return ((y > 0) & (y < HEIGHT))[:, :, None] & ((x > 0) & (x < WIDTH))[:, None, :]


FOLLOWED: list[tuple[Any, bool]] = [
    (CROP, False),
    (shardio.RandomCrop((50, 70), padding=20, fill=9), True),
    (shardio.RandomCrop((70, 60), fill=(9, 9, 9)), True),
    (shardio.Letterbox((40, 33), fill=9, flip=0.5), True),
    (shardio.Letterbox((31, 90), fill=9, antialias=False), True),
    (shardio.ScaleJitter(48, scale=(0.5, 2), fill=9), True),
    (shardio.ScaleJitter((70, 50), scale=(0.5, 2), fill=9, antialias=False), True),
]


@pytest.mark.parametrize(("transform", "margin"), FOLLOWED, ids=repr)
def test_all_that_follows_a_picture_shows_the_same_part_of_it(
    shard: Path, transform: Any, margin: bool
) -> None:
    size, outside = transform.size, 0
    for batch in batches(shard, transform=transform):
        inside = inside_of(batch["__crop__"], size)
        outside += int((~inside).sum())
        rows, columns = batch["image"][:, 0].float(), batch["image"][:, 1].float()
        assert torch.equal(batch["image"], batch["right"])
        assert (batch["image"].movedim(1, -1)[~inside] == 9).all()
        assert batch["mask"].dtype == torch.uint8
        assert (batch["mask"] - rows / 3 + 0.5)[inside].abs().max() < 1.2
        assert (batch["mask"][~inside] == 255).all()
        assert batch["depth"].dtype == torch.float32
        assert batch["depth"].shape == (8, 1, *size)
        has = batch["has_depth"]
        assert has.tolist() == [int(key) % 3 > 0 for key in batch["__key__"]]
        away = batch["depth"][has, 0] - rows[has] - columns[has] / 256
        assert away[inside[has]].abs().max() < 1.2
        assert not batch["depth"][:, 0][~inside].any()
        assert not batch["depth"][~has].any()
        small = rows // 4 * 4 + columns // 4 * 4
        assert ((batch["small"] - small)[inside].abs() <= 8).all()
        assert (batch["small"][~inside] == 255).all()
        boxes, flips = batch["__crop__"]["box"], batch["__crop__"]["flip"]
        assert batch["__crop__"]["size"].tolist() == [[HEIGHT, WIDTH]] * 8
        assert len({*map(tuple, boxes.tolist())}) > 1 or transform.draws < 2
        for slot in range(8):
            left, top, right, bottom = boxes[slot].tolist()
            scale = np.array([size[1] / (right - left), size[0] / (bottom - top)])
            points = (np.array([[10.0, 20], [70, 50]]) - [left, top]) * scale
            corners = np.array([[10.0, 20, 40, 30], [0, 0, 4, 3]]) - [left, top] * 2
            corners *= [*scale] * 2
            if flips[slot]:
                points[:, 0] = size[1] - points[:, 0]
                points = points[::-1]
                corners[:, [0, 2]] = size[1] - corners[:, [2, 0]]
            assert np.allclose(batch["points"][slot], points, atol=1e-3)
            corners = corners.clip(0, [*size[::-1]] * 2)
            kept = (corners[:, 2:] - corners[:, :2] >= 1).all(axis=1)
            target = batch["target"][slot]
            assert np.allclose(target["boxes"], corners[kept], atol=1e-3)
            assert target["labels"].tolist() == np.array([7, 1])[kept].tolist()
            assert target["names"] == [name for name, keep in zip("ab", kept, strict=True) if keep]
    assert (outside > 0) == margin


def test_a_batch_in_which_no_sample_has_a_field_holds_zeros_of_the_same_shape(
    shard: Path,
) -> None:
    for transform, size in ((CROP, CROP.size), (None, (HEIGHT, WIDTH))):
        found = batches(shard, transform=transform, batch_size=1, fields={**FIELDS, **LACKING})
        for batch in found:
            has = int(batch["__key__"][0]) % 3 > 0
            assert batch["has_depth"].tolist() == [has]
            assert batch["depth"].shape == (1, 1, *size)
            assert batch["depth"].dtype == torch.float32
            assert has or not batch["depth"].any()
            assert batch["no_mask"].shape == (1, *size)
            assert batch["no_mask"].dtype == torch.int32
            assert batch["no_classes"].tolist() == [[0] * 5]
            assert batch["no_sound"].shape == (1, 1, 0)
            assert batch["no_sound_lengths"].tolist() == [0]


def test_threads_workers_and_resume_give_the_same_batches(shard: Path) -> None:
    wanted = batches(shard)
    dataset = shardio.ShardDataset(
        shard, fields=FIELDS, transform=CROP, batch_size=8, seed=3, crops=True
    )
    loops: list[Any] = [
        shardio.Loader(dataset, threads=2),
        shardio.Loader(dataset.replace(), threads=2, device="cpu"),
        DataLoader(dataset.replace(), batch_size=None, num_workers=2, persistent_workers=True),
        DataLoader(dataset.replace(), batch_size=None, num_workers=2),
    ]
    for loop in loops:
        found = [*loop]
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    fresh = dataset.replace()
    next(iter(fresh))
    again = dataset.replace()
    again.load_state_dict(fresh.state_dict())
    for one, other in zip(again, wanted[1:], strict=True):
        assert_same(one, other)


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_same(first, second)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


def test_samples_are_those_of_batches(shard: Path) -> None:
    found = [*shardio.ShardDataset(shard, fields=FIELDS, transform=CROP, seed=3, crops=True)]
    for number, sample in enumerate(found):
        batch = batches(shard)[number // 8]
        assert sample["__crop__"].keys() == batch["__crop__"].keys()
        for name, value in batch["__crop__"].items():
            assert torch.equal(torch.as_tensor(sample["__crop__"][name]), value[number % 8])
        for name in FIELDS.keys() - ({"depth"} if not sample["has_depth"] else set()):
            assert_same(sample[name], batch[name][number % 8])


class Joint(shardio.FieldType):
    """A dictionary, whose arrays are stacked and whose names are listed."""

    holds = "one of many"

    def decode(self, data: Any) -> dict[str, Any]:
        number = int(bytes(data))
        inner = {"odd": number % 2, "pair": np.array([number, -number], np.float32)}
        return {"number": np.int64(number), "name": f"n{number}", "inner": inner}


class Digits(shardio.FieldType):
    """As many numbers as the text has digits."""

    batching = "padded"

    def decode(self, data: Any) -> Any:
        return np.frombuffer(bytes(data), np.uint8) - ord("0")


NESTED: dict[str, Any] = {
    **FIELDS,
    "joint": Joint("cls"),
    "digits": Digits("txt?"),
    "kind": Joint("id?"),
}


def sources(folder: Path, shard: Path) -> list[shardio.ShardDataset]:
    """Two datasets with the same entries; the second lacks depth, digits and kind wholly."""
    names = ("png", "mask.png", "small.mask.png", "right.png", "json", "points.json")
    given: dict[str, Any] = {name: name for name in names}
    stored = [*shardio.ShardDataset(shard, decode=False, fields=given)]
    common = [{name: sample[name] for name in names} for sample in stored]
    depth = encode(np.full((HEIGHT, WIDTH), 256, np.uint16))
    made = []
    for source in range(2):
        samples = {}
        for number in range(24):
            fields = {**common[number], "cls": str(number + 100 * source).encode()}
            if not source:
                fields |= {"depth.png": depth, "txt": b"1" * (1 + number), "id": b"7"}
            samples[f"{source}-{number}"] = fields
        path = make_shard(folder / f"{source}.tar", samples)
        made.append(
            shardio.ShardDataset(
                path, fields=NESTED, transform=CROP, batch_size=8, seed=3, crops=True
            )
        )
    return made


def test_mixtures_join_what_nests_what_is_padded_and_what_a_source_lacks(
    shard: Path, tmp_path: Path
) -> None:
    alone = sources(tmp_path, shard)
    wanted = {
        key: {name: entry for name, entry in sample.items() if not name.startswith("__")}
        for source in alone
        for sample in source.replace(batch_size=None)
        for key in [sample["__key__"]]
    }
    mixed = shardio.Mix(alone, weights=[0.5, 0.5])
    loops: list[Any] = [
        mixed,
        shardio.Loader(shardio.Mix(alone, weights=[0.5, 0.5]), threads=2, device="cpu"),
        DataLoader(shardio.Mix(alone, weights=[0.5, 0.5]), batch_size=None, num_workers=2),
    ]
    for loop in loops:
        keys = []
        for batch in loop:
            assert batch["__source__"].unique().tolist() == [0, 1]
            assert batch["depth"].shape == (8, 1, *CROP.size)
            assert batch["digits"].shape == (8, batch["digits_lengths"].max())
            for slot, key in enumerate(batch["__key__"]):
                sample, source = wanted[key], int(key[0])
                keys.append(key)
                for name in ("image", "mask", "small", "right", "points", "target"):
                    assert_same(batch[name][slot], sample[name])
                joint = batch["joint"]
                assert joint["number"][slot] == sample["joint"]["number"]
                assert joint["name"][slot] == sample["joint"]["name"]
                assert_same(joint["inner"]["pair"][slot], sample["joint"]["inner"]["pair"])
                present = [
                    batch[f"has_{name}"][slot].item() for name in ("depth", "digits", "kind")
                ]
                assert present == [not source] * 3
                length = batch["digits_lengths"][slot]
                assert batch["digits"][slot].sum() == length == sample["digits_lengths"]
                assert batch["kind"]["number"][slot] == (0 if source else 7)
                assert batch["kind"]["name"][slot] == (None if source else "n7")
                assert bool(batch["depth"][slot].all()) is bool(batch["depth"][slot].any())
                assert bool(batch["depth"][slot].any()) is not bool(source)
        assert len(keys) == len({*keys}) == 48


def test_mixtures_name_what_does_not_join(shard: Path, tmp_path: Path) -> None:
    one, other = sources(tmp_path, shard)
    for changes, message in (
        ({"crops": False}, "other crops than"),
        ({"fields": {**NESTED, "kind": Joint("cls")}}, "other optional entries than"),
    ):
        with pytest.raises(shardio.UsageError, match=message):
            shardio.Mix([one, other.replace(**changes)], weights=[0.5, 0.5])

    class Wide(Joint):
        holds = Joint.holds

        def decode(self, data: Any) -> dict[str, Any]:
            found = super().decode(data)
            return {**found, "inner": {**found["inner"], "pair": np.zeros(3)}}

    class More(Joint):
        holds = Joint.holds

        def decode(self, data: Any) -> dict[str, Any]:
            return {**super().decode(data), "more": 1}

    for other_type, message in (
        (Wide, r"'joint'\['inner'\]\['pair'\] is 2 torch.float32 in source 0 and 3 torch.float64"),
        (More, "'joint' is a dictionary of 'number', 'name', 'inner' in source 0 and .* 'more'"),
    ):
        wide = other.replace(fields={**NESTED, "joint": other_type("cls")})
        with pytest.raises(shardio.UsageError, match=message):
            next(iter(shardio.Mix([one, wide], weights=[0.5, 0.5])))


@pytest.mark.parametrize("size", [(90, 40), (40, 90), (64, 64), (21, 22)])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_lie_where_their_object_is_in_a_letterbox(
    tmp_path: Path, size: tuple[int, int], flip: float
) -> None:
    """viseron#379: boxes were off along the axis that had no margin."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[12:42, 8:32] = 255
    boxes = json.dumps({"boxes": [[8, 12, 24, 30]]}).encode()
    make_shard(tmp_path / "a.tar", {"a": {"png": encode(pixels), "json": boxes}})
    fields: dict[str, Any] = {"image": "png", "boxes": shardio.Boxes("json", format="xywh")}
    transform = shardio.Letterbox(size, fill=0, flip=flip)
    (batch,) = shardio.ShardDataset(tmp_path, fields=fields, transform=transform, batch_size=1)
    assert batch["image"].shape[2:] == size
    rows, columns = np.nonzero(batch["image"][0, 0].numpy() > 127)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    found = batch["boxes"][0]["boxes"][0].numpy()
    assert np.abs(found - seen).max() <= 0.76
    assert (found[2] - found[0]) / (found[3] - found[1]) == pytest.approx(24 / 30, rel=0.05)


def test_a_crop_of_its_own_changes_no_other(shard: Path) -> None:
    own = {**FIELDS, "right": shardio.Image("right.png", crop="own")}
    for one, other in zip(batches(shard, fields=own), batches(shard), strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["mask"], other["mask"])
        assert not torch.equal(one["right"], other["right"])


def test_without_a_transform_pictures_are_whole_and_boxes_are_edges(shard: Path) -> None:
    (sample, *_) = shardio.ShardDataset(shard, fields=FIELDS)
    assert sample["image"].shape == (3, HEIGHT, WIDTH)
    assert sample["mask"].tolist() == (np.mgrid[:HEIGHT, :WIDTH][0] // 3).tolist()
    assert sample["target"]["boxes"].tolist() == [[10, 20, 40, 30], [0, 0, 4, 3]]
    assert sample["has_depth"] is False


@pytest.mark.parametrize("size", [(HEIGHT + 1, WIDTH), (HEIGHT // 2, WIDTH), (WIDTH, HEIGHT)])
def test_sizes_that_do_not_fit_are_named(tmp_path: Path, size: tuple[int, int]) -> None:
    fields = {"png": encode(places()), "mask.png": encode(np.zeros(size, np.uint8))}
    shard = make_shard(tmp_path / "a.tar", {"a": fields})
    for transform in (CROP, None):
        dataset = shardio.ShardDataset(shard, transform=transform)
        message = rf"'mask\.png'.*it is {size[0]} × {size[1]}, but the picture 'png' .* 60 × 80"
        with pytest.raises(shardio.SampleError, match=message):
            list(dataset)


def test_exif_is_named_where_it_is_why_sizes_differ(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    fields = {"png": encode(places(), exif=exif), "mask.png": encode(places()[:, :, 0])}
    shard = make_shard(tmp_path / "a.tar", {"a": fields})
    with pytest.raises(shardio.SampleError, match="80 × 60, which its EXIF orientation turned"):
        list(shardio.ShardDataset(shard, transform=CROP))


def test_what_cannot_follow_is_refused_before_reading(shard: Path) -> None:
    points = {"image": "png", "points": shardio.Points("points.json")}
    with pytest.raises(shardio.UsageError, match=r"mirrors pictures, and 'points' .* flip_pairs"):
        batches(shard, fields=points)
    assert batches(shard, fields=points, transform=shardio.RandomResizedCrop(9, flip=0))
    mask = {"image": "png", "mask": shardio.Mask("mask.png")}
    with pytest.raises(shardio.UsageError, match=r"'mask' does not say which class it is; .*=255"):
        batches(shard, fields=mask, transform=shardio.Letterbox(9))
    assert batches(shard, fields=mask, transform=shardio.RandomCrop(70, fill="reflect"))
    with pytest.raises(shardio.TransformError, match=r"boxes and points cannot follow; .*fill=0"):
        batches(shard, transform=shardio.RandomCrop(70, fill="reflect"))
    with pytest.raises(shardio.UsageError, match="a function sees one picture alone, so 'right'"):
        batches(shard, transform=lambda image: image)
    with pytest.raises(shardio.UsageError, match="'has_depth' is taken by depth"):
        batches(shard, fields={**FIELDS, "has_depth": "json"})
    with pytest.raises(shardio.SampleError, match="no picture that decides the crop"):
        batches(shard, fields={"target": FIELDS["target"]})


def test_sixteen_bits_and_jpeg_masks_are_no_images(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", {"a": {"png": encode(np.full((5, 5), 300, np.uint16))}})
    with pytest.raises(shardio.SampleError, match=r"16 bits per channel.*Image\(…, bits=8\)"):
        list(shardio.ShardDataset(shard))
    (sample,) = shardio.ShardDataset(shard, fields={"image": shardio.Image("png", bits=8)})
    assert sample["image"].unique().tolist() == [1]
    (sample,) = shardio.ShardDataset(shard, fields={"d": shardio.Depth("png", scale=0.5)})
    assert sample["d"].unique().tolist() == [150]
    with pytest.raises(shardio.SampleError, match=r"300 to 300.*dtype='int32'"):
        list(shardio.ShardDataset(shard, fields={"m": shardio.Mask("png")}))
    (sample,) = shardio.ShardDataset(shard, fields={"m": shardio.Mask("png", dtype="int32")})
    assert sample["m"].dtype == torch.int32

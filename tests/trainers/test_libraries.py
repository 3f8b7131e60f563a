"""Transforms of torchvision and albumentations as map=: all of a sample together, reproducibly."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import shardio
from shardio.testing import check_map, make_shard

pytest.importorskip("torchvision", reason="torchvision is in the trainers' environment alone")
pytest.importorskip("albumentations", reason="albumentations is in the trainers' environment alone")

import albumentations
import torchvision.transforms as first_version
from PIL import Image
from torchvision.transforms import v2

HEIGHT, WIDTH = 24, 36
POINTS = [[4.0, 6.0], [30.0, 6.0], [15.0, 20.0]]


def png(array: Any) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 samples: a box of one grey in a picture and its mask, the box, and three points."""
    samples = {}
    for at in range(20):
        left, top = 2 + at % 9, 3 + at % 5
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[top : top + 9, left : left + 13] = 1
        boxes = [[left, top, left + 13, top + 9], [0, 0, 2, 2]]
        found = {"boxes": boxes, "labels": [at % 4, 7], "names": ["grey", "corner"]}
        samples[f"{at:02}"] = {
            "png": png(cv2.merge([200 * mask] * 3)),
            "mask.png": png(mask),
            "json": json.dumps(found).encode(),
            "points.json": json.dumps(POINTS).encode(),
            "cls": str(at % 4).encode(),
        }
    return make_shard(tmp_path_factory.mktemp("drawn") / "a.tar", samples)


FIELDS: Mapping[str, Any] = {
    "image": "png",
    "mask": "mask.png",
    "boxes": shardio.Boxes("json", also=["labels", "names"]),
    "points": shardio.Points("points.json", flip_pairs=[(0, 1)]),
    "label": "cls",
}
V2 = v2.Compose([v2.RandomHorizontalFlip(0.5), v2.RandomCrop((16, 20))])
ALBUMENTATIONS = albumentations.Compose(
    [albumentations.HorizontalFlip(p=0.5), albumentations.RandomCrop(16, 20)],
    bbox_params=albumentations.BboxParams("pascal_voc"),
    keypoint_params=albumentations.KeypointParams("xy", remove_invisible=False),
)
BOTH = pytest.mark.parametrize("transform", [V2, ALBUMENTATIONS], ids=["v2", "albumentations"])


def opened(drawn: Path, **options: Any) -> shardio.ShardDataset:
    return shardio.ShardDataset(
        drawn, **{"fields": FIELDS, "batch_size": 5, "shuffle": True, **options}
    )


def values(batch: Mapping[str, Any]) -> bytes:
    torch.save(dict(batch), stream := io.BytesIO())
    return stream.getvalue()


@BOTH
def test_one_random_crop_moves_picture_mask_boxes_and_points(drawn: Path, transform: Any) -> None:
    apart = set()
    for batch in opened(drawn, map=transform):
        assert batch["image"].shape == (5, 3, 16, 20)
        assert torch.equal(batch["image"][:, 0] > 100, batch["mask"] == 1)
        for mask, boxes, points in zip(batch["mask"], batch["boxes"], batch["points"], strict=True):
            assert len(boxes["boxes"]) == len(boxes["labels"]) == len(boxes["names"])
            rows, columns = np.nonzero(mask.numpy())
            if "grey" in boxes["names"] and len(rows):
                found = boxes["boxes"][boxes["names"].index("grey")].numpy().round()
                inside = np.clip(found, 0, [20, 16, 20, 16])
                edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert inside.tolist() == edges
            assert points[0, 0] < points[1, 0]  # left stays left
            apart.add(round(float(points[2, 0] - points[0, 0])))
    assert apart == {11, 15}  # as they are, and mirrored


@BOTH
def test_batches_are_the_same_in_turn_by_workers_and_after_resuming(
    drawn: Path, transform: Any
) -> None:
    make = partial(opened, drawn, map=transform)
    check_map(make())
    wanted = [values(batch) for batch in make()]
    assert wanted == [values(b) for b in DataLoader(make(), batch_size=None, num_workers=2)]
    assert wanted != [values(batch) for batch in make(seed=1)]
    resumed = make()
    resumed.load_state_dict(resumed.state_dict() | {"step": 2})
    assert [values(batch) for batch in resumed] == wanted[2:]
    torch.manual_seed(3)
    assert [values(batch) for batch in make()] == wanted


def test_threads_have_albumentations_of_their_own(drawn: Path) -> None:
    make = partial(opened, drawn, map=ALBUMENTATIONS)
    assert [values(b) for b in make()] == [values(b) for b in shardio.Loader(make(), threads=4)]


def test_the_training_loop_keeps_its_own_random_numbers(drawn: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    list(opened(drawn, map=V2))
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("argument", ["map", "transform"])
def test_threads_that_share_a_generator_are_refused(drawn: Path, argument: str) -> None:
    options: dict[str, Any] = {"fields": {"image": "png"}, argument: v2.RandAugment()}
    with pytest.raises(
        shardio.UsageError,
        match=rf"{argument} RandAugment draws from generators .* Loader\(ds, workers=n\)",
    ):
        shardio.Loader(opened(drawn, **options))
    loader = shardio.Loader(opened(drawn, nondeterministic=True, **options), threads=2)
    assert len([*loader]) == 4
    in_turn = [values(batch) for batch in opened(drawn, **options)]
    assert [values(b) for b in shardio.Loader(opened(drawn, **options), workers=2)] == in_turn
    still = {**options, argument: v2.Compose([v2.Resize((9, 9)), v2.ToDtype(torch.float32)])}
    batches = [*shardio.Loader(opened(drawn, **still), threads=2)]
    assert batches[0]["image"].dtype == torch.float32


def test_a_transform_of_a_library_may_be_set(drawn: Path) -> None:
    options: dict[str, Any] = {"fields": {"image": "png"}}
    wanted = [values(batch) for batch in opened(drawn, transform=v2.RandAugment(), **options)]
    dataset = opened(drawn, **options)
    loader = shardio.Loader(dataset, threads=1)
    dataset.transform = v2.RandAugment()
    assert [values(batch) for batch in dataset] == wanted
    with pytest.raises(shardio.UsageError, match="transform RandAugment draws from generators"):
        iter(loader)


@pytest.mark.parametrize("argument", ["map", "transform"])
def test_a_pipeline_for_pil_images_gets_them(drawn: Path, argument: str) -> None:
    pipeline = first_version.Compose(
        [
            first_version.Resize(16),
            first_version.CenterCrop(16),
            lambda image: image.convert("RGB"),
            first_version.ToTensor(),
            first_version.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    options: dict[str, Any] = {"fields": {"image": "png"}, "shuffle": False}
    batch = next(iter(shardio.Loader(opened(drawn, **{argument: pipeline}, **options))))
    plain = opened(drawn, **options)
    for number, picture in enumerate(batch["image"]):
        pixels = plain[number]["image"].permute(1, 2, 0).numpy()
        assert torch.equal(picture, pipeline(Image.fromarray(pixels)))


def test_any_function_of_a_pil_image_is_wrapped_by_one_name(drawn: Path) -> None:
    def rotated(image: Any) -> Any:
        return image.rotate(90, expand=True)

    options: dict[str, Any] = {"fields": {"image": "png"}, "shuffle": False}
    batch = next(iter(opened(drawn, transform=shardio.FromPIL(rotated), **options)))
    assert torch.equal(
        batch["image"][2], torch.rot90(opened(drawn, **options)[2]["image"], 1, (1, 2))
    )
    with pytest.raises(shardio.TransformError, match=r"AttributeError.*shardio\.FromPIL"):
        next(iter(opened(drawn, transform=rotated, **options)))


def test_a_function_of_several_pil_images_gets_picture_and_mask_together(drawn: Path) -> None:
    def turned(image: Any, mask: Any) -> Any:
        assert (image.mode, mask.mode) == ("RGB", "L")
        return image.rotate(90, expand=True), np.array(mask.rotate(90, expand=True))

    fields = {name: FIELDS[name] for name in ("image", "mask", "label")}
    options: dict[str, Any] = {"shuffle": False, "fields": fields}
    both = shardio.FromPIL(turned, "image", "mask")
    batch, plain = next(iter(opened(drawn, map=both, **options))), opened(drawn, **options)[2]
    assert torch.equal(batch["image"][2], torch.rot90(plain["image"], 1, (1, 2)))
    assert torch.equal(batch["mask"][2], torch.rot90(plain["mask"], 1))
    with pytest.raises(shardio.UsageError, match="FromPIL: there is no entry 'seg'; choose among"):
        opened(drawn, map=shardio.FromPIL(turned, "image", "seg"))
    with pytest.raises(shardio.UsageError, match="FromPIL cannot take 'boxes' along"):
        opened(drawn, map=both)
    one = shardio.FromPIL(lambda *pictures: pictures[0], "image", "mask")
    with pytest.raises(shardio.TransformError, match="returned 'Image' for 2 pictures; return a t"):
        next(iter(opened(drawn, map=one, **options)))


def test_a_function_of_several_pil_images_is_seeded_for_each_sample(drawn: Path) -> None:
    class Pair:
        def __call__(self, image: Any, mask: Any) -> Any:
            angle = random.choice([0, 90, 180, 270])  # noqa: S311
            return image.rotate(angle), mask.rotate(angle)

    fields = {name: FIELDS[name] for name in ("image", "mask")}
    pipeline = shardio.FromPIL(Pair(), "image", "mask")

    def read(workers: int) -> list[torch.Tensor]:
        dataset = opened(drawn, map=pipeline, fields=fields)
        loader = DataLoader(dataset, batch_size=None, num_workers=workers)
        return [batch["mask"] for batch in loader]

    alone = read(0)
    for workers in (1, 2):
        assert all(map(torch.equal, read(workers), alone))
    with pytest.raises(shardio.UsageError, match="draws from generators that all threads"):
        shardio.Loader(opened(drawn, map=pipeline, fields=fields))


def test_a_transform_that_sees_the_picture_alone_is_refused_beside_a_mask(drawn: Path) -> None:
    alone = first_version.RandomHorizontalFlip()
    with pytest.raises(shardio.UsageError, match="RandomHorizontalFlip cannot take 'mask' along"):
        opened(drawn, map=alone)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_a_pil_image_has_the_channels_of_its_entry(drawn: Path, channels: int, mode: str) -> None:
    modes = set()

    def rotated(image: Any) -> Any:
        modes.add(image.mode)
        return image.rotate(90, expand=True)

    options: dict[str, Any] = {"fields": {"image": shardio.Image("png", channels=channels)}}
    plain = next(iter(opened(drawn, **options)))["image"]
    for argument in ("map", "transform"):
        batch = next(iter(opened(drawn, **{argument: shardio.FromPIL(rotated)}, **options)))
        assert torch.equal(batch["image"], torch.rot90(plain, 1, (2, 3)))
        scaled = next(iter(opened(drawn, **{argument: first_version.ToTensor()}, **options)))
        assert torch.equal(scaled["image"], plain / 255)
    assert modes == {mode}


def test_a_gray_picture_of_albumentations_keeps_its_axis(drawn: Path) -> None:
    gray = albumentations.ToGray(num_output_channels=1, p=1)
    for batch in opened(drawn, map=gray, fields={"image": "png"}):
        assert batch["image"].shape == (5, 1, HEIGHT, WIDTH)


def test_a_transform_of_pictures_is_refused_where_samples_have_none(drawn: Path) -> None:
    for transform in (V2, ALBUMENTATIONS, first_version.ToTensor(), shardio.FromPIL(lambda x: x)):
        with pytest.raises(shardio.UsageError, match="is for pictures, and samples have none"):
            opened(drawn, map=transform, fields={"label": "cls"})


@pytest.mark.parametrize(
    "mix", [v2.MixUp(num_classes=4), v2.RandomChoice([v2.CutMix(num_classes=4)])]
)
def test_mixing_of_batches_is_refused_for_samples(drawn: Path, mix: Any) -> None:
    with pytest.raises(shardio.UsageError, match=r"mixes the samples of a batch.*shardio\.MixUp"):
        shardio.ShardDataset(drawn, fields={"image": "png"}, map=mix, batch_size=4)


def test_a_sequence_of_modules_is_seeded_as_its_parts(drawn: Path) -> None:
    chain = torch.nn.Sequential(v2.RandomHorizontalFlip(), v2.RandomCrop((16, 20)))
    make = partial(opened, drawn, map=chain, fields={**FIELDS, "points": FIELDS["points"]})
    check_map(make())
    for batch in make():
        assert torch.equal(batch["image"][:, 0] > 100, batch["mask"] == 1)
    with pytest.raises(shardio.UsageError, match=r"map Sequential draws from .* workers=n"):
        shardio.Loader(make())


def test_a_compose_that_returns_no_sample_is_an_error_that_says_so(drawn: Path) -> None:
    forgets = v2.Compose([lambda _: None])
    with pytest.raises(shardio.TransformError, match="map Compose returned None, not a sample"):
        next(iter(opened(drawn, map=forgets, fields={"image": "png"})))


def test_points_whose_pairs_are_not_known_are_refused_when_mirrored(drawn: Path) -> None:
    """albumentations#505: a mirrored left eye stayed a left eye."""
    fields = {"image": "png", "points": shardio.Points("points.json")}
    for flip in (v2.RandomHorizontalFlip(1), ALBUMENTATIONS):
        with pytest.raises(shardio.TransformError, match="mirrored a picture with points; give Po"):
            list(opened(drawn, map=flip, fields=fields))
    assert [*opened(drawn, map=v2.RandomCrop((16, 20)), fields=fields)]


def test_points_that_a_transform_drops_are_refused(drawn: Path) -> None:
    dropping = albumentations.Compose(
        [albumentations.RandomCrop(5, 5)], keypoint_params=albumentations.KeypointParams("xy")
    )
    with pytest.raises(shardio.TransformError, match=r"of 3 points, and which .*remove_invisible"):
        list(opened(drawn, map=dropping, fields={**FIELDS, "boxes": "json"}))


@pytest.mark.parametrize("labels", [["labels"], ["labels", "names"]])
@pytest.mark.parametrize("format_", ["coco", "pascal_voc"])
def test_labels_of_albumentations_go_with_their_boxes(
    drawn: Path, labels: list[str], format_: str
) -> None:
    """albumentations#1999: label fields kept the labels of boxes that a crop had left out."""
    crops = [albumentations.Crop(0, 0, 4, 3), albumentations.RandomCrop(3, 4)]
    crop = albumentations.Compose(
        [albumentations.OneOf(crops, p=1)],
        bbox_params=albumentations.BboxParams(format_, label_fields=labels),
    )
    fields = {name: FIELDS[name] for name in ("image", "boxes", "label")}
    seen = set()
    for batch in opened(drawn, map=crop, fields=fields):
        for picture, boxes, label in zip(
            batch["image"], batch["boxes"], batch["label"].tolist(), strict=True
        ):
            expected = {"grey": label, "corner": 7}
            assert boxes["labels"].tolist() == [expected[name] for name in boxes["names"]]
            assert len(boxes["boxes"]) == len(boxes["names"])
            assert ("grey" in boxes["names"]) == bool((picture > 100).any())
            seen.add((*boxes["names"],))
    assert seen == {(), ("grey",), ("corner",)}


@pytest.mark.parametrize(
    "transform",
    [
        v2.Compose([V2, v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes()]),
        albumentations.Compose(
            [albumentations.LongestMaxSize(30), albumentations.PadIfNeeded(40, 40)],
            bbox_params=albumentations.BboxParams("pascal_voc", label_fields=["labels"]),
        ),
    ],
    ids=["v2", "albumentations"],
)
def test_pictures_without_a_box_are_samples_too(tmp_path: Path, transform: Any) -> None:
    """albumentations#1918, vision#2144: a picture without an object raised, or had a box of 0."""
    picture = png(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    nothing = {"png": picture, "json": json.dumps({"boxes": [], "labels": []}).encode()}
    one = {"png": picture, "json": b'{"boxes": [[0, 0, 36, 24]], "labels": [3]}'}
    make_shard(tmp_path / "a.tar", {str(n): [nothing, one][n % 2] for n in range(6)})
    fields = {"image": "png", "boxes": shardio.Boxes("json", also=["labels"])}
    (batch,) = opened(tmp_path, map=transform, fields=fields, batch_size=6)
    for key, boxes in zip(batch["__key__"], batch["boxes"], strict=True):
        assert (boxes["boxes"].shape, boxes["boxes"].dtype) == ((int(key) % 2, 4), torch.float32)
        assert boxes["labels"].tolist() == [3] * (int(key) % 2)


def test_labels_do_not_outnumber_boxes(drawn: Path) -> None:
    """vision#2240: boxes without area made a loss that is no number."""
    fields = {"image": "png", "boxes": shardio.Boxes("json", also=["labels"])}
    crop = v2.RandomCrop((16, 20))
    sane = v2.Compose([crop, v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes()])
    counts = set()
    for batch in opened(drawn, map=sane, fields=fields):
        for boxes in batch["boxes"]:
            assert len(boxes["boxes"]) == len(boxes["labels"])
            sides = boxes["boxes"][:, 2:] - boxes["boxes"][:, :2]
            assert (sides >= 1).all()
            counts.add(len(boxes["boxes"]))
    assert len(counts) > 1
    more = {**fields, "boxes": shardio.Boxes("json", also=["labels", "names"])}
    with pytest.raises(shardio.TransformError, match=r"left 1 boxes and 2 values of 'names'; give"):
        list(opened(drawn, map=sane, fields=more))


def test_boxes_of_albumentations_may_be_those_of_coco(drawn: Path) -> None:
    def boxes(format_: str, **more: Any) -> bytes:
        transform = albumentations.Compose(
            [albumentations.HorizontalFlip(p=1)],
            bbox_params=albumentations.BboxParams(format_, **more),
        )
        fields = {"image": "png", "boxes": FIELDS["boxes"]}
        found = [b for batch in opened(drawn, map=transform, fields=fields) for b in batch["boxes"]]
        return json.dumps([[b["boxes"].round().tolist(), b["names"]] for b in found]).encode()

    assert boxes("coco") == boxes("pascal_voc") == boxes("coco", label_fields=["labels"])
    with pytest.raises(shardio.TransformError, match="boxes are in pixels, and BboxParams"):
        boxes("yolo")


def test_a_second_picture_needs_a_target_of_its_own(drawn: Path) -> None:
    """albumentations#1511: a second picture was left as it was, without a word."""
    two = {"image": "png", "other": shardio.Image("png")}
    flip = [albumentations.HorizontalFlip(p=0.5)]
    with pytest.raises(shardio.TransformError, match=r"additional_targets=\{'other': 'image'\}"):
        list(opened(drawn, map=albumentations.Compose(flip), fields=two))
    together = albumentations.Compose(flip, additional_targets={"other": "image"})
    for batch in opened(drawn, map=together, fields=two):
        assert torch.equal(batch["image"], batch["other"])
    for batch in opened(drawn, map=v2.RandomHorizontalFlip(), fields=two):
        assert torch.equal(batch["image"], batch["other"])


@pytest.mark.parametrize(
    "colours",
    [
        v2.RandomChannelPermutation(),
        v2.ColorJitter(0.5, 0.5, 0.5, 0.4),
        albumentations.Compose(
            [albumentations.ChannelShuffle(p=1), albumentations.RandomBrightnessContrast(p=1)],
            additional_targets={"other": "image"},
        ),
    ],
    ids=["permutation", "jitter", "albumentations"],
)
def test_two_pictures_of_a_sample_get_the_same_colours(tmp_path: Path, colours: Any) -> None:
    """albumentations#204: each of the pictures had its channels shuffled for itself."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    make_shard(tmp_path / "a.tar", {str(n): {"png": png(pixels)} for n in range(12)})
    two = {"image": "png", "other": shardio.Image("png")}
    seen = set()
    for batch in opened(tmp_path, map=colours, fields=two):
        assert torch.equal(batch["image"], batch["other"])
        seen |= {picture.numpy().tobytes() for picture in batch["image"]}
    assert len(seen) > 3


def test_randaugment_follows_the_fused_crop(drawn: Path) -> None:
    crop = shardio.RandomResizedCrop(12)
    options: dict[str, Any] = {"fields": {"image": "png", "label": "cls"}, "transform": crop}
    batches = [*opened(drawn, map=v2.RandAugment(), **options)]
    assert all(batch["image"].shape == (5, 3, 12, 12) for batch in batches)
    assert values(batches[0]) != values(next(iter(opened(drawn, **options))))
    workers = DataLoader(
        opened(drawn, map=v2.RandAugment(), **options), batch_size=None, num_workers=2
    )
    assert [values(b) for b in workers] == [values(b) for b in batches]


@pytest.mark.parametrize("library", [v2, first_version], ids=["v2", "first version"])
def test_torchvision_gets_pictures_in_planes_and_the_batch_has_its_results(
    drawn: Path, library: Any
) -> None:
    given: list[torch.Tensor] = []

    def mirror(picture: torch.Tensor) -> torch.Tensor:
        given.append(picture.clone())
        return picture.flip(-1).contiguous()

    lambda_ = library.Lambda(mirror)
    fields = {"image": "png"}
    batches = [*opened(drawn, map=lambda_, fields=fields, transform=shardio.Resize((7, 9)))]
    assert all(picture.is_contiguous() for picture in given)
    assert torch.equal(
        torch.cat([batch["image"] for batch in batches]), torch.stack(given).flip(-1)
    )

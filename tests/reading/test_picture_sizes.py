"""Batches are the same with the sizes of pictures in the indexes and without them."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch.utils.data import DataLoader

import shardio
from shardio.fields.geometry import Crop
from shardio.fields.probe import Buffer, ImageInfo
from shardio.indexing.shard_index import ShardIndex, encode_index, read_index
from shardio.reading.shards import OpenShard
from shardio.transforms import Crops

SAMPLES = 60


def encode(pixels: NDArray[Any], kind: str, *, orientation: int = 1, mode: str = "") -> bytes:
    picture = Pillow.fromarray(pixels)
    if mode == "P":
        picture = Pillow.fromarray(pixels, "P")
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    picture.save(stream := io.BytesIO(), kind, exif=exif)
    return stream.getvalue()


def sample_of(number: int) -> dict[str, Any]:
    """A photo, turned or not, with what belongs to it, of another size for each number."""
    numbers = np.random.default_rng(number)
    height, width = numbers.integers(30, 90, 2).tolist()
    orientation = (1, 6, 3)[number % 3]
    shown = (width, height) if orientation == 6 else (height, width)
    sample: dict[str, Any] = {
        "__key__": f"{number:03d}",
        "jpg": encode(
            numbers.integers(0, 256, (height, width, 3), np.uint8), "JPEG", orientation=orientation
        ),
        "mask.png": encode(numbers.integers(0, 20, shown, np.uint8), "PNG", mode="P"),
        "right.jpg": encode(numbers.integers(0, 256, (*shown, 3), np.uint8), "JPEG"),
        "other.webp": encode(numbers.integers(0, 256, (41, 30 + number, 3), np.uint8), "WEBP"),
        "json": json.dumps({"boxes": [[1, 2, 20, 22]], "labels": [number]}).encode(),
    }
    if number % 4:
        sample["depth.png"] = encode(numbers.integers(0, 1 << 16, shown, np.uint16), "PNG")
    return sample


FIELDS: dict[str, Any] = {
    "image": "jpg",
    "mask": shardio.Mask("mask.png"),
    "depth": shardio.Depth("depth.png?", scale=1 / 256),
    "right": "right.jpg",
    "other": shardio.Image("other.webp", crop="own"),
    "target": shardio.Boxes("json", format="xyxy", also=["labels"]),
}
TRANSFORMS = (
    shardio.RandomResizedCrop((24, 20)),
    shardio.CenterCrop((20, 24), resize=27, flip=0.5),
    shardio.Resize((16, 24), flip=0.5),
)


def change(folder: Path, how: Callable[[ShardIndex], ShardIndex]) -> None:
    for path in sorted((folder / "index").iterdir()):
        path.write_bytes(b"".join(encode_index(how(read_index(path)))))


def without_sizes(index: ShardIndex) -> ShardIndex:
    return replace(index, pictures=(), heights=None, widths=None, orientations=None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A packed folder, and a copy of it whose indexes have no sizes."""
    new, old = (tmp_path_factory.mktemp("sizes") / name for name in ("new", "old"))
    shardio.pack(map(sample_of, range(SAMPLES)), new, shards=4)
    shutil.copytree(new, old)
    change(old, without_sizes)
    return new, old


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


def opened(folder: Path, **options: Any) -> shardio.ShardDataset:
    arguments: dict[str, Any] = {
        "fields": FIELDS,
        "transform": TRANSFORMS[0],
        "batch_size": 20,
        "shuffle": True,
        "window": 2,
        "crops": True,
    }
    return shardio.ShardDataset(folder, **arguments | options)


def loops_over(dataset: shardio.ShardDataset) -> list[list[Any]]:
    return [
        [*dataset.replace()],
        [*shardio.Loader(dataset.replace(), threads=3)],
        [*DataLoader(dataset.replace(), batch_size=None, num_workers=2)],
    ]


class Counted(shardio.RandomResizedCrop):
    """Notes how crops are chosen."""

    calls: list[str] = []  # noqa: RUF012  of all of them

    def crop(self, height: int, width: int, uniforms: Sequence[float]) -> Crop:
        self.calls.append("crop")
        return super().crop(height, width, uniforms)

    def crops(
        self, heights: NDArray[np.int64], widths: NDArray[np.int64], uniforms: NDArray[np.float64]
    ) -> Crops:
        self.calls.append(f"crops of {len(heights)}")
        return super().crops(heights, widths, uniforms)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda each: type(each).__name__)
def test_batches_are_the_same_in_threads_and_processes(
    transform: Any, folders: tuple[Path, Path]
) -> None:
    new, old = folders
    wanted = [*opened(old, transform=transform)]
    assert len({tuple(size) for batch in wanted for size in batch["__crop__"]["size"].tolist()}) > 9
    for folder in (new, old):
        for batches in loops_over(opened(folder, transform=transform)):
            assert_same(batches, wanted)


@pytest.mark.usefixtures("python_path")
def test_the_crops_of_a_batch_are_chosen_at_once_before_a_byte_is_read(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = OpenShard.read

    def noted(*arguments: Any) -> Any:
        Counted.calls.append("read")
        return read(*arguments)

    monkeypatch.setattr(OpenShard, "read", noted)
    Counted.calls.clear()
    [*opened(folders[0], transform=Counted(24))]
    first, rest = [2 * [f"crops of {size}"] + size * ["read"] for size in (20, 40)]
    assert Counted.calls == first + rest  # of two pictures a sample; two batches at once
    Counted.calls.clear()
    [*opened(folders[1], transform=Counted(24))]
    assert sorted(Counted.calls) == 120 * ["crop"] + 60 * ["read"]


def test_threads_choose_the_crops_of_a_batch_once(folders: tuple[Path, Path]) -> None:
    Counted.calls.clear()
    assert len([*shardio.Loader(opened(folders[0], transform=Counted(24)), threads=4)]) == 3
    assert sorted(Counted.calls) == 2 * ["crops of 20"] + 2 * ["crops of 40"]


def test_samples_whose_sizes_are_not_known_get_their_crops_as_before(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    def without_some(index: ShardIndex) -> ShardIndex:
        assert index.heights is not None
        known = np.random.default_rng(0).random(index.heights.shape) < 0.5
        sizes = {
            name: getattr(index, name) * known.astype(getattr(index, name).dtype)
            for name in ("heights", "widths", "orientations")
        }
        return replace(index, **sizes)

    shutil.copytree(folders[0], tmp_path / "some")
    change(tmp_path / "some", without_some)
    (tmp_path / "some/index/shard-000001.tar.idx").write_bytes(
        (folders[1] / "index/shard-000001.tar.idx").read_bytes()
    )
    wanted = [*opened(folders[1])]
    for batches in loops_over(opened(tmp_path / "some")):
        assert_same(batches, wanted)


def test_a_size_that_the_header_contradicts_is_an_error_that_names_both(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    def shifted(index: ShardIndex) -> ShardIndex:
        assert index.heights is not None
        heights = index.heights.copy()
        heights[:, index.pictures.index("jpg")] += 1
        return replace(index, heights=heights)

    shutil.copytree(folders[0], tmp_path / "wrong")
    change(tmp_path / "wrong", shifted)
    dataset = opened(tmp_path / "wrong", shuffle=False)
    known = read_index(folders[0] / "index" / "shard-000000.tar.idx").picture_size(0, "jpg")
    assert known is not None
    height, width = known[:2]
    message = rf"the picture is {height} × {width}.*, but the index says {height + 1} × {width}"
    with pytest.raises(shardio.SampleError, match=message + r".*run `shardio index`") as caught:
        next(iter(dataset))
    assert caught.value.field == "jpg"
    every = shardio.verify(tmp_path / "wrong").findings
    found = [finding for finding in every if finding.severity == "problem"]
    assert len(found) == SAMPLES
    assert all("but the index says" in finding.what for finding in found)
    assert {finding.field for finding in found} == {"jpg"}
    shardio.index(tmp_path / "wrong")
    assert_same([*opened(tmp_path / "wrong")], [*opened(folders[1])])
    every = shardio.verify(tmp_path / "wrong").findings
    assert {finding.severity for finding in every} == {"note"}


class Upper(shardio.RandomResizedCrop):
    """A user's transform, which has another crop and inherits the crops of a batch."""

    def crop(self, height: int, width: int, uniforms: Sequence[float]) -> Crop:
        return super().crop(height, width, uniforms)._replace(top=0)


class Quarter:
    """A user's transform that knows of no batches."""

    size = (10, 12)
    draws = 1

    def crop(self, height: int, width: int, uniforms: Sequence[float]) -> Crop:
        return Crop(0, 0, height // 2, width // 2, uniforms[0] < 0.5)


@pytest.mark.parametrize("transform", [Upper(20), Quarter()])
def test_a_transform_of_a_user_chooses_the_same_crops(
    transform: Any, folders: tuple[Path, Path]
) -> None:
    new, old = ([*opened(folder, transform=transform)] for folder in folders)
    assert_same(new, old)
    assert all(box[1] == 0 for batch in new for box in batch["__crop__"]["box"].tolist())


class Half(shardio.FieldType):
    """A user's type, whose pictures are half as large as the files say."""

    geometry: ClassVar[Any] = "leads"

    def probe(self, data: Buffer) -> ImageInfo:
        info = shardio.Image().probe(data)
        return info._replace(height=info.height // 2, width=info.width // 2)

    def decode(self, data: Buffer) -> NDArray[np.uint8]:
        info = self.probe(data)
        pixels = shardio.Image().decode(data)
        return cv2.resize(pixels, (info.width, info.height)).astype(np.uint8)


def test_a_type_with_another_size_than_the_file_is_read_as_before(
    folders: tuple[Path, Path],
) -> None:
    new, old = ([*opened(folder, fields={"image": Half("jpg")})] for folder in folders)
    assert_same(new, old)


def test_another_sample_in_place_of_a_bad_one_gets_a_crop_of_its_own(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in folders]
    for folder in copies:
        for name in ("shard-000000.tar", "shard-000002.tar"):
            index = read_index(folder / "index" / f"{name}.idx")
            data = bytearray((folder / name).read_bytes())
            for row in range(0, len(index), 4):
                data[index.offsets[row, index.fields.index("jpg")] + 300] ^= 0xFF
            (folder / name).write_bytes(data)
    new, old = ([*opened(folder, on_bad_sample="skip")] for folder in copies)
    assert sum((~batch["valid"]).sum() for batch in new) == 8
    assert_same(new, old)

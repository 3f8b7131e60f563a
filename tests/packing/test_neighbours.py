"""Without --fields: files beside images belong to them where that is so for all images."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import shardio
from shardio.testing import digests, read_members

PNG = cv2.imencode(".png", np.zeros((2, 3, 3), np.uint8))[1].tobytes()
MASK = cv2.imencode(".png", np.full((2, 3), 7, np.uint8))[1].tobytes()
DATA = {
    "png": PNG,
    "mask.png": MASK,
    "depth.png": MASK,
    "json": b"{}",
    "txt": b"a cat",
    "cls": b"3",
    "xml": b"<a/>",
}


def write(folder: Path, *names: str) -> Path:
    """Files whose contents are what the ends of their names say."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ends = (end for end in sorted(DATA, key=len, reverse=True) if name.endswith(end))
        path.write_bytes(DATA[next(ends)])
    return folder


def pack(source: Path, **options: Any) -> list[str]:
    out = source.parent / "out"
    shardio.pack(source, out, **{"shards": 1, "shuffle": False, **options})
    return [*read_members(out)]


@pytest.mark.parametrize("beside", [*itertools.combinations(sorted(DATA.keys() - {"png"}), 2)])
def test_files_beside_all_images_are_packed_as_if_they_were_asked_for(
    beside: tuple[str, str], tmp_path: Path
) -> None:
    stems = ("b", "a", "x.1", "deep/c")
    source = write(tmp_path / "in", *(f"{s}.{end}" for s in stems for end in ("png", *beside)))
    options: dict[str, Any] = {"shards": 1, "labels": False}
    shardio.pack(source, tmp_path / "found", **options)
    shardio.pack(source, tmp_path / "asked", **options, fields=f"png,{','.join(beside)}")
    assert digests(tmp_path / "found") == digests(tmp_path / "asked")
    assert len(shardio.ShardDataset(tmp_path / "found").samples) == 4


def test_it_says_what_it_took_the_files_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack(write(tmp_path / "in", "a.png", "a.txt", "a.mask.png"))
    with caplog.at_level(logging.WARNING):
        assert f"{tmp_path}/in: each image is packed with the files beside it, mask.png, txt" in (
            caplog.text
        )


def test_a_mask_comes_back_as_class_numbers_of_its_image(tmp_path: Path) -> None:
    pack(write(tmp_path / "in", "a.png", "a.mask.png"))
    (sample,) = shardio.ShardDataset(tmp_path / "out")
    assert sample["mask.png"].tolist() == [[7] * 3] * 2


@pytest.mark.parametrize(
    ("names", "lacks", "ways"),
    [
        (("a.png", "a.json", "b.png"), r"b\.png: no file of the field 'json'", "'png,json?'"),
        (("a.png", "b.png", "b.json"), r"a\.png: no file of the field 'json'", "'png,json?'"),
        (("x/a.png", "y/b.png", "y/b.txt"), r"x/a\.png: no file of .* 'txt'", "'png,txt?'"),
        (
            ("a.png", "a.txt", "a.mask.png", "b.png", "b.txt", "c/d.png", "c/d.txt"),
            r"b\.png: no file of the field 'mask.png' .*beside a\.png \(1 of 3 images have one\)",
            "'png,mask.png?,txt'",
        ),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_some_images_without_are_refused_with_both_ways_out(
    names: tuple[str, ...], lacks: str, ways: str, on_error: str, tmp_path: Path
) -> None:
    """Skipping would make what the first image lacks the rule for all."""
    source = write(tmp_path / "in", *names)
    with pytest.raises(shardio.PackError, match=lacks) as caught:
        pack(source, labels=False, on_error=on_error)
    assert f"fields={ways}, or remove or add files" in str(caught.value)
    assert pack(source, labels=False, fields=ways.strip("'"))


def test_the_longest_stem_owns_a_file(tmp_path: Path) -> None:
    members = pack(write(tmp_path / "in", "a.png", "a.txt", "a.b.png", "a.b.txt"))
    assert sorted(members) == ["a.png", "a.txt", "a_b.png", "a_b.txt"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.mask.png",), r"a\.mask\.png: its name says that it belongs to an image, and none of"),
        (("b.png", "a.depth.png"), r"a\.depth\.png: its name says that it belongs to an image"),
        (("a.png", "a.txt", "classes.txt"), r"classes\.txt: its sample has no .*png"),
        (("a.png", "a.txt", "readme.xml"), r"readme\.xml: it is no image, and belongs to none"),
        (("a.png", "a.txt", "b.mask.png"), r"b\.mask\.png: its sample has no txt"),
    ],
)
def test_a_file_that_belongs_to_no_image_is_refused_or_skipped(
    names: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "in", *names, "z/c.png", *(["z/c.txt"] if "a.txt" in names else []))
    with pytest.raises(shardio.PackError, match=message):
        pack(source, labels=False)
    assert "z/c.png" in pack(source, labels=False, on_error="skip")


def test_two_images_of_one_stem_with_one_file_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in", "a.png", "a.txt")
    (source / "a.jpg").write_bytes(PNG)
    with pytest.raises(shardio.PackError, match=r"a\.jpg: its sample has both jpg and png"):
        pack(source)


def test_images_with_dotted_names_stay_samples_of_their_own(tmp_path: Path) -> None:
    members = pack(write(tmp_path / "in", "a.png", "a.left.png", "a.1.png", "mask.png"))
    assert sorted(members) == ["a.png", "a_1.png", "a_left.png", "mask.png"]


def test_class_folders_keep_their_labels(tmp_path: Path) -> None:
    members = pack(write(tmp_path / "in", "cat/a.png", "cat/a.txt", "dog/a.png", "dog/a.txt"))
    assert members == [
        f"{kind}/a.{end}" for kind in ("cat", "dog") for end in ("cls", "png", "txt")
    ]


@pytest.mark.parametrize(
    "folders", [("images", "masks"), ("Images", "labels"), ("img", "ann"), ("imgs", "gt_masks")]
)
def test_folders_of_parts_of_samples_are_no_classes(
    folders: tuple[str, str], tmp_path: Path
) -> None:
    source = write(tmp_path / "in", *(f"{folder}/a.png" for folder in folders))
    with pytest.raises(
        shardio.SituationError, match=f"'{folders[0]}' and '{folders[1]}' look like"
    ):
        pack(source)
    assert len(pack(source, classes=sorted(folders))) == 4

"""Pascal VOC: boxes counted from 1 become edges once, masks stay, XML is read safely."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import shardio
from shardio.testing import read_members

JPG = cv2.imencode(".jpg", np.zeros((8, 10, 3), np.uint8))[1].tobytes()
MASK = cv2.imencode(".png", np.full((8, 10), 255, np.uint8))[1].tobytes()


def box(name: str, *sides: object, more: str = "") -> str:
    tags = "".join(
        f"<{tag}>{side}</{tag}>"
        for tag, side in zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True)
    )
    return f"<object><name>{name}</name>{more}<bndbox>{tags}</bndbox></object>"


def xml(*objects: str, size: str = "<width>10</width><height>8</height>") -> str:
    return (
        f"<annotation><filename>x</filename><size>{size}</size>{''.join(objects)}"
        "<segmented>1</segmented></annotation>"
    )


DOG = box("dog", 1, 1, 10, 8, more="<pose>Left</pose><difficult>1</difficult>")
CAT = box(
    "cat",
    *("2.5", 3, 4, 5),
    more="<truncated>1</truncated><part><name>head</name></part><part><name>foot</name></part>",
)


def dataset(folder: Path, files: dict[str, str | bytes | None] | None = None) -> Path:
    every: dict[str, str | bytes | None] = {
        "JPEGImages/a.jpg": JPG,
        "JPEGImages/b.jpg": JPG,
        "Annotations/a.xml": xml(DOG, CAT),
        "Annotations/b.xml": xml(),
        "SegmentationClass/a.png": MASK,
        "SegmentationObject/a.png": MASK,
        "ImageSets/Segmentation/train.txt": "a\n",
        "ImageSets/Main/cat_train.txt": "a  1\nb -1\n",
        **(files or {}),
    }
    for name, data in every.items():
        path = folder / name
        if data is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def pack(source: Path, out: Path, **options: Any) -> dict[str, bytes]:
    shardio.pack(source, out, **{"shards": 1, "shuffle": False, **options})
    return read_members(out)


def test_images_have_their_boxes_and_masks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = pack(dataset(tmp_path / "in"), tmp_path / "out")
    assert [*members] == [
        *("a.jpg", "a.json", "a.mask.png", "a.instance.png"),
        *("b.jpg", "b.json"),
    ]
    assert members["a.mask.png"] == members["a.instance.png"] == MASK
    assert json.loads(members["a.json"]) == {
        "boxes": [[0, 0, 10, 8], [1.5, 2, 4, 5]],
        "names": ["dog", "cat"],
        "labels": [1, 0],
        "difficult": [1, 0],
        "truncated": [0, 1],
        "occluded": [0, 0],
        "pose": ["Left", None],
        "part": [None, [{"name": "head"}, {"name": "foot"}]],
        "image": {
            "filename": "x",
            "size": {"width": "10", "height": "8"},
            "segmented": "1",
        },
    }
    assert "taken for a Pascal VOC dataset, JPEGImages, Annotations, Segm" in caplog.text
    fields: dict[str, Any] = {
        "image": "jpg",
        "target": shardio.Boxes("json", also=["labels", "difficult"]),
        "mask": shardio.Mask("mask.png?"),
    }
    opened = shardio.ShardDataset(tmp_path / "out", fields=fields)
    first, second = opened
    assert opened.classes == ("cat", "dog")
    assert first["target"]["boxes"].tolist() == [[0, 0, 10, 8], [1.5, 2, 4, 5]]
    assert first["mask"].unique().tolist() == [255]
    assert second["target"]["boxes"].shape == (0, 4)
    only = shardio.ShardDataset(tmp_path / "out", fields={"image": "jpg", "target": "json"})
    assert [sample["target"]["labels"].tolist() for sample in only] == [[1, 0], []]


def test_a_list_of_images_chooses_them(tmp_path: Path) -> None:
    source = dataset(tmp_path / "in") / "ImageSets/Segmentation/train.txt"
    assert [*pack(source, tmp_path / "out")][:2] == ["a.jpg", "a.json"]
    assert len(shardio.ShardDataset(tmp_path / "out").samples) == 1


def test_listed_classes_give_the_numbers(tmp_path: Path) -> None:
    source = dataset(tmp_path / "in")
    members = pack(source, tmp_path / "out", classes=["dog", "bird", "cat"])
    assert json.loads(members["a.json"])["labels"] == [0, 2]
    with pytest.raises(shardio.PackError, match=r"a\.xml: its class 'cat' is not one of the cl"):
        pack(source, tmp_path / "two", classes=["dog"])


def test_masks_alone_need_no_annotations(tmp_path: Path) -> None:
    source = dataset(tmp_path / "in", dict.fromkeys(("Annotations/a.xml", "Annotations/b.xml")))
    assert [*pack(source, tmp_path / "out")] == ["a.jpg", "a.mask.png", "a.instance.png", "b.jpg"]


ENTITIES = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("<annotation>", "it is not XML"),
        ("", "it is not XML"),
        ("<root/>", "it is not an annotation, but 'root'"),
        (ENTITIES, "XML with a document type"),
        (ENTITIES.encode("utf-16"), "XML with a document type or in UTF-16"),
        ("<annotation>&nbsp;</annotation>", "it is not XML: undefined entity"),
        (b"<annotation>\xff</annotation>", "it is not XML"),
        ('<?xml version="1.0" encoding="nope"?><annotation/>', "it is not XML"),
        (b" " * (1 << 22) + b"<annotation/>", "more than the limit of 4,194,304"),
        (xml("<x>" * 50 + "</x>" * 50), "it is nested too deep"),
        (xml("<object><name>a</name></object>"), "an object has 0 bndbox"),
        (xml(DOG.replace("</object>", "<bndbox/></object>")), "an object has 2 bndbox"),
        (xml(DOG.replace("<name>dog</name>", "")), "an object has no name, or several"),
        (xml(DOG.replace("<pose>", "<labels>1</labels><pose>")), "'labels', a name that shardio"),
        (xml(box("a", 0, 1, 2, 2)), "begins before pixel 1, and VOC counts pixels from 1"),
        (xml(box("a", 1, 1, 11, 2)), "leaves the picture of 10 x 8 pixels"),
        (xml(box("a", 3, 1, 2, 2)), "ends before it begins"),
        (xml(box("a", 1, "1e999", 2, 2)), "ymin is '1e999', not a number of pixels"),
        (xml(box("a", 1, "nan", 2, 2)), "ymin is 'nan', not a number of pixels"),
        (xml(box("a", 1, "", 2, 2)), "ymin is '', not a number of pixels"),
        (xml(box("a", 1, 1, 2, 2, more="<difficult>x</difficult>")), "difficult 'x', not a number"),
    ],
)
def test_an_annotation_that_is_none_is_refused_or_skipped(
    text: str | bytes | None, message: str, tmp_path: Path
) -> None:
    source = dataset(tmp_path / "in", {"Annotations/b.xml": text})
    with pytest.raises(shardio.PackError, match=f"Annotations/b.xml: .*{message}"):
        pack(source, tmp_path / "out")
    assert len(pack(source, tmp_path / "out", on_error="skip")) == 4


def test_a_picture_without_a_size_is_no_limit_of_boxes(tmp_path: Path) -> None:
    text = xml(box("dog", 1, 1, 11, 2), size="<width>0</width><height>0</height>")
    members = pack(dataset(tmp_path / "in", {"Annotations/b.xml": text}), tmp_path / "out")
    assert json.loads(members["b.json"])["boxes"] == [[0, 0, 11, 2]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a 1", "it says more than the name of an image"),
        ("../b", "'../b' is not the name of an image"),
        ("/b", "'/b' is not the name of an image"),
        ("c", "No such file"),
        ("a\na", "its key would be 'a'"),
        ("b\0", "is not the name of an image"),
    ],
)
def test_a_line_of_a_list_that_names_no_image_is_refused(
    line: str, message: str, tmp_path: Path
) -> None:
    source = dataset(tmp_path / "in", {"ImageSets/Main/val.txt": line})
    with pytest.raises(shardio.PackError, match=message):
        pack(source / "ImageSets/Main/val.txt", tmp_path / "out")


def test_boxes_and_masks_follow_pictures_that_are_resized(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = dataset(tmp_path / "in")
    members = pack(source, tmp_path / "whole", resize=4)
    assert json.loads(members["a.json"]) == {
        "boxes": [[0, 0, 5, 4], [0.75, 1, 2, 2.5]],
        "names": ["dog", "cat"],
        "labels": [1, 0],
        "difficult": [1, 0],
        "truncated": [0, 1],
        "occluded": [0, 0],
        "pose": ["Left", None],
        "image": {"filename": "x", "segmented": "1"},
    }
    assert json.loads(members["b.json"])["pose"] == []
    assert "part, point, polygon of objects, size of images" in caplog.text
    (first, _) = shardio.ShardDataset(tmp_path / "whole")
    assert first["mask.png"].shape == first["image"].shape[1:]


def test_what_objects_have_leaves_with_their_boxes(tmp_path: Path) -> None:
    """Of 8 x 10 pixels columns 1 to 9 are kept; the bird lies in the first column."""
    bird = box("bird", 1, 1, 1, 8, more="<pose>Rear</pose>")
    source = dataset(tmp_path / "in", {"Annotations/a.xml": xml(bird, DOG)})
    members = pack(source, tmp_path / "out", resize=(4, 4), classes=["dog", "bird"])
    found = json.loads(members["a.json"])
    assert (found["boxes"], found["labels"], found["pose"]) == ([[0, 0, 4, 4]], [0], ["Left"])

"""COCO's annotations: ids kept, nothing renumbered, nothing held in memory, errors with a place."""

from __future__ import annotations

import copy
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import shardio
from shardio.fields.geometry import Crop, View
from shardio.packing.options import PackOptions
from shardio.packing.pack import open_source
from shardio.packing.sources import coco
from shardio.testing import digests, read_members

JPG = cv2.imencode(".jpg", np.zeros((8, 10, 3), np.uint8))[1].tobytes()
COLUMNS = ["labels", "names", "iscrowd", "area", "id", "keypoints", "segmentation"]
DOCUMENT: dict[str, Any] = {
    "info": {"year": 2017, "annotations": [1, 2]},
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 10, "height": 8},
        {"id": 3, "file_name": "s/b.jpg", "license": 1},
        {"id": "x-5", "file_name": "c.d.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "bbox": [1, 2, 3, 4.5], "category_id": 90, "iscrowd": 0}
        | {"area": 13.5, "segmentation": [[1, 2, 4, 2, 4, 6.5]], "keypoints": [1, 2, 2]},
        {"id": 5, "image_id": "x-5", "bbox": [0, 0, 2, 2], "category_id": 1, "iscrowd": 0},
        {"id": 2, "image_id": 7, "bbox": [0, 0, 1, 1], "category_id": 1, "iscrowd": 1}
        | {"area": 1, "segmentation": {"counts": [1, 79], "size": [8, 10]}},
    ],
    "categories": [{"id": 1, "name": "pérson"}, {"id": 90, "name": "toothbrush"}],
}


def write(folder: Path, document: Any = None, name: str = "_annotations.coco.json") -> Path:
    for path in ("a.jpg", "s/b.jpg", "c.d.jpg"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(JPG)
    data = document if isinstance(document, bytes) else json.dumps(document or DOCUMENT).encode()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return folder


def pack(source: Path, out: Path, **options: Any) -> dict[str, bytes]:
    shardio.pack(source, out, **{"shards": 1, "shuffle": False, **options})
    return read_members(out)


def test_each_image_has_what_its_annotations_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = pack(write(tmp_path / "in"), tmp_path / "out")
    assert [*members] == [f"{key}.{end}" for key in ("a", "s/b", "c_d") for end in ("jpg", "json")]
    assert json.loads(members["a.json"]) == {
        "image_id": 7,
        "boxes": [[1, 2, 3, 4.5], [0, 0, 1, 1]],
        "labels": [90, 1],
        "names": ["toothbrush", "pérson"],
        "area": [13.5, 1],
        "id": [1, 2],
        "iscrowd": [0, 1],
        "keypoints": [[1, 2, 2], None],
        "segmentation": [[[1, 2, 4, 2, 4, 6.5]], {"counts": [1, 79], "size": [8, 10]}],
        "image": {"file_name": "a.jpg", "width": 10, "height": 8},
    }
    assert json.loads(members["s/b.json"]) == {
        "image_id": 3,
        "boxes": [],
        **{name: [] for name in COLUMNS},
        "image": {"file_name": "s/b.jpg", "license": 1},
    }
    assert f"{tmp_path}/in: taken for images with COCO's annotations" in caplog.text


def test_it_reads_back_as_boxes_with_their_categories(tmp_path: Path) -> None:
    pack(write(tmp_path / "in"), tmp_path / "out")
    boxes = shardio.Boxes("json", boxes="boxes", format="xywh", also=COLUMNS)
    opened = shardio.ShardDataset(tmp_path / "out", fields={"image": "jpg", "target": boxes})
    targets = [sample["target"] for sample in opened]
    assert targets[0]["boxes"].tolist() == [[1, 2, 4, 6.5], [0, 0, 1, 1]]
    assert targets[0]["labels"].tolist() == [90, 1]
    assert targets[1]["boxes"].shape == (0, 4)
    plain = [sample["json"]["boxes"].tolist() for sample in shardio.ShardDataset(tmp_path / "out")]
    assert plain == [target["boxes"].tolist() for target in targets]
    assert opened.classes is None  # 1 and 90 are no positions


@pytest.mark.parametrize("ids", [(0, 1), (1, 0), (1, 2)])
def test_names_are_classes_where_ids_are_positions(ids: tuple[int, int], tmp_path: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    for category, number in zip(document["categories"], ids, strict=True):
        category["id"] = number
    for annotation in document["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"] == 90]
    members = pack(write(tmp_path / "in", document), tmp_path / "out")
    classes = shardio.ShardDataset(tmp_path / "out").classes
    assert json.loads(members["a.json"])["labels"] == [ids[1], ids[0]]
    assert classes == {0: ("pérson", "toothbrush"), 1: ("toothbrush", "pérson")}.get(
        ids[0] if 2 not in ids else -1
    )


def test_a_file_elsewhere_is_named_with_coco(tmp_path: Path) -> None:
    source = write(tmp_path / "in")
    expected = pack(source, tmp_path / "beside")
    (source / "_annotations.coco.json").rename(tmp_path / "instances.json")
    assert pack(source, tmp_path / "out", coco=tmp_path / "instances.json") == expected
    assert digests(tmp_path / "out") == digests(tmp_path / "beside")


@pytest.mark.parametrize("images", ["val2017", "images/val2017", "images"])
def test_the_only_annotations_of_a_folder_are_found(images: str, tmp_path: Path) -> None:
    write(tmp_path / "in" / images, name="x.json")
    (tmp_path / "in/annotations").mkdir()
    found = tmp_path / "in/annotations/instances_val2017.json"
    (tmp_path / "in" / images / "x.json").rename(found)
    assert len(pack(tmp_path / "in", tmp_path / "out")) == 6
    (tmp_path / "in/annotations/instances_train2017.json").write_bytes(found.read_bytes())
    with pytest.raises(shardio.SituationError, match=r"several annotations.*coco='"):
        pack(tmp_path / "in", tmp_path / "again")


def change(path: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    """Change an element, such as "images 0"; None removes a value."""
    name, number = path.split()

    def apply(document: dict[str, Any]) -> None:
        element = document[name][int(number)]
        element.update(values)
        for key in [key for key, value in values.items() if value is None]:
            del element[key]

    return apply


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (change("annotations 0", image_id=99), "annotation 1: its image_id is 99, which no image"),
        (change("annotations 0", image_id="7"), "annotation 1: its image_id is '7', which no ima"),
        (change("annotations 0", category_id=5), "image 7: its annotation 1 has the category_id 5"),
        (change("annotations 0", category_id=90.0), "has the category_id 90.0, which no category"),
        (change("annotations 0", category_id=True), "has the category_id True, which no category"),
        (change("annotations 0", bbox=None), "image 7: its annotation 1 has no bbox; captions and"),
        (change("annotations 0", bbox=[1, 2, 3]), "has a bbox that is not four numbers"),
        (change("annotations 0", bbox=[1, 2, 3, "4"]), "has a bbox that is not four numbers"),
        (change("annotations 0", bbox=[1, 2, -3, 4]), "has a bbox of a negative size"),
        (change("annotations 0", bbox=[1, 2, 1e300, 4]), "has a bbox beyond all pictures"),
        (
            change("images 0", file_name="../a.jpg"),
            r"image 7: its file_name '\.\./a.jpg' leads out",
        ),
        (change("images 0", file_name="/etc/passwd"), "its file_name '/etc/passwd' leads out"),
        (change("images 0", file_name="a\0.jpg"), "which no file can be called"),
        (change("images 0", file_name=None), "image 7: its file_name is None, which no file"),
        (change("images 0", file_name="c.d.jpg"), "its key would be 'c_d', as that of c.d.jpg"),
        (change("images 0", file_name="no.jpg"), "no.jpg: No such file"),
    ],
)
def test_a_fault_of_an_image_or_annotation_is_named_or_left_out(
    how: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    document = copy.deepcopy(DOCUMENT)
    how(document)
    source = write(tmp_path / "in", document)
    with pytest.raises(shardio.PackError, match=message):
        pack(source, tmp_path / "out")
    summary = shardio.pack(source, tmp_path / "out", shards=1, on_error="skip")
    assert summary.skipped == 1


NESTED = b'{"images": ' + b"[" * 100_000
DIGITS = b'{"images": [{"id": ' + b"9" * 5_000 + b"}]}"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", r"the file is not read, about byte 0: '' stands where '\{' is expected"),
        (b"[]", r"'\[' stands where '\{' is expected"),
        (b'{"images": {}}', r"images\[0\] is not read, about byte 11"),
        (b'{"images": [{"id": 1, "id": 2}]}', r"images\[0\].*the name 'id' twice in one object"),
        (b'{"images": [{"id": 1}, 7]}', r"images\[1\].*it is not a JSON object"),
        (b'{"images": [], "images": []}', "'images' twice"),
        (b'{"images": [{"id": 1.5}]}', "its id is 1.5, not a number or text"),
        (b'{"images": [{"id": 1}, {"id": 1}]}', r"images\[1\].*an image before it has the id 1"),
        (b'{"annotations": [{"image_id": null}]}', "its image_id is None"),
        (b'{"annotations": [{"image_id": 1, "bbox": [NaN, 0, 1, 1]}]}', "NaN is no number of JSON"),
        (b'{"annotations": [{"image_id": 1, "boxes": 1}]}', "'boxes' is a name that shardio gives"),
        (b'{"categories": [{"id": 1, "name": ""}]}', "its name is '', not a text"),
        (b'{"categories": [{"id": 99999999999999999999, "name": "a"}]}', "whole number of 64 bits"),
        (b'{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "before it has the"),
        (b'{"images": [], "annotations": [], "categories": []} x', "more follows the object"),
        (b'{"images": [{"id": 1, "file_name": "\xff"}]}', "can't decode byte 0xff"),
        (b'\xff\xfe{\0"\0', "can't decode byte 0xff"),
        (json.dumps(DOCUMENT).encode()[:-40], "is not read, about byte"),
        (NESTED, "is not read"),
        (DIGITS, r"images\[0\] is not read"),
        (b'{"images": [], "annotations": []}', "it has no list 'categories'"),
        (b'{"images": [], "annotations": [], "categories": []}', "nothing in it can be packed"),
    ],
)
def test_what_is_not_coco_is_refused_with_its_place(
    document: bytes, message: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "in", document)
    with pytest.raises(shardio.ShardioError, match=message) as caught:
        pack(source, tmp_path / "out")
    assert "_annotations.coco.json" in str(caught.value)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ascii_", [True, False])
def test_pieces_that_are_read_at_once_do_not_matter(
    size: int, indent: int | None, ascii_: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = pack(write(tmp_path / "whole"), tmp_path / "a")
    text = json.dumps(DOCUMENT, ensure_ascii=ascii_, indent=indent)
    monkeypatch.setattr(coco, "_PIECE", size)
    assert pack(write(tmp_path / "in", b"\xef\xbb\xbf" + text.encode()), tmp_path / "b") == expected


def test_the_order_of_the_lists_does_not_matter(tmp_path: Path) -> None:
    backwards = dict(reversed(DOCUMENT.items()))
    expected = pack(write(tmp_path / "one"), tmp_path / "a")
    assert pack(write(tmp_path / "two", backwards), tmp_path / "b") == expected


def test_annotations_are_not_held_in_memory(tmp_path: Path) -> None:
    """Some 40 bytes of each are, and they have more than 10 KB."""
    document = copy.deepcopy(DOCUMENT)
    masks = {"size": [8, 10], "counts": "0" * 10_000}
    document["annotations"] = [
        {"image_id": at, "bbox": [0, 0, 1, 1], "category_id": 1, "segmentation": masks}
        for at in range(3_000)
    ]
    document["images"] = [{"id": at, "file_name": f"{at}.jpg"} for at in range(3_000)]
    source = write(tmp_path / "in", document)
    assert (source / "_annotations.coco.json").stat().st_size > 30_000_000
    del document
    tracemalloc.start()
    opened = open_source(str(source), PackOptions(shards=1))
    assert sum(1 for _ in opened.samples()) == 3_000
    assert tracemalloc.get_traced_memory()[1] < 12_000_000
    tracemalloc.stop()


def test_a_file_that_changes_while_it_is_listed_stops_the_pack(tmp_path: Path) -> None:
    source = write(tmp_path / "in")
    opened = open_source(str(source), PackOptions(shards=1))
    write(source, {**DOCUMENT, "info": {"year": 1}})
    with pytest.raises(shardio.PackError, match="changed while it was packed"):
        list(opened.samples())


LEFT_OUT = {"area", "keypoints", "segmentation"}


@pytest.mark.parametrize("options", [{"max_side": 5}, {"resize": (4, 4)}, {"resize": (16, 20)}])
def test_boxes_follow_pictures_that_are_resized(
    options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are those that a reader makes of the boxes as they were; all else stays."""
    source = write(tmp_path / "in")
    before, after = pack(source, tmp_path / "a"), pack(source, tmp_path / "b", **options)
    height, width = options.get("resize", (4, 5))
    crop = Crop(0, 1, 8, 8) if height == width else Crop(0, 0, 8, 10)
    view = View(8, 10, size=(height, width), crop=crop)
    columns = [name for name in COLUMNS if name not in LEFT_OUT]
    boxes = shardio.Boxes("json", format="xywh", also=columns)
    for name in ("a.json", "s/b.json", "c_d.json"):
        old, new = boxes.decode(before[name]), boxes.decode(after[name])
        expected = boxes.follow(old, view)
        assert expected.keys() == new.keys()
        assert new["boxes"].tolist() == expected["boxes"].tolist()
        assert [[*new[key]] for key in columns] == [[*expected[key]] for key in columns]
        rest, whole = json.loads(after[name]), json.loads(before[name])
        assert rest.keys() == whole.keys() - LEFT_OUT
        sides = ("width", "height")
        assert rest["image"] == {k: v for k, v in whole["image"].items() if k not in sides}
    assert "area, keypoints, segmentation of annotations" in caplog.text
    assert not shardio.verify(tmp_path / "b", deep=True).findings


def test_where_names_of_ids_are_is_said_if_they_are_no_positions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack(write(tmp_path / "in"), tmp_path / "out")
    said = "labels are the ids of its categories, 1 to 90, and no positions in a list of classes"
    assert f"{said}; the field json has the name of each box in names" in caplog.text
    (kind,) = (each.kind for each in shardio.info(tmp_path / "out").fields if each.name == "json")
    assert "'labels', 'names'" in kind


def test_lists_that_nobody_asked_for_are_not_held_in_memory(tmp_path: Path) -> None:
    others = [{"id": at, "tags": [at, "x", {"y": at}]} for at in range(20_000)]
    source = write(tmp_path / "in", {"videos": others, "more": {"deep": others}, **DOCUMENT})
    del others
    tracemalloc.start()
    opened = open_source(str(source), PackOptions(shards=1))
    assert sum(1 for _ in opened.samples()) == 3
    assert tracemalloc.get_traced_memory()[1] < 12_000_000
    tracemalloc.stop()


def test_coco_is_no_option_of_a_table(tmp_path: Path) -> None:
    with pytest.raises(shardio.SituationError, match="coco does not apply to a table"):
        pack(write(tmp_path / "in"), tmp_path / "out", coco="x.json", manifest="t.csv")


@pytest.mark.parametrize("file", ["missing.json", "."])
def test_a_file_that_cannot_be_read_is_named(file: str, tmp_path: Path) -> None:
    with pytest.raises(shardio.PackError, match=r"(No such file|Is a directory).*with coco$"):
        pack(write(tmp_path / "in"), tmp_path / "out", coco=tmp_path / file)


def test_what_readers_refuse_as_too_deep_is_refused_when_packed(tmp_path: Path) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    nested: Any = []
    for _ in range(150):
        nested = [nested]
    document["annotations"][0]["extra"] = nested
    with pytest.raises(shardio.PackError, match="JSON cannot hold what is said about it"):
        pack(write(tmp_path / "in", document), tmp_path / "out")

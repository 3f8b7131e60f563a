"""YOLO's datasets: images beside labels, with the names of classes in data.yaml or classes.txt."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardio
from shardio.packing.sources.yolo import names_in_yaml
from shardio.testing import read_members

JPG = cv2.imencode(".jpg", np.zeros((8, 10, 3), np.uint8))[1].tobytes()
BOXES = "0 0.5 0.5 1 1\n1  .25 0.75\t0.5 0.5\r\n"


def write(folder: Path, files: dict[str, str | bytes | None]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is not None:
            path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def dataset(folder: Path, **more: str | bytes | None) -> Path:
    """Two images in train, one of which has boxes; names of further files have `___` for `/`."""
    files: dict[str, str | bytes | None] = {
        "images/train/a.jpg": JPG,
        "images/train/b.jpg": JPG,
        "labels/train/a.txt": BOXES,
        "data.yaml": "path: .\nnc: 2\nnames:\n  0: cat  # of any kind\n  1: dog\n",
    }
    names = {name.replace("___", "/").replace("__", "."): data for name, data in more.items()}
    return write(folder, {**files, **names})


def pack(source: Path, out: Path, **options: Any) -> dict[str, bytes]:
    shardio.pack(source, out, **{"shards": 1, "shuffle": False, **options})
    return read_members(out)


def test_texts_are_packed_as_they_are_and_read_as_boxes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = pack(dataset(tmp_path / "in"), tmp_path / "out")
    assert [*members] == ["train/a.jpg", "train/a.txt", "train/b.jpg", "train/b.txt"]
    assert (members["train/a.txt"], members["train/b.txt"]) == (BOXES.encode(), b"")
    fields: dict[str, Any] = {"image": "jpg", "target": shardio.Boxes("txt", format="yolo")}
    opened = shardio.ShardDataset(tmp_path / "out", fields=fields)
    first, second = (sample["target"] for sample in opened)
    assert first["boxes"].tolist() == [[0, 0, 10, 8], [0, 4, 5, 8]]
    assert first["labels"].tolist() == [0, 1]
    assert second["boxes"].shape == (0, 4)
    assert opened.classes == ("cat", "dog")
    plain = [sample["txt"]["boxes"].tolist() for sample in shardio.ShardDataset(tmp_path / "out")]
    assert plain == [first["boxes"].tolist(), []]
    assert "taken for a YOLO dataset, images beside texts of boxes, with 2 classes" in caplog.text
    assert caplog.text.count("1 of 2 images have no text in labels") == 1


def test_one_split_is_named_by_its_images(tmp_path: Path) -> None:
    source = dataset(tmp_path / "in", images___val___c__jpg=JPG, labels___val___c__txt="1 0 0 0 0")
    assert [*pack(source / "images/val", tmp_path / "val")] == ["c.jpg", "c.txt"]
    assert shardio.ShardDataset(tmp_path / "val").classes == ("cat", "dog")
    assert len(pack(source / "images", tmp_path / "all")) == 6
    assert [*pack(source / "images/val", tmp_path / "alone", labels=False)] == ["c.jpg"]


def test_folders_of_splits_with_their_own_pairs(tmp_path: Path) -> None:
    files = {f"{s}/{k}/a.{e}": d for s in ("train", "valid") for k, e, d in
             (("images", "jpg", JPG), ("labels", "txt", b"0 .5 .5 .1 .1"))}  # fmt: skip
    source = write(tmp_path / "in", {**files, "data.yaml": "names: ['a b']\nnc: 1\n"})
    members = pack(source, tmp_path / "out")
    assert [*members] == ["train/a.jpg", "train/a.txt", "valid/a.jpg", "valid/a.txt"]
    assert shardio.ShardDataset(tmp_path / "out").classes == ("a b",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 .1 .1 .2 .2 .3 .3", r"line 1 has 7 numbers, .*polygons"),
        ("0 .1 .1 .2 .2\n0 .1 .1 .2", "line 2 has 4 numbers"),
        ("0 .1 .1 .2 .2 .9", "has 6 numbers.*confidences"),
        ("2 .1 .1 .2 .2", "line 1 names class 2, and there are 2 classes"),
        ("-1 .1 .1 .2 .2", "does not begin with a class number"),
        ("0.5 .1 .1 .2 .2", "does not begin with a class number"),
        ("99999999999999999999 .1 .1 .2 .2", "does not begin with a class number"),
        ("0 120 80 20 20", "not a fraction of the picture"),
        ("0 1e999 .1 .2 .2", "not a fraction of the picture"),
        ("0 nan .1 .2 .2", "not a fraction of the picture"),
        ("cat .1 .1 .2 .2", "holds something else than numbers"),
        (b"0 \xff", "not UTF-8 text: invalid start byte at byte 2"),
    ],
)
def test_a_text_that_is_no_boxes_is_refused_or_skipped(
    text: str | bytes, message: str, tmp_path: Path
) -> None:
    source = dataset(tmp_path / "in", labels___train___b__txt=text)
    with pytest.raises(shardio.PackError, match=f"labels/train/b.txt: .*{message}"):
        pack(source, tmp_path / "out")
    assert [*pack(source, tmp_path / "out", on_error="skip")] == ["train/a.jpg", "train/a.txt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("labels/train/c.txt", "it belongs to no image, as images/train/c.jpg would be"),
        ("labels/train/a.png", "it is not a text of boxes"),
        ("labels/notes.txt", "it belongs to no image"),
    ],
)
def test_other_files_among_the_texts_are_refused(name: str, message: str, tmp_path: Path) -> None:
    source = write(dataset(tmp_path / "in"), {name: ""})
    with pytest.raises(shardio.PackError, match=f"{name}: {message}"):
        pack(source, tmp_path / "out")


def test_caches_and_lists_of_classes_are_no_texts(tmp_path: Path) -> None:
    source = dataset(tmp_path / "in", labels___train__cache="x", labels___classes__txt="cat\ndog\n")
    assert len(pack(source, tmp_path / "out")) == 4


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("classes.txt", "cat\nbird\n", "data.yaml and classes.txt list different classes"),
        ("data.yaml", "names: &all [cat]\n", "neither a list nor a mapping"),
        ("data.yaml", "names: coco.names\n", "neither a list nor a mapping"),
        ("data.yaml", "names: [cat, [dog]]\n", "does not read as a list of names"),
        ("data.yaml", "nc: 3\nnames: [cat, dog]\n", "nc is 3, and it names 2"),
        ("data.yaml", "names: {0: cat, 2: dog}\n", "its numbers are not 0, 1, 2"),
        ("data.yaml", "names: [cat, cat]\n", "one comes twice"),
        ("data.yaml", "names: [a]\nnames: [b]\n", "names comes twice"),
        ("data.yaml", "names:\n  - |\n    cat\n", "neither a list nor a mapping"),
        ("data.yaml", "names: []\n", "there is none"),
        ("data.yaml", "names: [a\N{NO-BREAK SPACE}]\n", "which may be part of a name"),
        ("data.yaml", b"names: [\xff]\n", "can't decode"),
    ],
)
def test_names_that_are_not_certain_are_refused_unless_classes_are_listed(
    file: str, text: str | bytes, message: str, tmp_path: Path
) -> None:
    source = write(dataset(tmp_path / "in"), {file: text})
    with pytest.raises(shardio.SituationError, match=f"{message}.*list them with classes"):
        pack(source, tmp_path / "out")
    pack(source, tmp_path / "out", classes=["x", "y"])
    assert shardio.ShardDataset(tmp_path / "out").classes == ("x", "y")


def test_without_names_the_numbers_stay(tmp_path: Path) -> None:
    source = dataset(tmp_path / "in", data__yaml="train: x\n", labels___train___b__txt="79 0 0 0 0")
    pack(source, tmp_path / "out")
    assert shardio.ShardDataset(tmp_path / "out").classes is None


@settings(max_examples=300)
@given(
    names=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5),
    flow=st.booleans(),
    mapping=st.booleans(),
    style=st.sampled_from([None, '"', "'"]),
)
def test_yaml_reads_as_yaml_does_or_is_refused(
    names: list[str], flow: bool, mapping: bool, style: str | None
) -> None:
    yaml = pytest.importorskip("yaml", reason="the oracle is no dependency")
    document = {"names": dict(enumerate(names)) if mapping else names, "nc": len(names)}
    text = yaml.safe_dump(
        document, default_flow_style=flow, default_style=style, allow_unicode=True
    )
    try:
        found = names_in_yaml(text)
    except ValueError:
        return
    assert found == tuple(names)


@pytest.mark.parametrize(
    "text",
    [
        "names: [cat, 'a dog', \"b: c\"] # three",
        "names: [cat,\n  'a dog',\n  \"b: c\",\n]",
        "names:\n- cat\n- a dog # x\n- 'b: c'\nnc: 3",
        'nc: 3\nnames:\n  - cat\n\n  # none\n  - a dog\n  - "b: c"\ntrain: x',
        "names: {0: cat, 1: a dog, 2: 'b: c'}",
        "'names':\n  0: cat\n  1: a dog\n  2: 'b: c'",
    ],
)
def test_ways_of_writing_names_in_yaml(text: str) -> None:
    assert names_in_yaml(text) == ("cat", "a dog", "b: c")


def test_quotes_in_a_line_of_yaml_take_no_time() -> None:
    about = "about: " + "it's what's " * 40 + '"'
    assert names_in_yaml(f"names: ['it''s #1', \"b # c\"] # two\n{about}\n") == ("it's #1", "b # c")
    with pytest.raises(ValueError, match="list of names"):
        names_in_yaml(f"names: [a{' ' * 50_000}b:\n]")


def test_links_that_lead_in_a_circle_are_refused(tmp_path: Path) -> None:
    source = dataset(tmp_path / "in")
    (source / "labels/train/loop").symlink_to(source / "labels")
    with pytest.raises(shardio.PackError, match="a link leads back to a folder above"):
        pack(source, tmp_path / "out")


def test_a_pipe_in_place_of_a_text_is_refused(tmp_path: Path) -> None:
    source = dataset(tmp_path / "in")
    os.mkfifo(source / "labels/train/b.txt")
    with pytest.raises(shardio.PackError, match=r"labels/train/b\.txt: it is not a regular file"):
        pack(source, tmp_path / "out")


@pytest.mark.parametrize("options", [{"resize": 4}, {"max_side": 5}, {"store": "raw"}])
def test_fractions_of_a_picture_that_is_resized_whole_stay_as_they_are(
    options: dict[str, Any], tmp_path: Path
) -> None:
    members = pack(dataset(tmp_path / "in"), tmp_path / "out", **options)
    assert members["train/a.txt"] == BOXES.encode()


def test_boxes_follow_the_part_of_a_picture_that_is_stored(tmp_path: Path) -> None:
    """Of 8 x 10 pixels columns 1 to 9 are kept; the last box lies in the first column."""
    lines = f"{BOXES}1 0.05 0.5 0.1 1\n"
    source = dataset(tmp_path / "in", labels___train___a__txt=lines)
    members = pack(source, tmp_path / "out", resize=(4, 4))
    assert members["train/a.txt"] == b"0 0.5 0.5 1.0 1.0\n1 0.25 0.75 0.5 0.5\n"
    (first, _) = (sample["txt"] for sample in shardio.ShardDataset(tmp_path / "out"))
    assert first["boxes"].tolist() == [[0, 0, 4, 4], [0, 2, 2, 4]]


@pytest.mark.parametrize("name", ["train", "train/images"])
def test_names_above_one_of_several_splits_are_found(name: str, tmp_path: Path) -> None:
    files = {f"{s}/{k}": d for s in ("train", "valid") for k, d in
             (("images/a.jpg", JPG), ("labels/a.txt", b"0 .5 .5 .1 .1"))}  # fmt: skip
    source = write(tmp_path / "in", {**files, "data.yaml": "names: ['a b']\nnc: 1\n"})
    pack(source / name, tmp_path / "out")
    assert shardio.ShardDataset(tmp_path / "out").classes == ("a b",)
    found = shardio.info(tmp_path / "out")
    assert (found.class_names, found.classes) == (("a b",), None)


def test_splits_that_become_one_dataset_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = dataset(tmp_path / "in")
    pack(source, tmp_path / "one")
    assert "as one dataset" not in caplog.text
    write(source, {"images/val/c.jpg": JPG, "images/more/d.jpg": JPG})
    pack(source, tmp_path / "out")
    said = "images/train, images/val are packed as one dataset; to keep them apart pack each alone"
    assert f"{source}: {said}, as {source}/images/train" in caplog.text


def test_a_pack_after_a_text_has_changed_packs_the_new_text(tmp_path: Path) -> None:
    """Its first run ends at an image that is cut off, after the other shard is finished."""
    source = dataset(tmp_path / "in", images___train___b__jpg=JPG[:-9])
    options: dict[str, Any] = {"shards": 2, "jobs": 1}
    with pytest.raises(shardio.PackError, match=r"b\.jpg"):
        pack(source, tmp_path / "out", **options)
    dataset(source, labels___train___a__txt="1 .5 .5 .5 .5")
    members = pack(source, tmp_path / "out", **options)
    assert members["train/a.txt"] == b"1 .5 .5 .5 .5"


def test_logs_say_it_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pack(dataset(tmp_path / "in"), tmp_path / "out")
    assert len(caplog.records) == 2

"""Every source keeps what sources promise to a pack, shardio's own and one as a user writes it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import shardio
from shardio.packing.options import PackOptions
from shardio.packing.pack import SOURCES, open_source
from shardio.packing.sources import (
    FromFile,
    FromMemory,
    Problem,
    Source,
    SourceField,
    SourceSample,
)
from shardio.packing.sources.iterable import IterableSource
from shardio.packing.sources.records import encode_example, frame_record
from shardio.storage.folder import Folder
from shardio.testing import SourceContract, make_shard


def png(value: int) -> bytes:
    return cv2.imencode(".png", np.full((2, 2, 3), value, np.uint8))[1].tobytes()


NAMES = ("b", "a", "ü", "B")


class TestFolder(SourceContract):
    def write(self, folder: Path) -> Mapping[str, bytes]:
        members = {}
        for number, name in enumerate(NAMES):
            path = folder / f"class{number % 2}" / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(png(number))
        for label, names in ((0, "bü"), (1, "Ba")):  # in the order of the bytes of names
            for name in names:
                members[f"class{label}/{name}.cls"] = b"%d" % label
                members[f"class{label}/{name}.png"] = png(NAMES.index(name))
        return members

    def write_faulty(self, folder: Path) -> str:
        self.write(folder)
        (folder / "beside.png").write_bytes(png(9))
        return "beside.png"

    def open(self, folder: Path) -> Source:
        return open_source(str(folder), PackOptions(shards=1))


class TestNeighbours(SourceContract):
    """Images with files beside them, which nobody named."""

    def write(self, folder: Path) -> Mapping[str, bytes]:
        members = {}
        for number, name in enumerate(("B", "a", "b", "ü")):
            (folder / f"{name}.png").write_bytes(png(number))
            (folder / f"{name}.json").write_bytes(b"[%d]" % number)
            members[f"{name}.json"] = b"[%d]" % number
            members[f"{name}.png"] = png(number)
        return members

    def write_faulty(self, folder: Path) -> str:
        self.write(folder)
        (folder / "c.json").write_bytes(b"[]")
        return "c.json"

    def open(self, folder: Path) -> Source:
        return open_source(str(folder), PackOptions(shards=1))


class TestYolo(SourceContract):
    def write(self, folder: Path) -> Mapping[str, bytes]:
        members = {}
        for number, name in enumerate(("train/B", "train/ü", "val/a")):
            for path, data in (
                (f"images/{name}.png", png(number)),
                (f"labels/{name}.txt", b"%d 0.5 0.5 1 1\n" % number),
            ):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(data)
            members[f"{name}.png"] = png(number)
            members[f"{name}.txt"] = b"%d 0.5 0.5 1 1\n" % number
        (folder / "data.yaml").write_text("names: [cat, dog, bird]\nnc: 3\n")
        return members

    def write_faulty(self, folder: Path) -> str:
        self.write(folder)
        (folder / "labels/val/a.txt").write_text("3 0.5 0.5 1 1\n")
        return "labels/val/a.txt"

    def open(self, folder: Path) -> Source:
        return open_source(str(folder), PackOptions(shards=1))


class TestVoc(SourceContract):
    def write(self, folder: Path) -> Mapping[str, bytes]:
        members = {}
        for name in ("JPEGImages", "Annotations", "SegmentationClass"):
            (folder / name).mkdir()
        mask = cv2.imencode(".png", np.full((2, 2), 3, np.uint8))[1].tobytes()
        for number, name in enumerate(("B", "a", "ü")):
            (folder / f"JPEGImages/{name}.png").write_bytes(png(number))
            (folder / f"Annotations/{name}.xml").write_text("<annotation/>")
            (folder / f"SegmentationClass/{name}.png").write_bytes(mask)
            members[f"{name}.png"] = png(number)
            members[f"{name}.json"] = (
                b'{"boxes": [], "names": [], "difficult": [], "truncated": [], "occluded": [], '
                b'"image": {}, "labels": []}'
            )
            members[f"{name}.mask.png"] = mask
        return members

    def write_faulty(self, folder: Path) -> str:
        self.write(folder)
        (folder / "Annotations/a.xml").write_text("<annotation>")
        return "Annotations/a.xml"

    def open(self, folder: Path) -> Source:
        return open_source(str(folder), PackOptions(shards=1))


class TestCoco(SourceContract):
    def write(self, folder: Path, **more: Any) -> Mapping[str, bytes]:
        names = ("b", "ü", "B")
        members = {}
        for number, name in enumerate(names):
            (folder / f"{name}.png").write_bytes(png(number))
            members[f"{name}.png"] = png(number)
            members[f"{name}.json"] = (
                f'{{"image_id": {number}, "boxes": [[0, 0, 1, {number}]], "labels": [7], '
                f'"names": ["é"], "image": {{"file_name": "{name}.png"}}}}'
            ).encode()
        document = {
            "images": [{"id": at, "file_name": f"{name}.png"} for at, name in enumerate(names)],
            "annotations": [
                {"image_id": at, "bbox": [0, 0, 1, at], "category_id": 7} for at in (2, 0, 1)
            ],
            "categories": [{"id": 7, "name": "é"}],
        } | more
        text = json.dumps(document, ensure_ascii=False)
        (folder / "_annotations.coco.json").write_text(text, "utf-8")
        return members

    def write_faulty(self, folder: Path) -> str:
        self.write(folder, annotations=[{"image_id": 1, "bbox": [0, 0, 1, 1], "category_id": 8}])
        return "_annotations.coco.json, image 1"

    def open(self, folder: Path) -> Source:
        return open_source(str(folder), PackOptions(shards=1))


class TestTable(SourceContract):
    def write(self, folder: Path) -> Mapping[str, bytes]:
        rows, members = [["path", "label", "note"]], {}
        for number, name in enumerate(NAMES):
            (folder / f"{name}.png").write_bytes(png(number))
            rows.append([f"{name}.png", ("dog", "cat")[number % 2], f"n{number}"])
            members[f"{name}.cls"] = b"%d" % (1 - number % 2)
            members[f"{name}.png"] = png(number)
            members[f"{name}.json"] = b'{"note": "n%d"}' % number
        with (folder / "table.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows(rows)
        return members

    def write_faulty(self, folder: Path) -> str:
        self.write(folder)
        with (folder / "table.csv").open("a", encoding="utf-8") as stream:
            stream.write(",dog,x\n")
        return "table.csv, row 5"

    def open(self, folder: Path) -> Source:
        table = folder / "table.csv"
        return open_source(str(folder), PackOptions(shards=1, manifest=table))


class TestTars(SourceContract):
    def write(self, folder: Path) -> Mapping[str, bytes]:
        samples = {
            name: {"cls": b"%d" % number, "png": png(number), "bin": bytes(number)}
            for number, name in enumerate(NAMES)
        }
        for shard, names in (("b", NAMES[2:]), ("a", NAMES[:2])):
            make_shard(folder / f"{shard}.tar", {name: samples[name] for name in names})
        return {
            f"{key}.{field}": data for key, some in samples.items() for field, data in some.items()
        }

    def write_faulty(self, folder: Path) -> str:
        make_shard(folder / "a.tar", {"good": {"png": png(1)}, "bad": {"png": b"no image"}})
        return "a.tar: bad"

    def open(self, folder: Path) -> Source:
        return open_source(str(folder), PackOptions(shards=1))


class TestTFRecords(SourceContract):
    def write(self, folder: Path) -> Mapping[str, bytes]:
        members = {}
        for shard in ("b", "a"):
            with (folder / f"{shard}.tfrecord").open("wb") as stream:
                for number in range(2):
                    example: dict[str, Any] = {"image": [png(number)], "label": np.array([number])}
                    stream.writelines(frame_record(encode_example(example)))
        for shard in ("a", "b"):
            for number in range(2):
                members[f"{shard}/{number:08d}.cls"] = b"%d" % number
                members[f"{shard}/{number:08d}.png"] = png(number)
        return members

    def write_faulty(self, folder: Path) -> str:
        self.write(folder)
        with (folder / "b.tfrecord").open("ab") as stream:
            stream.writelines(frame_record(encode_example({})))
        return "b.tfrecord, record 2 at byte"

    def open(self, folder: Path) -> Source:
        return open_source(str(folder), PackOptions(shards=1))


class TestIterable(SourceContract):
    """Samples of a program, some of whose data are files."""

    def write(self, folder: Path) -> Mapping[str, bytes]:
        for number in range(len(NAMES)):
            (folder / f"{number}.png").write_bytes(png(number))
        return {
            f"{name}.{field}": data
            for number, name in enumerate(NAMES)
            for field, data in (("png", png(number)), ("cls", b"%d" % number), ("txt", b"x"))
        }

    def write_faulty(self, folder: Path) -> str:
        self.write(folder)
        (folder / "1.png").write_bytes(b"no image")
        return "sample 1 ('a')"

    def open(self, folder: Path) -> Source:
        mappings = [
            {"__key__": name, "png": folder / f"{number}.png", "cls": number, "txt": "x"}
            for number, name in enumerate(NAMES)
        ]
        work = folder / ".work"
        work.mkdir(exist_ok=True)
        return IterableSource(mappings, Folder.open(work), None, {})


class Lines:
    """A text file with a path and a class number in each line."""

    classes = None

    def __init__(self, path: Path) -> None:
        self.name, self.root = str(path), str(path.parent)

    def samples(self) -> Iterator[SourceSample | Problem]:
        for number, line in enumerate(Path(self.name).read_text("utf-8").splitlines(), start=1):
            path, _, label = line.rpartition(" ")
            if not label.isdecimal():
                yield Problem(path=f"{self.name}, line {number}", reason="it ends without a class")
                continue
            fields = (
                SourceField("cls", FromMemory(label.encode())),
                SourceField("png", FromFile(path.encode())),
            )
            key = path.removesuffix(".png")
            yield SourceSample(key=key, path=path, fields=fields, label=int(label))


class TestOneOfAUser(SourceContract):
    def write(self, folder: Path) -> Mapping[str, bytes]:
        members, lines = {}, []
        for number, name in enumerate(NAMES):
            (folder / f"{name}.png").write_bytes(png(number))
            lines.append(f"{name}.png {number % 2}\n")
            members[f"{name}.cls"] = b"%d" % (number % 2)
            members[f"{name}.png"] = png(number)
        (folder / "list.txt").write_text("".join(lines), "utf-8")
        return members

    def write_faulty(self, folder: Path) -> str:
        self.write(folder)
        with (folder / "list.txt").open("a") as stream:
            stream.write("c.png\n")
        return "list.txt, line 5"

    def open(self, folder: Path) -> Source:
        return Lines(folder / "list.txt")

    def test_it_is_split_by_its_labels_and_skips_its_problems(self, tmp_path: Path) -> None:
        self.write_faulty(tmp_path)
        split = {"a": 0.5, "b": 0.5}
        options: dict[str, Any] = {"shards": 2, "split": split, "stratify": True}
        source = self.open(tmp_path)
        summary = shardio.pack(source, tmp_path / "out", on_error="skip", **options)
        assert (summary.samples, summary.skipped, summary.classes) == (4, 1, None)
        for part in ("a", "b"):
            labels = [sample["label"] for sample in shardio.ShardDataset(tmp_path / "out" / part)]
            assert sorted(map(int, labels)) == [0, 1]

    def test_options_of_other_sources_are_refused(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        with pytest.raises(shardio.UsageError, match="classes does not apply to a Source; leave"):
            shardio.pack(self.open(tmp_path), tmp_path / "out", shards=1, classes=["a"])


GIVEN = {
    "labels": False,
    "classes": ["a", "b"],
    "fields": "png",
    "features": ["png=image"],
}


@pytest.mark.parametrize("option", GIVEN)
@pytest.mark.parametrize("contract", [TestFolder, TestTars, TestTFRecords])
def test_each_source_takes_its_own_options_and_refuses_others(
    contract: type[SourceContract], option: str, tmp_path: Path
) -> None:
    contract().write(tmp_path)
    options = PackOptions(shards=1, **{option: GIVEN[option]})  # type: ignore[arg-type]
    kind = next(each for each in SOURCES if each.claims(str(tmp_path), options))
    if option in kind.options:
        open_source(str(tmp_path), options)
    else:
        with pytest.raises(
            shardio.UsageError, match=f"{option} does not apply to {kind.described}"
        ):
            open_source(str(tmp_path), options)


def test_the_options_of_sources_are_options() -> None:
    assert {name for kind in SOURCES for name in kind.options} == {*PackOptions.SOURCE_OPTIONS}

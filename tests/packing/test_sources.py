"""What samples are made of: files side by side, tables, tars, values of a program."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import shardio
from shardio.fields.image import decode_image
from shardio.packing.sources.records import encode_example, frame_record
from shardio.testing import make_images, make_shard, read_members

PNG = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes()
MASK = cv2.imencode(".png", np.zeros((4, 6), np.uint8))[1].tobytes()


def write(folder: Path, **files: bytes | str) -> Path:
    """Files by name; `__` stands for a dot, `___` for a slash."""
    for name, data in files.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def ledger(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestFields:
    def test_files_side_by_side_are_one_sample(self, tmp_path: Path) -> None:
        source = write(tmp_path / "in", a__jpg=PNG, a__json="{}", a__mask__png=MASK, b__x__jpg=PNG)
        write(source, b__x__json="[1]", b__x__mask__png=MASK, b__x__txt="hello")
        summary = shardio.pack(
            source, tmp_path / "out", shards=1, shuffle=False, fields="jpg;png,json,mask.png,txt?"
        )
        assert (summary.samples, summary.renamed) == (2, 1)
        assert [*read_members(tmp_path / "out")] == [
            "a.jpg",
            "a.json",
            "a.mask.png",
            "b_x.jpg",
            "b_x.json",
            "b_x.mask.png",
            "b_x.txt",
        ]
        assert ledger(tmp_path / "out/renamed.jsonl") == [{"key": "b_x", "path": "b.x.jpg"}]

    def test_classes_are_folders_there_too(self, tmp_path: Path) -> None:
        source = write(tmp_path / "in", cat___1__png=PNG, cat___1__txt="a", dog___1__png=PNG)
        write(source, dog___1__txt="b")
        shardio.pack(source, tmp_path / "out", shards=1, shuffle=False, fields="png,txt")
        found = read_members(tmp_path / "out")
        assert [*found] == [
            "cat/1.cls",
            "cat/1.png",
            "cat/1.txt",
            "dog/1.cls",
            "dog/1.png",
            "dog/1.txt",
        ]
        assert found["dog/1.cls"] == b"1"

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"b__png": PNG}, r"b\.png: its sample has no json"),
            ({"b__png": PNG, "b__jpg": PNG, "b__json": "{}"}, "b.jpg: .*has both jpg and png"),
            ({"a__JSON": "{}"}, r"a\.json: its key would be 'a', as that of a\.JSON"),
            ({"readme__md": "hi"}, r"readme\.md: its name ends in none of the fields"),
        ],
    )
    def test_what_makes_no_sample_is_named_or_left_out(
        self, tmp_path: Path, more: dict[str, bytes | str], message: str
    ) -> None:
        source = write(tmp_path / "in", a__png=PNG, a__json="{}", **more)
        options: dict[str, Any] = {"shards": 1, "fields": "jpg;png,json"}
        with pytest.raises(shardio.PackError, match=message):
            shardio.pack(source, tmp_path / "out", **options)
        summary = shardio.pack(source, tmp_path / "out", **options, on_error="skip")
        assert (summary.samples, summary.skipped) == (1, 1)
        assert len(ledger(tmp_path / "out/skipped.jsonl")) == 1

    def test_a_file_of_no_image_is_refused_with_the_way_to_pack_it(self, tmp_path: Path) -> None:
        source = write(tmp_path / "in", a__png=PNG, b__json="{}")
        with pytest.raises(shardio.PackError, match=r"b\.json: not a JPEG.*with fields, or"):
            shardio.pack(source, tmp_path / "out", shards=1)

    def test_a_file_of_no_field_costs_no_sample(self, tmp_path: Path) -> None:
        source = write(tmp_path / "in", a="x", a__png=PNG, b__txt__gz="x", b_txt_gz__png=PNG)
        summary = shardio.pack(
            source, tmp_path / "out", shards=1, fields="png,json?", on_error="skip"
        )
        assert (summary.samples, summary.skipped) == (2, 2)
        assert {*read_members(tmp_path / "out")} == {"a.png", "b_txt_gz.png"}

    def test_files_of_other_stems_are_other_samples(self, tmp_path: Path) -> None:
        source = write(tmp_path / "in", a__b__png=PNG, a_b__json="{}")
        with pytest.raises(shardio.PackError, match=r"its sample has no (json|png)"):
            shardio.pack(source, tmp_path / "out", shards=1, fields="png,json")

    def test_a_label_beside_a_class_folder_is_refused(self, tmp_path: Path) -> None:
        source = write(tmp_path / "in", cat___a__png=PNG, cat___a__cls="3")
        with pytest.raises(shardio.PackError, match="the sample has the field 'cls' twice"):
            shardio.pack(source, tmp_path / "out", shards=1, fields="png,cls")
        shardio.pack(source, tmp_path / "out", shards=1, fields="png,cls", labels=False)

    def test_a_field_that_is_no_image_is_not_looked_into(self, tmp_path: Path) -> None:
        source = write(tmp_path / "in", a__bin=b"\0\1")
        shardio.pack(source, tmp_path / "out", shards=1, fields="bin")
        assert read_members(tmp_path / "out") == {"a.bin": b"\0\1"}

    @pytest.mark.parametrize("fields", ["", "jpg,", "jpg;;png", "a/b", ".jpg", "jpg,jpg", "j pg"])
    def test_a_text_that_names_no_fields_is_refused(self, tmp_path: Path, fields: str) -> None:
        with pytest.raises(shardio.UsageError, match="fields="):
            shardio.pack(tmp_path, tmp_path / "out", shards=1, fields=fields)


def make_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "in", x___a__png=PNG, x___b__png=PNG, m___a__png=MASK, c__c__png=PNG)


class TestTables:
    def write_table(self, tmp_path: Path, kind: str) -> Path:
        path = tmp_path / f"table.{kind}"
        rows = [("x/a.png", "dog", "4"), ("x/b.png", "cat", "5"), ("c.c.png", "dog", "ü\n")]
        objects = [{"path": a, "label": b, "note": c} for a, b, c in rows]
        if kind == "csv":
            return make_csv(path, [["path", "label", "note"], *map(list, rows)])
        if kind == "tsv":
            lines = ["path\tlabel\tnote", *("\t".join((a, b, f'"{c}"')) for a, b, c in rows)]
            path.write_text("\n".join(lines))
        elif kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in objects))
        else:
            parquet.write_table(pa.Table.from_pylist(objects), path)
        return path

    @pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
    def test_rows_are_samples_in_their_order(self, source: Path, tmp_path: Path, kind: str) -> None:
        table = self.write_table(tmp_path, kind)
        out = tmp_path / "out"
        summary = shardio.pack(source, out, shards=1, shuffle=False, manifest=table)
        assert (summary.samples, summary.classes, summary.renamed) == (3, 2, 1)
        found = read_members(out)
        assert [*found] == [
            f"{key}.{f}" for key in ("x/a", "x/b", "c_c") for f in ("cls", "png", "json")
        ]
        assert [found[f"{key}.cls"] for key in ("x/a", "x/b", "c_c")] == [b"1", b"0", b"1"]
        assert json.loads(found["c_c.json"]) == {"note": "ü\n"}
        assert shardio.ShardDataset(out).classes == ("cat", "dog")

    def test_whole_numbers_are_labels_as_they_are(self, source: Path, tmp_path: Path) -> None:
        table = make_csv(tmp_path / "t.csv", [["path", "y"], ["x/a.png", "10"], ["x/b.png", "9"]])
        shardio.pack(
            source, tmp_path / "out", shards=1, manifest=table, label_column="y", shuffle=False
        )
        found = read_members(tmp_path / "out")
        assert [found["x/a.cls"], found["x/b.cls"]] == [b"10", b"9"]
        assert shardio.ShardDataset(tmp_path / "out").classes is None

    def test_several_columns_of_paths_and_one_of_keys(self, source: Path, tmp_path: Path) -> None:
        rows = [["id", "image", "mask"], ["one", "x/a.png", "m/a.png"], ["two", "x/b.png", ""]]
        table = make_csv(tmp_path / "t.csv", rows)
        columns: dict[str, Any] = {
            "path_columns": ["image", "mask.png=mask"],
            "key_column": "id",
        }
        shardio.pack(source, tmp_path / "out", shards=1, shuffle=False, manifest=table, **columns)
        assert [*read_members(tmp_path / "out")] == ["one.png", "one.mask.png", "two.png"]

    def test_a_given_list_of_classes_has_the_numbers(self, source: Path, tmp_path: Path) -> None:
        table = self.write_table(tmp_path, "csv")
        out = tmp_path / "out"
        shardio.pack(source, out, shards=1, manifest=table, classes=["dog", "emu", "cat"])
        assert read_members(out)["x/b.cls"] == b"2"
        with pytest.raises(shardio.PackError, match=r"row 2: its class 'cat' is not one of the 1"):
            shardio.pack(source, tmp_path / "no", shards=1, manifest=table, classes=["dog"])

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([["path"]], "the table has no rows"),
            (
                [["a", "b"], ["1", "2"]],
                r"which column holds paths. It has a, b; pass path_columns=\['a'\]",
            ),
            ([["path", "label"], ["x/a.png"]], "row 1: line 2 has 1 cells, the header 2"),
            ([["path"], ["x/a.png", "2"]], "row 1: line 2 has 2 cells, the header 1"),
            ([["path"], ["../a.png"]], r"row 1: \.\./a\.png leads out of .*; name a folder above"),
            (
                [["path"], ["x/a.png"], ["x/a.png"]],
                "as that of x/a.png: it comes twice, .* one row",
            ),
            ([["path"], ["x/none.png"]], r"x/none\.png: No such file or directory"),
            (
                [["path", "label"], ["x/a.png", ""]],
                "row 1: its column 'label' is empty",
            ),
            ([["path", "path"], ["x/a.png", "x"]], "two columns have the same name"),
        ],
    )
    def test_a_row_that_is_no_sample_is_named(
        self, source: Path, tmp_path: Path, rows: list[list[str]], message: str
    ) -> None:
        table = make_csv(tmp_path / "t.csv", rows)
        with pytest.raises((shardio.PackError, shardio.UsageError), match=message):
            shardio.pack(source, tmp_path / "out", shards=1, manifest=table)
        assert not (tmp_path / "out").exists()

    def test_a_line_that_is_no_object_is_named(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "t.jsonl").write_text('{"path": "x/a.png"}\n\n[1]\n')
        with pytest.raises(shardio.PackError, match=r"t\.jsonl, row 2: it is not a JSON object"):
            shardio.pack(source, tmp_path / "out", shards=1, manifest=tmp_path / "t.jsonl")

    def test_what_no_file_can_be_is_named(self, source: Path, tmp_path: Path) -> None:
        os.mkfifo(source / "f.png")
        for path, message in {
            "f.png": r"f\.png: it is not a regular file",
            "x": "x: it is not a regular file",
            "a\\u0000b": "which no file can be called",
            "\\ud800": "which no file can be called",
        }.items():
            (tmp_path / "t.jsonl").write_text(f'{{"path": "{path}"}}\n')
            with pytest.raises(shardio.PackError, match=message):
                shardio.pack(source, tmp_path / "out", shards=1, manifest=tmp_path / "t.jsonl")

    def test_labels_that_are_nowhere_are_asked_for(self, source: Path, tmp_path: Path) -> None:
        table = make_csv(tmp_path / "t.csv", [["path"], ["x/a.png"], ["x/b.png"]])
        options: dict[str, Any] = {"shards": 1, "manifest": table}
        with pytest.raises(shardio.UsageError, match="which column holds the labels"):
            shardio.pack(source, tmp_path / "out", classes=["a"], **options)
        with pytest.raises(shardio.UsageError, match="labels=False packs no labels"):
            shardio.pack(source, tmp_path / "out", label_column="y", labels=False, **options)
        split = {"a": 0.5, "b": 0.5}
        with pytest.raises(shardio.UsageError, match="stratify needs labels"):
            shardio.pack(
                source, tmp_path / "out", shards=2, manifest=table, split=split, stratify=True
            )

    def test_absolute_paths_inside_and_outside_the_source(
        self, source: Path, tmp_path: Path
    ) -> None:
        outside = write(tmp_path / "other", z__png=PNG) / "z.png"
        table = make_csv(tmp_path / "t.csv", [["path"], [str(source / "x/a.png")], [str(outside)]])
        shardio.pack(source, tmp_path / "out", shards=1, shuffle=False, manifest=table)
        assert [*read_members(tmp_path / "out")] == ["x/a.png", f"{outside}"]


class TestTars:
    def test_members_go_over_byte_for_byte(self, tmp_path: Path) -> None:
        samples = {f"k{i}": {"cls": b"%d" % i, "png": PNG, "txt": b"t"} for i in range(9)}
        (tmp_path / "in").mkdir()
        make_shard(tmp_path / "in/a.tar", dict([*samples.items()][:4]))
        make_shard(tmp_path / "in/b.tar", dict([*samples.items()][4:]))
        shardio.pack(tmp_path / "in", tmp_path / "out", shards=3, shuffle=False)
        assert read_members(tmp_path / "out") == {
            f"{key}.{field}": data for key, some in samples.items() for field, data in some.items()
        }

    def test_a_bad_image_in_a_tar_is_named(self, tmp_path: Path) -> None:
        shard = make_shard(tmp_path / "a.tar", {"k": {"png": b"no"}, "l": {"png": PNG}})
        with pytest.raises(shardio.PackError, match=r"a\.tar: k: not a JPEG, PNG"):
            shardio.pack(shard, tmp_path / "out", shards=1)

    def test_data_that_is_not_what_was_packed_is_named(self, tmp_path: Path) -> None:
        source = make_images(tmp_path / "in", classes=0, per_class=3)
        shardio.pack(source, tmp_path / "one", shards=1, shuffle=False)
        with (tmp_path / "one/shard-000000.tar").open("r+b") as stream:
            stream.seek(600)
            stream.write(b"\xff")
        with pytest.raises(shardio.PackError, match=r"offset 512 of .*CRC-32 differs"):
            shardio.pack(tmp_path / "one", tmp_path / "two", shards=1)

    def test_a_tar_that_changes_meanwhile_is_noticed(self, tmp_path: Path) -> None:
        shard = make_shard(tmp_path / "a.tar", {f"{i}": {"txt": b"t"} for i in range(9)})

        def change(_: int) -> Callable[[int], None]:
            make_shard(shard, {f"{i}": {"txt": b"u"} for i in range(9)})
            os.utime(shard, (1, 1))
            return lambda _: None

        with pytest.raises(shardio.PackError, match=r"a\.tar: the file changed while it was"):
            shardio.pack(shard, tmp_path / "out", shards=1, progress=change)

    @pytest.mark.parametrize("how", ["overwritten", "cut off"])
    def test_a_tar_that_changes_and_gets_its_time_back_is_noticed(
        self, tmp_path: Path, how: str
    ) -> None:
        keys = range(10, 19)
        shard = make_shard(tmp_path / "a.tar", {f"{i}": {"txt": b"%d" % i} for i in keys})
        before = shard.stat()

        def change(_: int) -> Callable[[int], None]:
            make_shard(shard, {f"{i}": {"txt": b"%d" % i} for i in keys[::-1]})
            if how == "cut off":
                os.truncate(shard, 512)
            os.utime(shard, ns=(0, before.st_mtime_ns))
            return lambda _: None

        message = r"a\.tar: the file changed while it was packed"
        if how == "cut off":
            message = r"a\.tar: the file changed while it was packed, it ends before offset 512"
        with pytest.raises(shardio.PackError, match=message):
            shardio.pack(shard, tmp_path / "out", shards=1, on_error="skip", progress=change)

    def test_tars_beside_images_are_asked_about(self, tmp_path: Path) -> None:
        source = write(tmp_path / "in", cat___a__png=PNG)
        make_shard(source / "old.tar", {"k": {"png": PNG}})
        with pytest.raises(shardio.UsageError, match=r"it has shards or records, and cat beside"):
            shardio.pack(source, tmp_path / "out", shards=1)
        shardio.pack(f"{source}/*.tar", tmp_path / "out", shards=1)
        assert [*read_members(tmp_path / "out")] == ["k.png"]

    def test_pixels_do_not_become_other_pixels(self, tmp_path: Path) -> None:
        source = make_images(tmp_path / "in", classes=0, per_class=2)
        shardio.pack(source, tmp_path / "raw", shards=1, store="raw")
        with pytest.raises(shardio.PackError, match=r"rgb\.npy holds pixels, and only image files"):
            shardio.pack(tmp_path / "raw", tmp_path / "out", shards=1, resize=2)

    def test_a_folder_as_img2dataset_writes_it(self, tmp_path: Path) -> None:
        """Tars of jpg, txt and json by number, each with a table and statistics beside it."""
        beside: dict[str, bytes | str] = {"00000__parquet": b"PAR1", "00000_stats__json": "{}"}
        folder = write(tmp_path / "in", **beside)
        samples = {
            f"00000000{i}": {"jpg": PNG, "txt": b"a cat", "json": b'{"width": 2}'} for i in range(3)
        }
        make_shard(folder / "00000.tar", samples)
        shardio.pack(folder, tmp_path / "out", shards=1, shuffle=False)
        assert len(read_members(tmp_path / "out")) == 9
        (first, *_) = shardio.ShardDataset(tmp_path / "out")
        assert (first["txt"], first["json"]) == ("a cat", {"width": 2})


class TestValues:
    def samples(self) -> Iterator[dict[str, Any]]:
        for number in range(5):
            yield {
                "__key__": f"s/{number}",
                "png": PNG,
                "cls": number % 2,
                "txt": "grün",
                "json": {"n": number},
                "npy": np.arange(number),
            }

    def test_a_generator_is_packed_as_it_comes(self, tmp_path: Path) -> None:
        summary = shardio.pack(
            self.samples(), tmp_path / "out", shards=2, shuffle=False, classes=["a", "b"]
        )
        assert (summary.samples, summary.classes) == (5, 2)
        dataset = shardio.ShardDataset(tmp_path / "out")
        assert [sample["__key__"] for sample in dataset] == [f"s/{i}" for i in range(5)]
        last = dataset[4]
        assert (last["label"], last["txt"], last["json"]) == (0, "grün", {"n": 4})
        assert np.array_equal(np.asarray(last["npy"]), np.arange(4))

    def test_paths_are_packed_as_files_and_keys_are_numbers(self, tmp_path: Path) -> None:
        file = write(tmp_path, a__png=PNG) / "a.png"
        shardio.pack([{"png": file}, {"png": file}], tmp_path / "out", shards=1, shuffle=False)
        assert [*read_members(tmp_path / "out")] == ["000000000.png", "000000001.png"]

    def test_a_generator_that_fails_leaves_nothing(self, tmp_path: Path) -> None:
        def failing() -> Iterator[dict[str, Any]]:
            yield {"png": PNG}
            raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more"):
            shardio.pack(failing(), tmp_path / "out", shards=1)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("sample", "message"),
        [
            (7, "sample 0: it must be a mapping from fields to values, not int"),
            (
                {"__key__": "a.b", "png": PNG},
                "its '__key__' cannot be a key: the key 'a.b' has a dot",
            ),
            ({"__key__": 3, "png": PNG}, "its '__key__' is not a text"),
            ({"__key__": "a"}, r"sample 0 \('a'\): it has no fields"),
            ({"cls": "cat"}, "field 'cls' cannot hold 'cat'"),
            ({"cls": 1.5}, r"field 'cls' cannot hold 1\.5: it is not a whole number"),
            ({"json": {1, 2}}, "field 'json' cannot hold"),
            ({"npy": np.array([object()])}, "field 'npy' cannot hold"),
            ({"png": 3}, "field 'png' cannot hold 3: a picture is uint8"),
            (
                {"png": np.zeros((4, 4), np.uint8)},
                r"not uint8 \[4, 4\]; Image\(channels=1\) takes gray",
            ),
            ({"bin": 3}, "field 'bin' takes bytes or a path, not int"),
            ({"a/b": PNG}, "'a/b' cannot be the name of a field"),
            ({"png": b"no"}, "sample 0.*not a JPEG, PNG"),
        ],
    )
    def test_a_value_that_cannot_be_packed_is_named(
        self, tmp_path: Path, sample: Any, message: str
    ) -> None:
        with pytest.raises(shardio.PackError, match=message):
            shardio.pack([sample], tmp_path / "out", shards=1)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("kind", [MemoryError, NameError, AttributeError])
    def test_no_value_is_blamed_for_what_is_not_its_fault(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise kind("some")

        monkeypatch.setattr(np, "save", fail)
        with pytest.raises(kind, match="some"):
            shardio.pack([{"npy": np.zeros(3)}], tmp_path / "out", shards=1)
        assert not (tmp_path / "out").exists()

    def test_options_that_mean_nothing_here_are_refused(self, tmp_path: Path) -> None:
        for options in ({"fields": "png"}, {"labels": False}, {"manifest": "a.csv"}):
            with pytest.raises(shardio.UsageError, match="does not apply to samples of a program"):
                shardio.pack(self.samples(), tmp_path / "out", shards=1, **options)

    @pytest.mark.parametrize("value", [3, np.int64(3), b"3", b" 3\n"])
    def test_class_numbers_are_known_however_they_are_given(
        self, tmp_path: Path, value: object
    ) -> None:
        samples = [{"__key__": f"{i}", "bin": b"x", "cls": value} for i in range(4)]
        summary = shardio.pack(
            samples, tmp_path / "out", shards=2, split={"a": 0.5, "b": 0.5}, stratify=True
        )
        assert summary.splits == {"a": 2, "b": 2}

    def test_checksums_of_values_are_in_the_index(self, tmp_path: Path) -> None:
        shardio.pack(self.samples(), tmp_path / "out", shards=1, shuffle=False)
        index = shardio.ShardDataset(tmp_path / "out").catalog.shards[0].load_index()
        assert index.checksums is not None
        column = index.fields.index("png")
        assert {*index.checksums[:, column].tolist()} == {zlib.crc32(PNG)}


def test_encoded_files_keep_their_format_and_drop_what_turns_them(tmp_path: Path) -> None:
    rows = np.zeros((40, 20, 3), np.uint8)
    rows[:20] = 255
    jpeg = cv2.imencode(".jpg", rows)[1].tobytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    source = write(tmp_path / "in", turned__jpg=jpeg[:2] + segment + jpeg[2:], small__png=PNG)
    shardio.pack(source, tmp_path / "out", shards=1, max_side=10)
    found = read_members(tmp_path / "out")
    assert found["small.png"] == PNG
    pixels = decode_image(found["turned.jpg"])
    assert pixels.shape == (5, 10, 3)
    assert pixels[:, 7:].mean() > 250
    assert pixels[:, :3].mean() < 5
    assert b"Exif" not in found["turned.jpg"]


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "bmp"])
def test_resized_images_are_near_to_the_pixels_that_raw_stores(
    tmp_path: Path, extension: str
) -> None:
    y, x = np.mgrid[:60, :90]
    picture = np.stack([x * 2, y * 3, x + y], axis=2).astype(np.uint8)
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / f"in/a.{extension}"), picture)
    shardio.pack(tmp_path / "in", tmp_path / "raw", shards=1, store="raw", resize=30)
    shardio.pack(tmp_path / "in", tmp_path / "out", shards=1, resize=30, quality=95)
    expected = np.load(io.BytesIO(read_members(tmp_path / "raw")["a.rgb.npy"]))
    found = decode_image(read_members(tmp_path / "out")[f"a.{extension}"])
    assert found.shape == (30, 45, 3)
    error = np.abs(found.astype(int) - expected.astype(int)).mean()
    assert error == 0 if extension in {"png", "bmp"} else error < 3


def test_a_quality_encodes_lossy_files_anew_and_no_others(tmp_path: Path) -> None:
    source = make_images(tmp_path / "in", classes=0, per_class=1, size=40, extension="jpg")
    write(source, b__png=PNG)
    sizes = []
    for quality in (None, 95, 30):
        out = tmp_path / f"out{quality}"
        shardio.pack(source, out, shards=1, quality=quality)
        assert read_members(out)["b.png"] == PNG
        sizes.append(len(read_members(out)["image0000.jpg"]))
    assert sizes[2] < sizes[1] != sizes[0]


def test_only_one_image_of_a_sample_can_be_resized(tmp_path: Path) -> None:
    source = write(tmp_path / "in", a__png=PNG, a__right__png=PNG)
    with pytest.raises(shardio.PackError, match="is the second image of the sample"):
        shardio.pack(source, tmp_path / "out", shards=1, fields="png,right.png", resize=1)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a newline": lambda folder: (folder / "a\nb.png").write_bytes(PNG),
    "no UTF-8": lambda folder: (folder / "x\udce9.png").write_bytes(PNG),
    "255 bytes": lambda folder: (folder / f"{'n' * 251}.png").write_bytes(PNG),
    "case": lambda folder: [(folder / name).write_bytes(PNG) for name in ("Q.png", "q.png")],
    "Unicode form": lambda folder: [
        (folder / name).write_bytes(PNG) for name in ("\u00fc.png", "u\u0308.png")
    ],
    "a link that leaves": lambda folder: (folder / "l.png").symlink_to(
        write(folder.parent / "outside", z__png=PNG) / "z.png"
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_names_are_packed_rightly_or_refused_by_name(tmp_path: Path, case: str) -> None:
    source = write(tmp_path / "in", good__png=PNG)
    HOSTILE[case](source)
    names = sorted(path.name for path in source.iterdir())
    shardio.pack(source, tmp_path / "out", shards=1)
    found = read_members(tmp_path / "out")
    assert sorted(found) == names
    assert {*found.values()} == {PNG}
    dataset = shardio.ShardDataset(tmp_path / "out", decode=False)
    assert sorted(f"{sample['__key__']}.png" for sample in dataset) == names


def test_names_too_long_for_ustar_are_read_by_every_reader(
    tmp_path: Path, read_with_webdataset: Callable[[Path], list[dict[str, Any]]]
) -> None:
    names = ["k" * 150, "folder/" * 40 + "k", "short", "\u00fc" * 60]
    samples = [{"__key__": name, "txt": name, "png": PNG} for name in names]
    shardio.pack(samples, tmp_path / "out", shards=1, shuffle=False)
    shard = tmp_path / "out/shard-000000.tar"
    found = read_with_webdataset(shard)
    assert [(each["__key__"], each["txt"].decode(), each["png"]) for each in found] == [
        (name, name, PNG) for name in names
    ]
    ours = [*shardio.ShardDataset(tmp_path / "out", decode=False)]
    assert [(each["__key__"], each["txt"], each["image"]) for each in ours] == [
        (name, name.encode(), PNG) for name in names
    ]
    assert shardio.verify(tmp_path / "out").sound
    scanned = shardio.ShardDataset(shutil.copy(shard, tmp_path / "alone.tar"), decode=False)
    assert [each["__key__"] for each in scanned] == names
    shardio.reshard(tmp_path / "out", tmp_path / "again", shards=1)
    assert (tmp_path / "again/shard-000000.tar").read_bytes() == shard.read_bytes()
    (tmp_path / "unpacked").mkdir()
    command = ["tar", "-xf", str(shard), "-C", str(tmp_path / "unpacked")]
    subprocess.run(command, check=True)
    assert [(tmp_path / "unpacked" / f"{name}.txt").read_text() for name in names] == names


def test_the_limit_on_bytes_of_a_shard_counts_pax_headers(tmp_path: Path) -> None:
    samples = [{"__key__": f"{'k' * 150}{number}", "txt": "x"} for number in range(20)]
    shardio.pack(samples, tmp_path / "out", shard_size=10240)
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.tar")]
    assert len(sizes) == 5
    assert max(sizes) <= 10240


@pytest.mark.parametrize("key", ["../a", "a/../b", "a/.."])
def test_keys_that_tar_does_not_unpack_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(shardio.PackError, match="__key__"):
        shardio.pack([{"__key__": key, "txt": "x"}], tmp_path / "out", shards=1)


class TestKeysOfPrograms:
    def test_samples_without_keys_are_numbered(self, tmp_path: Path) -> None:
        shardio.pack(({"txt": text} for text in "ab"), tmp_path / "out", shards=1, shuffle=False)
        assert [*read_members(tmp_path / "out")] == ["000000000.txt", "000000001.txt"]

    @pytest.mark.parametrize(("first", "what"), [(True, "no"), (False, "a")])
    def test_keys_for_some_samples_alone_are_refused(
        self, tmp_path: Path, first: bool, what: str
    ) -> None:
        samples = [{"__key__": "a", "txt": "a"}, {"txt": "b"}]
        with pytest.raises(
            shardio.PackError,
            match=f"sample 1: it has {what} '__key__', unlike those before it; give every sample",
        ):
            shardio.pack(samples if first else samples[::-1], tmp_path / "out", shards=1)

    def test_a_key_with_a_dot_is_refused_with_the_reason(self, tmp_path: Path) -> None:
        with pytest.raises(
            shardio.PackError,
            match=r"sample 0 \('a/b\.c'\): its '__key__' cannot be a key: the key 'a/b\.c' has a "
            "dot, at which readers of shards end a key: write it with another character",
        ):
            shardio.pack([{"__key__": "a/b.c", "txt": "x"}], tmp_path / "out", shards=1)
        shardio.pack([{"__key__": "a.b/c", "txt": "x"}], tmp_path / "out", shards=1)

    def test_what_webdataset_adds_to_samples_is_left_out(self, tmp_path: Path) -> None:
        sample = {"__key__": "a", "__url__": "x.tar", "__local_path__": None, "txt": b"hi"}
        shardio.pack([sample], tmp_path / "out", shards=1)
        assert read_members(tmp_path / "out") == {"a.txt": b"hi"}

    def test_the_name_of_an_entry_in_place_of_its_field_is_refused(self, tmp_path: Path) -> None:
        class Shout(shardio.FieldType):
            def encode(self, value: Any) -> bytes:
                return str(value).upper().encode()

        fields = {"call": Shout("shout;yell")}
        with pytest.raises(
            shardio.PackError,
            match="'call' is an entry that is read from another field; name the value 'shout' or "
            "'yell', the field of its type",
        ):
            shardio.pack([{"call": "hey"}], tmp_path / "out", shards=1, fields=fields)
        shardio.pack([{"yell": "hey"}], tmp_path / "out", shards=1, fields=fields)
        assert [*read_members(tmp_path / "out").values()] == [b"HEY"]


class TestRemedies:
    """The way out fits the source: there is a file to rename in a folder alone."""

    def test_of_a_program(self, tmp_path: Path) -> None:
        self.refuse([{"png": b"no"}], tmp_path, "fix the sample or leave it out")

    def test_of_a_table(self, tmp_path: Path) -> None:
        source = write(tmp_path / "in", a__png="no", rows__csv="path\na.png\n")
        self.refuse(source, tmp_path, "fix or remove the row, or", manifest=source / "rows.csv")

    def test_of_tars(self, tmp_path: Path) -> None:
        shard = make_shard(tmp_path / "a.tar", {"a": {"png": b"no"}})
        self.refuse(shard, tmp_path, "write the tar again without it")

    def test_of_tfrecord_files(self, tmp_path: Path) -> None:
        record = tmp_path / "a.tfrecord"
        record.write_bytes(b"".join(frame_record(encode_example({"image": [b"no"]}))))
        self.refuse(record, tmp_path, "write the file again without the record")

    def test_of_a_source_of_a_user(self, tmp_path: Path) -> None:
        class Own:
            name, root, classes = "own", "/", None

            def samples(self) -> Iterator[shardio.packing.sources.Problem]:
                yield shardio.packing.sources.Problem(path="here", reason="it is odd")

        self.refuse(Own(), tmp_path, "here: it is odd; fix the sample or leave it out")

    def test_of_a_key_that_no_shard_has(self, tmp_path: Path) -> None:
        shard = make_shard(tmp_path / "a.tar", {"a": {"txt": b"x"}})
        with pytest.raises(shardio.PackError, match=r"b: no shard has .*; leave the key out, or"):
            shardio.reshard(shard, tmp_path / "out", shards=1, keys=["b"])

    def test_errors_keep_their_parts(self, tmp_path: Path) -> None:
        source = write(tmp_path / "in", a__png=PNG, b__json="{}")
        with pytest.raises(shardio.PackError) as found:
            shardio.pack(source, tmp_path / "out", shards=1)
        assert found.value.what.startswith("not a JPEG, PNG, WebP or BMP: it starts with")
        assert found.value.where == "b.json"
        assert (found.value.remedy or "").startswith("rename or remove it, or name the files")
        assert "the type of such files, as types={'wav': Audio()}" in str(found.value)
        shardio.pack(source, tmp_path / "out", shards=1, on_error="skip")
        (row,) = ledger(tmp_path / "out/skipped.jsonl")
        assert row["path"] == "b.json"
        assert row["reason"].startswith("not a JPEG, PNG, WebP or BMP")
        assert row["remedy"].startswith("rename or remove it, or name the files of a sample")

    def refuse(self, source: Any, tmp_path: Path, remedy: str, **options: Any) -> None:
        found = rf"{remedy}.*, or leave all such samples out with on_error='skip'$"
        with pytest.raises(shardio.PackError, match=found):
            shardio.pack(source, tmp_path / "out", shards=1, **options)


@pytest.mark.parametrize("names", [["train", "val"], ["Train", "test", "notes"], ["training"]])
def test_splits_are_no_classes_unless_they_are_said_to_be(names: list[str], tmp_path: Path) -> None:
    source = tmp_path / "in"
    for name in names:
        make_images(source / name, classes=2, per_class=2)
    first = source / min(names)
    with pytest.raises(
        shardio.SituationError,
        match=rf"{re.escape(str(source))}: its '{min(names)}'.* would be classes, and their names "
        rf"are those of splits; pack {re.escape(str(first))} by itself",
    ):
        shardio.pack(source, tmp_path / "out", shards=1)
    assert shardio.pack(first, tmp_path / "one", shards=1).classes == 2
    assert shardio.pack(source, tmp_path / "all", shards=1, labels=False).classes is None
    packed = shardio.pack(source, tmp_path / "named", shards=1, classes=sorted(names))
    assert packed.classes == len(names)


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    source = write(tmp_path / "in", car___1__png=PNG, plane___1__png=PNG, train___1__png=PNG)
    assert shardio.pack(source, tmp_path / "out", shards=1).classes == 3
    source = write(tmp_path / "one", train___1__png=PNG)
    assert shardio.pack(source, tmp_path / "alone", shards=1).classes == 1


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("folder", ["", "a___"])
def test_a_folder_without_images_is_said_to_have_none(
    folder: str, on_error: Any, tmp_path: Path
) -> None:
    source = write(tmp_path / "in", **{f"{folder}b__txt": "hi", f"{folder}c__csv": "x"})
    with pytest.raises(
        shardio.PackError,
        match=rf"{re.escape(str(source))}: it has no images; the first of its files is .*b\.txt; ",
    ):
        shardio.pack(source, tmp_path / "out", shards=1, on_error=on_error)
    assert not (tmp_path / "out").exists()


def test_images_without_an_extension_are_images(tmp_path: Path) -> None:
    source = write(tmp_path / "in", one=PNG, two=PNG)
    assert shardio.pack(source, tmp_path / "out", shards=1).samples == 2


def test_reading_parquet_without_pyarrow_blames_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet.write_table(pa.table({"path": ["a.png"]}), tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(shardio.SituationError) as caught:
        shardio.pack(tmp_path / "t.parquet", tmp_path / "out", shards=1)
    assert str(caught.value) == (
        f"{tmp_path / 't.parquet'}: reading Parquet needs pyarrow; pip install 'shardio[parquet]'"
    )

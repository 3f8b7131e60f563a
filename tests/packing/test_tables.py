"""Tables lose no meaning: numbers stay numbers, rows stay rows, text stays text."""

from __future__ import annotations

import csv
import io
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import strategies as st
from pyarrow import parquet

import shardio
from shardio.cli import commands
from shardio.packing.sources.rows import Table
from shardio.testing import read_members


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Files 0.bin to 11.bin."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.bin").write_bytes(b"%d" % number)
    return folder


def pack(source: Path, table: Path, **options: Any) -> dict[str, bytes]:
    """Members of the packed table; each file is the field bin."""
    out = table.parent / f"out-{len([*table.parent.iterdir()])}"
    options = {"shards": 1, "shuffle": False, "path_columns": ["bin=path"], **options}
    shardio.pack(source, out, manifest=table, **options)
    return read_members(out)


def labels_of(members: dict[str, bytes]) -> list[int]:
    return [int(data) for name, data in members.items() if name.endswith(".cls")]


def write_labels(path: Path, labels: list[Any]) -> Path:
    rows = [{"path": f"{number}.bin", "label": label} for number, label in enumerate(labels)]
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, ["path", "label"])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


class TestLabels:
    @pytest.mark.parametrize(
        "labels",
        [
            [str(number - 1) for number in range(12)],
            [f"{number}.0" for number in range(12)],
            [f" {number}" for number in range(12)],
            ["+4", "007", "1e1", "10.", "-0", "1.2e1", "3\u00a0", "\uff14"],
            ["9223372036854775807", "-9223372036854775808"],
        ],
    )
    def test_whatever_spells_an_integer_keeps_its_number(
        self, source: Path, tmp_path: Path, labels: list[str]
    ) -> None:
        members = pack(source, write_labels(tmp_path / "t.csv", labels))
        values = [Decimal(label.strip()) for label in labels]
        assert labels_of(members) == values
        assert shardio.ShardDataset(tmp_path / "out-2").classes is None

    @pytest.mark.parametrize(
        ("kind", "labels"),
        [
            ("jsonl", [3, "3", 3.0, " 3", -1]),
            ("parquet", [3.0, 3.0, 3.0, 3.0, -1.0]),
            ("parquet", [Decimal("3.00"), Decimal(3), Decimal(3), Decimal(3), Decimal(-1)]),
        ],
    )
    def test_types_are_spellings_too(
        self, source: Path, tmp_path: Path, kind: str, labels: list[Any]
    ) -> None:
        members = pack(source, write_labels(tmp_path / f"t.{kind}", labels))
        assert labels_of(members) == [3, 3, 3, 3, -1]

    def test_a_label_below_zero_is_read_back(self, source: Path, tmp_path: Path) -> None:
        table = write_labels(tmp_path / "t.csv", [-1, 0, 1])
        pack(source, table)
        (batch,) = shardio.ShardDataset(tmp_path / "out-2", batch_size=3)
        assert batch["label"].tolist() == [-1, 0, 1]

    @pytest.mark.parametrize(
        ("stray", "message"),
        [
            ("n/a", r"row 6: its label 'n/a' is not a whole number, .*row 1: '0'"),
            ("", r"row 6: its column 'label' is empty"),
            ("cat", r"row 6: its label 'cat' is not a whole number"),
            ("NaN", r"row 6: its label 'NaN' is not a whole number"),
            ("2.5", r"row 6: its label '2\.5' is not a whole number"),
            (
                "9223372036854775808",
                r"row 6: its label '9223372036854775808' is not a whole number",
            ),
        ],
    )
    def test_one_stray_value_is_an_error_and_the_others_keep_their_numbers(
        self, source: Path, tmp_path: Path, stray: str, message: str
    ) -> None:
        labels = [str(number) if number != 5 else stray for number in range(12)]
        table = write_labels(tmp_path / "t.csv", labels)
        with pytest.raises(shardio.PackError, match=message):
            pack(source, table)
        members = pack(source, table, on_error="skip")
        assert labels_of(members) == [number for number in range(12) if number != 5]

    @pytest.mark.parametrize("kind", ["jsonl", "parquet"])
    @pytest.mark.parametrize("stray", [float(2**53), -1e17])
    def test_a_float_that_may_stand_for_other_integers_is_an_error_with_its_row(
        self, source: Path, tmp_path: Path, stray: float, kind: str
    ) -> None:
        table = write_labels(tmp_path / f"t.{kind}", [1.0, 2.0**53 - 1, stray])
        with pytest.raises(shardio.PackError, match=r"row 3: its label .* is a floating-point"):
            pack(source, table)
        assert labels_of(pack(source, table, on_error="skip")) == [1, 2**53 - 1]

    @pytest.mark.parametrize("number", [2**53 + 1, -(2**63)])
    def test_an_integer_of_64_bits_is_kept(self, source: Path, tmp_path: Path, number: int) -> None:
        assert labels_of(pack(source, write_labels(tmp_path / "t.jsonl", [number]))) == [number]

    @pytest.mark.parametrize("stray", [True, float("nan"), 0.5, None, [1]])
    def test_a_value_that_is_no_label_is_an_error_with_its_row(
        self, source: Path, tmp_path: Path, stray: object
    ) -> None:
        table = write_labels(tmp_path / "t.jsonl", [0, stray, 2])
        with pytest.raises(shardio.PackError, match=r"t\.jsonl, row 2: its (label|column)"):
            pack(source, table)

    def test_most_rows_decide_what_a_column_holds(self, source: Path, tmp_path: Path) -> None:
        table = write_labels(tmp_path / "t.csv", ["dog", "7", "cat", "dog"])
        with pytest.raises(shardio.PackError, match=r"row 2: its label '7' is not a name, .*'dog'"):
            pack(source, table)
        assert labels_of(pack(source, table, on_error="skip")) == [1, 0, 1]
        members = pack(source, table, classes=["7", "cat", "dog"])
        assert labels_of(members) == [2, 0, 1, 2]

    def test_fractions_are_no_classes(self, source: Path, tmp_path: Path) -> None:
        table = write_labels(tmp_path / "t.csv", ["0.5", "0.25"])
        with pytest.raises(shardio.PackError, match=r"row 1: its label '0\.5' is not a whole"):
            pack(source, table)
        assert json.loads(pack(source, table, labels=False)["0_bin.json"]) == {"label": "0.5"}


CELLS = st.text(st.sampled_from('ab1", \t\r\n\u00fc'), max_size=8)


@st.composite
def tables(draw: st.DrawFn) -> list[list[str]]:
    width = draw(st.integers(1, 4))
    names = [f"column {number}" for number in range(width)]
    row = st.lists(CELLS, min_size=width, max_size=width)
    return [names, *draw(st.lists(row, max_size=5))]


def written(rows: list[list[str]], delimiter: str) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter).writerows(rows)
    return stream.getvalue()


class TestQuotes:
    @given(rows=tables(), kind=st.sampled_from(["csv", "tsv"]))
    def test_what_csv_writes_is_read_exactly(
        self, tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], kind: str
    ) -> None:
        path = tmp_path_factory.getbasetemp() / f"written.{kind}"
        text = written(rows, "," if kind == "csv" else "\t")
        path.write_bytes(text.encode())
        found = [[*row.values.values()] for row in Table(path).rows()]
        assert found == rows[1:]

    @given(rows=tables(), data=st.data())
    def test_one_quote_more_or_less_is_always_an_error(
        self, tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], data: st.DataObject
    ) -> None:
        text = written(rows, ",")
        place = data.draw(st.integers(0, len(text)))
        if data.draw(st.booleans()):
            changed = f'{text[:place]}"{text[place:]}'
        else:
            assume(text[place : place + 1] == '"')
            changed = text[:place] + text[place + 1 :]
        path = tmp_path_factory.getbasetemp() / "changed.csv"
        path.write_bytes(changed.encode())
        with pytest.raises(
            shardio.PackError, match=r"changed\.csv, row \d+: .*(quote|cells|same name)"
        ):
            [*Table(path).rows()]

    @pytest.mark.parametrize(
        "captions",
        [
            ["a", '"five inch', "b", "c", "d", "e", '7"', "f"],
            ["a", '"b', 'c"', "d"],
            ["a", '"', "b", "c", '"'],
        ],
    )
    @pytest.mark.parametrize("there", [True, False])
    def test_two_stray_quotes_swallow_no_rows(
        self, source: Path, tmp_path: Path, captions: list[str], there: bool
    ) -> None:
        rows = [f"{number}.bin,{number},{each}" for number, each in enumerate(captions)]
        (tmp_path / "t.csv").write_text("\n".join(["path,label,caption", *rows, ""]))
        if not there:
            for number in range(1, 12):
                (source / f"{number}.bin").unlink()
        for on_error in ("raise", "skip"):
            with pytest.raises(
                shardio.PackError, match=r"row 2: its line 4 lies inside a quoted cell and is a row"
            ):
                pack(source, tmp_path / "t.csv", on_error=on_error)

    def test_an_error_names_the_lines_that_a_quote_swallows(
        self, source: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "t.csv").write_text('path,label\n0.bin,0\n1.bin,"1\n2.bin,2\n3.bin,3\n')
        with pytest.raises(shardio.PackError, match=r"row 2: .*a quote in the lines 3 to 5 is"):
            pack(source, tmp_path / "t.csv")

    def test_a_caption_of_many_lines_with_as_many_commas_as_columns_is_prose(
        self, source: Path, tmp_path: Path
    ) -> None:
        caption = 'a dog,\nred, small, and "wet"\n\nno file, 2, 3'
        rows = [["path", "label", "caption"], ["0.bin", "0", caption], ["1.bin", "1", "b"]]
        (tmp_path / "t.csv").write_bytes(written(rows, ",").encode())
        members = pack(source, tmp_path / "t.csv")
        assert json.loads(members["0_bin.json"]) == {"caption": caption}
        assert len(members) == 6

    def test_empty_lines_are_no_rows(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("\n\npath,label\r\n\n0.bin,0\n\n\n1.bin,1\n\n")
        assert labels_of(pack(source, tmp_path / "t.csv")) == [0, 1]


class TestColumns:
    def test_a_column_without_a_name_is_one_of_the_others(
        self, source: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "t.csv").write_text(",path,label\n0,0.bin,5\n1,1.bin,6\n")
        members = pack(source, tmp_path / "t.csv")
        assert labels_of(members) == [5, 6]
        assert json.loads(members["1_bin.json"]) == {"": "1"}

    def test_a_comma_at_the_end_of_every_line_adds_nothing(
        self, source: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "t.csv").write_text("path,label,\n0.bin,5,\n1.bin,6,\n")
        assert [*pack(source, tmp_path / "t.csv")] == [
            "0_bin.cls",
            "0_bin.bin",
            "1_bin.cls",
            "1_bin.bin",
        ]

    def test_an_index_column_asks_for_no_labels(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text(",path\n0,0.bin\n1,1.bin\n")
        assert json.loads(pack(source, tmp_path / "t.csv")["1_bin.json"]) == {"": "1"}


class TestText:
    @pytest.mark.parametrize(
        ("kind", "text"),
        [
            ("csv", "path,label,caption\n0.bin,0,plain\n1.bin,1,café\n"),
            ("jsonl", '{"path": "0.bin"}\n{"path": "1.bin", "caption": "café"}\n'),
        ],
    )
    def test_text_that_is_not_utf_8_is_refused_with_row_and_byte(
        self, source: Path, tmp_path: Path, kind: str, text: str
    ) -> None:
        table = tmp_path / f"t.{kind}"
        table.write_bytes(text.encode("cp1252"))
        message = r"row 2: its column 'caption' is not UTF-8 text: 0xe9 at byte 3"
        with pytest.raises(shardio.PackError, match=message):
            pack(source, table, labels=kind == "csv")

    @pytest.mark.parametrize(
        "text", ["path,label\n0.bin,chat\n1.bin,café\n", "path,été\n0.bin,1\n1.bin,2\n"]
    )
    def test_names_of_classes_and_columns_are_text_too(
        self, source: Path, tmp_path: Path, text: str
    ) -> None:
        table = tmp_path / "t.csv"
        table.write_bytes(text.encode("cp1252"))
        labels = "label" in text
        with pytest.raises(shardio.PackError, match=r"row \d: its column .* is not UTF-8 text: 0x"):
            pack(source, table, labels=labels)

    def test_half_a_surrogate_pair_is_refused(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "t.jsonl").write_text('{"path": "0.bin", "caption": "x\\ud83d"}\n')
        with pytest.raises(shardio.PackError, match=r"not UTF-8 text: U\+D83D at byte 1"):
            pack(source, tmp_path / "t.jsonl", labels=False)

    def test_a_file_whose_name_is_not_utf_8_is_still_found(
        self, source: Path, tmp_path: Path
    ) -> None:
        (source / "caf\udce9.bin").write_bytes(b"x")
        (tmp_path / "t.csv").write_bytes(b"path\ncaf\xe9.bin\n")
        assert [*pack(source, tmp_path / "t.csv").values()] == [b"x"]


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (
            "image,mask",
            "0.bin,0.png",
            r"name it \(label_column\), pack both files \(path_columns=\['image', "
            r"'mask\.png=mask'\]\), or pack without labels \(labels=False\)",
        ),
        (
            "photo_path,depth_path",
            "0.bin,0.npy",
            r"pass path_columns=\['photo_path', 'depth\.npy=depth_path'\]",
        ),
        ("photo_path,mask", "0.bin,yes", r"pass path_columns=\['photo_path'\]$"),
    ],
)
def test_how_to_pack_images_and_masks_is_said(
    header: str, row: str, message: str, source: Path
) -> None:
    (source / "t.csv").write_text(f"{header}\n{row}\n")
    with pytest.raises(shardio.SituationError, match=message):
        shardio.pack(source / "t.csv", source.parent / "out", shards=1)


def test_a_mask_that_becomes_a_text_of_json_is_said(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    png = cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes()
    for name in ("a.png", "m.png"):
        (source / name).write_bytes(png)
    (source / "t.csv").write_text("image,mask,label\na.png,m.png,1\n")
    shardio.pack(source / "t.csv", tmp_path / "a", shards=1)
    said = "only the files of its column image are packed"
    assert f"{said}; path_columns=['image', 'mask.png=mask'] packs both" in caplog.text
    caplog.clear()
    columns = ["image", "mask.png=mask"]
    shardio.pack(source / "t.csv", tmp_path / "b", shards=1, path_columns=columns)
    assert said not in caplog.text
    assert read_members(tmp_path / "b")["a.mask.png"] == png


class TestTablesOfOneDataset:
    """Two tables of one dataset, packed beside each other."""

    @pytest.fixture
    def tables(self, source: Path) -> Path:
        """A table whose classes are fog, rain and sun, and one that lacks fog."""
        for first, name, labels in (
            (0, "train", ["fog", "rain", "sun"]),
            (6, "val", ["rain", "sun"]),
        ):
            rows = [f"{first + n}.bin,{labels[n % len(labels)]}\n" for n in range(6)]
            (source / f"{name}.csv").write_text("path,label\n" + "".join(rows))
        return source

    def pack(self, tables: Path, *names: str, **options: Any) -> Path:
        for name in names:
            table, out = tables / f"{name}.csv", tables / "two" / name
            shardio.pack(table, out, shards=1, path_columns=["bin=path"], **options)
        return tables / "two"

    def test_classes_that_are_numbered_differently_are_a_problem(
        self, tables: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        two = self.pack(tables, "train")
        assert not caplog.messages
        self.pack(tables, "val")
        where = f"class 'rain' is 0 in {two}/val and 1 in {two}/train"
        assert caplog.messages == [
            f"{where}, beside it; if they are splits of one dataset, pack both with the same list "
            "of names, classes="
        ]
        done = CliRunner().invoke(commands, ["verify", str(two)])
        assert done.exit_code == 1
        assert f"{where}, so that equal labels mean different things; pack them again" in (
            done.stdout
        )
        lines = [
            line.split()
            for line in CliRunner().invoke(commands, ["info", str(two)]).stdout.splitlines()
        ]
        assert ["rain", "5", "2", "3"] in lines
        with pytest.raises(shardio.UsageError, match="different classes"):
            shardio.ShardDataset([two / "train", two / "val"])

    def test_the_same_list_of_classes_is_sound(
        self, tables: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        two = self.pack(tables, "train", "val", classes=["fog", "rain", "sun"])
        assert shardio.verify(two, jobs=1).problems == ()
        assert not caplog.messages


class TestSplitColumn:
    """A column that names the split of each row."""

    def write(self, source: Path, *cells: str) -> Path:
        rows = [f"{n}.bin,{'abc'[n % 3]},{cell}\n" for n, cell in enumerate(cells)]
        (source / "table.csv").write_text("path,label,split\n" + "".join(rows))
        return source / "table.csv"

    def test_each_row_goes_to_its_split_with_the_classes_of_the_table(self, source: Path) -> None:
        table, out = self.write(source, "val", "train", "train", "val", "test"), source / "out"
        found = shardio.pack(table, out, shards=3, path_columns=["bin=path"], split_column="split")
        assert found.splits == {"val": 2, "train": 2, "test": 1}
        for split, keys in {"val": ["0", "3"], "train": ["1", "2"], "test": ["4"]}.items():
            packed = shardio.ShardDataset(out / split, decode=False)
            assert sorted(sample["__key__"] for sample in packed) == [f"{key}_bin" for key in keys]
            assert packed.classes == ("a", "b", "c")
            assert "json" not in packed.fields
        assert shardio.verify(out, jobs=1).sound

    @pytest.mark.parametrize(
        ("cell", "what"),
        [
            ("", "row 2: its column 'split' is empty"),
            ("../val", "row 2: its column 'split' holds '../val', which cannot name the folder"),
            ("val ", "row 2: its column 'split' holds 'val ', which cannot name the folder"),
        ],
    )
    def test_a_cell_that_names_no_split_is_a_bad_row(
        self, source: Path, cell: str, what: str
    ) -> None:
        table, out = self.write(source, "train", cell, "val"), source / "out"
        options: dict[str, Any] = {"path_columns": ["bin=path"], "split_column": "split"}
        with pytest.raises(shardio.PackError, match=re.escape(what)):
            shardio.pack(table, out, shards=2, **options)
        summary = shardio.pack(table, out, shards=2, on_error="skip", **options)
        assert (summary.splits, summary.skipped) == ({"train": 1, "val": 1}, 1)

    @pytest.mark.parametrize(
        ("options", "what"),
        [
            ({"split": {"a": 0.5, "b": 0.5}}, "split and split_column exclude each other"),
            ({"split_column": "no"}, "there is no column 'no'"),
        ],
    )
    def test_what_cannot_divide_the_rows_is_refused(
        self, source: Path, options: dict[str, Any], what: str
    ) -> None:
        table = self.write(source, "train", "val")
        with pytest.raises(shardio.UsageError, match=what):
            shardio.pack(table, source / "out", shards=2, **{"split_column": "split", **options})
        assert not (source / "out").exists()

    def test_a_column_in_place_of_fractions_names_the_option(self, source: Path) -> None:
        arguments = [
            "pack",
            str(self.write(source, "train")),
            str(source / "out"),
            "--split",
            "split",
        ]
        done = CliRunner().invoke(commands, arguments)
        assert done.exit_code == 2
        assert "--split-column takes the column of a table" in done.stderr


class TestMasksBesideImages:
    """Columns whose names say that their files are masks or depth."""

    @pytest.fixture
    def table(self, source: Path) -> Path:
        """Photos with a mask each."""
        pixels = np.zeros((4, 4), np.uint8)
        for name in ("a.jpg", "m.png"):
            (source / name).write_bytes(cv2.imencode(name[1:], pixels)[1].tobytes())
        header = "image,mask,labels_of_road,depth"
        (source / "t.csv").write_text(f"{header}\na.jpg,m.png,m.png,m.png\n")
        return source / "t.csv"

    @pytest.mark.parametrize(
        ("column", "what"),
        [
            (
                "mask",
                "'mask' would become pictures, and its name says mask; pass path_columns=['image', "
                "'mask.png=mask'], or path_columns=['image', 'png=mask'] for pictures",
            ),
            (
                "mask=mask",
                "'mask' would become the field 'mask', plain bytes, and its name says mask; "
                "pass path_columns=['image', 'mask.png=mask'], or types={'mask': Bytes()} for "
                "bytes",
            ),
            ("labels_of_road", "pass path_columns=['image', 'mask.png=labels_of_road']"),
            ("depth", "its name says depth; pass path_columns=['image', 'depth.png=depth']"),
        ],
    )
    def test_what_would_not_be_a_mask_is_refused(self, table: Path, column: str, what: str) -> None:
        with pytest.raises(shardio.UsageError, match=re.escape(what)):
            shardio.pack(
                table, table.parent / "out", shards=1, labels=False, path_columns=["image", column]
            )

    @pytest.mark.parametrize(
        ("column", "types", "field"),
        [
            ("mask.png=mask", {}, "mask.png"),
            ("png=mask", {}, "png"),
            ("mask", {"png": shardio.Image()}, "png"),
            ("mask=mask", {"mask": shardio.Bytes()}, "mask"),
        ],
    )
    def test_what_is_asked_for_is_packed(
        self, table: Path, column: str, types: dict[str, Any], field: str
    ) -> None:
        out = table.parent / "out"
        options: dict[str, Any] = {"path_columns": ["image", column], "types": types}
        shardio.pack(table, out, shards=1, labels=False, **options)
        assert {f"a.{field}", "a.jpg"} <= read_members(out).keys()


def test_a_text_to_predict_names_the_option_for_labels(source: Path) -> None:
    table = source.parent / "t.csv"
    table.write_text("path,weather\n0.bin,fog\n")
    with pytest.raises(shardio.PackError, match=r"holds 'fog', not a number; .*label_column"):
        pack(source, table, target_columns=["weather"])

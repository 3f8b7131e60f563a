"""Tables of any dialect are read as Python reads them, or refused with the line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardio
from shardio.packing.sources.rows import Table
from shardio.testing import read_members

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Files 0.bin to 3.bin."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.bin").write_bytes(b"%d" % number)
    return folder


def pack(source: Path, table: Path, **options: Any) -> dict[str, Any]:
    """Field json of each sample, by key."""
    out = table.parent / f"out-{len([*table.parent.iterdir()])}"
    options = {"shards": 1, "shuffle": False, "path_columns": ["bin=path"], **options}
    shardio.pack(source, out, manifest=table, **options)
    members = read_members(out)
    return {
        name.removesuffix(".json"): json.loads(data)
        for name, data in members.items()
        if name.endswith(".json")
    }


class TestDelimiters:
    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    @pytest.mark.parametrize("kind", ["csv", "tsv"])
    @pytest.mark.parametrize("given_", [True, False])
    def test_the_header_has_the_delimiter(
        self, source: Path, tmp_path: Path, delimiter: str, kind: str, given_: bool
    ) -> None:
        rows = [["path", "label", "a,b"], ["0.bin", "1", "x,y;z\tü|"], ["1.bin", "2", ""]]
        stream = io.StringIO(newline="")
        csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(rows)
        table = tmp_path / f"t.{kind}"
        table.write_bytes(stream.getvalue().encode())
        found = pack(source, table, delimiter=delimiter if given_ else None)
        assert found == {"0_bin": {"a,b": "x,y;z\tü|"}, "1_bin": {"a,b": ""}}

    def test_a_decimal_comma_is_no_delimiter(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("path;label;price\n0.bin;1;1,5\n")
        assert pack(source, tmp_path / "t.csv") == {"0_bin": {"price": "1,5"}}

    def test_a_header_with_two_delimiters_is_refused_until_one_is_named(
        self, source: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "t.csv").write_text("path;label;price, EUR\n0.bin;1;5\n")
        with pytest.raises(
            shardio.SituationError, match=r"both comma and semicolon.*delimiter=','.*in quotes"
        ):
            pack(source, tmp_path / "t.csv")
        found = pack(source, tmp_path / "t.csv", delimiter=";")
        assert found == {"0_bin": {"price, EUR": "5"}}

    def test_commas_in_the_header_of_a_tsv_are_text(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "t.tsv").write_text("path\tlabel\ta, b\n0.bin\t1\tx\n")
        assert pack(source, tmp_path / "t.tsv") == {"0_bin": {"a, b": "x"}}

    def test_a_row_of_another_width_names_line_and_delimiter(
        self, source: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "t.csv").write_text('path,label\n0.bin,"1\n"\n1.bin;2\n')
        with pytest.raises(
            shardio.PackError,
            match=r"row 2: line 4 has 1 cells, the header 2; the delimiter is comma",
        ):
            pack(source, tmp_path / "t.csv")

    @pytest.mark.parametrize("delimiter", ["", ",,", '"', "\n", 7])
    def test_what_cannot_delimit_is_refused(self, tmp_path: Path, delimiter: Any) -> None:
        with pytest.raises(shardio.UsageError, match="delimiter="):
            pack(tmp_path, tmp_path / "t.csv", delimiter=delimiter)

    def test_a_tab_can_be_spelled(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("path\tlabel\ta,b\n0.bin\t1\tx\n")
        assert pack(source, tmp_path / "t.csv", delimiter="tab") == {"0_bin": {"a,b": "x"}}


class TestEncodings:
    @pytest.mark.parametrize("encoding", ENCODINGS)
    @pytest.mark.parametrize("kind", ["csv", "jsonl"])
    def test_what_starts_as_unicode_does_is_unicode(
        self, source: Path, tmp_path: Path, encoding: str, kind: str
    ) -> None:
        text = "path,label,note\n0.bin,1,Zürich 雪\n"
        if kind == "jsonl":
            text = '{"path": "0.bin", "label": 1, "note": "Zürich 雪"}\n'
        (tmp_path / f"t.{kind}").write_bytes(text.encode(encoding))
        assert pack(source, tmp_path / f"t.{kind}") == {"0_bin": {"note": "Zürich 雪"}}

    @pytest.mark.parametrize("encoding", [*ENCODINGS, "cp1252", "latin-1", "shift_jis", "koi8-r"])
    def test_an_encoding_can_be_named(self, source: Path, tmp_path: Path, encoding: str) -> None:
        note = {"shift_jis": "雪", "koi8-r": "снег"}.get(encoding, "café")
        (tmp_path / "t.csv").write_bytes(f"path,label,note\n0.bin,1,{note}\n".encode(encoding))
        assert pack(source, tmp_path / "t.csv", encoding=encoding) == {"0_bin": {"note": note}}

    def test_other_bytes_name_line_and_option(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_bytes("path,label,a\n0.bin,1,x\n1.bin,2,café\n".encode("cp1252"))
        with pytest.raises(
            shardio.PackError,
            match=r"row 2: .*0xe9 at byte 3 of the cell, in line 3.*encoding='latin-1'",
        ):
            pack(source, tmp_path / "t.csv")

    @pytest.mark.parametrize("encoding", ["ascii", "cp1252", "shift_jis"])
    def test_bytes_that_are_not_of_the_named_encoding_name_the_line(
        self, tmp_path: Path, encoding: str
    ) -> None:
        rows = "0.bin,1,x\n" * 40_000
        data = f"path,label,a\n{rows}".encode() + b"1.bin,2,\x81\x8d\x9d\xff\n"
        (tmp_path / "t.csv").write_bytes(data)
        with pytest.raises(shardio.PackError, match=r"t\.csv, line 40002: it is not text in .*"):
            [*Table(tmp_path / "t.csv", encoding).rows()]

    def test_an_encoding_against_the_first_bytes_is_refused(
        self, source: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "t.csv").write_bytes("path,label\n0.bin,1\n".encode("utf-16"))
        for encoding in ("latin-1", "utf-8"):
            with pytest.raises(shardio.SituationError, match="it starts as text in UTF-16 does"):
                pack(source, tmp_path / "t.csv", encoding=encoding)

    @pytest.mark.parametrize("encoding", ["klingon", "hex", "", 3])
    def test_what_encodes_no_text_is_refused(self, tmp_path: Path, encoding: Any) -> None:
        with pytest.raises(shardio.UsageError, match="encoding="):
            pack(tmp_path, tmp_path / "t.csv", encoding=encoding)

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("t.parquet", {"encoding": "utf-8"}),
            ("t.parquet", {"delimiter": ";"}),
            ("t.jsonl", {"delimiter": ";"}),
        ],
    )
    def test_what_does_not_apply_to_a_table_is_refused(
        self, source: Path, tmp_path: Path, name: str, options: dict[str, str]
    ) -> None:
        with pytest.raises(shardio.SituationError, match=f"{next(iter(options))} (does|applies)"):
            pack(source, tmp_path / name, **options)


CELLS = st.text(st.sampled_from('ab1", ;|\t\r\nü雪'), max_size=8)


@st.composite
def tables(draw: st.DrawFn) -> list[list[str]]:
    width = draw(st.integers(2, 4))
    names = [f"column {number}" for number in range(width)]
    row = st.lists(CELLS, min_size=width, max_size=width)
    return [names, *draw(st.lists(row, max_size=5))]


@given(
    rows=tables(),
    delimiter=st.sampled_from(",;|\t"),
    encoding=st.sampled_from(ENCODINGS),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_rows_are_what_the_csv_module_reads(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[list[str]],
    delimiter: str,
    encoding: str,
    ending: str,
) -> None:
    path = tmp_path_factory.getbasetemp() / "dialect.csv"
    stream = io.StringIO(newline="")
    if ending == "\r\n":
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    else:  # where the module leaves a bare \r without quotes
        csv.writer(
            stream, delimiter=delimiter, lineterminator=ending, quoting=csv.QUOTE_ALL
        ).writerows(rows)
    path.write_bytes(stream.getvalue().encode(encoding))
    with path.open(encoding=encoding, newline="") as opened:
        expected = [*csv.reader(opened, delimiter=delimiter)]
    assert [[*row.values.values()] for row in Table(path).rows()] == expected[1:]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=20)
@given(rows=st.lists(st.dictionaries(st.sampled_from("abc"), VALUES), min_size=1, max_size=4))
def test_json_lines_come_back_as_the_json_module_reads_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "in").mkdir()
    (folder / "in/x.bin").write_bytes(b"x")
    written = [{"path": "x.bin", "id": f"k{number}", **row} for number, row in enumerate(rows)]
    table = folder / "t.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in written))
    found = pack(folder / "in", table, labels=False, key_column="id")
    assert found == {f"k{number}": row for number, row in enumerate(rows) if row}


class TestJsonLines:
    def test_the_first_row_is_no_measure_of_the_others(self, source: Path, tmp_path: Path) -> None:
        rows: list[dict[str, Any]] = [{"path": "0.bin", "a": 1}, {"path": "1.bin", "label": 3}]
        table = tmp_path / "t.jsonl"
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(shardio.PackError, match="row 1: its column 'label' is empty"):
            pack(source, table)
        assert pack(source, table, on_error="skip") == {}
        assert read_members(tmp_path / "out-2")["1_bin.cls"] == b"3"

    def test_a_name_that_comes_twice_in_an_object_is_refused(
        self, source: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "t.jsonl").write_text('{"path": "0.bin", "a": {"b": 1, "b": 2}}\n')
        with pytest.raises(shardio.PackError, match=r"row 1: it has the name 'b' twice"):
            pack(source, tmp_path / "t.jsonl", labels=False)


def test_several_rows_of_one_file_name_both_rows(source: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label,x\n0.bin,0,1\n1.bin,0,2\n0.bin,1,5\n")
    with pytest.raises(
        shardio.PackError, match=r"t\.csv, row 3: its key .* as that of 0\.bin.*t\.csv, row 1\)"
    ):
        pack(source, tmp_path / "t.csv")


def test_columns_choose_what_the_field_json_has(source: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label,a,b,c\n0.bin,1,x,y,z\n")
    assert pack(source, tmp_path / "t.csv", columns=["c", "path"]) == {
        "0_bin": {"path": "0.bin", "c": "z"}
    }
    with pytest.raises(shardio.SituationError, match=r"no column 'd'; its columns are path, label"):
        pack(source, tmp_path / "t.csv", columns=["d"])
    with pytest.raises(shardio.UsageError, match="columns must be a list"):
        pack(source, tmp_path / "t.csv", columns="abc")


def test_no_columns_make_no_json(source: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label,a\n0.bin,1,x\n")
    assert pack(source, tmp_path / "t.csv", columns=[]) == {}


def test_a_table_is_a_source_whose_paths_start_from_its_folder(source: Path) -> None:
    (source / "t.csv").write_text("path,label,a\n0.bin,1,x\n")
    out = source / "out"
    shardio.pack(source / "t.csv", out, shards=1, path_columns=["bin=path"])
    assert [*read_members(out)] == ["0_bin.cls", "0_bin.bin", "0_bin.json"]


def test_whole_numbers_are_keys(source: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"path": "0.bin", "id": 17, "a": 1}\n')
    assert pack(source, tmp_path / "t.jsonl", key_column="id", labels=False) == {"17": {"a": 1}}

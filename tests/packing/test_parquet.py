"""Parquet keeps the meaning of its types in a packed dataset, or is refused with column and row."""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

import shardio
from shardio.testing import read_members

UTC = datetime.timezone.utc


def png(value: int) -> bytes:
    return cv2.imencode(".png", np.full((2, 3, 3), value, np.uint8))[1].tobytes()


def write(folder: Path, rows: int = 2, **columns: Any) -> Path:
    """A table beside its files."""
    for number in range(rows):
        (folder / f"{number}.png").write_bytes(png(number))
    paths = [f"{number}.png" for number in range(rows)]
    parquet.write_table(pa.table({"path": paths, **columns}), folder / "t.parquet")
    return folder / "t.parquet"


def pack(table: Path, **options: Any) -> dict[str, bytes]:
    out = table.parent / f"out-{len([*table.parent.iterdir()])}"
    shardio.pack(table, out, **{"shards": 1, "shuffle": False, "labels": False, **options})
    return read_members(out)


def values(members: dict[str, bytes], column: str) -> list[Any]:
    return [
        json.loads(data).get(column) for name, data in members.items() if name.endswith(".json")
    ]


TIME = datetime.datetime(2024, 2, 29, 12, 30, 0, 250_000)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([datetime.date(2024, 2, 29), None]), ["2024-02-29", None]),
        (pa.array([datetime.date(2024, 2, 29), None], pa.date64()), ["2024-02-29", None]),
        (pa.array([TIME, None]), ["2024-02-29 12:30:00.250000", None]),
        (pa.array([1, None], pa.timestamp("ns")), ["1970-01-01 00:00:00.000000001", None]),
        (
            pa.array([TIME.replace(tzinfo=UTC), None], pa.timestamp("us", "Asia/Tokyo")),
            ["2024-02-29 12:30:00.250000Z", None],
        ),
        (pa.array([TIME.time(), None], pa.time64("us")), ["12:30:00.250000", None]),
        (pa.array([[TIME.date()], None]), [["2024-02-29"], None]),
        (pa.array([{"a": [TIME.date()], "b": 1}, None]), [{"a": ["2024-02-29"], "b": 1}, None]),
        (pa.array([Decimal("0.10"), Decimal("-3.00")]), [0.1, -3]),
        (pa.array([Decimal(10**30), None]), [10**30, None]),
        (pa.array([1.5, None], pa.float16()), [1.5, None]),
        (pa.array([[[1, 2], []], []]), [[[1, 2], []], []]),
        (pa.array(["x", None]).dictionary_encode(), ["x", None]),
        (pa.array([True, None]), [True, None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_what_json_can_hold_is_kept(tmp_path: Path, array: pa.Array, expected: list[Any]) -> None:
    assert values(pack(write(tmp_path, x=array)), "x") == expected


@pytest.mark.parametrize(
    "array",
    [
        pa.array([1.0, math.nan]),
        pa.array([1.0, -math.inf]),
        pa.array([[1.0], [math.nan]]),
        pa.array([None, b"\x00\xff"]),
        pa.array([None, {"a": b"x"}]),
        pa.array([None, Decimal("0.12345678901234567890")]),
        pa.array([None, 3], pa.duration("ms")),
        pa.array([None, 3], pa.duration("ns")),
        pa.array([None, 10**17], pa.timestamp("ms")),
    ],
    ids=lambda value: str(value.type),
)
def test_what_json_cannot_hold_names_column_row_and_remedy(tmp_path: Path, array: pa.Array) -> None:
    table = write(tmp_path, x=array, y=["a", "b"])
    with pytest.raises(
        shardio.PackError, match=r"row 2: its column 'x' holds .*choose (the|other) columns"
    ) as caught:
        pack(table)
    assert len(str(caught.value)) < 800
    assert values(pack(table, columns=["y"]), "y") == ["a", "b"]


CELLS = st.fixed_dictionaries(
    {
        "whole": st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
        "float": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "text": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        "list": st.none() | st.lists(st.none() | st.integers(0, 9), max_size=3),
        "struct": st.none() | st.fixed_dictionaries({"a": st.booleans(), "b": st.text("xy")}),
    }
)
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "whole": pa.int64(),
        "float": pa.float64(),
        "text": pa.string(),
        "list": pa.list_(pa.int64()),
        "struct": pa.struct([("a", pa.bool_()), ("b", pa.string())]),
    }
)


@settings(max_examples=20)
@given(rows=st.lists(CELLS, min_size=1, max_size=4))
def test_rows_come_back_as_pyarrow_reads_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    written = [{"path": f"{number}.png", **row} for number, row in enumerate(rows)]
    for row in written:
        (folder / row["path"]).write_bytes(png(0))
    parquet.write_table(pa.Table.from_pylist(written, SCHEMA), folder / "t.parquet")
    found = [
        json.loads(data) for name, data in pack(folder / "t.parquet").items() if "json" in name
    ]
    assert found == rows


def hub(folder: Path, images: list[Any], **columns: Any) -> Path:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), **columns})
    parquet.write_table(table, folder / "train.parquet")
    return folder / "train.parquet"


class TestEmbeddedImages:
    def test_bytes_are_the_image_and_their_path_is_its_name(self, tmp_path: Path) -> None:
        images = [
            {"bytes": png(1), "path": "cats/a.b.jpg"},
            {"bytes": png(2), "path": None},
            {"bytes": png(3), "path": "/root/.cache/z.png"},
        ]
        found = pack(hub(tmp_path, images, label=[3, -1, 0]), labels=True)
        assert found == {
            "cats/a_b.cls": b"3",
            "cats/a_b.png": png(1),
            "000000001.cls": b"-1",
            "000000001.png": png(2),
            "z.cls": b"0",
            "z.png": png(3),
        }

    def test_without_bytes_the_path_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(png(7))
        assert pack(hub(tmp_path, [{"bytes": None, "path": "a.png"}])) == {"a.png": png(7)}

    def test_bytes_alone_are_an_image_too(self, tmp_path: Path) -> None:
        table = pa.table({"img": [png(1), png(2)], "id": ["x", "y"]})
        parquet.write_table(table, tmp_path / "t.parquet")
        found = pack(tmp_path / "t.parquet", path_columns=["img"], key_column="id")
        assert found == {"x.png": png(1), "y.png": png(2)}

    def test_other_files_need_the_name_of_their_field(self, tmp_path: Path) -> None:
        table = hub(tmp_path, [{"bytes": b"fLaC", "path": "a.flac"}])
        with pytest.raises(shardio.PackError, match=r"train\.parquet, row 1: ") as caught:
            pack(table)
        assert len(str(caught.value)) < 800
        assert pack(table, path_columns=["flac=image"]) == {"a_flac.flac": b"fLaC"}

    @pytest.mark.parametrize("image", [None, {"bytes": None, "path": None}])
    def test_a_row_without_image_is_an_error(self, tmp_path: Path, image: Any) -> None:
        table = hub(tmp_path, [{"bytes": png(1), "path": "a.png"}, image])
        with pytest.raises(shardio.PackError, match=r"row 2: its column 'image' is empty"):
            pack(table)

    def test_an_image_that_is_broken_names_its_row(self, tmp_path: Path) -> None:
        table = hub(tmp_path, [{"bytes": png(1), "path": "a.png"}, {"bytes": b"x" * 999}])
        with pytest.raises(shardio.PackError, match=r"train\.parquet, row 2: ") as caught:
            pack(table)
        assert len(str(caught.value)) < 800


def test_columns_with_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["path", "path"])
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(shardio.PackError, match="two columns have the same name 'path'"):
        pack(tmp_path / "t.parquet")


def write_hub(folder: Path, labels: list[int], feature: Any) -> Path:
    """A table as the library datasets writes it."""
    images = [{"bytes": png(at), "path": f"{at}.png"} for at in range(len(labels))]
    table = pa.table({"image": images, "label": labels})
    about = {"info": {"features": {"image": {"_type": "Image"}, "label": feature}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    parquet.write_table(table, folder / "t.parquet")
    return folder / "t.parquet"


NAMES = {"_type": "ClassLabel", "names": ["dog", "cat", "ant"]}


def test_the_hubs_class_names_are_the_names_of_the_numbers(tmp_path: Path) -> None:
    """Also of classes that no row has; -1 stands for no class there."""
    table = write_hub(tmp_path, [1, 0, -1], NAMES)
    shardio.pack(table, tmp_path / "out", shards=1, shuffle=False)
    opened = shardio.ShardDataset(tmp_path / "out")
    assert opened.classes == ("dog", "cat", "ant")
    assert [int(sample["label"]) for sample in opened] == [1, 0, -1]


def test_a_number_without_one_of_the_hubs_names_is_refused(tmp_path: Path) -> None:
    table = write_hub(tmp_path, [1, 3], NAMES)
    with pytest.raises(shardio.PackError, match="row 2: its label '3' is not one of the 3 classes"):
        shardio.pack(table, tmp_path / "out", shards=1)


@pytest.mark.parametrize("feature", [{"_type": "Value", "dtype": "int64"}, None, 3, []])
def test_other_features_of_the_hub_name_no_classes(feature: Any, tmp_path: Path) -> None:
    table = write_hub(tmp_path, [1, 7], feature)
    shardio.pack(table, tmp_path / "out", shards=1)
    assert shardio.ShardDataset(tmp_path / "out").classes is None


@pytest.mark.parametrize("names", [[], ["a", 3], "ab", ["a", "a"], None])
def test_class_names_that_are_none_are_refused(names: Any, tmp_path: Path) -> None:
    table = write_hub(tmp_path, [1, 0], {"_type": "ClassLabel", "names": names})
    with pytest.raises(shardio.ShardioError, match=r"class"):
        shardio.pack(table, tmp_path / "out", shards=1)

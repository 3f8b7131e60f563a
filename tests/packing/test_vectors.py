"""Numbers to predict and sets of classes become arrays that batches hold as tensors."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

import shardio
from shardio.packing.sources.vectors import Targets


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Files 0.bin to 3.bin."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.bin").write_bytes(b"%d" % number)
    return folder


def write(source: Path, kind: str, **columns: list[Any]) -> Path:
    """A table of the first files."""
    count = len(next(iter(columns.values())))
    table = {"path": [f"{number}.bin" for number in range(count)], **columns}
    rows = [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]
    path = source.parent / f"t.{kind}"
    if kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, [*table])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pa.table(table), path)
    return path


def pack(source: Path, table: Path, **options: Any) -> Path:
    out = source.parent / f"out-{len([*source.parent.iterdir()])}"
    options = {"shards": 1, "shuffle": False, "path_columns": ["bin=path"], **options}
    shardio.pack(source, out, manifest=table, **options)
    assert not shardio.verify(out, deep=True).problems
    return out


def batch_of(out: Path, field: str) -> torch.Tensor:
    (batch,) = shardio.ShardDataset(out, batch_size=4, fields={"x": field})
    found: torch.Tensor = batch["x"][batch["valid"]]
    return found


KINDS = ["csv", "jsonl", "parquet"]


class TestTargets:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_column_becomes_a_scalar(self, source: Path, kind: str) -> None:
        table = write(source, kind, price=[0.1, -2.5, 3.0, 1e10])
        found = batch_of(pack(source, table, target_columns=["price"]), "price.npy")
        assert torch.equal(found, torch.tensor([0.1, -2.5, 3.0, 1e10], dtype=torch.float32))

    @pytest.mark.parametrize("kind", KINDS)
    def test_several_columns_become_a_vector(self, source: Path, kind: str) -> None:
        table = write(source, kind, x=[1, 2], y=[0.5, 0.25], label=[7, 8])
        out = pack(source, table, target_columns=["point=y,x"], target_dtype="float64")
        assert torch.equal(batch_of(out, "point.npy"), torch.tensor([[0.5, 1], [0.25, 2]]).double())
        assert batch_of(out, "cls").tolist() == [7, 8]

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_column_of_lists_becomes_a_vector(self, source: Path, kind: str) -> None:
        table = write(source, kind, v=[[[1, 2.5], [3, 4]], [[5, 6], [7, 8]]])
        found = batch_of(pack(source, table, target_columns=["v"]), "v.npy")
        assert torch.equal(found, torch.tensor([[[1, 2.5], [3, 4]], [[5, 6], [7, 8]]]))

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("", "holds '', not a number"),
            ("n/a", "holds 'n/a', not a number"),
            ("1,5", "holds '1,5', not a number"),
            ("[1, [2]]", "holds lists of several lengths"),
            ("16777217", "holds 16777217, which float32 cannot hold; pass target_dtype='float64'"),
            ("1e39", r"holds 1e39, which float32 cannot hold"),
            ("1e999", "holds 1e999, which float32 cannot hold"),
            ("1e-60", r"holds 1e-60, which float32 cannot hold"),
        ],
    )
    def test_what_is_no_number_names_row_and_column(
        self, source: Path, value: str, message: str
    ) -> None:
        table = write(source, "csv", price=["1", value])
        with pytest.raises(
            shardio.PackError, match=rf"t\.csv, row 2: its column 'price' {message}"
        ):
            pack(source, table, target_columns=["price"])

    def test_a_greater_dtype_holds_more(self, source: Path) -> None:
        table = write(source, "csv", price=["16777217", "1e39"])
        out = pack(source, table, target_columns=["price"], target_dtype="float64")
        assert batch_of(out, "price.npy").tolist() == [16777217, 1e39]

    def test_null_is_no_number_and_nan_is_one(self, source: Path) -> None:
        out = pack(source, write(source, "parquet", x=[1.0, math.nan]), target_columns=["x"])
        assert torch.isnan(batch_of(out, "x.npy")).tolist() == [False, True]
        with pytest.raises(shardio.PackError, match=r"row 2: its column 'x' holds None, not a"):
            pack(source, write(source, "parquet", x=[1.0, None]), target_columns=["x"])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("z", "there is no column 'z'; the columns are path, x, rgb"),
            ("x,rgb", "'x,rgb' does not say what field.*; write it as target=x,rgb"),
            ("a=x,x", "names a column twice"),
            ("a b=x", "'a b.npy' cannot be the name of a field of arrays"),
            ("rgb", "'rgb.npy' cannot be the name of a field of arrays; write it as target=rgb"),
        ],
    )
    def test_a_field_that_cannot_be_is_refused(self, source: Path, text: str, message: str) -> None:
        table = write(source, "csv", x=["1"], rgb=["2"])
        with pytest.raises(shardio.UsageError, match=message):
            pack(source, table, target_columns=[text])

    def test_two_fields_of_one_name_are_refused(self, source: Path) -> None:
        table = write(source, "csv", x=["1"], y=["2"])
        with pytest.raises(shardio.UsageError, match=r"two options name the field 'a\.npy'"):
            pack(source, table, target_columns=["a=x"], multilabel_columns=["a.npy=y"])


@given(
    value=st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_a_target_is_the_nearest_float_and_a_whole_number_is_exact(
    value: float, dtype: Any
) -> None:
    with np.errstate(all="ignore"):
        try:
            nearest = np.dtype(dtype).type(float(value))
        except OverflowError:
            nearest = np.dtype(dtype).type(math.inf)
    made = float(nearest)
    fits = math.isfinite(made) and (made == 0) == (value == 0)
    if value == int(value) and abs(value) < 1 << 64:
        fits = made == value
    targets = Targets(field="x.npy", columns=("x",), dtype=dtype)
    for given_ in (value, repr(value)):
        if not fits:
            with pytest.raises(shardio.ShardioError, match="cannot hold"):
                targets.encode({"x": given_})
            continue
        data = targets.encode({"x": given_}).origin.data  # type: ignore[union-attr]
        assert data.endswith(nearest.tobytes())


class TestSets:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("values", [(0, 1), (False, True), (0.0, 1.0)])
    def test_columns_of_flags_become_a_vector(
        self, source: Path, kind: str, values: tuple[Any, Any]
    ) -> None:
        off, on = values
        table = write(source, kind, cat=[on, off], dog=[on, on], emu=[off, off])
        out = pack(source, table, multilabel_columns=["tags=cat,dog,emu"])
        found = batch_of(out, "tags.npy")
        assert found.dtype == torch.uint8
        assert found.tolist() == [[1, 1, 0], [0, 1, 0]]
        assert shardio.ShardDataset(out).classes == ("cat", "dog", "emu")

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_column_of_lists_of_numbers_becomes_a_vector(self, source: Path, kind: str) -> None:
        table = write(source, kind, tags=[[0, 3], [2]])
        found = batch_of(pack(source, table, multilabel_columns=["tags"]), "tags.npy")
        assert found.tolist() == [[1, 0, 0, 1], [0, 0, 1, 0]]

    def test_numbers_with_spaces_between_them_are_a_list(self, source: Path) -> None:
        table = write(source, "csv", tags=["0 2", "[]", "1"])
        out = pack(source, table, multilabel_columns=["tags"], classes=["a", "b", "c", "d"])
        found = [
            sample["x"].tolist() for sample in shardio.ShardDataset(out, fields={"x": "tags.npy"})
        ]
        assert found == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]

    @pytest.mark.parametrize("kind", ["jsonl", "parquet"])
    def test_names_of_given_classes_are_their_numbers(self, source: Path, kind: str) -> None:
        table = write(source, kind, tags=[["dog", "cat"], ["emu"]])
        out = pack(source, table, multilabel_columns=["tags"], classes=["emu", "cat", "dog"])
        assert batch_of(out, "tags.npy").tolist() == [[0, 1, 1], [1, 0, 0]]
        assert shardio.ShardDataset(out).classes == ("emu", "cat", "dog")

    @pytest.mark.parametrize(
        ("options", "column", "message"),
        [
            (["s=a,b"], ["1", "2"], "'a' holds '2', not 0 or 1"),
            (["s=a,b"], ["1", ""], "'a' holds '', not 0 or 1"),
            (["s=a,b"], ["1", "0.5"], r"'a' holds '0\.5', not 0 or 1"),
            (["a"], ["1", ""], "'a' holds '', not a list of classes; write it as"),
            (["a"], ["1", "cat dog"], "'a' holds 'cat dog', not a list of classes"),
            (["a"], ["1", '["cat"]'], "'a' lists 'cat', which is not one of .*; classes lists"),
            (["a"], ["1", "[-1]"], "'a' lists -1, which is not one of"),
            (["a"], ["1", "[1, 1]"], "'a' lists 1 twice"),
            (["a"], ["1", "[true]"], "'a' lists True, which is not one of"),
            (["a"], ["1", "[9999999]"], "'a' lists 9999999, which is not one of"),
        ],
    )
    def test_what_is_no_set_names_row_and_column(
        self, source: Path, options: list[str], column: list[str], message: str
    ) -> None:
        table = write(source, "csv", a=column, b=["0", "0"])
        with pytest.raises(shardio.PackError, match=rf"t\.csv, row 2: its column {message}"):
            pack(source, table, multilabel_columns=options)

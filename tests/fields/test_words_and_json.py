"""Text and JSON: encodings, and values of programs that JSON keeps or that are refused."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shardio
from shardio.testing import make_shard

VALUE = {"city": "Zürich", "n": [1, 2.5, None, True]}
WRITTEN = json.dumps(VALUE, ensure_ascii=False)
MARKED = ["utf-8-sig", "utf-16", "utf-32"]


def big_endian(text: str) -> bytes:
    return ("\ufeff" + text).encode("utf-16-be")


def read(folder: Path, **fields: bytes) -> dict[str, Any]:
    (sample,) = shardio.ShardDataset(make_shard(folder / "a.tar", {"a": fields}))
    return sample


@pytest.mark.parametrize("encoding", ["utf-8", *MARKED, "utf-16-le", "utf-16-be", "utf-32-be"])
def test_json_is_read_in_every_encoding_of_unicode(tmp_path: Path, encoding: str) -> None:
    assert read(tmp_path, json=WRITTEN.encode(encoding))["json"] == VALUE


@pytest.mark.parametrize("encoding", MARKED)
def test_a_byte_order_mark_names_the_encoding_of_a_text(tmp_path: Path, encoding: str) -> None:
    assert read(tmp_path, txt="Zürich ".encode(encoding))["txt"] == "Zürich "
    assert read(tmp_path, txt=big_endian("Zürich "))["txt"] == "Zürich "


@pytest.mark.parametrize(
    ("field", "data", "message"),
    [
        ("txt", "Zürich".encode("cp1252"), "not UTF-8 text: invalid start byte at byte 1"),
        ("txt", "Zürich".encode("utf-16")[:-1], "not UTF-16 text: truncated data"),
        ("json", WRITTEN.encode("cp1252"), "not UTF-8 text"),
        ("json", b"\xff\xfe\x00\xd8\x00\x00", "not UTF-16 text: illegal UTF-16 surrogate"),
    ],
)
def test_other_encodings_are_refused_when_read_and_when_packed(
    tmp_path: Path, field: str, data: bytes, message: str
) -> None:
    with pytest.raises(shardio.SampleError, match=f"sample 'a', field '{field}'.*{message}"):
        read(tmp_path, **{field: data})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"a.{field}").write_bytes(data)
    with pytest.raises(shardio.PackError, match=message):
        shardio.pack(tmp_path / "in", tmp_path / "out", shards=1, fields=field, labels=False)


def test_packing_leaves_the_bytes_of_text_and_json_as_they_are(tmp_path: Path) -> None:
    data = {"json": WRITTEN.encode("utf-16"), "txt": b"\xef\xbb\xbfone"}
    shardio.pack([{"__key__": "a", **data}], tmp_path / "out", shards=1)
    assert not shardio.verify(tmp_path / "out", deep=True).findings
    (stored,) = shardio.ShardDataset(tmp_path / "out", decode=False)
    assert {name: stored[name] for name in data} == data
    (sample,) = shardio.ShardDataset(tmp_path / "out")
    assert (sample["json"], sample["txt"]) == (VALUE, "one")


def packed(folder: Path, **values: Any) -> dict[str, Any]:
    shardio.pack([{"__key__": "a", **values}], folder / "out", shards=1)
    (sample,) = shardio.ShardDataset(folder / "out")
    return sample


def test_a_text_that_begins_with_a_mark_keeps_it(tmp_path: Path) -> None:
    assert packed(tmp_path, txt="\ufeffone")["txt"] == "\ufeffone"


def test_numbers_of_numpy_and_torch_in_json_are_numbers(tmp_path: Path) -> None:
    value = {
        "id": np.int64(3),
        "share": np.float32(0.1),
        "is": np.bool_(True),
        "boxes": np.arange(4.0).reshape(2, 2),
        "none": np.zeros(0),
        "ids": [torch.tensor([1, 2]), torch.tensor(5)],
    }
    assert packed(tmp_path, json=value)["json"] == {
        "id": 3,
        "share": float(np.float32(0.1)),
        "is": True,
        "boxes": [[0.0, 1.0], [2.0, 3.0]],
        "none": [],
        "ids": [[1, 2], 5],
    }


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"price": Decimal("1.10")}, "Object of type Decimal is not JSON serializable"),
        ([datetime.date(2026, 1, 1)], "Object of type date is not JSON serializable"),
        ([np.datetime64("2026-01-01")], "Object of dtype datetime64.* is not JSON serializable"),
        ([np.array([b"x"])], "Object of dtype .* is not JSON serializable"),
        ({1: "a", "1": "b"}, "the key 1 is not text, as all keys of JSON are"),
        ([float("nan")], "not JSON compliant"),
        ([np.float64("inf")], "not JSON compliant"),
        (nested(101), "nested more than 100 deep"),
        ([b"\0" * 100_000], "Object of type bytes"),
    ],
)
def test_what_json_cannot_keep_is_refused_by_key_and_field(
    tmp_path: Path, value: Any, message: str
) -> None:
    with pytest.raises(shardio.PackError, match=f"'a'.*field 'json' cannot hold.*{message}") as it:
        packed(tmp_path, json=value)
    assert len(str(it.value)) < 600


def test_json_as_deep_as_readers_accept_is_packed(tmp_path: Path) -> None:
    assert packed(tmp_path, json=nested(100))["json"] == nested(100)

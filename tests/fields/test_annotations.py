"""Boxes and points: what contradicts the data is refused, and flat lists have a width."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardio
from shardio.errors import CodecError
from shardio.testing import make_shard


def test_flat_key_points_need_their_width() -> None:
    flat = json.dumps([[1, 2, 2, 30, 40, 1], [5, 6, 0, 7, 8, 2]]).encode()
    with pytest.raises(CodecError, match=r"\[2, 6\], and must be .* give Points width=3"):
        shardio.Points().decode(flat)
    points = shardio.Points(width=3).decode(flat)
    assert points.shape == (2, 2, 3)
    assert points[1].tolist() == [[5, 6, 0], [7, 8, 2]]
    with pytest.raises(CodecError, match="lists of 4 values do not divide into points of 3"):
        shardio.Points(width=3).decode(b"[[1, 2, 2, 3]]")


def test_a_format_that_contradicts_the_recorded_one_is_refused(tmp_path: Path) -> None:
    picture = np.zeros((30, 40, 3), np.uint8)
    data = json.dumps({"boxes": [[4.0, 5, 9, 20]]}).encode()
    samples = [{"__key__": f"{n}", "json": data, "rgb.npy": picture} for n in range(2)]
    fields: Any = {"json": shardio.Boxes("json", format="xywh"), "rgb.npy": "rgb.npy"}
    shardio.pack(samples, tmp_path / "out", shards=1, fields=fields)
    (batch,) = shardio.ShardDataset(tmp_path / "out", batch_size=2)
    assert batch["json"][0]["boxes"].tolist() == [[4, 5, 13, 25]]
    wrong: Any = {"x": shardio.Boxes("json")}
    reads: Any = (shardio.ShardDataset, shardio.verify, shardio.info)
    for read in reads:
        with pytest.raises(shardio.UsageError, match="recorded with format='xywh', not 'xyxy'"):
            read(tmp_path / "out", fields=wrong)


class Upper(shardio.FieldType):
    """Uses a method that bytes have and views of memory do not."""

    def decode(self, data: Any) -> str:
        return str(data.decode().upper())


def test_a_type_of_a_user_gets_bytes_wherever_data_come_from(tmp_path: Path) -> None:
    samples = {f"{n}": {"word": b"abc", "bin": b"x" * 9_000} for n in range(40)}
    shard = make_shard(tmp_path / "a.tar", samples)
    fields: Any = {"t": Upper("word"), "b": shardio.Bytes("bin")}
    for chosen in ({"t": fields["t"]}, fields):
        (batch,) = shardio.ShardDataset(shard, fields=chosen, batch_size=40)
        assert batch["t"] == ["ABC"] * 40
    assert not shardio.verify(shard, deep=True, fields={"t": Upper("word")}).findings
    assert Upper().decode(memoryview(b"abc")) == "ABC"

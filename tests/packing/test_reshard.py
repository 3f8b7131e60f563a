"""Existing shards, divided anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardio
from shardio.indexing.manifest import read_manifest
from shardio.testing import make_shard


def samples_of(folder: Path | str) -> dict[str, dict[str, Any]]:
    dataset = shardio.ShardDataset(folder, decode=False)
    return {sample["__key__"]: {**sample} for sample in dataset}


def order_of(folder: Path) -> list[str]:
    return [sample["__key__"] for sample in shardio.ShardDataset(folder, decode=False)]


@settings(max_examples=8)
@given(st.integers(1, 20), st.booleans(), st.integers(1, 20))
def test_reading_what_was_resharded_is_reading_what_was_there(
    packed: Path,
    tmp_path_factory: pytest.TempPathFactory,
    shards: int,
    shuffle: bool,
    others: int,
) -> None:
    folder = tmp_path_factory.mktemp("reshard")
    shardio.reshard(packed, folder / "a", shards=shards, shuffle=shuffle, jobs=1)
    assert len(read_manifest(folder / "a").shards) == shards
    assert samples_of(folder / "a") == samples_of(packed)
    assert (order_of(folder / "a") == order_of(packed)) != shuffle
    assert shardio.ShardDataset(folder / "a").classes == shardio.ShardDataset(packed).classes
    shardio.reshard(folder / "a", folder / "b", shards=others, jobs=1)
    shardio.reshard(folder / "b", folder / "c", shards=shards, jobs=1)
    for path in (folder / "a").glob("*.tar"):
        assert path.read_bytes() == (folder / "c" / path.name).read_bytes()


def test_folders_are_merged_in_order(packed: Path, tmp_path: Path) -> None:
    parts = [packed / f"shard-{number:06d}.tar" for number in range(8)]
    shardio.reshard(parts[:3], tmp_path / "a", shards=1)
    shardio.reshard(parts[3:], tmp_path / "b", shards=1)
    summary = shardio.reshard(
        [tmp_path / "a", tmp_path / "b"], tmp_path / "c", samples_per_shard=75
    )
    assert (summary.samples, summary.shards) == (600, 8)
    for path in parts:
        assert path.read_bytes() == (tmp_path / "c" / path.name).read_bytes()


def test_a_key_that_comes_twice_is_refused_or_left_out(packed: Path, tmp_path: Path) -> None:
    shard = packed / "shard-000000.tar"
    with pytest.raises(shardio.PackError, match=r"its key would be 'class.*', as that of .*000000"):
        shardio.reshard([shard, shard], tmp_path / "out", shards=1)
    summary = shardio.reshard([shard, shard], tmp_path / "out", shards=1, on_error="skip")
    assert (summary.samples, summary.skipped) == (75, 75)


def test_samples_are_chosen_by_key_and_by_what_is_in_them(packed: Path, tmp_path: Path) -> None:
    keys = ["class03/image0007", "class00/image0000"]
    shardio.reshard(packed, tmp_path / "a", shards=1, keys=keys)
    assert sorted(order_of(tmp_path / "a")) == sorted(keys)
    shardio.reshard(
        packed,
        tmp_path / "b",
        shards=1,
        where=lambda key, fields: fields["cls"] == 4 and "1" in key,
    )
    assert {key[:7] for key in order_of(tmp_path / "b")} == {"class04"}
    with pytest.raises(
        shardio.PackError, match="nothing/here: no shard has a sample with this key"
    ):
        shardio.reshard(packed, tmp_path / "c", shards=1, keys=[*keys, "nothing/here"])
    said = r"packed0.*: where was true for none of 600 samples; .*fields\['json'\]"
    with pytest.raises(shardio.PackError, match=said):
        shardio.reshard(packed, tmp_path / "c", shards=1, where=lambda *_: False)


def test_splits_are_stratified_by_the_class_numbers_in_the_shards(
    packed: Path, tmp_path: Path
) -> None:
    shardio.reshard(packed, tmp_path / "out", shards=4, split={"a": 0.5, "b": 0.5}, stratify=True)
    for name in "ab":
        labels = [int(sample["label"]) for sample in shardio.ShardDataset(tmp_path / "out" / name)]
        assert np.bincount(labels).tolist() == [30] * 10


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_damage_is_found_on_the_way(packed: Path, tmp_path: Path, on_error: Any) -> None:
    shardio.reshard(packed, tmp_path / "in", shards=2)
    shard = tmp_path / "in/shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 1
    shard.write_bytes(data)
    if on_error == "raise":
        with pytest.raises(shardio.PackError, match="is not what was packed"):
            shardio.reshard(tmp_path / "in", tmp_path / "out", shards=1)
        return
    summary = shardio.reshard(tmp_path / "in", tmp_path / "out", shards=1, on_error="skip")
    assert (summary.samples, summary.skipped) == (599, 1)
    (row,) = (tmp_path / "out/skipped.jsonl").read_text().splitlines()
    assert "CRC-32 differs" in json.loads(row)["reason"]


def test_shards_of_others_are_taken_in_the_order_of_their_members(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", {"k": {"txt": b"1", "cls": b"2", "JSON": b"{}"}})
    shardio.reshard(shard, tmp_path / "out", shards=1)
    made = shardio.ShardDataset(tmp_path / "out").catalog.shards[0].load_index()
    order = [made.fields[i] for i in np.argsort(made.offsets[0])]
    assert order == ["txt", "cls", "json"]


def test_the_command_merges_chooses_and_says_what_it_did(packed: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> Any:
        command = [sys.executable, "-m", "shardio", "reshard", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ}
        )

    done = run(packed, tmp_path / "out", "--shards", 2, "--match", "^class0[12]/")
    assert done.returncode == 0
    assert done.stdout.startswith("packed 120 samples of 10 classes, ")
    (tmp_path / "keys").write_text("class01/image0001\n")
    done = run(
        tmp_path / "out", tmp_path / "one", "--shards", 1, "--keys", tmp_path / "keys", "--json"
    )
    assert json.loads(done.stdout)["samples"] == 1
    done = run(packed, tmp_path / "no", "--shards", 2, "--match", "(")
    assert done.returncode == 2
    assert "--match '(': it is not a regular expression" in done.stderr
    done = run(tmp_path / "nothing", tmp_path / "no", "--shards", 2)
    assert done.returncode == 1
    assert "no such folder or shard" in done.stderr

"""The test vectors of the page on formats are what shardio reads and writes, byte for byte."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardio
from shardio.indexing.manifest import encode_manifest, read_manifest
from shardio.indexing.scan import index_shard
from shardio.indexing.shard_index import encode_index, read_index

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "reference" / "formats.md"
BLOCK = re.compile(r"^```(hex|json)\n(.*?)```$", re.MULTILINE | re.DOTALL)


def vectors() -> dict[str, dict[str, str]]:
    """The blocks below each heading, by their language."""
    parts = PAGE.read_text("utf-8").partition("## Test vectors\n")[2].split("\n### ")
    return {part.partition("\n")[0]: dict(BLOCK.findall(part)) for part in parts}


VECTORS = vectors()
PICTURE = bytes.fromhex(VECTORS[""]["hex"])
INDEXES = ["Index", "Index without checksums", "Index of version 2"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The two samples that the page describes, packed."""
    samples: list[dict[str, Any]] = [
        {"__key__": "a", "cls": 1, "png": PICTURE},
        {"__key__": "b", "cls": 0},
    ]
    shardio.pack(samples, tmp_path / "out", shards=1, shuffle=False)
    return tmp_path / "out"


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_is_read_and_written_as_its_vector(name: str, tmp_path: Path) -> None:
    data, wanted = bytes.fromhex(VECTORS[name]["hex"]), json.loads(VECTORS[name]["json"])
    (tmp_path / "a.idx").write_bytes(data)
    index = read_index(tmp_path / "a.idx")
    found: dict[str, Any] = {
        array: value.tolist()
        for array, value in vars_of(index).items()
        if isinstance(value, np.ndarray) and array not in ("keys", "key_ends")
    }
    found |= {"fields": [*index.fields], "keys": [index.key(each) for each in range(len(index))]}
    if index.rare is not None:
        found |= {"rare_samples": index.rare.samples.tolist()}
        found |= {"rare_fields": index.rare.numbers.tolist()}
    assert found == wanted
    assert b"".join(encode_index(index)) == data


def vars_of(index: shardio.indexing.shard_index.ShardIndex) -> dict[str, Any]:
    return {name: getattr(index, name) for name in index.__slots__}


@pytest.mark.parametrize("name", ["Manifest", "Manifest of version 2"])
def test_a_manifest_is_read_and_written_as_its_vector(name: str, tmp_path: Path) -> None:
    text = VECTORS[name]["json"]
    (tmp_path / "shardio.json").write_text(text, "utf-8")
    manifest = read_manifest(tmp_path)
    assert encode_manifest(manifest).decode() == text
    shown = json.loads(text)
    assert [each.sha256 for each in manifest.shards] == [
        each["sha256"] for each in shown["shardlist"]
    ]
    if manifest.types is not None:
        assert manifest.types["depth.png"] == shardio.Depth(scale=1 / 256)


def test_packing_the_samples_of_the_vectors_gives_the_vectors(out: Path) -> None:
    assert (out / "shardio.json").read_text("utf-8") == VECTORS["Manifest"]["json"]
    index = (out / "index" / "shard-000000.tar.idx").read_bytes()
    assert index.hex() == VECTORS["Index"]["hex"].replace("\n", "")
    of_headers = index_shard(out / "shard-000000.tar", name="a.tar", checksums=False)
    data = b"".join(encode_index(of_headers))
    assert data.hex() == VECTORS["Index without checksums"]["hex"].replace("\n", "")


def test_a_loop_takes_up_the_state_of_the_vectors_and_saves_it(out: Path) -> None:
    state = json.loads(VECTORS["State"]["json"])
    dataset = shardio.ShardDataset(out, batch_size=1, shuffle=True, fields={"label": "cls"})
    first, second = dataset
    assert dataset.state_dict(first) == state
    dataset.load_state_dict(state)
    assert [batch["__key__"] for batch in dataset] == [second["__key__"]]

"""Indexes have the height, width and orientation of pictures, in arrays that readers may ignore."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

import shardio
from shardio.indexing.shard_index import ShardIndex, encode_index, read_index
from shardio.testing import digests, make_shard

Change = Callable[[ShardIndex], dict[str, Any]]
BEFORE = "2699bcb"  # the last commit whose readers know of no sizes


def encode(shape: tuple[int, ...], kind: str, orientation: int = 1, dtype: Any = np.uint8) -> bytes:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    options: dict[str, Any] = {} if kind == "BMP" else {"exif": exif}
    Pillow.fromarray(np.zeros(shape, dtype)).save(stream, kind, **options)
    return stream.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    np.save(stream := io.BytesIO(), array)
    return stream.getvalue()


MEMBERS: dict[str, dict[str, bytes]] = {
    "a": {
        "jpg": encode((30, 40, 3), "JPEG", 6),
        "mask.png": encode((40, 30), "PNG"),
        "cls": b"1",
    },
    "b": {
        "jpg": encode((7, 9, 3), "WEBP", 3),
        "depth.png": encode((7, 9), "PNG", 5, np.uint16),
        "cls": b"2",
    },
    "c": {"jpg": b"no picture", "png": encode((5, 6), "PNG", 1, np.uint16), "cls": b"0"},
    "d": {
        "rgb.npy": npy(np.zeros((11, 12, 3), np.uint8)),
        "npy": npy(np.zeros((3, 4))),
        "cls": b"4",
    },
    "e": {"bmp": encode((13, 14, 3), "BMP"), "x.jpg": encode((21, 22, 3), "JPEG", 8), "cls": b"3"},
}
SIZES = {
    ("a", "jpg"): (40, 30, 6),
    ("a", "mask.png"): (40, 30, 1),
    ("b", "jpg"): (7, 9, 3),
    ("b", "depth.png"): (9, 7, 5),
    ("d", "rgb.npy"): (11, 12, 1),
    ("e", "bmp"): (13, 14, 1),
    ("e", "x.jpg"): (22, 21, 8),
}


def sizes_of(index: ShardIndex) -> dict[tuple[str, str], tuple[int, ...]]:
    found = {}
    for row in range(len(index)):
        for field in index.fields:
            size = index.picture_size(row, field)
            if size is not None:
                found[index.key(row), field] = tuple(size)
    return found


def rewritten(path: Path, change: Change) -> Path:
    index = read_index(path)
    path.write_bytes(b"".join(encode_index(replace(index, **change(index)))))
    return path


NONE: dict[str, Any] = {"pictures": (), "heights": None, "widths": None, "orientations": None}


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    """The index of a shard of many kinds of pictures."""
    make_shard(tmp_path / "a.tar", MEMBERS)
    shardio.index(tmp_path)
    return tmp_path / "index" / "a.tar.idx"


def test_every_picture_has_its_size_as_shown(indexed: Path) -> None:
    index = read_index(indexed)
    assert sizes_of(index) == SIZES
    assert index.pictures == ("bmp", "depth.png", "jpg", "mask.png", "rgb.npy", "x.jpg")


def test_a_shard_without_pictures_has_the_index_that_it_had(tmp_path: Path) -> None:
    make_shard(tmp_path / "a.tar", {"a": {"cls": b"1", "jpg": b"no picture"}})
    shardio.index(tmp_path)
    data = (tmp_path / "index" / "a.tar.idx").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert [*header] == ["__metadata__", "offsets", "sizes", "key_ends", "checksums", "keys"]
    assert "pictures" not in header["__metadata__"]


def test_packing_writes_the_sizes_that_indexing_finds(tmp_path: Path) -> None:
    rows = [{"__key__": key, **sample} for key, sample in MEMBERS.items() if key != "c"]
    shardio.pack(rows, tmp_path / "out", shards=2)
    packed = digests(tmp_path / "out")
    paths = sorted((tmp_path / "out" / "index").iterdir())
    found = [sizes_of(read_index(path)) for path in paths]
    assert found[0] | found[1] == SIZES
    for path in paths:
        rewritten(path, lambda _: NONE)
    assert digests(tmp_path / "out") != packed
    shardio.index(tmp_path / "out")
    assert digests(tmp_path / "out") == packed


@pytest.mark.parametrize("options", [{"store": "raw"}, {"resize": 10}, {"max_side": 20}])
def test_sizes_are_those_of_what_is_stored(options: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "in" / "class"
    folder.mkdir(parents=True)
    for orientation in (1, 6):
        data = encode((30, 40, 3), "JPEG", orientation)
        (folder / f"{orientation}.jpg").write_bytes(data)
    shardio.pack(tmp_path / "in", tmp_path / "out", shards=1, **options)
    found = sizes_of(read_index(tmp_path / "out/index/shard-000000.tar.idx"))
    wanted = {
        "store": {(30, 40, 1), (40, 30, 1)},
        "resize": {(10, 13, 1), (13, 10, 1)},
        "max_side": {(15, 20, 1), (20, 15, 1)},
    }
    assert {*found.values()} == wanted[next(iter(options))]
    assert shardio.verify(tmp_path / "out", deep=True).findings == ()


def test_a_pack_that_is_taken_up_has_the_sizes_of_its_types(tmp_path: Path) -> None:
    """A shard of a run with other types has other sizes, so it is made again."""
    rows = [
        {"__key__": f"{number}", "seg.npy": npy(np.zeros((5, 6 + number), np.uint8))}
        for number in range(8)
    ]
    types: dict[str, Any] = {"mask": shardio.Mask("seg.npy")}
    shardio.pack(rows, tmp_path / "whole", shards=2, fields=types)
    bad = [*rows[:-1], {**rows[-1], "jpg": b"no picture"}]
    with pytest.raises(shardio.PackError):
        shardio.pack(bad, tmp_path / "out", shards=2, shuffle=False, jobs=1)
    shardio.pack(rows, tmp_path / "out", shards=2, shuffle=False, fields=types)
    shardio.pack(rows, tmp_path / "again", shards=2, shuffle=False, fields=types)
    assert digests(tmp_path / "out") == digests(tmp_path / "again")
    (first, *_) = sorted((tmp_path / "out" / "index").iterdir())
    kept = digests(tmp_path / "out")
    shardio.index(tmp_path / "out")  # by the types that the manifest records
    assert digests(tmp_path / "out") == kept
    assert sizes_of(read_index(first)) == {
        (f"{number}", "seg.npy"): (5, 6 + number, 1) for number in range(4)
    }


def with_array(name: str, value: Any) -> Change:
    def change(index: ShardIndex) -> dict[str, Any]:
        array = getattr(index, name).copy()
        array[value[0]] = value[1]
        return {name: array}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"heights": None}, "pictures without sizes"),
        (lambda _: {"pictures": ()}, "fields that the shard does not have"),
        (lambda _: {"pictures": ("bmp", "gif")}, "fields that the shard does not have"),
        (lambda i: {"pictures": i.pictures[::-1]}, "fields that the shard does not have"),
        (lambda i: {"pictures": i.pictures[1:]}, "arrays do not fit"),
        (lambda i: {"widths": i.widths[1:]}, "arrays do not fit"),
        (with_array("widths", ((0, 2), 0)), "only a part"),
        (with_array("orientations", ((0, 2), 0)), "only a part"),
        (with_array("orientations", ((0, 2), 9)), "an orientation that no picture has"),
        (with_array("heights", ((0, 0), 3)), "where there is no picture"),
    ],
)
def test_sizes_that_no_shard_can_have_are_refused(
    change: Change, message: str, indexed: Path
) -> None:
    rewritten(indexed, change)
    with pytest.raises(shardio.IndexFileError, match=f"index is damaged.*{message}"):
        read_index(indexed)


READ = """
import sys, shardio
from shardio.indexing.shard_index import read_index
assert not hasattr(shardio, "Mask"), "these readers know of sizes"
for path in sys.argv[2:]:
    read_index(path)
batches = shardio.ShardDataset(sys.argv[1], batch_size=2, transform=shardio.RandomResizedCrop(8))
print([(batch["__key__"], batch["image"].flatten().tolist()[::50]) for batch in batches])
"""


def test_readers_that_know_of_no_sizes_read_the_index(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "archive", BEFORE, "shardio"]
    try:
        made = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"the history of the repository, which has {BEFORE}, is not here")
    with tarfile.open(fileobj=io.BytesIO(made)) as archive:
        archive.extractall(tmp_path, filter="data")
    rows = [{"__key__": f"{n}", "jpg": encode((20 + n, 30, 3), "JPEG"), "cls": n} for n in range(6)]
    shardio.pack(rows, tmp_path / "new", shards=2)
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    indexes = [*map(str, sorted((tmp_path / "new" / "index").iterdir()))]
    for path in sorted((tmp_path / "old" / "index").iterdir()):
        rewritten(path, lambda _: NONE)
    said = [
        subprocess.run(
            [sys.executable, "-c", READ, folder, *indexes],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path), "PATH": "", "HOME": str(tmp_path)},
        ).stdout
        for folder in ("new", "old")
    ]
    assert said[0] == said[1]
    assert len(said[0]) > 100

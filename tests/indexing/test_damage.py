"""Manifests and indexes that are damaged, of other shards, or made to harm."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import shardio
from shardio.indexing.catalog import open_catalog
from shardio.indexing.manifest import index_path, read_manifest
from shardio.indexing.shard_index import ShardIndex, read_index
from shardio.testing import make_images, make_shard

Document = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


# Manifests


def change_shard(**values: Any) -> Callable[[Document], object]:
    return lambda document: document["shardlist"][0].update(values)


def change_own(**values: Any) -> Callable[[Document], object]:
    return lambda document: document["shardio"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda document: document["shardlist"].append(document["shardlist"][3]),
            r"names the shard shard-000003\.tar 2 times",
        ),
        (change_shard(nsamples=float("inf")), "no shard can be"),
        (change_shard(filesize=float("inf")), "no shard can be"),
        (change_shard(filesize=float("nan")), "no shard can be"),
        (change_shard(nsamples=75.5), "no shard can be"),
        (change_shard(nsamples=-1), "no shard can be"),
        (change_shard(nsamples=2**63), "no shard can be"),
        (change_shard(nsamples=True), "no shard can be"),
        (change_shard(sha256=None), "no shard can be"),
        (change_shard(url="../shard-000000.tar"), "no shard can be"),
        (change_shard(url=7), "no shard can be"),
        *((change_shard(url=name), "no shard can be") for name in ("", "..", "a\0b", "/a.tar")),
        (change_own(fields=[1, "png"]), "not a list of names"),
        (change_own(fields=[["cls"], "png"]), "not a list of names"),
        (change_own(fields="png"), "not a list of names"),
        (change_own(classes=[0, 1]), "not a list of names"),
        (change_own(classes="cat"), "not a list of names"),
    ],
)
def test_a_manifest_that_no_pack_writes_is_refused(
    packed: Path, tmp_path: Path, change: Callable[[Document], object], message: str
) -> None:
    document = json.loads((packed / "shardio.json").read_text())
    document["shardio"].pop("crc32", None)
    change(document)
    (tmp_path / "shardio.json").write_text(json.dumps(document))
    with pytest.raises(shardio.IndexFileError, match=rf"manifest is damaged .*{message}"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_nested_very_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shardio.json").write_text("[" * 100_000)
    with pytest.raises(shardio.IndexFileError, match="the manifest is damaged"):
        open_catalog(tmp_path)


def test_a_change_of_a_manifest_is_taken_only_without_its_checksum(
    packed: Path, tmp_path: Path
) -> None:
    text = (packed / "shardio.json").read_text()
    document = json.loads(text)
    document["shardio"]["classes"][3] = "cat"
    (tmp_path / "shardio.json").write_text(json.dumps(document))
    with pytest.raises(shardio.IndexFileError, match="checksum differs; if the change is meant"):
        read_manifest(tmp_path)
    del document["shardio"]["crc32"]
    (tmp_path / "shardio.json").write_text(json.dumps(document))
    assert (read_manifest(tmp_path).classes or ())[3] == "cat"
    (tmp_path / "shardio.json").write_text(json.dumps(json.loads(text), indent=8))
    assert read_manifest(tmp_path) == read_manifest(packed)


# Indexes of other shards


def test_a_shard_of_another_pack_is_noticed_though_its_size_is_the_same(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", classes=2, per_class=4, extension="bmp")
    for seed in (0, 1):
        shardio.pack(images, tmp_path / f"{seed}", shards=2, seed=seed)
    shard, other = (tmp_path / f"{seed}" / "shard-000000.tar" for seed in (0, 1))
    assert shard.stat().st_size == other.stat().st_size
    assert [*shardio.ShardDataset(tmp_path / "0")]
    shutil.copy(other, shard)
    shutil.copy(index_path(other), index_path(shard))
    with pytest.raises(shardio.IndexFileError, match=r"000000\.tar: .*of other contents"):
        next(iter(shardio.ShardDataset(tmp_path / "0")))


@pytest.mark.parametrize("change", [{"samples": 74}, {"size": 1024}])
def test_an_index_with_another_count_or_size_is_stale(packed: Path, change: dict[str, Any]) -> None:
    entry = open_catalog(packed).shards[0]
    assert len(entry.load_index()) == 75
    with pytest.raises(shardio.IndexFileError, match=r"000000\.tar: the index is stale"):
        replace(entry, **change).load_index()


# Index files


def set_cell(name: str, value: int) -> Callable[[Document, Arrays], object]:
    return lambda _, arrays: arrays[name].__setitem__(0, value)


def set_entry(name: str, **values: Any) -> Callable[[Document, Arrays], object]:
    return lambda header, _: header[name].update(values)


def sealed(header: Document, arrays: Arrays) -> bytes:
    """An index file whose checksum is right."""
    header["__metadata__"]["crc32"] = "00000000"
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + b"".join(map(bytes, arrays.values()))
    return data.replace(b"00000000", b"%08x" % zlib.crc32(data), 1)


def taken_apart(data: bytes) -> tuple[Document, Arrays]:
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    dtypes = {"I64": "<i8", "U32": "<u4", "U8": "u1"}
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            piece = data[start + first : start + last]
            arrays[name] = np.frombuffer(bytearray(piece), dtypes[entry["dtype"]])
    return header, arrays


HARMFUL: dict[str, Callable[[Document, Arrays], object]] = {
    "shape turned": set_entry("sizes", shape=[2, 75]),
    "shape flat": set_entry("offsets", shape=[150]),
    "shape of no array": set_entry("offsets", shape=None),
    "shape of another size": set_entry("offsets", shape=[75, 3]),
    "shape huge": set_entry("offsets", shape=[2**70]),
    "key ends as a scalar": set_entry("key_ends", shape=[], data_offsets=[0, 8]),
    "key ends as a table": set_entry("key_ends", shape=[76, 1]),
    "keys as a table": lambda header, _: header["keys"].update(shape=[1, *header["keys"]["shape"]]),
    "checksums of another type": lambda header, _: header["checksums"].update(header["offsets"]),
    "unknown type": set_entry("offsets", dtype="F64"),
    "array before the data": set_entry("offsets", data_offsets=[-8, 1192]),
    "array after the data": set_entry("offsets", data_offsets=[2**40, 2**40 + 1200]),
    "array at no number": set_entry("offsets", data_offsets=[0, "x"]),
    "a field less": set_entry("__metadata__", fields='["cls"]'),
    "a field twice": set_entry("__metadata__", fields='["cls", "cls"]'),
    "fields that are numbers": set_entry("__metadata__", fields="[1, 2]"),
    "fields nested deeply": set_entry("__metadata__", fields="[" * 100_000),
    "shard size negative": set_entry("__metadata__", shard_size="-1"),
    "shard size infinite": set_entry("__metadata__", shard_size=float("inf")),
    "shard size huge": set_entry("__metadata__", shard_size=str(2**80)),
    "offset negative": set_cell("offsets", -2),
    "offset outside": set_cell("offsets", 2**40),
    "offset missing, size not": set_cell("offsets", -1),
    "size negative": set_cell("sizes", -1),
    "size huge": set_cell("sizes", 2**40),
    "size that wraps around": set_cell("sizes", 2**63 - 1),
    "key ends start late": set_cell("key_ends", 1),
    "key ends stop early": lambda _, arrays: arrays["key_ends"].__setitem__(-1, 1),
    "key ends descend": lambda _, arrays: arrays["key_ends"].__setitem__(3, 1),
    "no key ends": set_entry("key_ends", shape=[0], data_offsets=[0, 0]),
}


@pytest.fixture(scope="module")
def sound(packed: Path) -> bytes:
    return index_path(packed / "shard-000000.tar").read_bytes()


@pytest.mark.parametrize("name", HARMFUL)
def test_an_index_that_would_harm_is_refused_though_its_checksum_is_right(
    sound: bytes, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "x.idx"
    header, arrays = taken_apart(sound)
    path.write_bytes(sealed(header, arrays))
    assert len(read_index(path)) == 75
    HARMFUL[name](header, arrays)
    path.write_bytes(sealed(header, arrays))
    with pytest.raises(shardio.IndexFileError, match=r"x\.idx: the index is damaged"):
        read_index(path)


HARMFUL_HEADERS: dict[str, Callable[[Document, Arrays], object]] = {
    "headers at their data": lambda _, arrays: arrays["starts"].__setitem__(0, 512),
    "headers behind their data": set_cell("starts", 1024),
    "headers before the shard": set_cell("starts", -512),
    "headers that are no blocks": set_cell("starts", 1),
    "headers of a field that is not there": set_cell("offsets", -1),
    "headers of another shape": set_entry("headers", shape=[4, 1]),
    "no checksums of the headers": lambda header, _: header.pop("headers"),
    "no place of the headers": lambda header, _: header.pop("starts"),
}


@pytest.mark.parametrize("name", HARMFUL_HEADERS)
def test_places_of_headers_that_would_harm_are_refused(tmp_path: Path, name: str) -> None:
    shard = make_shard(tmp_path / "a.tar", {f"{i}": {"a": b"", "b": b""} for i in range(2)})
    scanned = open_catalog(shard).shards[0].index
    header, arrays = taken_apart(Path(scanned).read_bytes())
    arrays["sizes"][0] = 0
    HARMFUL_HEADERS[name](header, arrays)
    (tmp_path / "x.idx").write_bytes(sealed(header, arrays))
    with pytest.raises(shardio.IndexFileError, match=r"x\.idx: the index is damaged"):
        read_index(tmp_path / "x.idx")


def turn(name: str, first: int, last: int) -> Callable[[Document, Arrays], object]:
    """Exchange two elements of an array."""

    def change(_: Document, arrays: Arrays) -> None:
        array = arrays[name]
        array[[first, last]] = array[[last, first]]

    return change


def drop_last(name: str) -> Callable[[Document, Arrays], object]:
    def change(header: Document, _: Arrays) -> None:
        entry = header[name]
        first, last = entry["data_offsets"]
        entry.update(shape=[entry["shape"][0] - 1], data_offsets=[first, last - 8])

    return change


def drop_all(header: Document, _: Arrays) -> None:
    for name in ("rare_samples", "rare_fields"):
        first = header[name]["data_offsets"][0]
        header[name].update(shape=[0], data_offsets=[first, first])


HARMFUL_RARE: dict[str, Callable[[Document, Arrays], object]] = {
    "sample negative": set_cell("rare_samples", -1),
    "sample that does not exist": lambda _, arrays: arrays["rare_samples"].__setitem__(-1, 703),
    "sample that wraps around": lambda _, arrays: arrays["rare_samples"].__setitem__(
        slice(1, 4), [2**63 - 1, -(2**63), -1]
    ),
    "samples in another order": turn("rare_samples", 4, 5),
    "fields in another order": turn("rare_fields", 0, 1),
    "a member twice": lambda _, arrays: arrays["rare_fields"].__setitem__(
        1, arrays["rare_fields"][0]
    ),
    "field negative": set_cell("rare_fields", -1),
    "field that does not exist": set_cell("rare_fields", 702),
    "field that is a column": set_cell("rare_fields", 701),
    "member that is not there": lambda _, arrays: arrays["offsets"].__setitem__(-1, -1),
    "member outside": lambda _, arrays: arrays["offsets"].__setitem__(-1, 2**40),
    "size of a member huge": lambda _, arrays: arrays["sizes"].__setitem__(-1, 2**40),
    "samples as a table": set_entry("rare_samples", shape=[1, 701]),
    "samples of another type": set_entry("rare_samples", dtype="F64"),
    "samples too few": drop_last("rare_samples"),
    "fields too few": drop_last("rare_fields"),
    "offsets too few": drop_last("offsets"),
    "no members": drop_all,
    "no samples of members": lambda header, _: header.pop("rare_samples"),
    "no fields of members": lambda header, _: header.pop("rare_fields"),
    "the format of a table": set_entry("__metadata__", format="shardio-index-v1"),
    "a format to come": set_entry("__metadata__", format="shardio-index-v3"),
    "sizes of pictures in a field that is no column": lambda header, _: header[
        "__metadata__"
    ].update(pictures='["v1.0.txt"]'),
}


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An index with 701 members of 701 fields that are no columns, two of them of one sample."""
    fields = [{f"v1.{n}.txt": b"a", "wav": b"b"} for n in range(700)]
    fields[0]["v1.0000.txt"] = b"c"
    samples = {f"{n:03}": each for n, each in enumerate(fields)}
    path = tmp_path_factory.mktemp("rare") / "a.tar"
    shardio.index(make_shard(path, samples | {"x": {"wav": b""}, "y": {"wav": b""}}))
    return index_path(path).read_bytes()


@pytest.mark.parametrize("name", HARMFUL_RARE)
def test_members_outside_the_columns_that_would_harm_are_refused(
    rare: bytes, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "x.idx"
    header, arrays = taken_apart(rare)
    path.write_bytes(sealed(header, arrays))
    assert read_index(path).columns == ("wav",)
    HARMFUL_RARE[name](header, arrays)
    path.write_bytes(sealed(header, arrays))
    with pytest.raises(shardio.IndexFileError, match=r"x\.idx: the index is damaged"):
        read_index(path)


def test_arrays_that_begin_at_any_byte_are_read(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "a.tar", {f"{n}": {"txt": b"%d" % n} for n in range(3)})
    shardio.index(path)
    for number in range(8):
        header, arrays = taken_apart(index_path(path).read_bytes())
        header["__metadata__"]["note"] = "." * number
        index_path(path).write_bytes(sealed(header, arrays))
        assert [sample["txt"] for sample in shardio.ShardDataset(path)] == ["0", "1", "2"]


def test_arrays_that_are_not_known_are_passed_over(sound: bytes, tmp_path: Path) -> None:
    header, arrays = taken_apart(sound)
    end = sum(array.nbytes for array in arrays.values())
    header["later"] = {"dtype": "F64", "shape": [1], "data_offsets": [end, end + 8]}
    arrays["later"] = np.zeros(1)
    (tmp_path / "x.idx").write_bytes(sealed(header, arrays))
    assert len(read_index(tmp_path / "x.idx")) == 75


def test_a_header_that_is_nested_very_deeply_is_refused(tmp_path: Path) -> None:
    text = b"[" * 100_000
    (tmp_path / "x.idx").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(shardio.IndexFileError, match="the index is damaged"):
        read_index(tmp_path / "x.idx")


def test_a_folder_or_nothing_in_place_of_an_index_is_explained(tmp_path: Path) -> None:
    (tmp_path / "x.idx").mkdir()
    with pytest.raises(shardio.IndexFileError, match="the index is damaged"):
        read_index(tmp_path / "x.idx")
    (tmp_path / "file").touch()
    for path in (tmp_path / "y.idx", tmp_path / "file/y.idx"):
        with pytest.raises(shardio.IndexFileError, match="the index is missing"):
            read_index(path)


# Every byte


def facts(index: ShardIndex) -> list[Any]:
    arrays = (index.offsets, index.sizes, index.checksums, index.key_ends, index.keys)
    return [
        index.fields,
        index.shard_size,
        index.shard_sha256,
        *[None if array is None else array.tolist() for array in arrays],
    ]


def changed(data: bytes, place: float, flip: int) -> bytes:
    at = int(place * len(data))
    return data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]


PLACES = st.floats(0, 1, exclude_max=True)
FLIPS = st.integers(1, 255)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=300)
@given(PLACES, FLIPS)
def test_a_changed_byte_of_a_manifest_is_noticed_or_changes_nothing(
    packed: Path, folder: Path, place: float, flip: int
) -> None:
    whole = (packed / "shardio.json").read_bytes()
    (folder / "shardio.json").write_bytes(changed(whole, place, flip))
    try:
        assert read_manifest(folder) == read_manifest(packed)
    except shardio.IndexFileError as error:
        assert "the manifest is damaged" in str(error)  # noqa: PT017  an equal result is fine too


@settings(max_examples=300)
@given(PLACES, FLIPS)
def test_a_changed_byte_of_an_index_is_noticed_or_changes_nothing(
    packed: Path, folder: Path, sound: bytes, place: float, flip: int
) -> None:
    (folder / "x.idx").write_bytes(changed(sound, place, flip))
    try:
        found = read_index(folder / "x.idx")
    except shardio.IndexFileError:
        return
    assert facts(found) == facts(read_index(index_path(packed / "shard-000000.tar")))


@settings(max_examples=300)
@given(PLACES, FLIPS, st.booleans())
def test_an_index_with_a_changed_byte_and_its_checksum_made_right_reads_or_is_refused(
    folder: Path, sound: bytes, rare: bytes, place: float, flip: int, has_rare: bool
) -> None:
    whole = rare if has_rare else sound
    at = whole.index(b'"crc32":"') + 9
    data = bytearray(changed(whole, place, flip))
    data[at : at + 8] = b"00000000"
    data[at : at + 8] = b"%08x" % zlib.crc32(data)
    (folder / "x.idx").write_bytes(data)
    try:
        found = read_index(folder / "x.idx")
    except shardio.IndexFileError:
        return
    assert all(found.key(number) for number in range(len(found)))
    assert (found.offsets + found.sizes).max() <= found.shard_size
    walked = [each for number in range(len(found)) for each in found.members(number).items()]
    assert len(walked) == len(found.walk()[0])
    assert {name for name, _ in walked} <= {*found.fields}
    assert all(0 <= each.offset <= found.shard_size for _, each in walked)


@settings(max_examples=300)
@given(PLACES, FLIPS)
def test_a_changed_byte_of_an_index_with_rare_fields_is_noticed(
    folder: Path, rare: bytes, place: float, flip: int
) -> None:
    (folder / "x.idx").write_bytes(changed(rare, place, flip))
    try:
        found = read_index(folder / "x.idx")
    except shardio.IndexFileError:
        return
    (folder / "y.idx").write_bytes(rare)
    right = read_index(folder / "y.idx")
    assert facts(found) == facts(right)
    assert found.members(0) == right.members(0)


def test_an_index_with_rare_fields_that_was_cut_off_is_refused(rare: bytes, folder: Path) -> None:
    for size in range(0, len(rare), 997):
        (folder / "x.idx").write_bytes(rare[:size])
        with pytest.raises(shardio.IndexFileError):
            read_index(folder / "x.idx")


def test_storage_that_gives_less_than_was_asked_for_is_asked_again(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread = os.pread
    expected = [batch["__key__"] for batch in shardio.ShardDataset(packed, batch_size=50)]
    monkeypatch.setattr(os, "pread", lambda file, size, at: pread(file, min(size, 1000), at))
    assert [batch["__key__"] for batch in shardio.ShardDataset(packed, batch_size=50)] == expected

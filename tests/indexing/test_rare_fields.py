"""Fields that few samples have: kept apart from the columns, and read as if they were not."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardio
from shardio.indexing import scan
from shardio.indexing.catalog import open_catalog
from shardio.indexing.manifest import index_path
from shardio.indexing.scan import index_shard
from shardio.indexing.shard_index import ShardIndex, encode_index, read_index
from shardio.testing import make_shard, read_members

Samples = Mapping[str, Mapping[str, bytes]]

fields = st.sampled_from(["cls", "jpg", "txt", "v1.7.jpg", "v1.8.jpg", "v2.txt"])
samples = st.lists(
    st.dictionaries(fields, st.binary(max_size=600), min_size=1, max_size=4), min_size=1, max_size=9
).map(lambda found: {f"{number}": each for number, each in enumerate(found)})


@contextmanager
def most_cells(count: int) -> Iterator[None]:
    """Have a field be a column only if one in so many samples has it."""
    with patch.object(scan, "_MOST_CELLS", count), patch.object(scan, "_FEW_CELLS", 0):
        yield


def described(index: ShardIndex) -> object:
    """What an index says, whichever fields are columns."""
    numbers = range(len(index))
    at = index.offsets.reshape(-1)
    walked = zip(*(each.tolist() for each in index.walk()), strict=True)
    return (
        index.fields,
        [(index.key(number), index.members(number)) for number in numbers],
        [(sample, field, at[cell]) for sample, field, cell in walked],
        {field: at[cells].tolist() for field, cells in index.by_field()},
        [at[index.cells_of(field)].tolist() for field in (*index.fields, "no")],
        [each.tolist() for each in index.extents(np.array(numbers), np.array(numbers)[::-1])],
    )


@settings(max_examples=80)
@given(samples, st.booleans())
def test_an_index_says_the_same_whichever_fields_are_columns(
    tmp_path_factory: pytest.TempPathFactory, samples: Samples, checksums: bool
) -> None:
    folder = tmp_path_factory.mktemp("a")
    path = make_shard(folder / "a.tar", samples)
    table = index_shard(path, name="a.tar", checksums=checksums)
    assert table.rare is None
    digests = set()
    for most in (0, 1, 2, 3):
        with most_cells(most):
            found = index_shard(path, name="a.tar", checksums=checksums)
        (folder / "a.idx").write_bytes(b"".join(encode_index(found)))
        again = read_index(folder / "a.idx")
        assert described(found) == described(again) == described(table)
        assert again.columns == found.columns
        if found.rare is None:
            assert found.contents() == table.contents()
        else:
            digests |= {found.contents(), again.contents()}
    assert len(digests) <= 1


def mixed(folder: Path, *, normal: int = 700, dotted: int = 600) -> Path:
    """A shard with samples of three fields, samples of one field each, and some of both."""
    picture = cv2.imencode(".jpg", np.full((20, 30, 3), 90, np.uint8))[1].tobytes()
    some = {
        f"a{n:05}": {"cls": b"%d" % (n % 7), "jpg": picture, "txt": b"a%d" % n}
        for n in range(normal)
    }
    some |= {f"b{n:05}": {f"v1.{n}.jpg": picture, f"v1.{n}.txt": b"b%d" % n} for n in range(dotted)}
    some |= {f"c{n:05}": {"txt": b"c%d" % n, f"v1.{n}.txt": b"d%d" % n} for n in range(5)}
    folder.mkdir()
    return make_shard(folder / "a.tar", some)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed(tmp_path_factory.mktemp("mixed") / "shards")


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = mixed(tmp_path_factory.mktemp("indexed") / "shards")
    shardio.index(path)
    return path


def test_a_shard_with_many_rare_fields_has_another_format(indexed: Path) -> None:
    data = index_path(indexed).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"]["format"] == "shardio-index-v2"  # 0.1 reads shardio-index-v1
    index = read_index(index_path(indexed))
    assert (index.columns, index.pictures) == (("cls", "jpg", "txt"), ("jpg",))
    assert len(index.fields) == 3 + 2 * 600
    assert index.members(1).keys() == {"cls", "jpg", "txt"}
    assert index.members(700).keys() == {"v1.0.jpg", "v1.0.txt"}
    assert index.members(1301).keys() == {"txt", "v1.1.txt"}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("txt?", [f"a{n}" for n in range(700)] + [None] * 600 + [f"c{n}" for n in range(5)]),
        ("v1.3.txt?", [None] * 703 + ["b3"] + [None] * 599 + ["d3", None]),
        (
            "txt;v1.3.txt?",
            [f"a{n}" for n in range(700)]
            + [None] * 3
            + ["b3"]
            + [None] * 596
            + [f"c{n}" for n in range(5)],
        ),
        ("v1.3.txt;v1.4.txt?", [None] * 703 + ["b3", "b4"] + [None] * 598 + ["d3", "d4"]),
    ],
)
@pytest.mark.parametrize("which", ["shard", "indexed"])
def test_any_field_is_read(
    which: str, wanted: str, expected: list[str | None], request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(which)
    for batch_size in (None, 300):
        dataset = shardio.ShardDataset(path, fields={"text": wanted}, batch_size=batch_size)
        found: list[str | None] = []
        for each in dataset:
            texts = [each["text"]] if batch_size is None else each["text"]
            there = [each["has_text"]] if batch_size is None else each["has_text"].tolist()
            valid = [True] if batch_size is None else each["valid"].tolist()
            rows = zip(texts, there, valid, strict=True)
            found += [text if has else None for text, has, is_valid in rows if is_valid]
        assert found == expected


def test_pictures_of_any_field_are_cropped(indexed: Path) -> None:
    dataset = shardio.ShardDataset(
        indexed,
        fields={"image": "jpg;v1.5.jpg;v1.6.jpg?"},
        transform=shardio.CenterCrop(16, resize=20),
        batch_size=64,
    )
    keys: list[str] = []
    for batch in dataset:
        assert batch["image"].shape[1:] == (3, 16, 16)
        keys += [*compress(batch["__key__"], (batch["has_image"] & batch["valid"]).tolist())]
    assert keys == [*(f"a{n:05}" for n in range(700)), "b00005", "b00006"]


def test_a_damaged_member_of_a_rare_field_is_named(tmp_path: Path) -> None:
    path = mixed(tmp_path / "shards")
    shardio.index(path)
    index = read_index(index_path(path))
    at = index.members(708)["v1.8.txt"].offset
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(b"x")
    with pytest.raises(shardio.SampleError, match=rf"'b00008', field 'v1.8.txt' at offset {at}"):
        [*shardio.ShardDataset(path, fields={"text": "v1.8.txt?"})]
    report = shardio.verify(path, jobs=1)
    problems = [each for each in report.findings if each.severity != "note"]
    assert [(each.key, each.field, each.offset) for each in problems] == [
        ("b00008", "v1.8.txt", at)
    ]
    done = shardio.repair(path, tmp_path / "new", jobs=1)
    assert (done.samples, done.dropped) == (1304, 1)
    kept = {name for name in read_members(path.parent) if not name.startswith("b00008.")}
    assert read_members(tmp_path / "new").keys() == kept


def test_a_member_that_moved_under_a_rare_name_is_refused(tmp_path: Path) -> None:
    """Without checksums of the data, the headers before them are compared."""
    path = mixed(tmp_path / "shards")
    dataset = shardio.ShardDataset(path, fields={"text": "v1.8.txt?"})
    data = path.read_bytes().replace(b"b00008.v1.8.txt", b"b00008.v1.9.txt")
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(shardio.TarError, match=r"'b00008', field 'v1.8.txt'.*header is not"):
        list(dataset)


def test_commands_know_rare_fields(indexed: Path, tmp_path: Path) -> None:
    about = shardio.info(indexed, sample="c00003")
    counts = {each.name: (each.samples, each.bytes) for each in about.fields}
    assert len(counts) == 1203
    assert (counts["cls"], counts["v1.3.txt"]) == ((700, 700), (2, 4))
    assert about.classes is not None
    assert (about.classes.missing, about.classes.counts[0].samples) == (605, 100)
    assert about.sample is not None
    assert [(each.name, each.bytes) for each in about.sample.fields] == [
        ("txt", 2),
        ("v1.3.txt", 2),
    ]
    report = shardio.verify(indexed, deep=True, jobs=1)
    assert not [each for each in report.findings if each.severity != "note"]
    shardio.reshard(indexed, tmp_path / "new", shards=1, jobs=1)
    assert read_members(tmp_path / "new") == read_members(indexed.parent)
    packed = tmp_path / "new/shard-000000.tar"
    assert read_index(index_path(packed)).rare is not None
    scanned = index_shard(packed, name="x", checksums=True)
    assert b"".join(encode_index(scanned)) == index_path(packed).read_bytes()


def test_labels_of_few_samples_are_counted(tmp_path: Path) -> None:
    samples = {f"{n:05}": {f"{n}.txt": b""} for n in range(1200)}
    samples["00007"] = {"cls": b"3"}
    about = shardio.info(make_shard(tmp_path / "a.tar", samples))
    assert read_index(Path(open_catalog(tmp_path / "a.tar").shards[0].index)).columns == ()
    assert about.classes is not None
    assert [(each.number, each.samples) for each in about.classes.counts] == [(3, 1)]
    assert about.classes.missing == 1199


def test_memory_and_file_grow_with_the_members(tmp_path: Path) -> None:
    """As a table, the larger index would have 20,000 x 10,001 cells, of 20 bytes each."""
    found = []
    for number in (5_000, 10_000):
        samples = {f"a{n:06}": {"txt": b""} for n in range(number)}
        samples |= {f"b{n:06}": {f"v1.{n}.txt": b""} for n in range(number)}
        path = make_shard(tmp_path / f"{number}.tar", samples)
        tracemalloc.start()
        shardio.index(path)
        index = read_index(index_path(path))
        for sample in range(0, len(index), 1000):
            index.members(sample)
        found.append((index_path(path).stat().st_size, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
        index.contents()
        assert (len(index), len(index.fields)) == (2 * number, number + 1)
    (size, memory), (twice, double) = found
    assert twice < 2.2 * size < 2.2 * 10_000 * 100
    assert double < 2.5 * memory
    assert double < 50 << 20

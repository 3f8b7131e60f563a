from __future__ import annotations

import io
import json
import shutil
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardio
from shardio.indexing.catalog import open_catalog
from shardio.indexing.manifest import index_path, read_manifest
from shardio.indexing.scan import index_shard
from shardio.indexing.shard_index import FORMAT, ShardIndex, encode_index, read_index

Members = list[tuple[str, bytes]]
ReadSamples = Callable[[Path], list[dict[str, object]]]


def make_tar(path: Path, members: Members) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def contents(path: Path, index: ShardIndex) -> list[dict[str, object]]:
    """What an index says that a shard holds, in the form of WebDataset's samples."""
    data = path.read_bytes()
    samples = []
    for number in range(len(index)):
        sample: dict[str, object] = {"__key__": index.key(number)}
        for column, field in enumerate(index.fields):
            offset, size = index.offsets[number, column], index.sizes[number, column]
            if offset >= 0:
                sample[field] = data[offset : offset + size]
        samples.append(sample)
    return samples


fields = st.sampled_from(["jpg", "cls", "txt", "seg.png", "JSON"])
keys = st.text(st.sampled_from("abcÜ/-"), min_size=1, max_size=6).filter(
    lambda key: not key.startswith("/") and not key.endswith("/") and "//" not in key
)
samples = st.lists(
    st.tuples(keys, st.dictionaries(fields, st.binary(max_size=1500), min_size=1)),
    max_size=12,
    unique_by=lambda sample: sample[0],
)


@settings(max_examples=60)
@given(samples)
def test_the_index_finds_what_webdataset_finds(
    tmp_path_factory: pytest.TempPathFactory,
    read_with_webdataset: ReadSamples,
    samples: list[tuple[str, dict[str, bytes]]],
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    make_tar(
        path,
        [(f"{key}.{field}", data) for key, sample in samples for field, data in sample.items()],
    )
    index = index_shard(path, name="a.tar", checksums=True)
    assert contents(path, index) == read_with_webdataset(path)
    assert index.checksums is not None
    for number, sample in enumerate(contents(path, index)):
        for column, field in enumerate(index.fields):
            if field in sample:
                data = sample[field]
                assert isinstance(data, bytes)
                assert zlib.crc32(data) == index.checksums[number, column]


def test_an_index_reads_back_as_it_was_written(packed: Path, tmp_path: Path) -> None:
    index = index_shard(packed / "shard-000003.tar", name="x", checksums=True)
    (tmp_path / "x.idx").write_bytes(b"".join(encode_index(index)))
    again = read_index(tmp_path / "x.idx")
    assert (again.fields, again.shard_size, again.shard_sha256) == (
        index.fields, index.shard_size, index.shard_sha256)  # fmt: skip
    for name in ("offsets", "sizes", "checksums", "key_ends", "keys"):
        assert np.array_equal(getattr(again, name), getattr(index, name))
        assert not getattr(again, name).flags.writeable


def test_packing_writes_the_index_that_a_scan_of_its_shard_gives(packed: Path) -> None:
    for shard in sorted(packed.glob("*.tar")):
        index = index_shard(shard, name="x", checksums=True)
        assert b"".join(encode_index(index)) == index_path(shard).read_bytes()


def test_an_index_file_has_the_safetensors_layout(packed: Path) -> None:
    data = index_path(packed / "shard-000000.tar").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__")["format"] == FORMAT
    ends = sorted(entry["data_offsets"] for entry in header.values())
    assert ends[0][0] == 0
    assert all(before[1] == after[0] for before, after in pairwise(ends))
    assert 8 + length + ends[-1][1] == len(data)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 40, b"\x08" + bytes(7) + b"{}      "])
def test_a_damaged_index_is_refused(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "x.idx"
    path.write_bytes(damage)
    with pytest.raises(shardio.IndexFileError, match=r"x\.idx: the index is damaged .* delete it"):
        read_index(path)


def test_an_index_that_was_cut_off_is_refused(packed: Path, tmp_path: Path) -> None:
    whole = index_path(packed / "shard-000000.tar").read_bytes()
    for size in range(0, len(whole), 97):
        (tmp_path / "x.idx").write_bytes(whole[:size])
        with pytest.raises(shardio.IndexFileError):
            read_index(tmp_path / "x.idx")


def test_every_flipped_bit_of_an_index_is_noticed(packed: Path, tmp_path: Path) -> None:
    whole = index_path(packed / "shard-000000.tar").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for bit in [*range(header * 8), *range(header * 8, len(whole) * 8, 41)]:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        (tmp_path / "x.idx").write_bytes(data)
        with pytest.raises(shardio.IndexFileError):
            read_index(tmp_path / "x.idx")


def test_a_field_twice_in_a_sample_is_refused(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("a.JPG", b"2")])
    with pytest.raises(shardio.TarError, match=r"a\.tar: sample 'a' has the field 'jpg' twice"):
        open_catalog(path)


def test_a_sample_whose_members_lie_apart_is_refused(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.cls", b"3")])
    with pytest.raises(shardio.TarError, match=r"members of sample 'a' are not adjacent"):
        open_catalog(path)


def test_a_key_may_come_again_with_the_same_fields(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3")])
    assert open_catalog(path).shards[0].samples == 3


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE])
def test_a_link_in_place_of_a_field_is_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = kind, "b.jpg"
        archive.addfile(link)
    with pytest.raises(shardio.TarError, match="tar --dereference --hard-dereference"):
        open_catalog(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", [b"Z", b"M", b"9"])
def test_a_field_of_an_unknown_type_is_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("a.jpg")
        member.type = kind
        archive.addfile(member)
    with pytest.raises(shardio.TarError, match=f"has the type '{kind.decode()}' and is not a reg"):
        open_catalog(tmp_path / "a.tar")


def test_the_label_of_a_volume_is_no_member(tmp_path: Path) -> None:
    """As of `tar --label`, whose name may have a dot."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        label = tarfile.TarInfo("train.v2")
        label.type = b"V"
        archive.addfile(label)
        archive.addfile(tarfile.TarInfo("a.txt"))
    assert open_catalog(tmp_path / "a.tar").fields == ("txt",)
    assert shardio.verify(tmp_path, jobs=1).findings == ()


def test_shards_of_others_are_scanned_once_and_the_index_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDIO_CACHE", str(tmp_path / "cache"))
    path = make_tar(tmp_path / "a.tar", [("a.txt", b"1")])
    first = open_catalog(path)
    assert Path(first.shards[0].index).parent == tmp_path / "cache"
    assert not index_path(path).exists()
    monkeypatch.setattr("shardio.indexing.foreign.index_shard", None)
    assert open_catalog(path) == first


def test_an_index_without_checksums_of_headers_is_built_again(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [("a.txt", b"1")])
    first = open_catalog(path)
    kept = Path(first.shards[0].index)
    built = kept.read_bytes()
    without = replace(read_index(kept), starts=None, headers=None)
    index_path(path).parent.mkdir()
    for place in (kept, index_path(path)):
        place.unlink(missing_ok=True)  # it may be mapped
        place.write_bytes(b"".join(encode_index(without)))
        assert open_catalog(path) == first
        assert kept.read_bytes() == built


def test_checksums_of_headers_do_not_change_what_a_state_knows_shards_by(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [("a.txt", b"1"), ("b.txt", b"2")])
    assert open_catalog(path).digest() == "0394630d0f0f1775"


def test_a_shard_that_changed_is_scanned_again(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [("a.txt", b"1")])
    assert open_catalog(path).shards[0].samples == 1
    make_tar(path, [(f"{i}.txt", bytes(20_000)) for i in range(3)])
    assert open_catalog(path).shards[0].samples == 3


def test_an_index_of_another_shard_is_noticed(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [("a.txt", b"1")])
    shardio.index(path)
    make_tar(path, [(f"{i}.txt", bytes(20_000)) for i in range(3)])
    with pytest.raises(shardio.IndexFileError, match=r"a\.tar: the index is stale"):
        open_catalog(path)
    shardio.index(path)
    assert open_catalog(path).shards[0].samples == 3


def test_sources_may_be_folders_files_globs_patterns_and_lists(packed: Path) -> None:
    names = [str(packed / f"shard-{i:06d}.tar") for i in range(8)]
    pattern = str(packed / "shard-{000000..000007}.tar")
    for source in (packed, str(packed), str(packed / "*.tar"), pattern, names, [packed]):
        assert [shard.name for shard in open_catalog(source).shards] == names
    assert [shard.name for shard in open_catalog([names[3], names[1]]).shards] == [
        names[3],
        names[1],
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "nothing: no such folder or shard"),
        ("no*.tar", "no file matches it"),
        ("a-{0..3}.tar", "4 of 4 shards do not exist, the first is a-0.tar"),
        (".", "no shards .* in this folder; make some with `shardio pack`"),
    ],
)
def test_a_source_with_nothing_there_is_explained(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(shardio.UsageError, match=message):
        open_catalog(source)


def test_a_packed_folder_answers_from_its_manifest(
    packed: Path,
) -> None:
    manifest = read_manifest(packed)
    catalog = open_catalog(packed)
    assert [shard.samples for shard in catalog.shards] == [75] * 8
    assert catalog.classes == manifest.classes == tuple(f"class{i:02d}" for i in range(10))
    assert catalog.fields == ("cls", "png")


@pytest.mark.parametrize(
    "damage", ["", "[]", "{}", '{"shardio": {"version": 99}, "shardlist": []}']
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "shardio.json").write_text(damage)
    with pytest.raises(shardio.IndexFileError, match=r"shardio\.json: the manifest is damaged"):
        open_catalog(tmp_path)


def test_packed_shards_that_changed_are_indexed_by_force_only(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(packed, folder)
    shardio.index(folder)
    assert (folder / "shardio.json").read_bytes() == (packed / "shardio.json").read_bytes()
    make_tar(folder / "shard-000002.tar", [("a.png", b"1"), ("a.cls", b"0")])
    for source in (folder, folder / "shard-000002.tar"):
        with pytest.raises(shardio.IndexFileError, match=r"000002\.tar: .* is not what was packed"):
            shardio.index(source)
    (folder / "shard-000004.tar").unlink()
    with pytest.raises(shardio.IndexFileError, match="1 of 8 shards are missing, the first is"):
        shardio.index(folder)
    shardio.index(folder, force=True)
    assert [shard.samples for shard in open_catalog(folder).shards] == [75, 75, 1, *[75] * 4]


def test_an_interrupted_pack_is_no_dataset(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(packed, folder)
    (folder / ".shardio-pack").touch()
    for _ in range(2):
        with pytest.raises(shardio.IndexFileError, match="run the same command again"):
            open_catalog(folder)
        (folder / "shardio.json").unlink(missing_ok=True)
    with pytest.raises(shardio.IndexFileError, match="was interrupted or still runs"):
        shardio.index(folder)


def test_packed_folders_join_only_with_the_same_classes(
    images: Path, packed: Path, tmp_path: Path
) -> None:
    joined = open_catalog([packed, packed])
    assert (len(joined.shards), joined.classes) == (16, open_catalog(packed).classes)
    shardio.pack(images / "class03", tmp_path / "flat", shards=1)
    with pytest.raises(shardio.UsageError, match="packed with different classes"):
        open_catalog([packed, tmp_path / "flat"])


def test_every_shard_of_other_tools_gives_what_webdataset_gives(
    shared_data: Path, read_with_webdataset: ReadSamples
) -> None:
    paths = sorted(
        [*(shared_data / "shards").rglob("*.tar"), *(shared_data / "shards").rglob("*.tgz")]
    )
    assert len(paths) >= 10
    for path in paths:
        entry = open_catalog(path).shards[0]
        assert contents(Path(entry.path), entry.load_index()) == read_with_webdataset(path), path


def test_gzip_shards_that_are_damaged_are_named(tmp_path: Path, shared_data: Path) -> None:
    whole = (shared_data / "shards/webdataset/sample.tgz").read_bytes()
    damaged = {
        "the gzip data is truncated": [whole[:-9], whole[:1000]],
        "the gzip data is damaged": [whole[:500] + b"x" + whole[501:]],
        "it has only 2 of the 512 bytes of a header": [
            b"no"
        ],  # it is read as what it is, a plain file
    }
    for sentence, shards in damaged.items():
        for number, data in enumerate(shards):
            path = tmp_path / f"{number}.tgz"
            path.write_bytes(data)
            with pytest.raises(shardio.TarError, match=rf"{number}\.tgz.*: {sentence}"):
                open_catalog(path)

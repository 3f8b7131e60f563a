"""Compressed shards read as plain ones do, by what they are and not by their names."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lz4.frame
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import shardio
from shardio.indexing.publish import index
from shardio.storage import compression
from shardio.storage.cache import plain_tar
from shardio.storage.compression import COMPRESSIONS, Compression, decompress, find_compression
from shardio.testing import make_shard

SAMPLES = {
    f"{number:03d}": {"bin": os.urandom(40), "json": b"%d" % number, "txt": b"text" * number}
    for number in range(8)
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    "lz4": lambda data: bytes(lz4.frame.compress(data, content_checksum=True)),
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}
MODULES = {
    "gzip": ("zlib", "use a Python that was built with it"),
    "zstd": ("zstandard", r"pip install 'shardio\[zstd\]'"),
    "lz4": ("lz4.frame", r"pip install 'shardio\[lz4\]'"),
    "xz": ("lzma", "use a Python that was built with it"),
    "bzip2": ("bz2", "use a Python that was built with it"),
}
SUFFIXES = [(each.name, suffix) for each in COMPRESSIONS for suffix in each.suffixes]
NAMES = [each.name for each in COMPRESSIONS]
every_compression = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_shard(tmp_path_factory.mktemp("plain") / "a.tar", SAMPLES).read_bytes()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def read(source: Path) -> dict[str, dict[str, bytes]]:
    return {
        str(sample["__key__"]): {
            field: value for field, value in sample.items() if isinstance(value, bytes)
        }
        for sample in shardio.ShardDataset(source, decode=False)
    }


def named(name: str) -> Compression:
    return next(each for each in COMPRESSIONS if each.name == name)


def test_the_table_is_tested_whole() -> None:
    assert NAMES == [*PACKERS] == [*MODULES]
    suffixes = [suffix for _, suffix in SUFFIXES]
    assert len({*suffixes}) == len(suffixes)


@pytest.mark.parametrize(("name", "suffix"), SUFFIXES)
def test_every_command_reads_a_compressed_shard_in_a_folder(
    tmp_path: Path, tar: bytes, name: str, suffix: str
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    write(source / f"a{suffix}", PACKERS[name](tar))
    assert read(source) == SAMPLES
    assert shardio.info(source).samples == len(SAMPLES)
    shardio.repair(source, tmp_path / "repaired", jobs=1)
    assert index(source).samples == len(SAMPLES)
    assert (source / "index" / f"a{suffix}.idx").exists()
    assert shardio.verify(source, jobs=1).findings == ()
    assert read(source) == SAMPLES
    shardio.pack(source, tmp_path / "packed", shards=1, jobs=1)
    shardio.reshard(source, tmp_path / "resharded", shards=2, jobs=1)
    shardio.convert(source, tmp_path / "records", to="tfrecord", jobs=1)
    assert [path.name for path in (tmp_path / "records").glob("*.tfrecord")] == ["a.tfrecord"]
    for made in ("repaired", "packed", "resharded"):
        assert read(tmp_path / made) == SAMPLES
        assert all(map(is_plain, (tmp_path / made).glob("*.tar")))
    with pytest.raises(shardio.PackError, match=f"decompress it with `{name} -d`"):
        shardio.convert(source, to="wids")


def is_plain(path: Path) -> bool:
    return path.read_bytes()[257:262] == b"ustar"


@pytest.mark.parametrize("suffix", [".tar", *[suffix for _, suffix in SUFFIXES], ".bin"])
def test_the_name_of_a_shard_does_not_choose(tmp_path: Path, tar: bytes, suffix: str) -> None:
    for packer in PACKERS.values():
        path = write(tmp_path / f"a{suffix}", packer(tar))
        assert read(path) == SAMPLES
        assert shardio.verify(path, jobs=1).findings == ()
    write(path, tar)
    assert plain_tar(path) == path
    assert read(path) == SAMPLES
    assert shardio.verify(path, jobs=1).findings == ()


@pytest.mark.parametrize("member", ["BZh9.txt", "P*M.txt", "(.txt", "\x1f.txt"])
def test_a_tar_whose_first_name_begins_like_a_compressed_file_is_a_tar(
    tmp_path: Path, member: str
) -> None:
    path = make_shard(tmp_path / "a.tar", {member[:-4]: {"txt": b"1"}})
    assert read(path) == {member[:-4]: {"txt": b"1"}}


@every_compression
@given(draw=st.data())
@settings(max_examples=20)
def test_of_a_shard_that_is_cut_off_no_sample_is_missing_in_silence(
    tar: bytes, name: str, draw: st.DataObject
) -> None:
    data = PACKERS[name](tar)
    with TemporaryDirectory() as folder:
        path = write(Path(folder, "a.tar"), data[: draw.draw(st.integers(0, len(data) - 1))])
        with pytest.raises(shardio.TarError, match=r"a\.tar") as caught:
            read(path)
        assert caught.value.shard == str(path)
        with pytest.raises(shardio.TarError, match=r"a\.tar"):
            index(path)
        assert not shardio.verify(path, jobs=1).sound


@every_compression
@given(draw=st.data())
@settings(max_examples=20)
def test_a_shard_with_a_changed_byte_is_whole_or_refused(
    tar: bytes, name: str, draw: st.DataObject
) -> None:
    data = bytearray(PACKERS[name](tar))
    data[draw.draw(st.integers(0, len(data) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    with TemporaryDirectory() as folder:
        path = write(Path(folder, "a.tar"), bytes(data))
        if shardio.verify(path, jobs=1).sound:
            assert read(path) == SAMPLES
        else:
            with pytest.raises(shardio.TarError, match=r"a\.tar"):
                read(path)


@every_compression
@given(draw=st.data())
@settings(max_examples=20)
def test_streams_one_after_another_are_one_shard(
    tar: bytes, name: str, draw: st.DataObject
) -> None:
    places = sorted(draw.draw(st.lists(st.integers(0, len(tar)), min_size=1, max_size=3)))
    pieces = [tar[first:last] for first, last in itertools.pairwise([0, *places, len(tar)])]
    zeros = bytes(draw.draw(st.sampled_from([0, 4, 10_000])))
    data = b"".join(PACKERS[name](piece) + zeros for piece in pieces)
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.tar")
        assert read(write(path, data)) == SAMPLES
        assert shardio.verify(path, jobs=1).findings == ()
        last = len(PACKERS[name](pieces[-1]) + zeros)
        cut = draw.draw(st.integers(len(data) - last + 1, len(data) - len(zeros) - 1))
        with pytest.raises(shardio.TarError, match=r"a\.tar: the .* data is truncated"):
            read(write(path, data[:cut]))
        garbage = draw.draw(st.binary(min_size=1).filter(lambda data: data.strip(b"\0")))
        with pytest.raises(shardio.TarError, match=rf"a\.tar: the {name} data is"):
            read(write(path, data + garbage))


def test_frames_that_zstd_skips_are_skipped(tmp_path: Path, tar: bytes) -> None:
    """As pzstd writes one before each frame."""
    frames = [PACKERS["zstd"](piece) for piece in (tar[:700], tar[700:])]
    data = [struct.pack("<III", 0x184D2A50, 4, len(frame)) + frame for frame in frames]
    assert read(write(tmp_path / "a.tar", b"".join(data))) == SAMPLES


@every_compression
def test_a_shard_that_is_compressed_twice_is_no_tar(tmp_path: Path, tar: bytes, name: str) -> None:
    path = write(tmp_path / "a.tar", PACKERS["gzip"](PACKERS[name](tar)))
    with pytest.raises(shardio.TarError, match=r"a\.tar"):
        read(path)
    assert not shardio.verify(path, jobs=1).sound
    with pytest.raises(shardio.PackError, match="no sample is intact"):
        shardio.repair(path, tmp_path / "new", jobs=1)


@every_compression
def test_what_a_cut_off_shard_still_has_is_repaired(tmp_path: Path, tar: bytes, name: str) -> None:
    data = PACKERS[name](tar[:6000]) + PACKERS[name](tar[6000:])
    path = write(tmp_path / "a.tar", data[:-20])
    shardio.repair(path, tmp_path / "new", jobs=1)
    kept = read(tmp_path / "new")
    assert 0 < len(kept) <= len(SAMPLES)
    assert kept.items() <= SAMPLES.items()
    assert f"the {name} data is truncated" in (tmp_path / "new/dropped.jsonl").read_text()


@every_compression
def test_a_missing_library_is_one_sentence(
    tmp_path: Path, tar: bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.tar", PACKERS[name](tar))
    module, remedy = MODULES[name]
    monkeypatch.setitem(sys.modules, module, None)
    sentence = (
        rf"a\.tar: .* with {name}, which needs the package {module.partition('.')[0]}; {remedy}$"
    )
    attempts: list[Callable[[], Any]] = [
        lambda: shardio.ShardDataset(path),
        lambda: index(path),
        lambda: shardio.verify(path, jobs=1),
        lambda: shardio.repair(path, tmp_path / "new", jobs=1),
    ]
    for attempt in attempts:
        with pytest.raises(shardio.UsageError, match=sentence):
            attempt()


@every_compression
def test_the_limit_on_expansion_holds(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "_ALWAYS", 1 << 20)
    path = write(tmp_path / "a.tar", PACKERS[name](bytes(8 << 20)))
    with pytest.raises(shardio.TarError, match=r"a\.tar: .* 200 times .* set SHARDIO_MAX_RATIO"):
        plain_tar(path)
    (problem,) = shardio.verify(path, jobs=1).problems
    assert "set SHARDIO_MAX_RATIO higher" in str(problem)
    monkeypatch.setenv("SHARDIO_MAX_RATIO", "1000000")
    assert plain_tar(path).stat().st_size == 8 << 20


@every_compression
def test_a_bomb_is_not_held_in_memory(tmp_path: Path, name: str) -> None:
    """Only zstd cannot stop inside a piece, of which it makes 128 MiB at most."""
    path = write(tmp_path / "a.tar", PACKERS[name](bytes(48 << 20)))
    sizes: list[int] = []

    class Output(io.FileIO):
        def write(self, data: Any) -> int:
            sizes.append(len(data))
            return super().write(data)

    with Output(tmp_path / "plain", "wb") as out:
        decompress(path, named(name), out)
    assert sum(sizes) == 48 << 20
    assert name == "zstd" or max(sizes) <= 5 << 20


@pytest.mark.parametrize(("name", "suffix"), SUFFIXES)
def test_a_shard_and_its_compressed_copy_are_not_read_twice(
    tmp_path: Path, tar: bytes, name: str, suffix: str
) -> None:
    write(tmp_path / f"a{suffix}", PACKERS[name](tar))
    for other in [".tar", *(each for _, each in SUFFIXES if each != suffix)]:
        twin = write(tmp_path / f"a{other}", tar)
        with pytest.raises(shardio.UsageError, match="look like one shard twice"):
            shardio.ShardDataset(tmp_path)
        twin.unlink()


@every_compression
def test_a_packed_shard_that_was_compressed_is_no_packed_shard(
    tmp_path: Path, tar: bytes, name: str
) -> None:
    packed = tmp_path / "packed"
    shardio.pack(write(tmp_path / "a.tar", tar), packed, shards=1, jobs=1)
    shard = packed / "shard-000000.tar"
    write(shard, PACKERS[name](shard.read_bytes()))
    with pytest.raises(shardio.TarError, match="its index expects"):
        read(packed)
    sentence = f"compressed with {name}, and the shards of a manifest are plain tars"
    (problem,) = shardio.verify(packed, jobs=1).problems
    assert sentence in problem.what
    for force in (False, True):
        with pytest.raises(shardio.IndexFileError, match=f"{sentence}; .* `{name} -d`"):
            index(packed, force=force)
    shardio.repair(packed, tmp_path / "new", jobs=1)
    assert read(tmp_path / "new") == SAMPLES


def test_a_pipe_in_the_place_of_a_shard_is_not_waited_for(tmp_path: Path, tar: bytes) -> None:
    packed = tmp_path / "packed"
    shardio.pack(write(tmp_path / "a.tar", tar), packed, shards=2, jobs=1)
    (packed / "shard-000000.tar").unlink()
    os.mkfifo(packed / "shard-000000.tar")
    with pytest.raises(OSError, match="it is not a file"):
        find_compression(packed / "shard-000000.tar")
    assert "it is not a file" in str(shardio.verify(packed, jobs=1).problems[0])
    shardio.repair(packed, tmp_path / "new", jobs=1)
    assert "it is not a file" in (tmp_path / "new/dropped.jsonl").read_text()
    assert len(read(tmp_path / "new")) == len(SAMPLES) // 2

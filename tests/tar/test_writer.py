from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardio.errors import UsageError
from shardio.tar.header import BLOCK
from shardio.tar.reader import scan_members
from shardio.tar.writer import (
    END_OF_ARCHIVE,
    ArchiveWriter,
    header_block,
    header_size,
    padding,
)

Files = list[tuple[bytes, bytes]]

NAME = st.binary(min_size=1, max_size=100).map(lambda name: name.replace(b"\0", b"0") + b"x")


def archive(files: Files) -> bytes:
    parts = [header_block(name, len(data)) + data + padding(len(data)) for name, data in files]
    return b"".join([*parts, END_OF_ARCHIVE])


def read_with_tarfile(data: bytes) -> Files:
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8") as tar:
        return [
            (member.name.encode("utf-8", "surrogateescape"), stream.read())
            for member in tar.getmembers()
            if (stream := tar.extractfile(member)) is not None
        ]


@given(st.lists(st.tuples(NAME.map(lambda name: name[-100:]), st.binary(max_size=1100))))
def test_tarfile_and_the_scanner_read_back_what_was_written(files: Files) -> None:
    data = archive(files)
    members = scan_members(data, shard="s")
    assert read_with_tarfile(data) == files
    assert [
        (name, data[offset : offset + size])
        for name, offset, size in zip(members.names, members.offsets, members.sizes, strict=True)
    ] == files


@pytest.mark.parametrize("stem", [b"a/", b"/", b"//a"])
def test_names_of_every_length_to_255_read_back(stem: bytes) -> None:
    names = [(stem * length)[: length - 1] + b"x" for length in range(1, 256)]
    data = archive([(name, b"1") for name in names])
    assert scan_members(data, shard="s").names == names
    assert [name for name, _ in read_with_tarfile(data)] == names


@given(st.lists(st.integers(1, 160), min_size=1, max_size=4))
def test_a_name_takes_a_pax_header_only_if_no_slash_splits_it(lengths: list[int]) -> None:
    name = b"/".join(b"n" * length for length in lengths)
    splits = [
        cut for cut in range(156) if name[cut : cut + 1] == b"/" and len(name) - cut - 1 <= 100
    ]
    header = header_block(name, 0)
    fits = len(name) <= 100 or (splits and len(name) <= 255)
    assert (len(header) == BLOCK) == bool(fits)
    assert len(header) == header_size(name)
    assert scan_members(archive([(name, b"")]), shard="s").names == [name]


def test_a_header_says_mode_0644_and_nothing_of_owner_or_time() -> None:
    member = tarfile.TarInfo.frombuf(header_block(b"cat.jpg", 8**11 - 1), "ascii", "strict")
    assert (member.name, member.size, member.type) == ("cat.jpg", 8**11 - 1, tarfile.REGTYPE)
    assert (member.mode, member.uid, member.gid, member.mtime) == (0o644, 0, 0, 0)
    assert (member.uname, member.gname, member.devmajor, member.devminor) == ("", "", 0, 0)


def test_an_archive_has_these_very_bytes() -> None:
    files = [(b"0001.cls", b"7"), (b"0001.jpg", b"\xff\xd8" * 300), (b"d/" * 80 + b"2.cls", b"")]
    assert hashlib.sha256(archive(files)).hexdigest() == (
        "c2e6510fa708bcf302fcef2311e935d7a56dc4f7ccf14d06a271b5e30c390a57"
    )


@given(st.integers(0, 2**40))
def test_padding_fills_the_last_block_with_zeros(size: int) -> None:
    assert (size + len(padding(size))) % BLOCK == 0
    assert len(padding(size)) < BLOCK
    assert not any(padding(size))


def test_the_end_of_an_archive_is_two_zero_blocks() -> None:
    assert bytes(1024) == END_OF_ARCHIVE


@pytest.mark.parametrize("name", [b"", b"a\0b", b"\0", b"folder/"])
def test_a_name_of_no_file_is_refused(name: bytes) -> None:
    with pytest.raises(UsageError, match="is not a valid member name; use a name"):
        header_block(name, 1)


LONG_NAMES = [
    b"n" * 101,
    b"/" + b"n" * 101,
    b"d/" + b"n" * 101,
    b"d" * 156 + b"/n",
    b"d" * 156 + b"/" + b"n" * 98,
    b"d" * 155 + b"/" + b"n" * 101,
    b"d/" * 150 + b"n",
    b"n" * 980 + b".jpg",  # the length of the record has four digits from here on
    b"n" * 1000 + b".jpg",
    "é".encode() * 90 + b".jpg",
    b"\xff" * 120 + b".jpg",
]


def test_names_that_do_not_fit_are_read_back_from_pax_headers() -> None:
    files = [(name, b"%d" % number * 600) for number, name in enumerate(LONG_NAMES)]
    files = [file for pair in zip(files, [(b"a", b"1")] * len(files), strict=True) for file in pair]
    data = archive(files)
    members = scan_members(data, shard="s")
    assert members.names == [name for name, _ in files]
    assert [data[at:][:size] for at, size in zip(members.offsets, members.sizes, strict=True)] == [
        content for _, content in files
    ]
    assert read_with_tarfile(data) == files


@pytest.mark.parametrize("length", range(101, 130))
def test_the_length_of_a_record_counts_its_own_digits(length: int) -> None:
    for name in (b"n" * length, b"n" * (length + 880)):
        assert read_with_tarfile(archive([(name, b"x")])) == [(name, b"x")]


def test_gnu_tar_unpacks_names_that_do_not_fit(tmp_path: Path) -> None:
    names = ["d" * 156 + "/n.jpg", "n" * 101 + ".jpg", "d/" * 150 + "n.jpg", "short.jpg"]
    shard = tmp_path / "a.tar"
    shard.write_bytes(archive([(name.encode(), name.encode()) for name in names]))
    command = ["tar", "-xf", str(shard), "-C", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, check=True)
    assert not done.stderr
    assert [(tmp_path / name).read_text() for name in names] == names


def test_a_name_longer_than_readers_accept_is_refused() -> None:
    with pytest.raises(UsageError, match="has 1,048,576 bytes; shorten it"):
        header_block(b"n" * (1 << 20), 1)


@pytest.mark.parametrize("size", [0, 1, 512, 1 << 20, (1 << 20) + 1])
def test_data_move_where_a_long_name_needs_room(size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    files = [(name, content[:size]) for name in (b"a", b"n" * 3000, b"b")] * 3
    stream = io.BytesIO()
    writer = ArchiveWriter(stream)
    places = []
    for name, data in files:
        writer.reserve(len(data))[:] = data
        places.append(writer.commit(name))
    digest = writer.finish()
    assert stream.getvalue() == archive(files)
    assert digest == hashlib.sha256(stream.getvalue()).hexdigest()
    for (_, data), placed in zip(files, places, strict=True):
        assert stream.getvalue()[placed.offset :][: placed.size] == data
        assert placed.checksum == zlib.crc32(data)


@pytest.mark.parametrize("size", [-1, 8**11, 2**64])
def test_a_size_that_does_not_fit_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"has {size:,} bytes, .*; split the file"):
        header_block(b"a.jpg", size)

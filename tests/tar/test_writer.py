from __future__ import annotations

import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardio.errors import UsageError
from shardio.tar.header import BLOCK
from shardio.tar.reader import scan_members
from shardio.tar.writer import END_OF_ARCHIVE, header_block, padding

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
def test_a_name_is_refused_only_if_no_slash_splits_it(lengths: list[int]) -> None:
    name = b"/".join(b"n" * length for length in lengths)
    splits = [
        cut for cut in range(156) if name[cut : cut + 1] == b"/" and len(name) - cut - 1 <= 100
    ]
    if len(name) <= 100 or (splits and len(name) <= 255):
        assert scan_members(archive([(name, b"")]), shard="s").names == [name]
    else:
        with pytest.raises(UsageError):
            header_block(name, 0)


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


@pytest.mark.parametrize(
    "name",
    [
        b"n" * 101,
        b"/" + b"n" * 101,
        b"d/" + b"n" * 101,
        b"d" * 156 + b"/n",
        b"d" * 156 + b"/" + b"n" * 98,
        b"d" * 155 + b"/" + b"n" * 100,
        b"d/" * 150 + b"n",
    ],
)
def test_a_name_that_does_not_fit_is_refused(name: bytes) -> None:
    with pytest.raises(
        UsageError, match=f"has {len(name)} bytes, too many for a tar header; shorten it"
    ):
        header_block(name, 1)


@pytest.mark.parametrize("size", [-1, 8**11, 2**64])
def test_a_size_that_does_not_fit_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"has {size:,} bytes, .*; split the file"):
        header_block(b"a.jpg", size)

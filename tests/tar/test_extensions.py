from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardio.errors import TarError
from shardio.tar.header import NO_OVERRIDES, Overrides, parse_extension
from shardio.tar.reader import scan_members
from shardio.tar.writer import END_OF_ARCHIVE, header_block, padding

Row = tuple[bytes, int, int]

TEXT = st.binary(max_size=200).map(lambda text: text.replace(b"\0", b"\n"))
KEYWORD = st.text("abcXYZ.-_", min_size=1, max_size=9).map(str.encode)


def record(keyword: bytes, value: bytes) -> bytes:
    rest = b" " + keyword + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


@given(TEXT, st.integers(0, 2**63), st.lists(st.tuples(KEYWORD, TEXT)))
def test_pax_records_override_name_and_size_whatever_stands_beside_them(
    name: bytes, size: int, others: list[tuple[bytes, bytes]]
) -> None:
    beside = b"".join(record(*other) for other in others)
    data = record(b"path", name) + beside + record(b"size", b"%d" % size)
    assert parse_extension(b"x", data) == Overrides(name=name, size=size)
    assert parse_extension(b"x", beside) is NO_OVERRIDES


@pytest.mark.parametrize("zeros", [1, 21, 5000])
@pytest.mark.parametrize("size", [0, 999])
def test_numbers_in_pax_records_may_have_leading_zeros(zeros: int, size: int) -> None:
    data = record(b"size", b"0" * zeros + b"%d" % size)
    assert parse_extension(b"x", data) == Overrides(size=size)
    rest = b" size=%d\n" % size
    data = b"%0*d" % (zeros + 4, len(rest) + zeros + 4) + rest
    assert parse_extension(b"x", data) == Overrides(size=size)


def test_of_two_records_with_one_keyword_the_last_prevails() -> None:
    data = record(b"path", b"first") + record(b"path", b"last")
    assert parse_extension(b"x", data) == Overrides(name=b"last")


def test_gnu_long_names_end_at_a_nul_or_with_the_data() -> None:
    assert parse_extension(b"L", b"name\0rest") == Overrides(name=b"name")


def test_link_targets_are_passed_over() -> None:
    assert parse_extension(b"K", b"target") is NO_OVERRIDES
    assert parse_extension(b"x", record(b"linkpath", b"target")) is NO_OVERRIDES


@pytest.mark.parametrize(
    "data",
    [
        b"0 ",
        b"0",
        b"x",
        b"\0",
        b" ",
        b"9 path=a",
        b"8 path=a\n",
        b"11 path=a\n",
        b"9 path:a\n",
        b"-9 path=a\n",
        b"+9 path=a\n",
        b"9path=abc\n",
        b"09path=abc\n",
        b"5 =a\n",
        b"3 \n",
        b"1 path=a\n",
        b"9 path=a\n\0",
        b"000000009 path=a\n",
        b"99999999999999999999 path=a\n",
        record(b"path", b"a\0b"),
        record(b"size", b""),
        record(b"size", b"-1"),
        record(b"size", b"1.5"),
        record(b"size", b" 1"),
        record(b"size", b"9" * 5000),
        record(b"size", b"0" * 5000 + b"9" * 21),
        b"0" * 5000 + b"9999 path=a\n",
    ],
)
def test_malformed_pax_records_are_refused(data: bytes) -> None:
    with pytest.raises(TarError, match=r"the PAX record .* is malformed; pack the shard again"):
        parse_extension(b"x", data)


@pytest.mark.parametrize("keyword", [b"GNU.sparse.map", b"GNU.sparse.size", b"GNU.sparse.major"])
def test_pax_sparse_members_are_refused(keyword: bytes) -> None:
    with pytest.raises(TarError, match="sparse files are not supported"):
        parse_extension(b"x", record(b"mtime", b"1.5") + record(keyword, b"1"))


def test_a_pax_header_of_very_many_records_is_refused() -> None:
    assert parse_extension(b"x", b"5 a=\n" * 1000) is NO_OVERRIDES
    with pytest.raises(TarError, match="more than 1000 records; pack the shard again"):
        parse_extension(b"x", b"5 a=\n" * 1001)


OVERRIDES = st.builds(
    Overrides, name=st.none() | st.sampled_from([b"a", b"b"]), size=st.none() | st.integers(0, 1)
)


@given(OVERRIDES, OVERRIDES, OVERRIDES)
def test_combining_overrides_is_associative_and_the_first_prevails(
    first: Overrides, second: Overrides, third: Overrides
) -> None:
    assert first.over(second).over(third) == first.over(second.over(third))
    assert first.over(second).name == (second.name if first.name is None else first.name)
    assert first.over(NO_OVERRIDES) == NO_OVERRIDES.over(first) == first


# In archives


def member(name: bytes, size: int) -> bytes:
    return header_block(name, size) + b"x" * size + padding(size)


def extension(kind: bytes, data: bytes) -> bytes:
    header = tarfile.TarInfo("extension")
    header.type, header.size = kind, len(data)
    return header.tobuf(tarfile.USTAR_FORMAT) + data + padding(len(data))


def scan(data: bytes) -> list[Row]:
    """Find name, offset and size of each member."""
    members = scan_members(data, shard="s.tar")
    return list(zip(members.names, members.offsets.tolist(), members.sizes.tolist(), strict=True))


def scan_with_tarfile(data: bytes) -> list[Row]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(info.name.encode(), info.offset_data, info.size) for info in tar.getmembers()]


def fails(data: bytes, offset: int, message: str) -> None:
    with pytest.raises(TarError, match=f"^s.tar, byte {offset}: .*{message}") as caught:
        scan_members(data, shard="s.tar")
    assert (caught.value.shard, caught.value.offset) == ("s.tar", offset)


def test_a_global_header_holds_for_all_members_that_do_not_override_it() -> None:
    data = (
        member(b"before", 1)
        + tarfile.TarInfo.create_pax_global_header({"path": "all", "comment": "c"})
        + member(b"a", 1)
        + extension(b"x", b"12 path=own\n")
        + member(b"b", 2)
        + member(b"c", 3)
        + tarfile.TarInfo.create_pax_global_header({"path": "new"})
        + member(b"d", 4)
        + END_OF_ARCHIVE
    )
    assert [name for name, _, _ in scan(data)] == [b"before", b"all", b"own", b"all", b"new"]
    assert scan(data) == scan_with_tarfile(data)


@pytest.mark.parametrize(
    "extensions",
    [
        extension(b"L", b"first") + extension(b"L", b"second"),
        extension(b"L", b"first") + extension(b"x", b"15 path=second\n"),
        extension(b"x", b"14 path=first\n") + extension(b"L", b"second"),
        extension(b"x", b"14 path=first\n") + extension(b"x", b"15 path=second\n"),
        extension(b"X", b"14 path=first\n") + extension(b"g", b"15 path=second\n"),
        extension(b"x", b"10 size=3\n") + extension(b"x", b"10 size=9\n"),
    ],
)
def test_of_two_extensions_for_one_member_the_first_prevails_as_in_tarfile(
    extensions: bytes,
) -> None:
    data = extensions + member(b"a", 3) + member(b"b", 1) + END_OF_ARCHIVE
    assert scan(data)[0][0] in {b"first", b"a"}
    assert scan(data)[0][2] == 3
    assert scan(data) == scan_with_tarfile(data)


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"X", b"g"])
def test_an_extension_without_its_member_is_refused(kind: bytes) -> None:
    data = member(b"a", 1) + extension(kind, b"9 path=b\n")
    fails(data + END_OF_ARCHIVE, 2048, "is truncated between an extension header and its member")
    fails(data, 2048, "is truncated between an extension header and its member")
    fails(data[: 1024 + 512 + 8], 1024, "has 9 bytes of data, but only 8 are left")


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"X", b"g"])
def test_an_extension_above_a_mebibyte_is_refused(kind: bytes) -> None:
    data = extension(kind, b"1048577 path=".ljust((1 << 20) + 1, b"n"))
    fails(
        data + member(b"a", 0) + END_OF_ARCHIVE,
        0,
        "1,048,577 bytes, more than the limit of 1,048,576",
    )


@pytest.mark.parametrize("data", [b"9 path=b", b"GNU.sparse.size=1\n", b"0 ", b"\0"])
def test_a_malformed_pax_header_is_refused_where_it_starts(data: bytes) -> None:
    fails(
        member(b"a", 1) + extension(b"x", data) + member(b"b", 0) + END_OF_ARCHIVE,
        1024,
        "malformed",
    )


def test_a_global_size_is_refused_where_tools_would_read_different_members() -> None:
    for_all = extension(b"g", b"9 size=3\n")
    same = for_all + member(b"a", 3)
    own = extension(b"x", b"9 size=1\n") + member(b"b", 1)
    assert [size for _, _, size in scan(same + own + END_OF_ARCHIVE)] == [3, 1]
    different = same + member(b"c", 4) + END_OF_ARCHIVE
    fails(
        different,
        len(same),
        "a global header gives the member 3 bytes of data and its own header 4",
    )


def test_a_member_cannot_be_smuggled_behind_a_pax_size() -> None:
    smuggled = header_block(b"smuggled", 0) * 3
    regular = member(b"regular.txt", 8)
    data = (
        extension(b"x", b"13 size=2048\n") + regular + smuggled + member(b"b", 1) + END_OF_ARCHIVE
    )
    assert scan(data) == scan_with_tarfile(data)
    assert [name for name, _, _ in scan(data)] == [b"regular.txt", b"b"]
    assert scan(data)[0][2] == 2048


def test_a_long_name_that_goes_on_after_its_size_is_refused() -> None:
    """tarfile and GNU tar read up to a NUL, so other tools would see another name."""
    name = b"folder/" * 20 + b"b.txt"
    whole = extension(b"L", name) + member(b"short", 4) + END_OF_ARCHIVE
    assert scan(whole)[0][0] == name
    size = b"%011o" % 7
    header = bytearray(whole[:512])
    header[124:135] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    fails(bytes(header) + whole[512:], 0, "a long name is not terminated within the 7 bytes")

from __future__ import annotations

import gzip
import io
import mmap
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from shardio.errors import TarError
from shardio.tar.header import BLOCK, HEADER_PARTS, checksum, padded
from shardio.tar.reader import Buffer, Sliced, scan_members, scan_sound_part
from shardio.tar.writer import END_OF_ARCHIVE, header_block, padding

Form = Literal[0, 1, 2]
USTAR: Form = tarfile.USTAR_FORMAT
GNU: Form = tarfile.GNU_FORMAT
PAX: Form = tarfile.PAX_FORMAT
WITHOUT_DATA = {b"1", b"2", b"3", b"4", b"5", b"6"}


class Row(NamedTuple):
    """One member; without slashes at the end of the name, which tarfile strips from some."""

    name: bytes
    kind: bytes
    offset: int
    size: int


def scan(data: Buffer) -> list[Row]:
    members = scan_members(data, shard="s.tar")
    assert members.offsets.dtype == members.sizes.dtype == np.int64
    assert len(members) == len(members.kinds) == len(members.offsets) == len(members.sizes)
    return [
        Row(
            name.rstrip(b"/"),
            members.kinds[i : i + 1],
            int(members.offsets[i]),
            int(members.sizes[i]),
        )
        for i, name in enumerate(members.names)
    ]


def members_of(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(
        fileobj=io.BytesIO(data), mode="r:", encoding="utf-8", errors="surrogateescape"
    ) as tar:
        return tar.getmembers()


def scan_with_tarfile(data: bytes) -> list[Row]:
    return [row_of(info) for info in members_of(data)]


def row_of(info: tarfile.TarInfo) -> Row:
    kind = b"0" if info.isreg() else info.type
    return Row(
        info.name.encode("utf-8", "surrogateescape").rstrip(b"/"),
        b"5" if kind == b"0" and info.name.endswith("/") else kind,
        info.offset_data,
        0 if kind in WITHOUT_DATA else info.size,
    )


def member(
    name: str, size: int = 0, kind: bytes = b"0", link: str = "", form: Form = USTAR
) -> bytes:
    """Make the blocks of one member: headers, and data that looks like no header."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    headers = info.tobuf(form, "utf-8", "surrogateescape")
    return headers if kind in WITHOUT_DATA else headers + b"x" * size + padding(size)


def with_size_field(field: bytes, block: bytes) -> bytes:
    before, _, after, rest = HEADER_PARTS.unpack(block[:124] + field + block[136:BLOCK])
    total = checksum(before, after, rest)
    return HEADER_PARTS.pack(before, b"%06o\0 " % total, after, rest) + block[BLOCK:]


@pytest.mark.parametrize("form", [USTAR, GNU, PAX])
def test_headers_start_with_the_first_extension_of_their_member(form: Form) -> None:
    """Where tarfile says; a global header belongs to the member after it, too."""
    long = "n" * (90 if form == USTAR else 300)
    data = member("a", 700) + member(long, 5, form=form)
    data += member(long, kind=b"1", link=long, form=form) + member("b", 512)
    infos = members_of(data + END_OF_ARCHIVE)
    assert scan_members(data + END_OF_ARCHIVE, shard="s").starts.tolist() == [
        info.offset for info in infos
    ]
    shared = tarfile.TarInfo.create_pax_global_header({"comment": "c"})
    assert scan_members(
        member("a") + shared + shared + data + END_OF_ARCHIVE, shard="s"
    ).starts.tolist()[:3] == [0, 512, 512 + 2 * len(shared) + infos[1].offset]


def fails(data: Buffer, offset: int, message: str) -> None:
    with pytest.raises(TarError, match=message) as caught:
        scan_members(data, shard="s.tar")
    assert str(caught.value).startswith(f"s.tar, byte {offset}: ")
    assert (caught.value.shard, caught.value.offset) == ("s.tar", offset)


# Agreement with tarfile

NAMES = st.lists(
    st.binary(min_size=1, max_size=45).map(lambda part: part.translate(None, b"\0/") + b"n"),
    min_size=1,
    max_size=6,
).map(lambda parts: b"/".join(parts).decode("utf-8", "surrogateescape"))


@st.composite
def infos(draw: st.DrawFn, form: Form) -> tarfile.TarInfo:
    info = tarfile.TarInfo(draw(NAMES))
    info.type = draw(st.sampled_from([b"0", b"\0", b"7", b"1", b"2", b"3", b"4", b"5", b"6", b"Z"]))
    info.size = draw(st.sampled_from([0, 1, 511, 512, 513, 1024, 5000]))
    info.linkname = draw(NAMES) if info.type in {b"1", b"2"} else ""
    info.uid = draw(st.sampled_from([0, 1000, 8**7 - 1 if form == USTAR else 2**40]))
    info.mtime = draw(st.sampled_from([0, 1.5]))
    return info


@pytest.mark.parametrize("form", [USTAR, GNU, PAX])
@given(data=st.data())
def test_members_are_those_that_tarfile_finds(form: Form, data: st.DataObject) -> None:
    parts = []
    for info in data.draw(st.lists(infos(form), max_size=8)):
        try:
            parts.append(info.tobuf(form, "utf-8", "surrogateescape"))
        except ValueError:  # a name too long for USTAR
            assume(False)
        if info.type not in WITHOUT_DATA:
            parts += [b"x" * info.size, padding(info.size)]
    written = b"".join(parts) + bytes(data.draw(st.sampled_from([512, 1024, 10240])))
    assert scan(written) == scan_with_tarfile(written)


def test_sizes_in_unusual_spellings_are_those_that_tarfile_finds() -> None:
    for field in (b"00000000003 ", b"          3\0", b"000000000003", b"\x80" + bytes(10) + b"\3"):
        odd = with_size_field(field, member("odd", 3))
        data = member("a", 1) + odd + member("b", 2) + END_OF_ARCHIVE
        assert scan(data) == scan_with_tarfile(data)


@given(st.binary(max_size=100), st.binary(max_size=155))
@example(b"\xff" * 100, b"\xff" * 155)
@example(b"", b"folder")
def test_raw_names_and_prefixes_are_those_that_tarfile_finds(name: bytes, prefix: bytes) -> None:
    block = bytearray(header_block(b"n", 0))
    block[:100], block[345:500] = name.ljust(100, b"\0"), prefix.ljust(155, b"\0")
    data = with_size_field(b"00000000000\0", bytes(block)) + END_OF_ARCHIVE
    assert scan(data) == scan_with_tarfile(data)


@given(st.binary(min_size=BLOCK, max_size=BLOCK), st.sampled_from(b"0\x00125xgLKS\xff"))
def test_random_headers_with_a_true_checksum_are_members_or_an_error(
    block: bytes, kind: int
) -> None:
    block = block[:156] + bytes([kind]) + block[157:]
    assert outcome(with_size_field(b"00000000100\0", block) + END_OF_ARCHIVE) is not None


# Archives that others wrote

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="../shared/data is absent")
WRONG_SUM = "the header's checksum does not match"
NO_HEADER = "neither a header nor the end of the archive, so the shard is corrupt or not a tar arch"
SPARSE = "sparse files are not supported"
REFUSED = {
    "tars/cpython/recursion.tar": (0, "PAX record b'0' is malformed"),
    "tars/cpython/testtar.tar": (142848, SPARSE),
    "tars/node-tar/bad-cksum.tar": (1024, WRONG_SUM),
    "tars/tar-rs/sparse-1.tar": (0, SPARSE),
    "tars/tar-rs/sparse-large.tar": (0, SPARSE),
    "tars/tar-rs/sparse.tar": (0, SPARSE),
}
WITHOUT_END = {
    "tars/node-tar/links-strip.tar",
    "tars/node-tar/long-pax.tar",
    "tars/tar-rs/empty_filename.tar",
    "tars/tar-split-asm/notenoughnils.tar.gz",
}
FOUND = {
    path.relative_to(DATA).as_posix(): path
    for folder in ("tars", "shards")
    for suffix in ("tar", "tar.gz", "tgz")
    for path in sorted(DATA.glob(f"{folder}/*/*.{suffix}"))
}


def unpacked(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix != ".tar" else path.read_bytes()


@needs_data
def test_the_archives_of_others_are_all_there() -> None:
    assert len(FOUND) >= 56
    assert REFUSED.keys() | WITHOUT_END <= FOUND.keys()


@pytest.mark.parametrize("name", sorted(FOUND.keys() - REFUSED.keys()))
def test_sound_archives_of_others_read_as_in_tarfile(name: str) -> None:
    data = unpacked(FOUND[name])
    assert scan(data) == scan_with_tarfile(data)


@pytest.mark.parametrize("name", sorted(FOUND.keys() & REFUSED.keys()))
def test_unsound_archives_of_others_are_refused_with_their_offset(name: str) -> None:
    fails(unpacked(FOUND[name]), *REFUSED[name])


@pytest.mark.parametrize("name", sorted(FOUND.keys() - REFUSED.keys()))
def test_archives_of_others_that_end_without_a_mark_are_told_from_the_rest(name: str) -> None:
    data = unpacked(FOUND[name])
    assert scan_members(data, shard="s.tar").has_end == (name not in WITHOUT_END)


@needs_data
def test_the_archive_of_all_types_reads_as_in_tarfile_without_its_sparse_members() -> None:
    data = FOUND["tars/cpython/testtar.tar"].read_bytes()
    found = members_of(data)
    ends = [info.offset for info in found[1:]] + [len(data)]
    kept = b"".join(
        data[info.offset : end]
        for info, end in zip(found, ends, strict=True)
        if not info.issparse()
    )
    assert len(scan(kept)) == len(found) - sum(info.issparse() for info in found) >= 30
    assert scan(kept) == scan_with_tarfile(kept)


# Damage

SOUND = {
    "plain": member("a.jpg", 700) + member("b.jpg", 600) + member("c.jpg", 1),
    "gnu": member("a", 9) + member("n" * 120, 1, b"2", "l" * 120, form=GNU) + member("c", 1),
    "pax": member("a", 9) + member("\u00e9" * 9, 600, form=PAX) + member("c", 1),
}


@pytest.fixture(params=SOUND)
def sound(request: pytest.FixtureRequest) -> bytes:
    return SOUND[request.param] + bytes(3 * BLOCK)


def headers_of(data: bytes) -> list[int]:
    return [at for at in range(0, len(data), BLOCK) if data[at + 257 : at + 262] == b"ustar"]


def outcome(data: Buffer) -> list[Row] | int | None:
    """Scan, and return the members or the offset of the error."""
    try:
        return scan(data)
    except TarError as error:
        return error.offset


def test_a_flipped_header_bit_is_an_error_there_or_changes_no_member(sound: bytes) -> None:
    expected = scan(sound)
    for header in headers_of(sound):
        harmless = set()
        for bit in range(8 * BLOCK):
            damaged = bytearray(sound)
            damaged[header + bit // 8] ^= 1 << bit % 8
            found = outcome(damaged)
            assert found in (expected, header)
            if found == expected:
                harmless.add(bit // 8)
        assert harmless <= {148, 154, 155}  # filler around the digits of the checksum


def test_an_archive_cut_off_anywhere_but_behind_a_member_is_an_error(sound: bytes) -> None:
    expected = scan(sound)
    end_mark = len(sound) - 3 * BLOCK
    starts = [row.offset for row in expected]
    ends = {row.offset + padded(row.size): 1 + i for i, row in enumerate(expected)}
    assert len(ends) == len(starts) > 0
    for length in range(len(sound)):
        if length in ends:
            found = scan_members(sound[:length], shard="s.tar")
            assert scan(sound[:length]) == expected[: ends[length]]
            assert not found.has_end
        elif length < end_mark + BLOCK:
            with pytest.raises(TarError):
                scan(sound[:length])
        else:
            assert scan(sound[:length]) == expected
            assert scan_members(sound[:length], shard="s.tar").has_end


def test_a_zeroed_header_is_an_error(sound: bytes) -> None:
    for header in headers_of(sound):
        fails(
            sound[:header] + bytes(BLOCK) + sound[header + BLOCK :],
            header,
            r"corrupt|a single block of zeros precedes the data at byte \d+, so a header was",
        )


@pytest.mark.parametrize("first", [0, 512, 1024, 5000])
def test_a_zeroed_header_is_an_error_also_where_the_data_behind_it_begin_with_zeros(
    first: int,
) -> None:
    black = header_block(b"b.raw", first + 1) + bytes(first) + b"x" + padding(first + 1)
    for after in (b"", member("c", 1)):
        data = member("a", 1) + bytes(BLOCK) + black[BLOCK:] + after + END_OF_ARCHIVE
        fails(data, 1024, f"at byte {1536 + first}.*zeroed")


@pytest.mark.parametrize(
    ("data", "offset", "message"),
    [
        (b"", 0, "the file is empty, not a tar archive"),
        (b"\0" * 511, 0, "the shard is truncated: it has only 511 of the 512 bytes of a header"),
        (member("a", 1) + bytes(100), 1024, "only 100 of the 512 bytes of a header"),
        (member("a", 1)[:-1], 1023, "is truncated inside the padding of its last member"),
        (
            member("a", 9)[:520],
            0,
            "truncated or corrupt: the member has 9 bytes of data, but only 8 are left",
        ),
        (member("a") + bytes(BLOCK) + b"x", 512, "precedes the data at byte 1024, so a header was"),
        (END_OF_ARCHIVE + b"x", 0, "has no members, only data from byte 1024 on"),
        (bytes(10241), 0, "has no members, only 10,241 zero bytes, so it was never written"),
        (bytes(3 << 20) + b"\1" + bytes(9), 0, f"no members, only data from byte {3 << 20}"),
        (
            member("a") + END_OF_ARCHIVE + member("b") + END_OF_ARCHIVE,
            512,
            "a header at byte 1536 follow .* `tar --ignore-zeros` .* truncate it to 1536 bytes",
        ),
        (END_OF_ARCHIVE + member("b") + END_OF_ARCHIVE, 0, "a header at byte 1024 follow"),
        (member("a") + bytes(2000) + b"x" + bytes(2000), 512, "data and the end of another follow"),
        (b"not a tar archive".ljust(BLOCK), 0, NO_HEADER),
        (member("a") + b"\x89PNG".ljust(BLOCK), 512, NO_HEADER),
    ],
)
def test_what_is_no_whole_archive_is_refused(data: bytes, offset: int, message: str) -> None:
    fails(data, offset, message)


@pytest.mark.parametrize("blocks", [1, 2, 20, 5000])
@pytest.mark.parametrize("rest", [0, 1, 511])
def test_zeros_of_any_length_end_an_archive(blocks: int, rest: int) -> None:
    zeros = bytes(blocks * BLOCK + rest)
    assert scan(member("a", 1) + zeros) == [Row(b"a", b"0", 512, 1)]


@pytest.mark.parametrize("size", [512, 1024, 1025, 10240])
def test_an_end_mark_of_at_most_twenty_blocks_is_an_empty_archive(size: int) -> None:
    assert scan(bytes(size)) == []


TRAILERS = st.one_of(
    st.binary(max_size=4000),
    st.binary(min_size=1, max_size=9).map(lambda some: some * 400),
    st.sampled_from([b"PK\5\6" + bytes(18), b"0123456789abcdef  s.tar\n", b"01234567 \0" * 999]),
).filter(lambda trailer: not trailer.strip(b"\0") or trailer[-1024:].strip(b"\0"))


@given(
    st.sampled_from([USTAR, GNU, PAX]),
    st.lists(st.tuples(NAMES, st.integers(0, 1500)), min_size=1, max_size=4),
    st.integers(1024, 30000),
    TRAILERS,
)
def test_zeros_and_trailers_behind_an_archive_change_no_member(
    form: Form, names: list[tuple[str, int]], zeros: int, trailer: bytes
) -> None:
    try:
        written = b"".join(member(name, size, form=form) for name, size in names)
    except ValueError:  # a name too long for USTAR
        assume(False)
    data = written + bytes(zeros) + trailer
    assert scan(data) == scan_with_tarfile(written + bytes(1024))
    found = scan_members(data, shard="s.tar").trailer
    first = len(written) + zeros + len(trailer) - len(trailer.lstrip(b"\0"))
    assert found == (first if trailer.strip(b"\0") else None)


@given(st.integers(2, 40), st.binary(max_size=2000), st.integers(0, 3))
def test_a_header_in_any_block_behind_the_end_is_an_error(
    zeros: int, trailer: bytes, form: int
) -> None:
    trailer += padding(len(trailer))
    other = member("b", 1, form=GNU) if form == 1 else member("b", 1)
    if form == 2:  # in another spelling
        other = other[:148] + b" %5o\0\0" % int(other[148:154], 8) + other[156:]
    data = member("a", 1) + bytes(zeros * BLOCK) + trailer + other
    fails(data, 1024, "data and a header at byte .* follow the end of the archive")


def test_a_trailer_is_searched_in_linear_time_and_little_memory() -> None:
    """Also one that looks like the checksum of a header everywhere."""
    digits, noise = b"012345670 " * 100_000, b"x" * 1_000_000
    for piece in (digits, noise):
        times = []
        for size in (2, 8):
            data = member("a", 1) + END_OF_ARCHIVE + piece * size
            scan_it = partial(scan_members, data, shard="s")
            times.append(min(seconds(scan_it), seconds(scan_it)))
        assert times[1] < 16 * times[0]
        tracemalloc.start()
        scan_members(data, shard="s")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 6 << 20


# Hostility

HOSTILE_NAMES = """
/tmp/abs //tmp/abs ///tmp/abs /./tmp/abs /../tmp/abs ../rel ./../rel some/../../rel
. .. ././//./.. /////////.. C:\\abs ~/home |pipe
"""


@pytest.mark.parametrize("name", ["", *HOSTILE_NAMES.split()])
def test_a_hostile_name_is_only_a_name(name: str) -> None:
    data = member(name, 3) + member("b", 1) + END_OF_ARCHIVE
    assert scan_members(data, shard="s").names == [name.encode(), b"b"]
    assert scan(data) == scan_with_tarfile(data)


def test_a_hostile_size_is_refused() -> None:
    largest_of_64_bits = b"\x80\0\0\0" + b"\xff" * 8
    for field in (largest_of_64_bits, b"\x80" + b"\xff" * 11, b"7" * 12, b"00000000002\0"):
        hostile = member("b", 1) + with_size_field(field, member("a")) + b"x"
        fails(hostile, 1024, r"has [\d,]+ bytes of data, but only 1 are left")
    for field in (b"\xff" * 12, b"-0000000001\0", b"00000000008\0"):
        hostile = member("b", 1) + with_size_field(field, member("a")) + b"x"
        fails(hostile, 1024, "is not a valid file size")


def test_the_size_of_a_member_without_data_is_passed_over_as_in_tarfile() -> None:
    data = member("d/", 2**30, b"5") + member("l", 2**30, b"2", "b") + member("b", 1)
    assert scan(data + END_OF_ARCHIVE) == scan_with_tarfile(data + END_OF_ARCHIVE)


def test_a_long_tail_of_zeros_takes_little_memory() -> None:
    data = member("a", 1) + bytes(64 << 20)
    tracemalloc.start()
    scan_members(data, shard="s")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


# Buffers and speed


def test_every_kind_of_buffer_gives_the_same_members(tmp_path: Path, sound: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(sound)
    with (tmp_path / "s.tar").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    views = memoryview(sound), memoryview(sound).cast("H")
    for buffer in (bytearray(sound), mapped, *views):
        assert scan(buffer) == scan(sound)
    mapped.close()


@pytest.mark.parametrize("form", [USTAR, GNU, PAX])
@given(data=st.data())
def test_members_do_not_depend_on_how_much_is_read_at_once(form: Form, data: st.DataObject) -> None:
    """Also of what is damaged: the error is the same, at the same offset."""
    sizes = st.sampled_from([0, 1, 512, 700])
    parts = []
    for number, size in enumerate(data.draw(st.lists(sizes, max_size=12))):
        info = tarfile.TarInfo(f"{number}{'é' * 60 * (size == 700 and form != USTAR)}.x")
        info.size = size
        parts += [info.tobuf(form, "utf-8"), b"x" * size, padding(size)]
    written = bytearray(b"".join(parts) + END_OF_ARCHIVE)
    if data.draw(st.booleans()):
        written[data.draw(st.integers(0, len(written) - 1))] ^= 1
    whole = all_found(bytes(written))
    for window in (BLOCK, BLOCK + 1, 3 * BLOCK, data.draw(st.integers(BLOCK, 1 << 13))):
        with mock.patch("shardio.tar.reader._WINDOW", window):
            assert all_found(bytes(written)) == whole
            assert all_found(Slices(bytes(written))) == whole


class Slices:
    """Bytes that have nothing but slices."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, part: slice, /) -> bytes:
        return self._data[part]


def all_found(data: Buffer | Sliced) -> tuple[object, ...]:
    """All that is said of an archive: its members up to the first fault, and the fault."""
    members, fault = scan_sound_part(data)
    columns = members.starts.tolist(), members.offsets.tolist(), members.sizes.tolist()
    said = None if fault is None else (fault.offset, str(fault.error))
    return members.names, members.kinds, *columns, members.has_end, members.trailer, said


def test_no_buffer_is_held_after_an_error(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(member("a", 1) + END_OF_ARCHIVE + member("b", 1))
    with (tmp_path / "s.tar").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with pytest.raises(TarError):
        scan_members(mapped, shard="s")
    mapped.close()


def seconds(call: Callable[[], object]) -> float:
    """Processor time, which others on the machine do not take part in."""
    start = time.process_time()
    call()
    return time.process_time() - start


def test_a_scan_is_at_least_eight_times_as_fast_as_tarfile() -> None:
    data = b"".join(member(f"class/{i:06}.jpg", i % 1500) for i in range(3000)) + END_OF_ARCHIVE
    rounds = [
        (seconds(lambda: scan_members(data, shard="s")), seconds(lambda: members_of(data)))
        for _ in range(7)
    ]
    ours, theirs = (min(times) for times in zip(*rounds, strict=True))
    assert 8 * ours < theirs

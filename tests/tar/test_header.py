from __future__ import annotations

import tarfile
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shardio.errors import TarError
from shardio.tar.header import BLOCK, HEADER_PARTS, byte_sum, checksum, padded, parse_header

PLAIN = tarfile.TarInfo("cat/1.jpg").tobuf(tarfile.USTAR_FORMAT)


def sealed(block: bytes) -> bytes:
    """Give a block the checksum of its bytes."""
    before, _, after, rest = HEADER_PARTS.unpack(block)
    return HEADER_PARTS.pack(before, b"%06o\0 " % checksum(before, after, rest), after, rest)


def with_field(offset: int, value: bytes, block: bytes = PLAIN) -> bytes:
    return sealed(block[:offset] + value + block[offset + len(value) :])


@given(st.binary(max_size=128), st.binary(max_size=128))
@example(b"\xff" * 128, b"\xff" * 128)
def test_byte_sum_is_the_sum_of_the_bytes(part: bytes, more: bytes) -> None:
    assert byte_sum(part, more) == sum(part) + sum(more)


@given(st.binary(min_size=BLOCK, max_size=BLOCK))
@example(b"\xff" * BLOCK)
def test_checksum_counts_its_own_field_as_spaces(block: bytes) -> None:
    before, _, after, rest = HEADER_PARTS.unpack(block)
    assert checksum(before, after, rest) == sum(block[:148]) + 8 * ord(" ") + sum(block[156:])


@given(st.integers(0, 2**70))
def test_padded_is_the_next_multiple_of_a_block(size: int) -> None:
    assert padded(size) % BLOCK == 0
    assert 0 <= padded(size) - size < BLOCK


def test_a_plain_header_reads_as_written() -> None:
    header = parse_header(with_field(124, b"00000000644\0"))
    assert (header.name, header.kind) == (b"cat/1.jpg", b"0")
    assert header.size == 0o644
    assert header.has_data


@pytest.mark.parametrize(
    ("field", "size"),
    [
        (b"00000000017\0", 15),
        (b"00000000017 ", 15),
        (b"000000000017", 15),
        (b"         17 ", 15),
        (b"17\0garbage!!", 15),
        (b"            ", 0),
        (bytes(12), 0),
        (b"777777777777", 8**12 - 1),
        (b"\x80" + (15).to_bytes(11, "big"), 15),
        (b"\x80" + b"\xff" * 11, 2**88 - 1),
    ],
)
def test_sizes_read_in_every_spelling_that_tools_use(field: bytes, size: int) -> None:
    assert parse_header(with_field(124, field)).size == size


@pytest.mark.parametrize(
    "field",
    [
        b"00000000018\0",
        b"-0000000017\0",
        b"+0000000017\0",
        b"0o000000017\0",
        b"0000_000017\0",
        b"0000 000017\0",
        b"0000000001x\0",
        b"\xff" * 12,
        b"\x81" + bytes(11),
    ],
)
def test_a_size_that_is_no_size_is_refused(field: bytes) -> None:
    with pytest.raises(TarError, match=r"is not a valid file size: .*; pack the shard again"):
        parse_header(with_field(124, field))


@pytest.mark.parametrize(
    ("typeflag", "name", "kind", "has_data"),
    [
        (b"0", b"a", b"0", True),
        (b"\0", b"a", b"0", True),
        (b"\0", b"a/", b"5", False),
        (b"7", b"a", b"0", True),
        (b"1", b"a", b"1", False),
        (b"2", b"a", b"2", False),
        (b"3", b"a", b"3", False),
        (b"4", b"a", b"4", False),
        (b"5", b"a/", b"5", False),
        (b"6", b"a", b"6", False),
        (b"V", b"a", b"V", True),
        (b"\xff", b"a", b"\xff", True),
    ],
)
def test_typeflags_are_normalised(
    typeflag: bytes, name: bytes, kind: bytes, has_data: bool
) -> None:
    header = parse_header(with_field(156, typeflag, with_field(0, name.ljust(100, b"\0"))))
    assert (header.kind, header.has_data) == (kind, has_data)


@pytest.mark.parametrize(
    ("magic", "name"),
    [
        (b"ustar\x0000", b"folder/cat/1.jpg"),
        (b"ustar  \0", b"cat/1.jpg"),  # GNU keeps times in these bytes
        (bytes(8), b"cat/1.jpg"),  # v7 does not have them
    ],
)
def test_only_ustar_has_a_prefix(magic: bytes, name: bytes) -> None:
    block = with_field(257, magic, with_field(345, b"folder\0ignored"))
    assert parse_header(block).name == name


def test_text_fields_end_at_the_first_nul_or_fill_their_field() -> None:
    assert parse_header(with_field(0, b"a\0b")).name == b"a"
    assert parse_header(with_field(0, b"n" * 100)).name == b"n" * 100
    assert parse_header(with_field(345, b"p" * 155)).name == b"p" * 155 + b"/cat/1.jpg"


def signed(block: bytes) -> bytes:
    """Give a block the checksum that Sun's tar gave it."""
    high = sum(byte >= 128 for byte in block[:148] + block[156:])
    return block[:148] + b"%06o\0 " % (int(sealed(block)[148:154], 8) - 256 * high) + block[156:]


ODD = b"\xe9t\xe9.jpg\0"


@pytest.mark.parametrize("at", [0, 157, 345])
def test_a_checksum_of_signed_bytes_is_accepted_where_text_has_such_bytes(at: int) -> None:
    block = with_field(at, ODD)
    assert parse_header(signed(block)) == parse_header(block)


@pytest.mark.parametrize("at", [100, 124, 136, 156, 265, 329, 500, 200, 40])
def test_a_checksum_of_signed_bytes_is_refused_where_such_a_byte_is_damage(at: int) -> None:
    for block in (with_field(at, b"\xff"), with_field(at, b"\xff", with_field(0, ODD))):
        with pytest.raises(TarError, match="the header's checksum does not match"):
            parse_header(signed(block))


@pytest.mark.parametrize(
    "block",
    [
        PLAIN,
        with_field(0, ODD),
        signed(with_field(0, ODD)),
        with_field(124, b"\x80" + bytes(10) + b"\x90", with_field(345, b"\xfcber")),
    ],
)
def test_no_single_damaged_byte_makes_a_header_another_sound_one(block: bytes) -> None:
    sound = parse_header(block)
    harmless = set()
    for at in range(BLOCK):
        for byte in {0, 255, *(block[at] ^ 1 << bit for bit in range(8))}:  # `headers` tries all
            with suppress(TarError):
                assert parse_header(block[:at] + bytes([byte]) + block[at + 1 :]) == sound
                if byte != block[at]:
                    harmless.add(at)
    assert harmless <= set(range(148, 156))


@pytest.mark.parametrize("form", [b"%06o \0", b"%07o\0", b"%08o", b"%6o\0 ", b"%o\0\0\0"])
def test_a_checksum_is_accepted_in_any_octal_form(form: bytes) -> None:
    total = int(PLAIN[148:154], 8)
    block = PLAIN[:148] + (form % total).ljust(8, b"\0") + PLAIN[156:]
    assert parse_header(block).name == b"cat/1.jpg"


@pytest.mark.parametrize("field", [bytes(8), b" " * 8, b"garbage\0", b"-05373\0 "])
def test_a_checksum_that_does_not_match_is_refused(field: bytes) -> None:
    with pytest.raises(TarError, match="the header's checksum does not match"):
        parse_header(PLAIN[:148] + field + PLAIN[156:])


@pytest.mark.parametrize("length", [0, 1, 511])
def test_a_header_that_is_cut_off_is_refused(length: int) -> None:
    with pytest.raises(TarError, match=f"only {length} of the 512 bytes of a header"):
        parse_header(PLAIN[:length])


def test_a_sparse_member_is_refused() -> None:
    with pytest.raises(TarError, match=r"sparse files are not supported; pack the shard again"):
        parse_header(with_field(156, b"S"))

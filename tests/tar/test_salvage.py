from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shardio.tar.header import HEADER_PARTS, checksum
from shardio.tar.reader import scan_members
from shardio.tar.salvage import Walk, walk_members
from shardio.tar.writer import END_OF_ARCHIVE, header_block, padding


def member(name: str, data: bytes, *, v7: bool = False) -> bytes:
    header = header_block(name.encode(), len(data))
    if v7:
        before, _, after, rest = HEADER_PARTS.unpack(header)
        rest = rest[:1] + bytes(255)
        header = HEADER_PARTS.pack(before, b"%06o\0 " % checksum(before, after, rest), after, rest)
    return header + data + padding(len(data))


def names(walk: Walk) -> list[str]:
    return [name.decode() for name in walk.members.names]


MEMBERS = [member(f"{letter}.txt", letter.upper().encode() * 700) for letter in "abcde"]
WHOLE = b"".join(MEMBERS) + END_OF_ARCHIVE


def test_a_sound_archive_has_no_gaps() -> None:
    walk = walk_members(WHOLE)
    assert names(walk) == ["a.txt", "b.txt", "c.txt", "d.txt", "e.txt"]
    assert (walk.gaps, walk.doubtful) == ((), frozenset())


@pytest.mark.parametrize("v7", [False, True])
@pytest.mark.parametrize("change", ["flip", "zero"])
def test_a_damaged_header_loses_its_member_alone(change: str, v7: bool) -> None:
    members = [member(f"{letter}.txt", letter.upper().encode() * 700, v7=v7) for letter in "abcde"]
    at = len(members[0])
    block = bytearray(members[1][:512])
    block[0] ^= 1
    bad = bytes(block) if change == "flip" else bytes(512)
    data = b"".join([members[0], bad, members[1][512:], *members[2:], END_OF_ARCHIVE])
    walk = walk_members(data)
    assert names(walk) == ["a.txt", "c.txt", "d.txt", "e.txt"]
    assert [gap[:2] for gap in walk.gaps] == [(at, 2 * at)]
    assert walk.doubtful == frozenset()


@given(st.integers(1, 699), st.booleans())
@example(190, True)  # the digits of a device number lie where those of a checksum would
def test_lost_and_added_bytes_cost_the_member_they_are_in(count: int, lost: bool) -> None:
    cut = 2 * len(MEMBERS[0]) + 512
    data = WHOLE[:cut] + (WHOLE[cut + count :] if lost else b"?" * count + WHOLE[cut:])
    walk = walk_members(data)
    whole = {name for number, name in enumerate(names(walk)) if number not in walk.doubtful}
    assert whole == {"a.txt", "b.txt", "d.txt", "e.txt"}
    assert walk.gaps


@given(st.integers(0, len(WHOLE) - 1))
def test_of_a_cut_off_archive_the_members_before_are_there(size: int) -> None:
    walk = walk_members(WHOLE[:size])
    ended = [size >= sum(map(len, MEMBERS[: number + 1])) - 324 for number in range(5)]
    assert len(walk.members) == sum(ended)
    assert walk.gaps or size > len(WHOLE) - 1024


@given(st.binary(max_size=3000), st.integers(0, 4))
def test_any_bytes_between_members_end_the_walk_and_lose_no_member(noise: bytes, at: int) -> None:
    data = b"".join([*MEMBERS[:at], noise, *MEMBERS[at:], END_OF_ARCHIVE])
    found = names(walk_members(data))
    assert [name for name in found if name in {"a.txt", "b.txt", "c.txt", "d.txt", "e.txt"}] == [
        "a.txt",
        "b.txt",
        "c.txt",
        "d.txt",
        "e.txt",
    ]


def test_places_are_those_of_the_whole_archive() -> None:
    sound = scan_members(WHOLE, shard="x")
    walk = walk_members(b"?" * 512 + WHOLE)
    assert np.array_equal(walk.members.offsets, sound.offsets + 512)
    assert np.array_equal(walk.members.sizes, sound.sizes)

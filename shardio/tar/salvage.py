"""Walking through a damaged archive: what is lost, and the members that are still there.

Strategy: the exact walk goes as far as it can. Where it stops, the next header is looked for: a
block whose checksum is right and that says "ustar", at any offset, since bytes may be lost or
doubled, or one in the older v7 format, at a multiple of 512. The walk goes on there.

Where it stops at a header that is damaged, the member before is whole, and the search starts
behind. Where it stops at anything else, the data of the member before are shorter or longer than
its header says, so the search starts with these data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from shardio.errors import TarError, quoted
from shardio.tar.header import BLOCK, ZERO_BLOCK, parse_header
from shardio.tar.reader import MISSING_END, Members, Searched, find_headers, scan_sound_part

_MAGIC, _MAGIC_AT = b"ustar", 257
_STATED, _STATED_AT = re.compile(rb"[ 0-7]{6}[\0 ]{2}"), slice(148, 156)  # checksum of a header
_DIGIT, _SIZE_AT = re.compile(b"[0-7]"), slice(124, 136)


class Gap(NamedTuple):
    """Bytes that belong to no member that could be found.

    Attributes:
        start: offset of the first byte.
        end: offset after the last byte.
        error: what stopped the walk, and the way out.
    """

    start: int
    end: int
    error: TarError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Walk:
    """What a walk found.

    Attributes:
        members: in order; those whose data another header cuts are not among them. What they
            say of the archive's end is what the last part of the walk found.
        gaps: in order; none in a sound archive.
        doubtful: numbers of members before a gap that is no damaged header, so that their own
            data may have lost or got bytes.
    """

    members: Members
    gaps: tuple[Gap, ...]
    doubtful: frozenset[int]


def walk_members(data: Searched) -> Walk:
    """List the members of a tar archive, however damaged.

    Args:
        data: the whole archive, uncompressed.
    """
    parts: list[Members] = []
    gaps: list[Gap] = []
    doubtful: set[int] = set()
    start: int | None = 0
    while start is not None:
        members, fault = scan_sound_part(data, start)
        if fault is not None:
            behind = _looks_like_header(data, fault.offset) or not len(members)
            after = max(fault.offset, start) if behind else int(members.offsets[-1])
            start = _next_header(data, after + 1)
            end = len(data) if start is None else start
            if not behind and end < fault.offset:
                gaps.append(_cut_member(members, end))
                members = _first(members, len(members) - 1)
            else:
                gaps.append(Gap(fault.offset, end, fault.error))
                if not behind:
                    doubtful.add(sum(map(len, parts)) + len(members) - 1)
        else:
            start = None
            if not members.has_end:
                gaps.append(Gap(len(data), len(data), MISSING_END))
        parts.append(members)
    return Walk(members=_joined(parts), gaps=tuple(gaps), doubtful=frozenset(doubtful))


def _looks_like_header(data: Searched, offset: int) -> bool:
    """Whether a block was a header, though it may be damaged, zeroed or cut off."""
    block = data[offset : offset + BLOCK]
    return (
        len(block) < BLOCK
        or block == ZERO_BLOCK
        or block.startswith(_MAGIC, _MAGIC_AT)
        or (
            _STATED.fullmatch(block[_STATED_AT]) is not None
            and _DIGIT.search(block, _SIZE_AT.start, _SIZE_AT.stop) is not None
        )
    )


def _is_header(block: bytes) -> bool:
    with suppress(TarError):
        return bool(parse_header(block).name)
    return False


def _next_header(data: Searched, start: int) -> int | None:
    """Offset of the first header at or after an offset."""
    modern = next(
        (at for at in _find_magic(data, start) if _is_header(data[at : at + BLOCK])), None
    )
    blocks = find_headers(data, start + -start % BLOCK, len(data) if modern is None else modern)
    return next((at for at in blocks if _is_header(data[at : at + BLOCK])), modern)


def _find_magic(data: Searched, start: int) -> Iterator[int]:
    at = data.find(_MAGIC, start + _MAGIC_AT)
    while at >= 0:
        yield at - _MAGIC_AT
        at = data.find(_MAGIC, at + 1)


def _cut_member(members: Members, end: int) -> Gap:
    offset, name = int(members.offsets[-1]), members.names[-1].decode("utf-8", "replace")
    error = TarError(
        f"the member {quoted(name)} has {int(members.sizes[-1])} bytes by its header, and the next "
        f"header comes after {end - offset}, so bytes are lost",
        remedy="fetch or pack the shard again",
    )
    return Gap(offset, end, error)


def _first(members: Members, count: int) -> Members:
    return replace(
        members,
        names=members.names[:count],
        kinds=members.kinds[:count],
        starts=members.starts[:count],
        offsets=members.offsets[:count],
        sizes=members.sizes[:count],
    )


def _joined(parts: list[Members]) -> Members:
    return replace(
        parts[-1],
        names=[name for part in parts for name in part.names],
        kinds=b"".join(part.kinds for part in parts),
        starts=np.concatenate([part.starts for part in parts]),
        offsets=np.concatenate([part.offsets for part in parts]),
        sizes=np.concatenate([part.sizes for part in parts]),
    )

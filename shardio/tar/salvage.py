"""Find the members that are left in a corrupt archive, and the gaps between them.

The exact walk goes as far as it can, and continues at the next header after an error. That is a
block with a matching checksum. It may start at any offset if it contains "ustar", since bytes may
be lost or repeated; headers in the older v7 format are expected at a multiple of 512.

If the walk stopped at a corrupt header, the member before it is complete, and the search starts
after that header. If it stopped at anything else, the data of the member before it are shorter or
longer than its header says, and the search starts within these data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from shardio.errors import TarError, quoted
from shardio.tar.header import BLOCK, ZERO_BLOCK, parse_header, resembles_header
from shardio.tar.reader import MISSING_END, Members, Searched, find_headers, scan_sound_part

_MAGIC, _MAGIC_AT = b"ustar", 257


class Gap(NamedTuple):
    """Bytes that belong to no member found.

    Attributes:
        start: offset of the first byte.
        end: offset after the last byte.
        error: error that stopped the walk.
    """

    start: int
    end: int
    error: TarError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Walk:
    """Result of a walk through a corrupt archive.

    Attributes:
        members: members in order, without those whose data are interrupted by another header;
            `has_end` and `trailer` are those of the last part of the walk.
        gaps: gaps in order; none in a valid archive.
        doubtful: numbers of the members whose own data may have lost or gained bytes, since no
            corrupt header follows them but other bytes do.
    """

    members: Members
    gaps: tuple[Gap, ...]
    doubtful: frozenset[int]


def walk_members(data: Searched) -> Walk:
    """List the members of a tar archive, however corrupt.

    Args:
        data: whole archive, uncompressed.
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
    """Return whether a block was a header, which may be corrupt, zeroed or truncated."""
    block = data[offset : offset + BLOCK]
    return len(block) < BLOCK or block == ZERO_BLOCK or resembles_header(block)


def _is_header(block: bytes) -> bool:
    with suppress(TarError):
        return bool(parse_header(block).name)
    return False


def _next_header(data: Searched, start: int) -> int | None:
    """Return the offset of the first header at or after an offset."""
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
        f"bytes are lost: the member {quoted(name)} should have {int(members.sizes[-1])} bytes, "
        f"but the next header follows after {end - offset}",
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

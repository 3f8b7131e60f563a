"""Where the members of an archive are, found by walking from header to header.

Strategy: most members of a shard are plain files, so one tight loop takes those for as long as
each header is exactly what common tools write. Whatever is not stops the loop and goes, one
header at a time, through the exact parser, which reads it or says what is wrong with it; the
loop itself judges nothing. Time is linear in the headers, memory is that of the result.

Nothing is silently lost: the walk ends at an end-of-archive mark with nothing but zeros after
it, or with an error. Where Python's tarfile reads a sound archive, the members are the same.
"""

from __future__ import annotations

import mmap
from array import array
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shardio.errors import TarError
from shardio.tar.extensions import (
    EXTENSIONS,
    LONGEST_EXTENSION,
    NO_OVERRIDES,
    Overrides,
    parse_extension,
)
from shardio.tar.header import (
    BLOCK,
    DIRECTORY,
    EIGHT_SPACES,
    FILE,
    HEADER_PARTS,
    ZERO_BLOCK,
    Header,
    byte_sum,
    folder_prefix,
    padded,
    parse_header,
)

Buffer: TypeAlias = bytes | bytearray | memoryview | mmap.mmap

_ZEROS = bytes(1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Members:
    """The members of one archive, in order, as columns.

    Attributes:
        names: raw names, with ustar prefix, GNU long names and PAX paths resolved.
        kinds: one byte a member: "0" file, "1" hard link, "2" symbolic link, "3" and "4"
            devices, "5" directory, "6" fifo; other letters are vendors' own.
        starts: int64 [members], the first byte of each member's headers, which reach to its data:
            of the extension headers before its own, if it has some.
        offsets: int64 [members], the first byte of each member's data.
        sizes: int64 [members], the bytes of data; 0 for members that have none.
    """

    names: list[bytes]
    kinds: bytes
    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)


class Fault(NamedTuple):
    """Where a walk through an archive ended, and why.

    Attributes:
        offset: of the header or block at fault.
        reason: what is wrong with it, and the way out.
    """

    offset: int
    reason: str


def scan_members(buffer: Buffer, *, shard: str) -> Members:
    """List the members of a tar archive: USTAR, v7, GNU or PAX.

    Args:
        buffer: the whole archive, uncompressed.
        shard: what errors call it.

    Raises:
        TarError: the archive is damaged, cut off, hostile or sparse; the error has the shard
            and the offset of the header or block at fault.
    """
    members, fault = scan_sound_part(buffer)
    if fault is not None:
        message = f"{shard}, byte {fault.offset}: {fault.reason}"
        raise TarError(message, shard=shard, offset=fault.offset)
    return members


def scan_sound_part(buffer: Buffer, start: int = 0) -> tuple[Members, Fault | None]:
    """List the members of a tar archive up to its end or the first fault.

    Args:
        buffer: the whole archive, uncompressed.
        start: offset of the first header.
    """
    fault = None
    with memoryview(buffer) as given, given.cast("B") as view:
        scan = _Scan(view, start)
        try:
            scan.run()
        except TarError as error:
            fault = Fault(min(scan.position, len(view)), str(error))
        return scan.members(), fault


class _Scan:
    """A walk through one archive; `position` is the header or block under the eye."""

    def __init__(self, view: memoryview, start: int) -> None:
        self.position = start
        self._view = view
        self._names: list[bytes] = []
        self._kinds = bytearray()
        self._offsets = array("q")
        self._sizes = array("q")
        self._for_all = NO_OVERRIDES
        self._for_next: Overrides | None = None
        self._extended: dict[int, int] = {}  # by member, where its extension headers start

    def run(self) -> None:
        if not self._view:
            raise TarError("the file is empty, not a tar archive; fetch or pack it again")
        while (block := self._next_block()) != ZERO_BLOCK:
            self._take(parse_header(block))
        self._verify_end()

    def members(self) -> Members:
        offsets = np.array(self._offsets, np.int64)
        starts = offsets - BLOCK
        for member, start in self._extended.items():
            starts[member : member + 1] = start  # of the one that an archive ends before, none
        return Members(
            names=self._names,
            kinds=bytes(self._kinds),
            starts=starts,
            offsets=offsets,
            sizes=np.array(self._sizes, np.int64),
        )

    def _next_block(self) -> bytes:
        """Take all plain files, then return the block that needs a closer look."""
        if (self._for_next or NO_OVERRIDES) is NO_OVERRIDES is self._for_all:
            self._take_plain_files()
        block = bytes(self._view[self.position : self.position + BLOCK])
        if not block:
            raise TarError(
                "the shard ends without an end-of-archive mark and may be cut off; fetch or pack "
                "it again, or append 1,024 zero bytes if it is known to be complete"
            )
        return block

    def _take_plain_files(self) -> None:
        view, end, position = self._view, len(self._view), self.position
        names, offsets, sizes = self._names, self._offsets, self._sizes
        unpack, known_rest, rest_sum, prefix = HEADER_PARTS.unpack_from, b"", 0, b""
        with suppress(ValueError):  # a size with the digit 8 or 9
            while position + BLOCK <= end:
                before, stated, after, rest = unpack(view, position)
                if rest != known_rest:  # owners and prefix: mostly as in the header before
                    known_rest, prefix = rest, folder_prefix(rest)
                    rest_sum = byte_sum(rest) + EIGHT_SPACES
                name, digits = prefix + before[:100].partition(b"\0")[0], before[124:135]
                if (
                    after[0] != 0x30  # typeflag "0"
                    or stated != b"%06o\0 " % (byte_sum(before, after) + rest_sum)
                    or not digits.isdigit()
                    or before[135] not in b"\0 "
                    or name.endswith(b"/")
                ):
                    break
                size, data = int(digits, 8), position + BLOCK
                if data + size > end:
                    break
                names.append(name)
                offsets.append(data)
                sizes.append(size)
                position = data + ((size + 511) & -512)  # padded, without the call
        if taken := len(names) - len(self._kinds):
            self._kinds += FILE * taken
            self._for_next = None
        self.position = position

    def _take(self, header: Header) -> None:
        """Take any member or extension whose header is sound, and step over its data."""
        data = self.position + BLOCK
        if header.kind in EXTENSIONS:
            size = header.size
            self._extend(header, data)
        else:
            size = self._add(header, data)
        self.position = data + padded(size)

    def _extend(self, header: Header, data: int) -> None:
        if header.size > LONGEST_EXTENSION:
            raise TarError(
                f"an extension header of {header.size} bytes is above the limit of "
                f"{LONGEST_EXTENSION}; pack the shard again with shorter names and attributes"
            )
        self._verify_inside(data, header.size)
        new = parse_extension(header.kind, bytes(self._view[data : data + header.size]))
        self._extended.setdefault(len(self._names), self.position)
        before = self._for_next or NO_OVERRIDES
        if header.kind == b"g":
            self._for_all = new.over(self._for_all)
            self._for_next = before
        else:  # of two for one member the first prevails, as in tarfile
            self._for_next = before.over(new)

    def _add(self, header: Header, data: int) -> int:
        """Add a member and return the size of its data."""
        own = self._for_next or NO_OVERRIDES
        given = own.over(self._for_all)
        name = header.name if given.name is None else given.name
        size = self._data_size(header, own) if header.has_data else 0
        self._verify_inside(data, size)
        is_directory = header.kind == FILE and name.endswith(b"/")
        self._kinds += DIRECTORY if is_directory else header.kind
        self._names.append(name)
        self._offsets.append(data)
        self._sizes.append(size)
        self._for_next = None
        return size

    def _data_size(self, header: Header, own: Overrides) -> int:
        if own.size is not None:
            return own.size
        if self._for_all.size not in {None, header.size}:
            raise TarError(
                f"a global header says {self._for_all.size} bytes of data and the member's own "
                f"{header.size}, which tools read differently; pack the shard again"
            )
        return header.size

    def _verify_inside(self, data: int, size: int) -> None:
        left = len(self._view) - data
        if size > left:
            raise TarError(
                f"the member has {size} bytes of data and the shard only {left} more, so it is "
                "cut off or damaged; fetch or pack it again"
            )

    def _verify_end(self) -> None:
        if self._for_next is not None:
            raise TarError(
                "the archive ends between an extension header and its member, so the shard is "
                "damaged; fetch or pack it again"
            )
        for start in range(self.position, len(self._view), len(_ZEROS)):
            chunk = bytes(self._view[start : start + len(_ZEROS)])
            if chunk != _ZEROS[: len(chunk)]:
                first = start + len(chunk) - len(chunk.lstrip(b"\0"))
                raise TarError(
                    f"a block of zeros should end the archive, yet data follows at byte {first}; "
                    "a header was zeroed or archives were concatenated, so pack the shard again"
                )

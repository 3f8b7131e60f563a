"""Looking for headers that no walk leads to: behind damage or the end of an archive.

Where the members of an archive are, found by walking from header to header.

Strategy: most members of a shard are plain files, so one tight loop takes those for as long as
each header is exactly what common tools write. Whatever is not stops the loop and goes, one
header at a time, through the exact parser, which reads it or says what is wrong with it; the
loop itself judges nothing. Time is linear in the headers, memory is that of the result.

Nothing is silently lost. Two blocks of zeros end an archive. What follows is zeros or a trailer,
which is passed over, unless it could be members: one of its blocks is a header, as of another
archive or behind a part that was zeroed, or it ends as archives do, with two blocks of zeros. One
block of zeros ends an archive only where nothing but zeros follows; before anything else it is a
header that was zeroed. (tarfile, GNU tar and bsdtar stop at it, GNU tar with a message, and lose
what follows; busybox reads on.) An archive that ends behind a member without any mark is read, and
`Members.has_end` tells; whoever shows it to a user says so, since one that was cut off there looks
the same.

Where Python's tarfile reads a sound archive, the members are the same, but for GNU tar's volume
label, which is none.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shardio.errors import TarError
from shardio.tar.header import (
    BLOCK,
    DIRECTORY,
    EIGHT_SPACES,
    EXTENSIONS,
    FILE,
    HEADER_PARTS,
    LABEL,
    LONGEST_EXTENSION,
    NO_OVERRIDES,
    ZERO_BLOCK,
    Header,
    Overrides,
    byte_sum,
    folder_prefix,
    has_sound_checksum,
    padded,
    parse_extension,
    parse_header,
)


class Sliced(Protocol):
    """Bytes that are read when a slice of them is asked for, as those of a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes | memoryview: ...


class Searched(Sliced, Protocol):
    """Sliced bytes in which a text can be found."""

    def __getitem__(self, part: slice, /) -> bytes: ...

    def find(self, text: bytes, start: int, /) -> int:
        """Where a text first occurs at or after an offset; -1 if it does not."""
        ...


Buffer: TypeAlias = bytes | bytearray | memoryview | mmap.mmap

_PIECE = 1 << 20
_CHECKSUM_AT = 148
_STARTS = np.isin(np.arange(256), [*b" 01234567\x80"])  # of a number that is not 0


def find_headers(data: Sliced, start: int, end: int) -> Iterator[int]:
    """Find the blocks that are headers by their checksums.

    Time is linear, and the memory that of a piece, whatever the bytes are.

    Args:
        data: the archive, as bytes.
        start: offset of the first block; the others follow at multiples of 512 from there.
        end: offset that no block goes beyond.

    Yields:
        Offsets in ascending order.
    """
    for first in range(start, end - BLOCK + 1, _PIECE):
        piece = bytes(data[first : min(first + _PIECE, end)])
        checksums = np.frombuffer(piece, np.uint8)[_CHECKSUM_AT::BLOCK]
        for number in np.flatnonzero(_STARTS[checksums]).tolist():
            block = piece[number * BLOCK : (number + 1) * BLOCK]
            if len(block) == BLOCK and has_sound_checksum(block):
                yield first + number * BLOCK


MISSING_END = TarError(
    "the shard ends without an end-of-archive mark, so it may be cut off between two members",
    remedy="fetch or pack it again, or append 1,024 zero bytes if it is known to be complete",
)
LARGEST_EMPTY = 20 * BLOCK
"""Bytes of an archive without members at most: of GNU tar's, one record of 20 blocks."""

_ZEROS = bytes(1 << 20)
_WINDOW = 1 << 14  # bytes that are looked at together, where files are small


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
        has_end: whether an end-of-archive mark follows the members.
        trailer: offset of the first byte behind the mark that is not zero, if there is one.
    """

    names: list[bytes]
    kinds: bytes
    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    has_end: bool
    trailer: int | None

    def __len__(self) -> int:
        return len(self.names)


class Fault(NamedTuple):
    """Where a walk through an archive ended, and why.

    Attributes:
        offset: offset of the header or block at fault.
        error: what is wrong with it, and the way out.
    """

    offset: int
    error: TarError


def scan_members(buffer: Buffer | Sliced, *, shard: str) -> Members:
    """List the members of a tar archive: USTAR, v7, GNU or PAX.

    Args:
        buffer: the whole archive, uncompressed.
        shard: what errors call it.

    Raises:
        TarError: the archive is damaged, cut off inside a member, hostile, sparse, or has
            neither members nor the size of an empty archive; the error has the shard and the
            offset of the header or block at fault.
    """
    members, fault = scan_sound_part(buffer)
    if fault is not None:
        where = f"{shard}, byte {fault.offset}"
        raise fault.error.at(where, TarError, shard=shard, offset=fault.offset)
    return members


def scan_sound_part(buffer: Buffer | Sliced, start: int = 0) -> tuple[Members, Fault | None]:
    """List the members of a tar archive up to its end or the first fault.

    Args:
        buffer: the whole archive, uncompressed.
        start: offset of the first header.
    """
    if not isinstance(buffer, Buffer):
        return _scan(buffer, start)
    with memoryview(buffer) as given, given.cast("B") as view:
        return _scan(view, start)


def _scan(view: Sliced, start: int) -> tuple[Members, Fault | None]:
    fault = None
    scan = _Scan(view, start)
    try:
        scan.run()
    except TarError as error:
        fault = Fault(min(scan.position, len(view)), error)
    return scan.members(), fault


class _Scan:
    """A walk through one archive; `position` is the header or block under the eye."""

    def __init__(self, view: Sliced, start: int) -> None:
        self.position = start
        self._view = view
        self._names: list[bytes] = []
        self._kinds = bytearray()
        self._offsets = array("q")
        self._sizes = array("q")
        self._for_all = NO_OVERRIDES
        self._for_next: Overrides | None = None
        self._extended: dict[int, int] = {}  # by member, where its extension headers start
        self._has_end = False
        self._trailer: int | None = None

    def run(self) -> None:
        if not len(self._view):
            raise TarError("the file is empty, not a tar archive", remedy="fetch or pack it again")
        while block := self._next_block():
            if block == ZERO_BLOCK:
                self._take_end()
                break
            self._take(parse_header(block))
        if self._for_next is not None:
            raise TarError(
                "the archive ends between an extension header and its member, so the "
                "shard is damaged",
                remedy="fetch or pack it again",
            )
        if not self._names and not self._has_end:
            raise TarError("the shard has no members and no end", remedy="fetch or pack it again")
        if self.position > len(self._view):
            raise TarError(
                "the shard ends inside the padding of its last member, so it is cut off",
                remedy="fetch or pack it again",
            )

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
            has_end=self._has_end,
            trailer=self._trailer,
        )

    def _next_block(self) -> bytes:
        """Take all plain files, then return the block that needs a closer look, if there is one."""
        if (self._for_next or NO_OVERRIDES) is NO_OVERRIDES is self._for_all:
            self._take_plain_files()
        return bytes(self._view[self.position : self.position + BLOCK])

    def _take_plain_files(self) -> None:
        view, end, position = self._view, len(self._view), self.position
        names, offsets, sizes = self._names, self._offsets, self._sizes
        unpack, known_rest, rest_sum, prefix = HEADER_PARTS.unpack_from, b"", 0, b""
        window, first, last = view[position:position], position, position
        with suppress(ValueError):  # a size with the digit 8 or 9
            while position + BLOCK <= end:
                if position + BLOCK > last:
                    window = view[position : position + _WINDOW]
                    first, last = position, position + len(window)
                before, stated, after, rest = unpack(window, position - first)
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
        elif header.kind == LABEL and header.size == 0 and self._for_next is None:
            size = 0
        else:
            size = self._add(header, data)
        self.position = data + padded(size)

    def _extend(self, header: Header, data: int) -> None:
        if header.size > LONGEST_EXTENSION:
            raise TarError(
                f"an extension header of {header.size} bytes is above the limit of "
                f"{LONGEST_EXTENSION}",
                remedy="pack the shard again with shorter names and attributes",
            )
        self._verify_inside(data, header.size)
        text = bytes(self._view[data : data + header.size])
        rest = self._view[data + header.size : data + padded(header.size)]
        if header.kind == b"L" and b"\0" not in text and any(rest[:1]):
            raise TarError(
                f"a long name goes on after the {header.size} bytes that its header says, "
                "where tools read on",
                remedy="pack the shard again",
            )
        new = parse_extension(header.kind, text)
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
                f"a global header says {self._for_all.size} bytes of data and the "
                f"member's own {header.size}, which tools read differently",
                remedy="pack the shard again",
            )
        return header.size

    def _verify_inside(self, data: int, size: int) -> None:
        left = len(self._view) - data
        if size > left:
            raise TarError(
                f"the member has {size} bytes of data and the shard only {left} more, so "
                "it is cut off or damaged",
                remedy="fetch or pack it again",
            )

    def _take_end(self) -> None:
        """Take the end-of-archive mark, and what follows it if that cannot be members."""
        mark, end = self.position, len(self._view)
        first = self._find_data(mark)
        if first is not None:
            self._refuse_members(mark, first)
        if not self._names and (first is not None or end > LARGEST_EMPTY):
            what = f"{end:,} bytes of zeros" if first is None else f"data from byte {first} on"
            raise TarError(
                f"the shard has no members, only {what}, so it was not written or was zeroed",
                remedy="fetch or pack it again, or leave it out",
            )
        self._has_end, self._trailer = True, first

    def _refuse_members(self, mark: int, first: int) -> None:
        """Refuse data behind an end-of-archive mark that could be members."""
        start = first - (first - mark) % BLOCK  # of the block that it is in
        if start < mark + 2 * BLOCK:
            raise TarError(
                "two blocks of zeros should end the archive, yet data follows one at "
                f"byte {first}, so a header was zeroed",
                remedy="fetch or pack the shard again",
            )
        header = next(find_headers(self._view, start, len(self._view)), None)
        if header is not None or not bytes(self._view[-2 * BLOCK :]).strip(b"\0"):
            what = "an end of another" if header is None else f"a header at byte {header}"
            raise TarError(
                f"data and {what} follow the end of the archive at byte {first}, so "
                "archives were concatenated or headers zeroed",
                remedy=(
                    "unpack it with `tar --ignore-zeros` and pack it again, or cut it "
                    f"off at byte {start} if what follows is not wanted"
                ),
            )

    def _find_data(self, start: int) -> int | None:
        """Find the first byte from an offset on that is not zero."""
        for at in range(start, len(self._view), len(_ZEROS)):
            chunk = bytes(self._view[at : at + len(_ZEROS)])
            if chunk != _ZEROS[: len(chunk)]:
                return at + len(chunk) - len(chunk.lstrip(b"\0"))
        return None

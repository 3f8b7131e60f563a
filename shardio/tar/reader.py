"""Find the members of a tar archive by walking from header to header.

Most members of a shard are plain files with headers in a common format. A tight loop handles those
and stops at the first header that differs in any way. The exact parser then reads that header or
raises an error; the loop itself rejects nothing. Time is linear in the number of headers, and only
the result takes memory.

No member is silently lost. Two blocks of zeros end an archive. Zeros or a trailer may follow, and
are skipped. They are an error if they could contain members: if one of the blocks is a header, or
if the data end like an archive, with two blocks of zeros. This happens after concatenation, or if
a part of the archive was zeroed. A single block of zeros ends an archive only if nothing but zeros
follows; otherwise it is a zeroed header. (tarfile, GNU tar and bsdtar stop there and lose what
follows, and only GNU tar prints a message; busybox continues.) An archive without an end mark is
accepted, and `Members.has_end` is False. Callers must warn the user, since an archive truncated
between two members looks the same.

For a valid archive, the members are those that Python's tarfile finds. The one exception is GNU
tar's volume label, which is not a member.
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

from shardio.errors import TarError, counted
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
    """Bytes that are read by slicing, such as those of a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes | memoryview: ...


class Searched(Sliced, Protocol):
    """Sliced bytes that can be searched."""

    def __getitem__(self, part: slice, /) -> bytes: ...

    def find(self, text: bytes, start: int, /) -> int:
        """Return the first offset of a text at or after `start`, or -1."""
        ...


Buffer: TypeAlias = bytes | bytearray | memoryview | mmap.mmap

_PIECE = 1 << 20
_CHECKSUM_AT = 148
_STARTS = np.isin(np.arange(256), [*b" 01234567\x80"])  # first byte of a number other than 0


def find_headers(data: Sliced, start: int, end: int) -> Iterator[int]:
    """Find headers by their checksums, without walking from one to the next.

    Time is linear and memory constant, whatever the data.

    Args:
        data: archive.
        start: offset of the first block; the others follow every 512 bytes.
        end: offset after the last block.

    Yields:
        Offset of each header, in ascending order.
    """
    for first in range(start, end - BLOCK + 1, _PIECE):
        piece = bytes(data[first : min(first + _PIECE, end)])
        checksums = np.frombuffer(piece, np.uint8)[_CHECKSUM_AT::BLOCK]
        for number in np.flatnonzero(_STARTS[checksums]).tolist():
            block = piece[number * BLOCK : (number + 1) * BLOCK]
            if len(block) == BLOCK and has_sound_checksum(block):
                yield first + number * BLOCK


MISSING_END = TarError(
    "the shard has no end-of-archive mark, so it may be truncated between two members",
    remedy="fetch or pack it again, or append 1,024 zero bytes if it is known to be complete",
)
LARGEST_EMPTY = 20 * BLOCK
"""Maximum size in bytes of an archive without members: GNU tar's, one record of 20 blocks."""

_ZEROS = bytes(1 << 20)
_WINDOW = 1 << 14  # bytes to read at once; holds several headers if files are small


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Members:
    """Members of one archive, in order, as columns.

    Attributes:
        names: raw names, with ustar prefixes, GNU long names and PAX paths resolved.
        kinds: one byte per member: "0" file, "1" hard link, "2" symbolic link, "3" and "4"
            device, "5" directory, "6" fifo; other letters are specific to a vendor.
        starts: int64 [members], offset of each member's first header, which is an extension
            header if it has any.
        offsets: int64 [members], offset of each member's data.
        sizes: int64 [members], size of each member's data in bytes; 0 if it has none.
        has_end: whether an end-of-archive mark follows the members.
        trailer: offset of the first non-zero byte after the mark, or None.
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
    """Error that stopped a walk through an archive.

    Attributes:
        offset: offset of the header or block at fault.
        error: error without a location.
    """

    offset: int
    error: TarError


def scan_members(buffer: Buffer | Sliced, *, shard: str) -> Members:
    """List the members of a tar archive: USTAR, v7, GNU or PAX.

    Args:
        buffer: whole archive, uncompressed.
        shard: name of the shard in errors.

    Raises:
        TarError: the archive is corrupt or truncated inside a member, contains a sparse member,
            or has no members although it is larger than an empty archive. The error carries
            the shard and the offset of the header or block at fault.
    """
    members, fault = scan_sound_part(buffer)
    if fault is not None:
        where = f"{shard}, byte {fault.offset}"
        raise fault.error.at(where, TarError, shard=shard, offset=fault.offset)
    return members


def scan_sound_part(buffer: Buffer | Sliced, start: int = 0) -> tuple[Members, Fault | None]:
    """List the members of a tar archive up to its end or the first error.

    Args:
        buffer: whole archive, uncompressed.
        start: offset of the first header.

    Returns:
        The members, and the error that ended the walk, if any.
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
    """Walk through one archive; `position` is the offset of the current header or block."""

    def __init__(self, view: Sliced, start: int) -> None:
        self.position = start
        self._view = view
        self._names: list[bytes] = []
        self._kinds = bytearray()
        self._offsets = array("q")
        self._sizes = array("q")
        self._for_all = NO_OVERRIDES
        self._for_next: Overrides | None = None
        self._extended: dict[int, int] = {}  # offset of the extension headers, by member
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
                "the shard is truncated between an extension header and its member",
                remedy="fetch or pack it again",
            )
        if not self._names and not self._has_end:
            raise TarError(
                "the shard has no members and no end-of-archive mark",
                remedy="fetch or pack it again",
            )
        if self.position > len(self._view):
            raise TarError(
                "the shard is truncated inside the padding of its last member",
                remedy="fetch or pack it again",
            )

    def members(self) -> Members:
        offsets = np.array(self._offsets, np.int64)
        starts = offsets - BLOCK
        for member, start in self._extended.items():
            starts[member : member + 1] = start  # empty if the archive ends before the member
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
        """Skip plain files and return the next block for the exact parser; empty at the end."""
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
        """Process the header of any member or extension, and skip its data."""
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
                f"an extension header has {header.size:,} bytes, more than the limit of "
                f"{LONGEST_EXTENSION:,}",
                remedy="pack the shard again with shorter names and attributes",
            )
        self._verify_inside(data, header.size)
        text = bytes(self._view[data : data + header.size])
        rest = self._view[data + header.size : data + padded(header.size)]
        if header.kind == b"L" and b"\0" not in text and any(rest[:1]):
            raise TarError(
                f"a long name is not terminated within the {header.size} bytes of its data, and "
                "other tools would read beyond them",
                remedy="pack the shard again",
            )
        new = parse_extension(header.kind, text)
        self._extended.setdefault(len(self._names), self.position)
        before = self._for_next or NO_OVERRIDES
        if header.kind == b"g":
            self._for_all = new.over(self._for_all)
            self._for_next = before
        else:  # the first of two for one member takes precedence, as in tarfile
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
                f"a global header gives the member {self._for_all.size} bytes of data and its own "
                f"header {header.size}, which tools read differently",
                remedy="pack the shard again",
            )
        return header.size

    def _verify_inside(self, data: int, size: int) -> None:
        left = len(self._view) - data
        if size > left:
            raise TarError(
                f"the shard is truncated or corrupt: the member has {counted(size, 'byte')} of "
                f"data, but only {left:,} are left",
                remedy="fetch or pack it again",
            )

    def _take_end(self) -> None:
        """Process the end-of-archive mark and a trailer, unless it could contain members."""
        mark, end = self.position, len(self._view)
        first = self._find_data(mark)
        if first is not None:
            self._refuse_members(mark, first)
        if not self._names and (first is not None or end > LARGEST_EMPTY):
            what = f"{end:,} zero bytes" if first is None else f"data from byte {first} on"
            raise TarError(
                f"the shard has no members, only {what}, so it was never written or was zeroed",
                remedy="fetch or pack it again, or leave it out",
            )
        self._has_end, self._trailer = True, first

    def _refuse_members(self, mark: int, first: int) -> None:
        """Raise an error if the data after an end-of-archive mark could contain members."""
        start = first - (first - mark) % BLOCK  # start of its block
        if start < mark + 2 * BLOCK:
            raise TarError(
                f"a single block of zeros precedes the data at byte {first}, so a header was "
                "zeroed or the end-of-archive mark is corrupt",
                remedy="fetch or pack the shard again",
            )
        header = next(find_headers(self._view, start, len(self._view)), None)
        if header is not None or not bytes(self._view[-2 * BLOCK :]).strip(b"\0"):
            what = "the end of another" if header is None else f"a header at byte {header}"
            raise TarError(
                f"data and {what} follow the end of the archive at byte {first}, so "
                "archives were concatenated or headers zeroed",
                remedy=(
                    "unpack it with `tar --ignore-zeros` and pack it again, or truncate it "
                    f"to {start} bytes if what follows is not needed"
                ),
            )

    def _find_data(self, start: int) -> int | None:
        """Return the offset of the first non-zero byte at or after an offset."""
        for at in range(start, len(self._view), len(_ZEROS)):
            chunk = bytes(self._view[at : at + len(_ZEROS)])
            if chunk != _ZEROS[: len(chunk)]:
                return at + len(chunk) - len(chunk.lstrip(b"\0"))
        return None

"""PNG: what its chunks say, and a plain file of the same pixels.

libpng prints what it thinks of odd files to the terminal, and inflates whatever it is given. So the
parts that matter to pixels are checked here, and a new file is made of them that libpng has nothing
to say about: IHDR, the palette, one IDAT of exactly the rows, IEND. Small images are handed over
inflated, in deflate's stored blocks, so that inflating is not done twice; of large ones, whose rows
would take memory a second time, the compressed stream is checked piece by piece and kept.

Sections of the W3C's PNG specification, third edition: 5 (chunks), 8 (interlacing), 11 (critical
chunks). Metadata are dropped, and so are colour profiles and transparency.
"""

from __future__ import annotations

import zlib
from struct import pack, unpack_from
from typing import TYPE_CHECKING, NamedTuple

from shardio.errors import CodecError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardio.codecs.probe import Buffer

Chunk = tuple[bytes, int, int]
"""Type of a chunk, and where its data start and end."""

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

_MAX_CHUNKS = 100_000
_MAX_SIDE = 1_000_000  # libpng's own limit
_DEPTHS = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PALETTE = 3  # type of colour
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
           (1, 0, 2, 1))  # fmt: skip
"""Of Adam7: first row and column, and the steps between rows and between columns."""
_LAST_FILTER = 4
_AT_ONCE = 1 << 26  # bytes of rows that are inflated at once
_STORED = 0xFFFF  # most bytes of a stored block
_IHDR_END = 33
_IEND = pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


class Rows(NamedTuple):
    """Rows of equal size that follow each other in the inflated data.

    Attributes:
        start: offset of the first one.
        total: number of rows.
        size: bytes of one, its filter type included.
    """

    start: int
    total: int
    size: int

    @property
    def end(self) -> int:
        """Offset behind the last one."""
        return self.start + self.total * self.size


class PngHeader(NamedTuple):
    """The IHDR chunk.

    Attributes:
        width: columns of the image.
        height: rows of the image.
        depth: bits of a channel.
        colour: type of colour.
        interlaced: whether the rows come in seven passes.
    """

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool

    def rows(self) -> list[Rows]:
        """The rows of the inflated data, pass by pass."""
        passes = _PASSES if self.interlaced else ((0, 0, 1, 1),)
        bits = self.depth * _CHANNELS[self.colour]
        found: list[Rows] = []
        for top, left, down, right in passes:
            total, columns = -((top - self.height) // down), -((left - self.width) // right)
            if total > 0 and columns > 0:
                start = found[-1].end if found else 0
                found.append(Rows(start, total, 1 + (columns * bits + 7) // 8))
        return found


def png_chunks(view: memoryview) -> Iterator[Chunk]:
    """Yield the chunks of a PNG, IEND last; a CRC of four bytes follows each one's data.

    Raises:
        CodecError: the file ends before IEND does, or has more chunks than any real one.
    """
    position = len(PNG_MAGIC)
    for _ in range(_MAX_CHUNKS):
        if position + 12 > len(view):
            raise CodecError("truncated PNG: it ends before its IEND chunk")
        length, kind = unpack_from(">I4s", view, position)
        start = position + 8
        position = start + length + 4
        if position > len(view):
            raise CodecError(f"truncated PNG: its chunk {kind!r} reaches past the end")
        yield kind, start, start + length
        if kind == b"IEND":
            return
    raise CodecError(f"broken PNG: more than {_MAX_CHUNKS} chunks")


def png_header(view: memoryview) -> PngHeader:
    """Read the IHDR chunk, which the first one of a PNG is.

    Raises:
        CodecError: it says what no PNG may say, or more than a million pixels for a side.
    """
    width, height, depth, colour, compression, filtering, interlace = unpack_from(
        ">IIBBBBB", view, len(PNG_MAGIC) + 8
    )
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise CodecError(
            f"broken PNG header: colour type {colour} of {depth} bits, compression {compression}, "
            f"filter {filtering} and interlace {interlace} do not go together"
        )
    if max(width, height) > _MAX_SIDE:
        raise CodecError(
            f"the header announces {width} x {height} pixels, more than {_MAX_SIDE} for a side"
        )
    return PngHeader(width, height, depth, colour, bool(interlace))


def plain_png(view: memoryview, chunks: Sequence[Chunk]) -> Buffer:
    """Make a PNG of the same pixels that holds nothing else and is sound.

    Args:
        view: the whole file.
        chunks: all of its chunks.

    Raises:
        CodecError: a checksum is wrong, a chunk is missing or unknown, or the data are not
            exactly the rows that the header announces.
    """
    header = png_header(view)
    passed = {b"IDAT", b"IEND"} if header.colour == _PALETTE else {b"IDAT", b"IEND", b"PLTE"}
    palette, stream, previous = b"", list[memoryview](), b"IHDR"
    for number, (kind, start, end) in enumerate(chunks):
        if zlib.crc32(view[start - 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise CodecError(f"corrupt PNG: the checksum of its chunk {kind!r} is wrong")
        if kind == b"PLTE" and not palette and not stream:
            palette = bytes(view[start:end])
        elif kind == b"IDAT" and (not stream or previous == b"IDAT"):
            stream.append(view[start:end])
        elif kind[:1].isupper() and number and kind not in passed:
            raise CodecError(f"broken PNG: a chunk {kind!r} that no decoder knows in this place")
        previous = kind
    parts: list[Buffer] = [view[:_IHDR_END]]
    if header.colour == _PALETTE:
        parts += _chunk(b"PLTE", [_whole_palette(palette, header.depth)])
    parts += _chunk(b"IDAT", _plain_stream(b"".join(stream), header))
    return b"".join([*parts, _IEND])


def _chunk(kind: bytes, data: Sequence[Buffer]) -> list[Buffer]:
    """A chunk, in parts."""
    checksum = zlib.crc32(kind)
    for part in data:
        checksum = zlib.crc32(part, checksum)
    return [pack(">I", sum(map(len, data))), kind, *data, pack(">I", checksum)]


def _whole_palette(palette: bytes, depth: int) -> bytes:
    """A palette of all colours that pixels of so many bits can name; those not there are black."""
    if not palette or len(palette) % 3 or len(palette) > 3 * 256:
        raise CodecError(f"broken PNG: a palette of {len(palette)} bytes before its pixels")
    size = 3 << depth
    return palette[:size].ljust(size, b"\0")


def _plain_stream(stream: bytes, header: PngHeader) -> Sequence[Buffer]:
    """The rows of an image as a sound zlib stream, in parts.

    Raises:
        CodecError: the stream is corrupt, or does not hold exactly the rows.
    """
    rows = header.rows()
    size = rows[-1].end
    inflating, position = zlib.decompressobj(), 0
    left = stream
    while True:
        try:
            piece = inflating.decompress(left, min(_AT_ONCE, size + 1 - position))
        except zlib.error as error:
            raise CodecError(f"corrupt PNG: its data do not inflate: {error}") from None
        left = inflating.unconsumed_tail
        _check_filters(piece, position, rows)
        position += len(piece)
        if inflating.eof or not piece or position > size:
            break
    if position != size or not inflating.eof:
        kind = "more" if position > size else "fewer"
        raise CodecError(f"corrupt PNG: its data inflate to {kind} than the {size} bytes of rows")
    if size < _AT_ONCE:
        return _stored(piece)
    return [stream[: len(stream) - len(inflating.unused_data)]]


def _check_filters(piece: bytes, position: int, rows: Sequence[Rows]) -> None:
    """Look at the filter types, with which rows start, of a piece of the inflated data."""
    for some in rows:
        first = max(0, -((some.start - position) // some.size))
        start, end = some.start + first * some.size - position, some.end - position
        found = piece[start : max(end, 0) : some.size]
        if found and max(found) > _LAST_FILTER:
            raise CodecError(f"corrupt PNG: a row of the unknown filter type {max(found)}")


def _stored(rows: bytes) -> list[Buffer]:
    """A zlib stream that holds bytes as they are."""
    parts: list[Buffer] = [b"\x78\x01"]
    view = memoryview(rows)
    for start in range(0, len(rows), _STORED):
        block = view[start : start + _STORED]
        is_last = start + _STORED >= len(rows)
        parts += [pack("<BHH", is_last, len(block), len(block) ^ _STORED), block]
    return [*parts, pack(">I", zlib.adler32(rows))]

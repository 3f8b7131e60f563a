"""PNG: what its chunks say, and a plain file of the same pixels.

libpng prints what it thinks of odd files to the terminal, and inflates whatever it is given. So the
parts that matter to pixels are checked here, and a new file is made of them that libpng has nothing
to say about: IHDR, the palette, one IDAT of exactly the rows, IEND. Small images are handed over
inflated, in deflate's stored blocks, so that inflating is not done twice; of large ones, whose rows
would take memory a second time, the compressed stream is checked piece by piece and kept.

All that takes a third of the time of a tiny image. So tiny images are looked at when they are
packed, and where a checksum says that they are what was packed, libpng gets their own chunks.

Sections of the W3C's PNG specification, third edition: 5 (chunks), 8 (interlacing), 11 (critical
chunks). Metadata are dropped, and so are colour profiles and transparency.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct, pack, unpack
from typing import TYPE_CHECKING, NamedTuple

from shardio.errors import CodecError
from shardio.fields.exif import is_xmp

if TYPE_CHECKING:
    import zlib
else:
    try:  # two to three times as fast, and says the same of corrupt data
        from zlib_ng import zlib_ng as zlib
    except ImportError:
        import zlib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardio.fields.probe import Buffer

Chunk = tuple[bytes, int, int]
"""Type of a chunk, and where its data start and end."""

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

_MAX_CHUNKS = 100_000
_MAX_SIDE = 1_000_000  # libpng's own limit
_DEPTHS = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_GRAY, _RGB, _PALETTE = 0, 2, 3  # types of colour
_COLOUR_PLACE = 9  # in IHDR
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
           (1, 0, 2, 1))  # fmt: skip
"""Of Adam7: first row and column, and the steps between rows and between columns."""
_LAST_FILTER = 4
TINY = 1 << 16
"""Most bytes of rows of a PNG whose data are looked at when it is packed."""
_AT_ONCE = 1 << 26  # bytes of rows that are inflated at once
_STORED = 0xFFFF  # most bytes of a stored block
_IHDR_START, _IHDR_END = 16, 29
_FIRST_CHUNK_END = 33
_ONE_PASS = ((0, 0, 1, 1),)
TEXT_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_XMP_KEYWORD = b"XML:com.adobe.xmp"
_RAW_PROFILES = frozenset({b"Raw profile type exif", b"Raw profile type APP1"})
_MOST_KEYWORD = 80
_MOST_TEXT = 1 << 20  # bytes that are looked at of a text
_CHUNK_START = Struct(">I4s")
_IEND = pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


class Rows(NamedTuple):
    """Rows of equal size that follow each other in the inflated data.

    Attributes:
        start: offset of the first one.
        end: offset behind the last one.
        size: bytes of one, its filter type included.
    """

    start: int
    end: int
    size: int


class PngHeader(NamedTuple):
    """The IHDR chunk.

    Attributes:
        width: columns of the image.
        height: rows of the image.
        depth: bits of a channel.
        colour: type of colour.
        channels: number of values of a pixel as stored; an index into a palette is one.
        rows: rows of the inflated data, pass by pass.
        size: bytes of the inflated data.
    """

    width: int
    height: int
    depth: int
    colour: int
    channels: int
    rows: tuple[Rows, ...]
    size: int


def png_chunks(view: memoryview) -> list[Chunk]:
    """Find the chunks of a PNG, IEND last; a CRC of four bytes follows each one's data.

    Raises:
        CodecError: the first chunk is no header, or the file ends before IEND does, or has more
            chunks than any real one.
    """
    found: list[Chunk] = []
    position = len(PNG_MAGIC)
    for _ in range(_MAX_CHUNKS):
        if position + 12 > len(view):
            raise CodecError("truncated PNG: it ends before its IEND chunk")
        length, kind = _CHUNK_START.unpack_from(view, position)
        start = position + 8
        position = start + length + 4
        if position > len(view):
            raise CodecError(f"truncated PNG: its chunk {kind!r} reaches past the end")
        if not found and (kind != b"IHDR" or length != 13):
            raise CodecError(f"broken PNG header: its first chunk is {kind!r}, not a sound IHDR")
        found.append((kind, start, start + length))
        if kind == b"IEND":
            return found
    raise CodecError(f"broken PNG: more than {_MAX_CHUNKS} chunks")


def png_header(view: memoryview) -> PngHeader:
    """Read the IHDR chunk, which the first one of a PNG is.

    Raises:
        CodecError: it says what no PNG may say, or more than a million pixels for a side.
    """
    return _parse_header(bytes(view[_IHDR_START:_IHDR_END]))


@lru_cache(maxsize=1024)  # images of a dataset have few
def _parse_header(data: bytes) -> PngHeader:
    width, height, depth, colour, compression, filtering, interlace = unpack(">IIBBBBB", data)
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise CodecError(
            f"broken PNG header: colour type {colour} of {depth} bits, compression {compression}, "
            f"filter {filtering} and interlace {interlace} do not go together"
        )
    if max(width, height) > _MAX_SIDE:
        raise CodecError(
            f"the header announces {width} x {height} pixels, more than {_MAX_SIDE} for a side"
        )
    channels = _CHANNELS[colour]
    rows = _rows_of(width, height, depth * channels, _PASSES if interlace else _ONE_PASS)
    return PngHeader(width, height, depth, colour, channels, rows, rows[-1].end if rows else 0)


def _rows_of(
    width: int, height: int, bits: int, passes: Sequence[tuple[int, int, int, int]]
) -> tuple[Rows, ...]:
    found: list[Rows] = []
    for top, left, down, right in passes:
        total, columns = -((top - height) // down), -((left - width) // right)
        if total > 0 and columns > 0:
            start = found[-1].end if found else 0
            size = 1 + (columns * bits + 7) // 8
            found.append(Rows(start, start + total * size, size))
    return tuple(found)


def text_metadata(kind: bytes, data: memoryview) -> tuple[bytes | None, bytes | None]:
    """Read the EXIF or XMP metadata that a chunk of text holds.

    XMP has a keyword of its own. ImageMagick and others wrote EXIF, and the APP1 segments of JPEGs,
    in hexadecimal, before there was a chunk for it.

    Args:
        kind: type of the chunk, one of TEXT_CHUNKS.
        data: data of the chunk.

    Returns:
        EXIF and XMP; None for what is not there or is broken.
    """
    keyword, _, _ = bytes(data[:_MOST_KEYWORD]).partition(b"\0")
    if keyword != _XMP_KEYWORD and keyword not in _RAW_PROFILES:
        return None, None
    text: Buffer = data[len(keyword) + 1 : len(keyword) + 1 + _MOST_TEXT]
    is_packed = kind == b"zTXt"
    if kind == b"iTXt":
        is_packed = bytes(text[:1]) == b"\1"
        text = bytes(text[2:]).split(b"\0", 2)[-1]  # behind the language and a translated keyword
    elif is_packed:
        text = text[1:]  # behind the method of compression
    if is_packed:
        try:
            text = zlib.decompressobj().decompress(text, _MOST_TEXT)
        except zlib.error:
            return None, None
    if keyword == _XMP_KEYWORD:
        return None, bytes(text)
    lines = bytes(text).split(b"\n", 3)  # an empty one, the name, the number of bytes, the digits
    digits = lines[-1].translate(None, b" \r\n")
    try:
        profile = bytes.fromhex(digits[: len(digits) // 2 * 2].decode("ascii"))
    except ValueError:
        return None, None
    return (None, profile) if is_xmp(profile) else (profile, None)


def plain_png(view: memoryview, chunks: Sequence[Chunk], *, transparent: bool = False) -> Buffer:
    """Make a PNG of the same pixels that holds nothing else and is sound.

    Args:
        view: the whole file.
        chunks: all of its chunks.
        transparent: whether to keep the transparency of a palette.

    Raises:
        CodecError: a checksum is wrong, a chunk is missing or unknown, or the data are not
            exactly the rows that the header announces.
    """
    header, palette, data = _sound_parts(view, chunks)
    parts: list[Buffer] = [view[:_FIRST_CHUNK_END]]
    if header.colour == _PALETTE:
        parts += _chunk(b"PLTE", [palette])
        if transparent and (alphas := _transparency(view, chunks)):
            parts += _chunk(b"tRNS", [alphas[: len(palette) // 3]])
    return b"".join([*parts, *_chunk(b"IDAT", data), _IEND])


def transparent_colour(view: memoryview, chunks: Sequence[Chunk]) -> tuple[int, ...] | None:
    """Return the one colour of a PNG that is transparent, as stored; None if there is none.

    Args:
        view: the whole file.
        chunks: all of its chunks.

    Raises:
        CodecError: the colour is not whole.
    """
    header, data = png_header(view), _transparency(view, chunks)
    if header.colour not in (_GRAY, _RGB) or not data:
        return None
    if len(data) != 2 * header.channels:
        raise CodecError("broken PNG: the transparent colour in its chunk b'tRNS'")
    return unpack(f">{header.channels}H", data)


def _transparency(view: memoryview, chunks: Sequence[Chunk]) -> bytes:
    found = next((chunk for chunk in chunks if chunk[0] in (b"tRNS", b"IDAT")), None)
    return bytes(view[found[1] : found[2]]) if found and found[0] == b"tRNS" else b""


def index_png(view: memoryview, chunks: Sequence[Chunk]) -> Buffer:
    """Make a gray PNG whose values are those stored, which are indices if there is a palette.

    Decoders scale values of 1, 2 and 4 bits by 255, 85 and 17.

    Args:
        view: the whole file.
        chunks: all of its chunks.

    Raises:
        CodecError: the PNG holds colours or transparency of its own, or is not sound, see
            plain_png.
    """
    if png_header(view).channels > 1:
        raise CodecError(
            "the PNG holds colours, not indices", remedy="save it with a palette or as gray"
        )
    _, _, data = _sound_parts(view, chunks)
    ihdr = bytearray(view[_IHDR_START:_IHDR_END])
    ihdr[_COLOUR_PLACE] = _GRAY
    parts: list[Buffer] = [PNG_MAGIC, *_chunk(b"IHDR", [bytes(ihdr)])]
    return b"".join([*parts, *_chunk(b"IDAT", data), _IEND])


def _sound_parts(
    view: memoryview, chunks: Sequence[Chunk]
) -> tuple[PngHeader, bytes, Sequence[Buffer]]:
    """Return header, palette if it has one, and stream of rows, all chunks checked."""
    header = png_header(view)
    palette, stream, previous = b"", list[memoryview](), b""
    _verify_chunks(view, chunks)
    for kind, start, end in chunks:
        if kind == b"IDAT" and (not stream or previous == b"IDAT"):
            stream.append(view[start:end])
        elif kind == b"PLTE" and not palette and not stream:
            palette = bytes(view[start:end])
        elif kind[:1].isupper() and not _may_stand(kind, previous, header):
            raise CodecError(f"broken PNG: a chunk {kind!r} that no decoder knows in this place")
        previous = kind
    if header.colour == _PALETTE:
        palette = _whole_palette(palette, header.depth)
    data = _plain_stream(stream[0] if len(stream) == 1 else b"".join(stream), header)
    return header, palette, data


def critical_chunks(view: memoryview, chunks: Sequence[Chunk]) -> Buffer:
    """Keep of a PNG what decoding needs: the chunks named in capitals.

    Raises:
        CodecError: the checksum of a chunk is wrong.
    """
    _verify_chunks(view, chunks)
    critical = [view[start - 8 : end + 4] for kind, start, end in chunks if kind[:1].isupper()]
    return view if len(critical) == len(chunks) else b"".join([PNG_MAGIC, *critical])


def _verify_chunks(view: memoryview, chunks: Sequence[Chunk]) -> None:
    """Raise CodecError if the checksum of a chunk is wrong."""
    for kind, start, end in chunks:
        if zlib.crc32(view[start - 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise CodecError(f"corrupt PNG: the checksum of its chunk {kind!r} is wrong")


def _may_stand(kind: bytes, previous: bytes, header: PngHeader) -> bool:
    """Tell whether a critical chunk may follow another one, besides the parts that are kept."""
    if kind == b"IHDR":
        return not previous
    return kind in {b"IDAT", b"IEND"} or (kind == b"PLTE" and header.colour != _PALETTE)


def _chunk(kind: bytes, data: Sequence[Buffer]) -> list[Buffer]:
    """Make a chunk, in parts."""
    checksum = zlib.crc32(kind)
    for part in data:
        checksum = zlib.crc32(part, checksum)
    return [pack(">I", sum(map(len, data))), kind, *data, pack(">I", checksum)]


def _whole_palette(palette: bytes, depth: int) -> bytes:
    """Extend a palette with black to all colours that pixels of so many bits can name."""
    if not palette or len(palette) % 3 or len(palette) > 3 * 256:
        raise CodecError(f"broken PNG: a palette of {len(palette)} bytes before its pixels")
    size = 3 << depth
    return palette[:size].ljust(size, b"\0")


def _plain_stream(stream: Buffer, header: PngHeader) -> Sequence[Buffer]:
    """Make a sound zlib stream of the rows of an image, in parts.

    Raises:
        CodecError: the stream is corrupt, or does not hold exactly the rows.
    """
    size = header.size
    inflating, left, position = zlib.decompressobj(), stream, 0
    while True:
        try:
            piece = inflating.decompress(left, min(_AT_ONCE, size + 1 - position))
        except zlib.error as error:
            raise CodecError(f"corrupt PNG: its data do not inflate: {error}") from None
        for rows in header.rows:
            _check_filters(piece, position, rows)
        position += len(piece)
        if inflating.eof or not piece or position > size:
            break
        left = inflating.unconsumed_tail
    if position < size or not (inflating.eof or position > size):
        raise CodecError(f"corrupt PNG: its data inflate to fewer than the {size} bytes of rows")
    if size < _AT_ONCE:
        return _stored(piece[:size])
    if position > size:
        raise CodecError(f"corrupt PNG: its data inflate to more than the {size} bytes of rows")
    return [memoryview(stream)[: len(stream) - len(inflating.unused_data)]]


def _check_filters(piece: bytes, position: int, rows: Rows) -> None:
    """Look at the filter types, with which rows start, of a piece of the inflated data."""
    start, end, size = rows.start - position, rows.end - position, rows.size
    found = piece[start if start >= 0 else start % size : max(end, 0) : size]
    if found and max(found) > _LAST_FILTER:
        raise CodecError(f"corrupt PNG: a row of the unknown filter type {max(found)}")


def _stored(rows: bytes) -> list[Buffer]:
    """Make a zlib stream that holds bytes as they are."""
    checksum = pack(">I", zlib.adler32(rows))
    if len(rows) <= _STORED:
        return [b"\x78\x01" + pack("<BHH", 1, len(rows), len(rows) ^ _STORED), rows, checksum]
    parts: list[Buffer] = [b"\x78\x01"]
    view = memoryview(rows)
    for start in range(0, len(rows), _STORED):
        block = view[start : start + _STORED]
        is_last = start + _STORED >= len(rows)
        parts += [pack("<BHH", is_last, len(block), len(block) ^ _STORED), block]
    return [*parts, checksum]

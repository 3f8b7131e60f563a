"""Compressed shards: the compression of a file, and its plain data within limits.

`COMPRESSIONS` is the table: another compression is one line there and its opener. The first bytes
of a file choose, never its name, so a gzip file called `.tar` reads, and so does a plain tar called
`.tgz`. The suffixes say only which files of a folder are shards.

Streams may follow one another, as after `cat a.gz b.gz`, with zeros between and after them. What
else follows a stream is damage, as is a file that ends inside one.

A few megabytes may hold as many gigabytes of zeros. Tars of text or empty masks compress well,
too, so the limit is generous, applies to large copies only, and can be lifted with
$SHARDIO_MAX_RATIO. A disk is never filled to its end, for others write to it, too.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, NamedTuple, Protocol

from shardio.errors import SituationError, TarError, UsageError, shown
from shardio.storage.folder import at_path

_RATIO = "SHARDIO_MAX_RATIO"
_MOST_RATIO = 200.0
_ALWAYS = 1 << 30  # plain bytes that are taken at any ratio
_KEPT_SHARE, _KEPT_BYTES = 0.05, 1 << 30  # of the disk: what is less stays free
_BETWEEN_LOOKS = 1 << 24  # bytes written from look to look at the free space

# Compressed bytes at once: nothing is kept of a damaged piece, and zstd makes 32,768 times as much.
_PIECE = 1 << 12
_BUFFER = 1 << 17
_MOST_AT_ONCE = 1 << 20  # plain bytes
_MOST_MEMORY = 1 << 28  # for the dictionary of an xz stream; `xz -9` needs a quarter
LONGEST_MAGIC = 16
"""First bytes of a file that tell its compression."""


class Decompressor(Protocol):
    """Decompressor of one stream, with the interface of bz2 and lzma.

    Attributes:
        eof: whether the end of the stream was reached.
        needs_input: whether there is no more output without more input.
        unused_data: input after the end of the stream, if there is any.
    """

    @property
    def eof(self) -> bool: ...  # noqa: D102
    @property
    def needs_input(self) -> bool: ...  # noqa: D102
    @property
    def unused_data(self) -> bytes | None: ...  # noqa: D102

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Return the next plain bytes, at most so many if the library can stop there."""
        ...


Opened = tuple[Callable[[], Decompressor], type[Exception]]
"""What makes a decompressor, and what that raises for damaged data."""


class Compression(NamedTuple):
    """A compression that shards may have.

    Attributes:
        name: name of the compression and of its command.
        magic: pattern of the first bytes of a file.
        suffixes: ends of the names of tars that are compressed so.
        opener: function that imports the library.
        extra: extra of shardio that brings the library; None for Python's own.
    """

    name: str
    magic: re.Pattern[bytes]
    suffixes: tuple[str, ...]
    opener: Callable[[], Opened]
    extra: str | None = None

    @property
    def way_out(self) -> str:
        """Advice to users whose file must not be compressed."""
        return f"decompress it with `{self.name} -d`"


def _open_gzip() -> Opened:
    import zlib  # noqa: PLC0415  as its peers

    return lambda: _Unbounded(zlib.decompressobj(16 + zlib.MAX_WBITS)), zlib.error


def _open_zstd() -> Opened:
    import zstandard  # noqa: PLC0415  an extra

    return lambda: _Unbounded(zstandard.ZstdDecompressor().decompressobj()), zstandard.ZstdError


def _open_lz4() -> Opened:
    import lz4.frame  # noqa: PLC0415  an extra

    return lz4.frame.LZ4FrameDecompressor, RuntimeError


def _open_xz() -> Opened:
    import lzma  # noqa: PLC0415  some builds of Python lack it

    return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _MOST_MEMORY), lzma.LZMAError


def _open_bzip2() -> Opened:
    import bz2  # noqa: PLC0415  some builds of Python lack it

    return bz2.BZ2Decompressor, OSError


class _Unbounded:
    """Decompressor of a library that returns all that its input holds."""

    needs_input = True

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data)

    def decompress(self, data: bytes, max_length: int) -> bytes:  # noqa: ARG002  the interface
        return bytes(self._inner.decompress(data))


def _magic(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)


COMPRESSIONS = (
    Compression("gzip", _magic(rb"\x1f\x8b\x08"), (".tar.gz", ".tgz"), _open_gzip),
    # pzstd begins with a frame to skip. A tar may begin with a name that is bzip2's first letters.
    Compression(
        "zstd",
        _magic(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
        (".tar.zst", ".tzst"),
        _open_zstd,
        "zstd",
    ),
    Compression("lz4", _magic(rb"\x04\x22\x4d\x18"), (".tar.lz4",), _open_lz4, "lz4"),
    Compression("xz", _magic(rb"\xfd7zXZ\x00"), (".tar.xz", ".txz"), _open_xz),
    Compression(
        "bzip2",
        _magic(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
        (".tar.bz2", ".tbz2"),
        _open_bzip2,
    ),
)
COMPRESSED_SUFFIXES = tuple(suffix for each in COMPRESSIONS for suffix in each.suffixes)


def find_compression(path: Path) -> Compression | None:
    """Return the compression of a file by its first bytes; None if it has none of the table's.

    Raises:
        OSError: the path is not that of a file, or the file cannot be read.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would wait
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    try:
        with path.open("rb", buffering=0) as file:
            head = file.read(LONGEST_MAGIC)
    except OSError as error:
        raise at_path(error, path) from error
    return compression_of(head)


def compression_of(head: bytes) -> Compression | None:
    """Return the compression of a file by its first LONGEST_MAGIC bytes; None if it is plain."""
    return next((each for each in COMPRESSIONS if each.magic.match(head)), None)


def decompress(path: Path, compression: Compression, out: Plain) -> None:
    """Write the plain data of a compressed shard; of a damaged one what comes before the damage.

    Args:
        path: path of the shard.
        compression: compression of the shard.
        out: open file that takes the plain data.

    Raises:
        TarError: the shard is damaged, truncated, or larger inside than is believable.
        UsageError: the library is not installed, or $SHARDIO_MAX_RATIO is not a positive number.
        OSError: the shard cannot be read, or the plain data not be written.
    """
    limits = _Expansion(path, out.fileno())
    for data in _plain_data(path, compression):
        limits.grow(len(data))
        out.write(data)


class Plain(Protocol):
    """What takes plain data, on some disk."""

    def fileno(self) -> int:
        """Return the descriptor of a file on that disk."""

    def write(self, data: bytes, /) -> object:
        """Take some bytes."""


def decompress_file(packed: BinaryIO, compression: Compression, out: Plain, *, name: str) -> None:
    """Write the plain data of an open file that is compressed; see decompress.

    Args:
        packed: file that is compressed.
        compression: compression of the file.
        out: takes the plain data.
        name: name of the file in errors.
    """
    packed.flush()
    path = Path(f"/dev/fd/{packed.fileno()}")
    try:
        decompress(path, compression, out)
    except (TarError, SituationError) as error:
        raise type(error)(
            error.what, where=name, remedy=error.remedy, shard=name, offset=error.offset
        ) from error


def unpack(
    copy_to: Callable[[Callable[[bytes | memoryview], object]], object],
    out: Plain,
    *,
    folder: Path,
    name: str,
) -> bool:
    """Write the plain data of a file that comes in pieces; see decompress.

    Args:
        copy_to: function that gives the bytes of the file to what it is called with, in order.
        out: takes the plain data.
        folder: folder for a copy of the file, which has no name there.
        name: name of the file in errors.

    Returns:
        Whether the file is compressed; of one that is not, nothing is written.
    """
    with TemporaryFile(dir=folder) as packed:
        copy_to(packed.write)
        packed.seek(0)
        compression = compression_of(packed.read(LONGEST_MAGIC))
        if compression is not None:
            decompress_file(packed, compression, out, name=name)
    return compression is not None


def _plain_data(path: Path, compression: Compression) -> Iterator[bytes]:
    start, damage = _load(path, compression)
    stream = start()
    for piece in _pieces(path):
        left = piece
        while True:
            if stream.eof:
                left = left.lstrip(b"\0")
                if not left:
                    break
                stream = start()
            try:
                data = stream.decompress(left, _MOST_AT_ONCE)
            except damage as error:
                raise _damaged(
                    path, f"the {compression.name} data is damaged or not supported ({error})"
                ) from error
            yield data
            if stream.eof:
                left = stream.unused_data or b""
            elif stream.needs_input:
                break
            else:
                left = b""
    if not stream.eof:
        raise _damaged(path, f"the {compression.name} data is truncated")


def _load(path: Path, compression: Compression) -> Opened:
    try:
        return compression.opener()
    except ImportError as error:
        raise SituationError(
            f"the shard is compressed with {compression.name}, which needs the package "
            f"{(error.name or compression.name).partition('.')[0]}",
            where=path,
            remedy=f"pip install 'shardio[{compression.extra}]'"
            if compression.extra
            else "use a Python that was built with it",
        ) from error


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb", buffering=_BUFFER) as file:
            while piece := file.read(_PIECE):
                yield piece
    except OSError as error:
        raise at_path(error, path) from error


def _damaged(path: Path, what: str) -> TarError:
    return TarError(what, where=path, remedy="download or make the shard again", shard=str(path))


class _Expansion:
    """Limits on the plain copy of a compressed file.

    Args:
        compressed: path of the compressed file.
        descriptor: open file that takes the plain copy.

    Raises:
        UsageError: $SHARDIO_MAX_RATIO is not a positive number.
    """

    def __init__(self, compressed: Path, descriptor: int) -> None:
        self._path = compressed
        self._ratio = _ratio()
        self._most = max(self._ratio * compressed.stat().st_size, _ALWAYS)
        self._descriptor = descriptor
        self._size = self._next_look = 0

    def grow(self, size: int) -> None:
        """Count bytes that are about to be written.

        Raises:
            TarError: they are too many.
            OSError: they would fill the disk.
        """
        self._size += size
        if self._size > self._most:
            raise TarError(
                f"its plain data is more than {self._ratio:g} times as large as the file, as in "
                "an archive that was made to fill disks",
                where=self._path,
                remedy=f"set {_RATIO} higher if it is sound",
                shard=str(self._path),
            )
        if self._size > self._next_look:
            self._next_look = self._size + _BETWEEN_LOOKS
            disk = os.fstatvfs(self._descriptor)
            kept = min(_KEPT_SHARE * disk.f_blocks * disk.f_frsize, _KEPT_BYTES)
            if disk.f_bavail * disk.f_frsize - size < kept:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _ratio() -> float:
    text = os.environ.get(_RATIO)
    if text is None:
        return _MOST_RATIO
    try:
        ratio = float(text)
    except ValueError:
        ratio = 0.0
    if not ratio > 0:
        raise UsageError("it must be a number greater than 0", where=f"{_RATIO}={shown(text)}")
    return ratio

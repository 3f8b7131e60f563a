"""A tar as bytes of a file, decompressed before if need be."""

from __future__ import annotations

import errno
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shardio.storage.cache import GZIP_SUFFIXES
from shardio.storage.compression import Expansion
from shardio.storage.local import FileBytes
from shardio.storage.temporary import explained

_PIECE = 1 << 12  # compressed bytes at once; of a damaged piece nothing is kept
_FULL = (errno.ENOSPC, errno.EDQUOT)
_GZIP = 16 + zlib.MAX_WBITS


@contextmanager
def open_plain(path: Path) -> Iterator[tuple[FileBytes, str | None]]:
    """Open a shard as it is on disk now.

    Yields:
        The plain tar, and what is wrong with its compression, after which nothing follows.

    Raises:
        OSError: it cannot be read.
        ShardioError: there is no space for the decompressed tar.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):  # opening a pipe would wait
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123  as short
            yield FileBytes(nothing, str(path)), "it is not a file"
        return
    if not is_compressed(path):
        with path.open("rb") as stream:
            yield FileBytes(stream, str(path)), None
        return
    with explained():
        temporary = tempfile.TemporaryFile()  # noqa: SIM115  closed below
    with temporary as plain:
        try:
            fault = decompress(path, plain)
            plain.flush()
        except OSError as error:
            if error.errno not in _FULL:
                raise
            with explained():
                raise
        yield FileBytes(plain, str(path)), fault


def is_compressed(path: Path) -> bool:
    """Whether a shard is a gzip file, by its name."""
    return path.name.endswith(GZIP_SUFFIXES)


def decompress(path: Path, out: BinaryIO) -> str | None:
    """Write what a gzip file holds, up to its end or damage.

    Returns:
        What is wrong with it, or None.

    Raises:
        OSError: it cannot be read, or the output not be written, for want of space too.
    """
    limits = Expansion(path, out.fileno())
    with path.open("rb") as packed:
        unpack = zlib.decompressobj(_GZIP)
        while piece := packed.read(_PIECE):
            while piece:
                if unpack.eof:  # gzip files may follow one another, and zeros may follow them
                    if not piece.strip(b"\0"):
                        break
                    unpack = zlib.decompressobj(_GZIP)
                try:
                    data = unpack.decompress(piece)
                except zlib.error as error:
                    return f"the gzip data is damaged ({error})"
                if fault := limits.grow(len(data)):
                    return fault
                out.write(data)
                piece = unpack.unused_data
    return None if unpack.eof else "the gzip data is cut off"

"""Readers of tar archives: shardio, Python's tarfile, GNU tar and bsdtar (libarchive).

Each lists the regular files of an archive as pairs of name and bytes, in order, and the fault if it
does not read the archive to its end. None of the others is an authority by itself: tarfile silently
stops at a corrupt header, and GNU tar and bsdtar continue after errors, which their exit codes
tell.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shardio.errors import TarError
from shardio.naming import split_member_name
from shardio.tar.reader import scan_members

Files = list[tuple[str, bytes]]
_MOST_BYTES = 1 << 30  # of all members of an archive
_LISTED = re.compile(rb"(.)\S+ \S+ +(\d+) (\S+ \S+)")
_ESCAPES = {b"\\": b"\\", b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b"}
_ESCAPES |= {b"f": b"\f", b"v": b"\v", b" ": b" ", b"?": b"\x7f"}
_UNKNOWN = b" unknown file type"
_UNPACKERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"\xfd7zXZ": lzma.decompress,
    b"BZh91AY&SY": bz2.decompress,
}
_ENVIRONMENT = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC"}


@dataclass(frozen=True)
class Reading:
    """Result of reading an archive.

    Attributes:
        files: names and bytes of its regular files, up to a fault.
        fault: message of the reader about the archive, or empty.
    """

    files: Files
    fault: str = ""


def without_slashes(files: Files) -> Files:
    """Return files with their names as in tarfile, without slashes at the end."""
    return [(name.rstrip("/"), data) for name, data in files]


def read_with_shardio(data: bytes) -> Files:
    """Read the regular files of an archive with shardio.

    Raises:
        TarError: shardio refuses the archive, or a member that would be a field is not a file.
    """
    found = scan_members(data, shard="an archive")
    files: Files = []
    places = zip(found.offsets.tolist(), found.sizes.tolist(), strict=True)
    for raw, kind, (offset, size) in zip(found.names, found.kinds, places, strict=True):
        name = _text(raw)
        if chr(kind) not in "0123456" and split_member_name(name) is not None:
            raise TarError(f"a field of the vendors' kind {chr(kind)!r}")
        if chr(kind) not in "123456":
            files.append((name, data[offset : offset + size]))
    return files


def plain_bytes(path: Path) -> bytes:
    """Return the contents of an archive, decompressed."""
    data = path.read_bytes()
    found = (unpack for magic, unpack in _UNPACKERS.items() if data.startswith(magic))
    return next(found, bytes)(data)


def read_with_tarfile(path: Path) -> Reading:
    """Read with Python's tarfile."""
    files: Files = []
    try:
        with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as archive:
            for member in archive:
                if member.isfile() or member.type not in tarfile.SUPPORTED_TYPES:
                    stream = archive.extractfile(member)
                    assert stream is not None
                    files.append((member.name, stream.read()))
    except (tarfile.TarError, ValueError, ArithmeticError, OSError, EOFError, zlib.error) as error:
        return Reading(files, f"{type(error).__name__}: {error}")
    return Reading(files)


def read_with_gnu_tar(path: Path) -> Reading:
    """Read with GNU tar: names and sizes from its listing, bytes from its extraction."""
    options = ["--numeric-owner", "--full-time", "--utc", "--quoting-style=escape", "--force-local"]
    listing, fault = _run(["tar", "--list", "--verbose", *options, "--file", str(path)])
    data, other_fault = _run(["tar", "--extract", "--to-stdout", "--force-local", "-f", str(path)])
    files: Files = []
    position = width = 0
    for line in listing.splitlines():
        found = _LISTED.match(line)
        if found is None:
            continue
        width = max(width, len(found[3]))  # the column of times grows to the widest yet
        if found[1] in b"-C?":
            name, size = line[found.start(3) + width + 1 :].partition(_UNKNOWN)[0], int(found[2])
            text = _text(unescaped(name))
            files.append((text, data[position : position + size]))
            position += size
    if position != len(data):
        fault = fault or f"its listing has {position} bytes, its extraction {len(data)}"
    return Reading(files, fault or other_fault)


def read_with_bsdtar(path: Path) -> Reading:
    """Read with bsdtar, which converts the archive to one that tarfile certainly reads."""
    copy = ["bsdtar", "--create", "--file=-", "--format=gnutar", "-P", f"@{path.absolute()}"]
    data, fault = _run(copy)
    if not data:
        return Reading([], fault or "no output")
    files: Files = []
    try:
        with tarfile.open(
            fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape"
        ) as archive:
            for member in archive:
                if member.isfile():
                    files.append((member.name, data[member.offset_data :][: member.size]))
    except tarfile.TarError as error:
        return Reading(files, fault or str(error))
    return Reading(files, fault)


def read_with_others(path: Path) -> dict[str, Reading]:
    """Read with every other reader that is installed, unless that would take too much memory.

    A sparse member of a few bytes may stand for gigabytes of zeros.
    """
    with suppress(tarfile.TarError, ValueError, ArithmeticError, OSError, EOFError, zlib.error):
        with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as archive:
            size = sum(member.size for member in archive)
        if size > _MOST_BYTES:
            fault = f"{size:,} bytes are too many to hold them against each other"
            return {name: Reading([], fault) for name in READERS}
    return {name: read(path) for name, read in READERS.items()}


READERS: dict[str, Callable[[Path], Reading]] = {"tarfile": read_with_tarfile}
ABSENT: list[str] = []
for _name, _read in (("tar", read_with_gnu_tar), ("bsdtar", read_with_bsdtar)):
    if shutil.which(_name) is None:
        ABSENT.append(_name)
    else:
        READERS[_name] = _read


def unescaped(name: bytes) -> bytes:
    """Return a name without GNU tar's escapes."""
    return re.sub(
        rb"\\([0-7]{3}|.)",
        lambda found: bytes([int(found[1], 8)]) if len(found[1]) == 3 else _ESCAPES[found[1]],
        name,
    )


def _run(words: list[str]) -> tuple[bytes, str]:
    done = subprocess.run(  # noqa: S603  fixed commands on files of the campaign
        words, capture_output=True, check=False, env=_ENVIRONMENT, timeout=60
    )
    return done.stdout, _text(done.stderr)[:200] or "failed" if done.returncode else ""


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")

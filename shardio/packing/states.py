"""Telling a file from what it becomes: by its times where they can be trusted, else by its data.

Size and time of modification are not enough: rsync and tar give a file that was rewritten its old
time. The time of its last change of any kind (ctime) tells, where two things hold: the file system
keeps one, which is known of those listed here and of no other (FAT has none, and what lies behind
FUSE, SMB or 9p may have none); and the file was not changed so shortly before it was read that
another change could get the same time, however coarse the clock. Elsewhere the data are hashed.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from pathlib import Path

_KEEP_CTIME = {
    0xEF53: "ext2, ext3, ext4",
    0x58465342: "XFS",
    0x9123683E: "Btrfs",
    0xCA451A4E: "bcachefs",
    0xF2F52010: "F2FS",
    0x2FC12FC1: "ZFS",
    0x01021994: "tmpfs",
    0x794C7630: "overlayfs",
    0x6969: "NFS",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x00C36400: "CephFS",
}
_MARGIN = 2_000_000_000  # ns, twice the coarsest ctime of these
_PIECE = 1 << 20


def state_of(status: os.stat_result) -> str:
    """What tells a file, on a file system that keeps ctime, from what it becomes."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def stamp_of(status: os.stat_result) -> str:
    """State of a file, and what changes with its ctime alone: mode, owner and links."""
    return f"{state_of(status)} {_attributes(status)}"


def has_stamp(status: os.stat_result, stamp: str) -> bool:
    """Whether a file is what a stamp was taken of, but perhaps for its mode, owner or links.

    Size and time of modification must be the same. Another ctime alone tells of an edit after which
    the time of modification was put back, unless a change of mode, owner or links explains it.
    """
    size, modified, changed, *attributes = stamp.split(" ")
    now = state_of(status).split(" ")
    if now[:2] != [size, modified]:
        return False
    return now[2] == changed or " ".join(attributes) != _attributes(status)


def _attributes(status: os.stat_result) -> str:
    return f"{status.st_mode} {status.st_uid} {status.st_gid} {status.st_nlink}"


def keeps_ctime(path: Path | bytes) -> bool:
    """Whether a file lies where the time of its last change of any kind can be trusted."""
    if sys.platform != "linux":
        return False
    found = ctypes.create_string_buffer(512)  # larger than any struct statfs; f_type comes first
    if ctypes.CDLL(None).statfs(os.fsencode(path), found):
        return False
    kind = int.from_bytes(found.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder)
    return kind & 0xFFFFFFFF in _KEEP_CTIME


def version_of(path: Path) -> str:
    """What tells a file from what it becomes; the file is read where only its data do.

    Raises:
        OSError: the file cannot be read.
    """
    return state_of(path.stat()) if keeps_ctime(path) else hash_file(path)


def hash_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while data := stream.read(_PIECE):
            digest.update(data)
    return digest.hexdigest()


class Versions:
    """Digest of the versions of files, or of parts of them, in the order in which they are added.

    Args:
        since: time (ns) when the first of them was read, or, to compare with an earlier digest,
            the time that one was made with.
    """

    def __init__(self, since: int) -> None:
        self._before = since - _MARGIN
        self._digest = hashlib.sha256()
        self._keep_ctime: dict[int, bool] = {}
        self._last: os.stat_result | None = None

    def add_state(self, path: bytes, status: os.stat_result) -> bool:
        """Add a file by its state; False, and it is not added, where only its data tell.

        A status that was added last is not added again, so that parts of one file cost nothing.
        """
        if status is self._last:
            return True
        if status.st_ctime_ns >= self._before:
            return False
        keep = self._keep_ctime.get(status.st_dev)
        if keep is None:
            keep = self._keep_ctime[status.st_dev] = keeps_ctime(path)
        if keep:
            self._last = status
            self._digest.update(b"%s\n" % state_of(status).encode("ascii"))
        return keep

    def add(self, path: bytes, status: os.stat_result, data: memoryview) -> None:
        """Add a file, or a part of one, that was read.

        Args:
            path: path of the file.
            status: status of the file.
            data: what was read.
        """
        if not self.add_state(path, status):
            self._digest.update(b"%d " % len(data) + hashlib.sha256(data).digest())

    def digest(self) -> str:
        """Hexadecimal digest."""
        return self._digest.hexdigest()

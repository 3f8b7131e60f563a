"""Folders of one's own: what lies in them was put there by this user.

A folder is one's own if this user owns it and it is closed to everybody else (mode 0700). Where
a folder is shared, such as /tmp, a subfolder `shardio-<uid>` of it is one's own, provided that
nobody can put another in its place: the shared folder belongs to this user or to root, and others
may not write to it, or it is sticky. The same holds for every folder above, since who may rename
one of them may put another folder in its place; but nobody reaches what is below a folder that is
closed to others, and a group named like its user has no other members. Links are followed to the
shared folder, which the user names, and not below it. Permissions of folders that are there already
are never changed.

A folder of another user is never taken, root's included: who prepares data for others puts
indexes beside the shards. On a file system that gives new files to another user (NFS with
squashed root) or keeps no permissions no folder is one's own.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from contextlib import suppress
from pathlib import Path

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_ENTER = stat.S_IXGRP | stat.S_IXOTH
_ROOT = 0


def own_folder(folder: Path) -> Path:
    """Return a folder if it is one's own, else the subfolder of it that is.

    A folder that does not exist is made, with the parents that it lacks, all of mode 0700.

    Raises:
        OSError: no folder there can be made or is one's own; `strerror` says why.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with suppress(FileExistsError):  # another process has just made it
            path.mkdir(0o700)
    if _fault(folder.stat()) is not None:
        return own_subfolder(folder)
    _refuse_open_above(folder)
    return folder


def own_subfolder(shared: Path) -> Path:
    """Return the subfolder `shardio-<uid>` of a folder that others may write to; make it.

    Raises:
        OSError: it cannot be made or is not one's own; `strerror` says why.
    """
    if reason := _fault_of_shared(shared.stat(), _OTHERS_WRITE):
        raise _refused(shared, reason)
    _refuse_open_above(shared)
    own = shared / f"shardio-{os.geteuid()}"
    with suppress(FileExistsError):
        own.mkdir(0o700)
    if fault := _fault(own.lstat()):
        raise _refused(own, fault)
    return own


def entry_fault(path: Path) -> str | None:
    """Say why a file of an own folder is not to be believed; None if it is, or is not there."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return "it is a symbolic link" if stat.S_ISLNK(status.st_mode) else "it is not a file"
    return _fault_of_owner(status, _OTHERS_WRITE)


def _refuse_open_above(folder: Path) -> None:
    """Raise OSError if another user may put another folder in the place of one above a folder."""
    for above in reversed(folder.resolve().parents):
        status = above.stat()
        private = status.st_gid == os.getegid() and _is_private_group()
        others = stat.S_IWOTH if private else _OTHERS_WRITE
        if reason := _fault_of_shared(status, others):
            raise _refused(above, reason)
        if not status.st_mode & _OTHERS_ENTER:
            return


def _is_private_group() -> bool:
    """Tell whether this process's group is named like its user, as one of that user alone is."""
    try:
        return grp.getgrgid(os.getegid()).gr_name == pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False


def _fault_of_shared(status: os.stat_result, others: int) -> str | None:
    """Say why other users may replace what is in a folder; `others` are bits that let them."""
    if status.st_uid not in (_ROOT, os.geteuid()):
        return f"it belongs to another user, number {status.st_uid}"
    if status.st_mode & others and not status.st_mode & stat.S_ISVTX:
        mode = stat.S_IMODE(status.st_mode)
        return f"other users may replace what is in it: its mode is {mode:04o}"
    return None


def _fault(status: os.stat_result) -> str | None:
    """Say why a folder is not one's own."""
    if not stat.S_ISDIR(status.st_mode):
        return "it is not a folder"
    return _fault_of_owner(status, _OTHERS)


def _fault_of_owner(status: os.stat_result, closed: int) -> str | None:
    if status.st_uid != os.geteuid():
        return f"it belongs to another user, number {status.st_uid}"
    if status.st_mode & closed:
        return f"it is open to other users: its mode is {stat.S_IMODE(status.st_mode):04o}"
    return None


def _refused(path: Path, reason: str) -> PermissionError:
    return PermissionError(errno.EPERM, reason, str(path))

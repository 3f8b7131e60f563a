"""Private folders, whose contents were written by this user.

A folder is private if this user owns it and nobody else has access (mode 0700). In a shared folder,
such as /tmp, the subfolder `shardio-<uid>` is used, provided that nobody can replace it. Therefore
the shared folder must belong to this user or to root, and must be sticky if others can write to it.
The same holds for every folder above, since a user who can rename one of them can replace it, up to
a folder that is closed to others, which nobody can pass. Write access of a group with the name of
its user is allowed, because it has no other members. Links are followed up to the shared folder,
which the user names, but not below it. Permissions of existing folders are never changed.

A folder of another user is never accepted, not even root's. To prepare data for others, indexes are
written beside the shards. No folder is private on a file system that assigns new files to another
user (NFS with root squash) or has no permissions.
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
    """Return the folder itself if it is private, else its private subfolder.

    If the folder does not exist, it is created with its missing parents, all with mode 0700.

    Raises:
        OSError: no private folder can be created; `strerror` has the reason.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with suppress(FileExistsError):  # another process has just created it
            path.mkdir(0o700)
    if _fault(folder.stat()) is not None:
        return own_subfolder(folder)
    _refuse_open_above(folder)
    return folder


def own_subfolder(shared: Path) -> Path:
    """Return the subfolder `shardio-<uid>` of a shared folder; create it if it is missing.

    Raises:
        OSError: the subfolder cannot be created or is not private; `strerror` has the reason.
    """
    if reason := _fault_of_shared(shared.stat(), _OTHERS_WRITE):
        raise _refused(shared, reason)
    _refuse_open_above(shared)
    own = shared / f"shardio-{os.geteuid()}"
    make_private(own)
    return own


def make_private(folder: Path) -> None:
    """Create a folder inside a trusted one, unless it is there and private.

    Raises:
        OSError: it cannot be created or is not private; `strerror` has the reason.
    """
    with suppress(FileExistsError):
        folder.mkdir(0o700)
    if fault := _fault(folder.lstat()):
        raise _refused(folder, fault)


def entry_fault(path: Path) -> str | None:
    """Return why a file in a private folder is not trusted; None if it is, or does not exist."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return "it is a symbolic link" if stat.S_ISLNK(status.st_mode) else "it is not a file"
    return _fault_of_owner(status, _OTHERS_WRITE)


def _refuse_open_above(folder: Path) -> None:
    """Raise OSError if another user can replace one of the folders above."""
    for above in reversed(folder.resolve().parents):
        status = above.stat()
        private = status.st_gid == os.getegid() and _is_private_group()
        others = stat.S_IWOTH if private else _OTHERS_WRITE
        if reason := _fault_of_shared(status, others):
            raise _refused(above, reason)
        if not status.st_mode & _OTHERS_ENTER:
            return


def _is_private_group() -> bool:
    """Return whether the group of this process has the name of its user, who is alone in it."""
    try:
        return grp.getgrgid(os.getegid()).gr_name == pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False


def _fault_of_shared(status: os.stat_result, others: int) -> str | None:
    """Return why other users can replace the contents of a folder, or None."""
    if status.st_uid not in (_ROOT, os.geteuid()):
        return f"it belongs to another user, number {status.st_uid}"
    if status.st_mode & others and not status.st_mode & stat.S_ISVTX:
        mode = stat.S_IMODE(status.st_mode)
        return f"other users can replace its contents: its mode is {mode:04o}"
    return None


def _fault(status: os.stat_result) -> str | None:
    """Return why a folder is not private, or None."""
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

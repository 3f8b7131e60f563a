"""Published or absent: a file gets its final name only when it is whole and on disk.

A folder that shardio writes to, held open, so that nothing inside leads out of it.

The folder that a user names may be a link. From there on every name is looked up in the open
folder, by descriptor, and no link is followed: whatever takes the place of a file or folder while
shardio works, only entries of the folder itself are written or removed. A link, pipe, device or
folder in the place of a file is an error that names it. So is a lock that has a second name (a
hard link), since writing to it would change the file of that name; other files are never written
in place, so theirs does not matter.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeGuard

from shardio.errors import OutputError

if TYPE_CHECKING:
    from typing_extensions import Self

TEMPORARY_SUFFIX = ".tmp"
_TEMPORARY = re.compile(rf"\.(.+)\.[0-9]+-[0-9]+{re.escape(TEMPORARY_SUFFIX)}", re.DOTALL)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def atomic_file(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Write a file under a temporary name beside `path`, sync it, rename it.

    If the block raises, the temporary file is removed and `path` is as it was. What is neither a
    file nor a link stays: a device or a pipe is not replaced.

    Args:
        path: path of the file.
        replace: take the place of a file that is there.

    Raises:
        FileExistsError: something is there that is not replaced.
        OSError: the file cannot be written, synced or renamed; it names `path`.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:  # not there, or told below
        mode = stat.S_IFREG
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise FileExistsError(errno.EEXIST, "something else than a file is there", str(path))
    try:
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise at_path(error, path) from error
    try:
        with atomic_file_in(descriptor, path, replace=replace) as stream:
            yield stream
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file_in(folder: int, path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Write a file as atomic_file does, into a folder that is open.

    Args:
        folder: descriptor of the folder.
        path: path of the file, for its name and for errors.
        replace: take the place of a file that is there.

    Raises:
        OSError: the file cannot be written, synced or renamed; it names `path`.
    """
    token = int.from_bytes(os.urandom(8), "little")
    temporary = f".{path.name}.{os.getpid()}-{token}{TEMPORARY_SUFFIX}"
    try:
        with create_in(folder, temporary) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if replace:
            os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        else:  # a rename would take the place of a file that another has just put there
            os.link(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            os.unlink(temporary, dir_fd=folder)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        named = getattr(error, "filename", None) not in (None, temporary)
        if isinstance(error, OSError) and error.errno is not None and not named:
            raise at_path(error, path) from error
        raise


def create_in(folder: int, name: str) -> BinaryIO:
    """Open a file that is not there yet for writing, in a folder that is open."""
    return os.fdopen(os.open(name, _NEW, 0o666, dir_fd=folder), "wb")


def at_path(error: OSError, path: Path) -> OSError:
    """Make an error of the same kind that names a path."""
    return OSError(error.errno, error.strerror, str(path))


def final_name(name: str) -> str:
    """The name that a temporary file was to get; any other name as it is."""
    found = _TEMPORARY.fullmatch(name)
    return found[1] if found else name


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LOCK = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def is_plain_name(name: object) -> TypeGuard[str]:
    """Whether a value is the name of an entry of a folder, and no path to anything else."""
    if not isinstance(name, str) or name in {"", ".", ".."} or {"/", "\0"} & {*name}:
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


class Folder:
    """An open folder; as a context it is closed at the end.

    Args:
        path: path of the folder, for errors.
        descriptor: open descriptor of the folder, closed with this object.

    Attributes:
        path: as given.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path, *inside: str) -> Folder:
        """Open a folder.

        Args:
            path: path as the user named it, followed through links.
            inside: names of folders below it, each in the one before, followed through none;
                empty ones are left out.

        Raises:
            OutputError: one of those inside is no real folder.
            OSError: a folder cannot be opened.
        """
        folder = cls(path, os.open(path, _FOLDER))
        for name in filter(None, inside):
            with folder as above:
                folder = above.inside(name)
        return folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)

    def names(self) -> list[str]:
        """Names of all entries, sorted."""
        return sorted(os.listdir(self._descriptor))  # noqa: PTH208  of a descriptor

    def status(self, name: str) -> os.stat_result | None:
        """Status of an entry, of a link itself; None if there is none."""
        with self._naming(name):
            try:
                return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
            except FileNotFoundError:
                return None

    def find_file(self, name: str) -> os.stat_result | None:
        """Status of a file; None if there is none.

        Raises:
            OutputError: the entry is no file.
        """
        status = self.status(name)
        if status is not None and not stat.S_ISREG(status.st_mode):
            raise self._refusal(name, status, "file")
        return status

    def inside(self, name: str, *, make: bool = False) -> Folder:
        """Open a folder inside; with an empty name this one again.

        Args:
            name: name of the folder.
            make: make the folder if it is not there.

        Raises:
            OutputError: the entry is no real folder.
            OSError: the folder cannot be made or opened.
        """
        if not name:
            return Folder(self.path, os.dup(self._descriptor))
        with self._naming(name) as path:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=self._descriptor)
            try:
                flags = _FOLDER | os.O_NOFOLLOW
                return Folder(path, os.open(name, flags, dir_fd=self._descriptor))
            except OSError:
                status = self.status(name)
                if status is not None and not stat.S_ISDIR(status.st_mode):
                    raise self._refusal(name, status, "folder") from None
                raise

    @contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        """Write a file as shardio.storage.atomic.atomic_file does.

        Raises:
            OutputError: something else than a file has the name.
            OSError: the file cannot be written.
        """
        self.find_file(name)
        with atomic_file_in(self._descriptor, self.path / name) as stream:
            yield stream

    def create(self, name: str) -> BinaryIO:
        """Open a new file for writing, in place of a file that has the name.

        Raises:
            OutputError: something else than a file has the name.
            OSError: the file cannot be made.
        """
        self.remove(name)
        with self._naming(name):
            return create_in(self._descriptor, name)

    def open_lock(self, name: str) -> FileIO:
        """Open a file to lock, read and append to, and make it if it is not there.

        Raises:
            OutputError: something else than a file has the name, or the file has another name too.
            OSError: the file cannot be opened.
        """
        self.find_file(name)
        with self._naming(name):
            held = FileIO(os.open(name, _LOCK, 0o666, dir_fd=self._descriptor), "a+")
        status = os.fstat(held.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
            return held
        held.close()
        raise self._refusal(name, status, "file")

    def read(self, name: str, limit: int) -> bytes:
        """Read a file.

        Args:
            name: name of the file.
            limit: bytes after which reading stops.

        Raises:
            OutputError: something else than a file has the name.
            OSError: the file is not there or cannot be read.
        """
        with self.open_file(name, buffering=0) as stream:
            return stream.read(limit)

    def open_file(self, name: str, *, buffering: int = -1) -> BinaryIO:
        """Open a file for reading.

        Args:
            name: name of the file.
            buffering: bytes that are read ahead, see `open`.

        Raises:
            OutputError: something else than a file has the name.
            OSError: the file is not there or cannot be read.
        """
        self.find_file(name)
        with self._naming(name):
            descriptor = os.open(name, _READ, dir_fd=self._descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            return os.fdopen(descriptor, "rb", buffering)
        os.close(descriptor)
        raise self._refusal(name, status, "file")

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            OutputError: something else than a file has the name.
            OSError: the file cannot be removed.
        """
        if self.find_file(name) is not None:
            with self._naming(name), suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._descriptor)

    def remove_folder(self, name: str) -> None:
        """Remove a folder that is empty.

        Raises:
            OSError: the folder is not there, or something is in it.
        """
        with self._naming(name):
            os.rmdir(name, dir_fd=self._descriptor)

    def move(self, name: str, target: Folder) -> None:
        """Move a file into another folder, in place of a file that has the name there.

        Raises:
            OutputError: something else than a file has the name.
            OSError: the file is not there or cannot be moved.
        """
        self.find_file(name)
        target.find_file(name)
        with self._naming(name):
            os.replace(name, name, src_dir_fd=self._descriptor, dst_dir_fd=target._descriptor)

    def sync(self) -> None:
        """Make the renames inside durable."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise at_path(error, self.path) from error

    @contextmanager
    def _naming(self, name: str) -> Iterator[Path]:
        """Let errors of the system name a whole path, and nothing leave the folder."""
        if not is_plain_name(name):
            raise OutputError(
                f"{name!r} cannot be the name of a file in this folder", where=self.path
            )
        try:
            yield self.path / name
        except OSError as error:
            raise at_path(error, self.path / name) from error

    def _refusal(self, name: str, status: os.stat_result, wanted: str) -> OutputError:
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        if kind == "a file" and wanted == "file":
            kind = "a file that has another name too (a hard link)"
        return OutputError(
            f"it is {kind}, where shardio writes a {wanted} of its own",
            where=self.path / name,
            remedy="remove it, or name another output folder",
        )

"""Write files and folders so that files are complete or absent, and nothing outside is touched.

A file is written under a temporary name. It gets its final name after it is complete and synced to
disk.

The folder that a user names may be a link. It is then held open, and every name is looked up by
descriptor without following links. Even if a file or folder is replaced while shardio works, only
entries of the folder itself are written or removed. A link, pipe, device or folder in place of a
file is an error. So is a lock with a second name (a hard link), since writing to it would change
the other file. Hard links to other files do no harm, because those are never written in place.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeGuard

from shardio.errors import OutputError, PackError, quoted

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from typing_extensions import Self

TEMPORARY_SUFFIX = ".tmp"
_TEMPORARY = re.compile(rf"\.(.+)\.[0-9]+-[0-9]+{re.escape(TEMPORARY_SUFFIX)}", re.DOTALL)
_PIECE = 1 << 20  # bytes that begin to be synced together
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def atomic_file(path: Path, *, replace: bool = True, durable: bool = True) -> Iterator[BinaryIO]:
    """Write a file under a temporary name beside `path`, sync it and rename it.

    If the block raises, the temporary file is removed and `path` is unchanged. Only files and
    links are replaced, not devices or pipes.

    Args:
        path: path of the file.
        replace: take the place of a file that is there.
        durable: sync it; without, a machine that stops may leave another file there.

    Raises:
        FileExistsError: something is there that is not replaced.
        OSError: the file cannot be written, synced or renamed; the error names `path`.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:  # missing, or an error that is raised below
        mode = stat.S_IFREG
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise FileExistsError(errno.EEXIST, "something other than a file is there", str(path))
    try:
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise at_path(error, path) from error
    try:
        with atomic_file_in(descriptor, path, replace=replace, durable=durable) as stream:
            yield stream
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file_in(
    folder: int, path: Path, *, replace: bool = True, durable: bool = True
) -> Iterator[BinaryIO]:
    """Write a file as atomic_file does, in an open folder.

    Args:
        folder: descriptor of the folder.
        path: path of the file, for its name and for errors.
        replace: take the place of a file that is there.
        durable: see atomic_file.

    Raises:
        OSError: the file cannot be written, synced or renamed; the error names `path`.
    """
    token = int.from_bytes(os.urandom(8), "little")
    temporary = f".{path.name}.{os.getpid()}-{token}{TEMPORARY_SUFFIX}"
    try:
        with create_in(folder, temporary) as stream:
            yield stream
            stream.flush()
            if durable:
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
    """Create a file in an open folder and open it for writing."""
    return BufferedWriter(_Growing(os.open(name, _NEW, 0o666, dir_fd=folder), "wb"))


class _Growing(FileIO):
    """New file that the system begins to write to disk while it grows, so that a sync is short."""

    _begun = 0

    def write(self, data: ReadableBuffer, /) -> int:
        count = super().write(data)
        self._begun += count
        if self._begun >= _PIECE and (begin := _begin_to_sync()):
            begin(self.fileno(), 0, 0, 2)  # SYNC_FILE_RANGE_WRITE; fsync tells of errors
            self._begun = 0
        return count


@cache
def _begin_to_sync() -> Callable[[int, int, int, int], int] | None:
    import ctypes  # noqa: PLC0415  only for large files

    begin = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux alone has it
    if begin is not None:
        begin.argtypes = ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint
    return begin


def at_path(error: OSError, path: Path) -> OSError:
    """Return an error of the same kind that names a path."""
    return OSError(error.errno, error.strerror, str(path))


def refuse_inside(out: Path, sources: Iterable[Path], *, parts: Iterable[str] = ()) -> None:
    """Raise an error if an output folder, or a folder in it, is inside a source.

    Args:
        out: output folder.
        sources: folders or files of the source.
        parts: names of folders in the output folder, which may be links.

    Raises:
        PackError: the output is inside a source.
    """
    targets = [out.resolve(), *((out / part).resolve() for part in parts)]
    above = {path for target in targets for path in (target, *target.parents)}
    if not above.isdisjoint(source.resolve() for source in sources):
        raise PackError(
            "the output lies inside the source", where=out, remedy="name a folder outside it"
        )


def final_name(name: str) -> str:
    """Return the final name of a temporary file; other names are returned unchanged."""
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
    """Return whether a value can be the name of an entry in a folder, rather than a path."""
    if not isinstance(name, str) or name in {"", ".", ".."} or {"/", "\0"} & {*name}:
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


class Folder:
    """Open folder, usable as a context manager.

    Args:
        path: path of the folder, for errors.
        descriptor: open descriptor of the folder, owned by this object.

    Attributes:
        path: path of the folder.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path, *inside: str) -> Folder:
        """Open a folder.

        Args:
            path: path of the folder, which may be a link.
            *inside: names of nested folders below it, which must not be links; empty names are
                ignored.

        Raises:
            OutputError: a nested folder is not a real folder.
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
        """Return the names of all entries, sorted."""
        return sorted(os.listdir(self._descriptor))  # noqa: PTH208  pathlib takes no descriptor

    def status(self, name: str) -> os.stat_result | None:
        """Return the status of an entry, or None; links are not followed."""
        with self._naming(name):
            try:
                return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
            except FileNotFoundError:
                return None

    def find_file(self, name: str) -> os.stat_result | None:
        """Return the status of a file, or None.

        Raises:
            OutputError: the entry is not a file.
        """
        status = self.status(name)
        if status is not None and not stat.S_ISREG(status.st_mode):
            raise self._refusal(name, status, "file")
        return status

    def inside(self, name: str, *, make: bool = False) -> Folder:
        """Open a folder inside, or this folder again if the name is empty.

        Args:
            name: name of the folder.
            make: whether to create the folder if it is missing.

        Raises:
            OutputError: the entry is not a real folder.
            OSError: the folder cannot be created or opened.
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
        """Write a file as atomic_file does.

        Raises:
            OutputError: the name is taken by something other than a file.
            OSError: the file cannot be written.
        """
        self.find_file(name)
        with atomic_file_in(self._descriptor, self.path / name) as stream:
            yield stream

    def create(self, name: str) -> BinaryIO:
        """Open a new file for writing, replacing an existing file.

        Raises:
            OutputError: the name is taken by something other than a file.
            OSError: the file cannot be created.
        """
        self.remove(name)
        with self._naming(name):
            return create_in(self._descriptor, name)

    def open_lock(self, name: str) -> FileIO:
        """Open a lock file for reading and appending; it is created if missing.

        Raises:
            OutputError: the name is taken by something other than a file, or the file has a
                second name.
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
            limit: maximum number of bytes to read.

        Raises:
            OutputError: the name is taken by something other than a file.
            OSError: the file is missing or cannot be read.
        """
        with self.open_file(name, buffering=0) as stream:
            return stream.read(limit)

    def open_file(self, name: str, *, buffering: int = -1) -> BinaryIO:
        """Open a file for reading.

        Args:
            name: name of the file.
            buffering: buffering policy, as for the built-in `open`.

        Raises:
            OutputError: the name is taken by something other than a file.
            OSError: the file is missing or cannot be read.
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
        """Remove a file if it exists.

        Raises:
            OutputError: the name is taken by something other than a file.
            OSError: the file cannot be removed.
        """
        if self.find_file(name) is not None:
            with self._naming(name), suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._descriptor)

    def remove_folder(self, name: str) -> None:
        """Remove an empty folder.

        Raises:
            OSError: the folder is missing or not empty.
        """
        with self._naming(name):
            os.rmdir(name, dir_fd=self._descriptor)

    def move(self, name: str, target: Folder) -> None:
        """Move a file to another folder, replacing an existing file.

        Raises:
            OutputError: the name is taken by something other than a file.
            OSError: the file is missing or cannot be moved.
        """
        self.find_file(name)
        target.find_file(name)
        with self._naming(name):
            os.replace(name, name, src_dir_fd=self._descriptor, dst_dir_fd=target._descriptor)

    def sync(self) -> None:
        """Sync the folder to disk, so that renames inside are durable."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise at_path(error, self.path) from error

    @contextmanager
    def _naming(self, name: str) -> Iterator[Path]:
        """Check that a name stays inside the folder, and add its full path to system errors."""
        if not is_plain_name(name):
            raise OutputError(f"{quoted(name)} is not a valid file name", where=self.path)
        try:
            yield self.path / name
        except OSError as error:
            raise at_path(error, self.path / name) from error

    def _refusal(self, name: str, status: os.stat_result, wanted: str) -> OutputError:
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        if kind == "a file" and wanted == "file":
            kind = "a file with a second name (a hard link)"
        return OutputError(
            f"it is {kind}, where shardio writes a {wanted} of its own",
            where=self.path / name,
            remedy="remove it, or name another output folder",
        )

"""Hold the output folder while a pack writes to it, and decide what may be removed from it.

A lock file lies in the folder, and in the folder of each split. It tells a second pack that the
folder is taken, a reader that shards may be missing, and a later pack that an interrupted one left
files behind. A pack claims the folder by writing to the lock, after it has checked, with the lock
held, that it would overwrite nothing. Files are removed only under a claim, only if a pack gives
such names, and only where a pack has left its traces: the work folder, the locks of splits, or the
note that all is finished. Anybody could have written a lock file, so a lock alone permits nothing.

A lock holds a sentence for people and then lines of JSON. There is a line for each run, with the
names of its splits, and when everything is whole a line with what was made and "finished". A line
that is incomplete was never acted on. The lock in the folder of a split holds another sentence.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from shardio.errors import OutputError, PackError
from shardio.indexing.manifest import INDEX_FOLDER, INDEX_SUFFIX, MANIFEST_NAME, PACKING_NAME
from shardio.packing.layout import (
    WHOLE,
    WORK_FOLDER,
    is_ours,
    is_shard_name,
    is_split_name,
    is_work_name,
    path_in,
    refuse_foreign,
)
from shardio.packing.task import check_work, finished_shards, remove_all_receipts, remove_receipts
from shardio.storage.folder import Folder

LOCK_LIMIT = 1 << 20
"""Bytes; a lock with more in it was not written by shardio."""

_PATIENCE = 2.0  # seconds in which the processes of somebody who was killed end


@contextmanager
def open_lock(folder: Folder, name: str) -> Iterator[Lock]:
    """Open the lock file of a folder, and make it if it is not there.

    Raises:
        OutputError: the file is not one that shardio writes to.
        OSError: the file cannot be opened.
    """
    with folder.open_lock(name) as held:
        yield Lock(held, folder, name)


class Lock:
    """An open lock file.

    Args:
        held: the open file.
        folder: folder that it lies in.
        name: name of the file.
    """

    def __init__(self, held: FileIO, folder: Folder, name: str) -> None:
        self._held = held
        self._folder = folder
        self._name = name

    @property
    def path(self) -> Path:
        """Path of the file, for errors."""
        return self._folder.path / self._name

    def take(self) -> bool:
        """Lock the file; return False if another has it, or removed it since it was opened."""
        end = time.monotonic() + _PATIENCE
        while not (ours := self._try()) and time.monotonic() < end:
            time.sleep(0.02)
        return ours and self._is_there()

    def read(self) -> bytes:
        """Read the file, up to a byte more than LOCK_LIMIT."""
        return os.pread(self._held.fileno(), LOCK_LIMIT + 1, 0)

    def write(self, data: bytes, *, at: int | None = None) -> None:
        """Write to the file, and sync it.

        Args:
            data: bytes to append.
            at: size that the file is cut to before; None leaves what is there.
        """
        if at is not None:
            os.ftruncate(self._held.fileno(), at)
        while data:  # less is written where the disk is full
            data = data[self._held.write(data) :]
        os.fsync(self._held.fileno())

    def release(self) -> None:
        """Remove the file, unless another took its place."""
        if self._is_there():
            self._folder.remove(self._name)

    def _is_there(self) -> bool:
        there = self._folder.status(self._name)
        return there is not None and os.path.samestat(os.fstat(self._held.fileno()), there)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


_CLAIM = b"A pack writes to this folder; if none runs, run the same pack again to finish it.\n"
_PART_CLAIM = b"A pack writes to the folder above; if none runs, run the same pack again.\n"
_FINISHED = "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A pack that ended.

    Attributes:
        made: digest of what it was to make.
        bytes: bytes of all shards.
        image_sizes: number of different sizes of stored pixels; None for image files.
        fields: names of the fields, sorted.
    """

    made: str
    bytes: int
    image_sizes: int | None
    fields: Sequence[str] = ()  # which no lock of shardio 0.2 has


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The runs that a lock tells of.

    Attributes:
        parts: names of all splits that were begun; WHOLE stands for the folder itself.
        finished: names of those that a run has finished since.
        ended: the run that finished them; None if the lock does not say what it made.
        size: bytes of the lock up to the end of its last whole line.
    """

    parts: tuple[str, ...]
    finished: frozenset[str]
    ended: Ended | None
    size: int


def read_claim(lock: Lock) -> Claim | None:
    """Read the lock of a folder; None if nothing was claimed with it.

    Raises:
        PackError: it is the lock of a split, or none that a pack wrote.
    """
    text = lock.read()
    if text == _PART_CLAIM:
        folder = lock.path.parent
        raise PackError(
            f"a pack of splits into {folder.parent} was interrupted or still runs",
            where=folder,
            remedy="wait for it, run it again, or name another folder",
        )
    if _CLAIM.startswith(text):
        return None
    if not text.startswith(_CLAIM) or len(text) > LOCK_LIMIT:
        raise _no_claim(lock)
    *lines, cut = text.removeprefix(_CLAIM).split(b"\n")
    parts, finished, ended = list[str](), list[str](), None
    for line in map(_parse_line, lines):
        if line == _FINISHED:
            finished += parts
        elif isinstance(line, list) and all(map(_is_part, line)):
            parts += line
        elif isinstance(line, dict) and _is_end(line):
            ended = Ended(**line)
        else:
            raise _no_claim(lock)
    if not parts:
        return None
    return Claim(
        parts=tuple(dict.fromkeys(parts)),
        finished=frozenset(finished),
        ended=ended,
        size=len(text) - len(cut),
    )


def write_claim(lock: Lock, earlier: Claim | None, parts: Sequence[str]) -> None:
    """Claim a folder for a run that begins some splits."""
    text = json.dumps([*parts]).encode("ascii") + b"\n"
    if earlier is None:
        lock.write(_CLAIM + text, at=0)
    else:
        lock.write(text, at=earlier.size)


def claim_part(folder: Folder) -> None:
    """Lock the folder of a split.

    Raises:
        PackError: another pack holds it, or was interrupted in it.
        OSError: the lock cannot be written.
    """
    with open_lock(folder, PACKING_NAME) as lock:
        text = lock.read() if lock.take() else None
        if text is None or not _PART_CLAIM.startswith(text):
            raise _other_pack(folder)
        if text != _PART_CLAIM:
            lock.write(_PART_CLAIM, at=0)


def is_claimed_part(folder: Folder) -> bool:
    """Tell whether the folder of a split has the lock that a pack into the folder above wrote.

    Raises:
        PackError: it has another lock.
    """
    if folder.find_file(PACKING_NAME) is None:
        return False
    text = folder.read(PACKING_NAME, LOCK_LIMIT)
    if not _PART_CLAIM.startswith(text):
        raise _other_pack(folder)
    return text == _PART_CLAIM


def _no_claim(lock: Lock) -> PackError:
    return PackError(
        "it is not a lock that a pack wrote, so nothing in the folder is touched",
        where=lock.path,
        remedy="remove it if no other program needs it, or name another output folder",
    )


def _other_pack(folder: Folder) -> PackError:
    return PackError(
        "another pack into this folder was interrupted or still runs",
        where=folder.path,
        remedy="wait for it, run it again, or name another folder",
    )


def _parse_line(line: bytes) -> Any:
    """Parse a line of JSON; None if it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_end(line: dict[str, Any]) -> bool:
    made = [type(line.get(name)) for name in ("made", "bytes", "image_sizes")]
    fields = line.get("fields", [])
    named = isinstance(fields, list) and all(isinstance(each, str) for each in fields)
    known = len(line.keys() - {"fields"}) == 3 and named
    return known and made in ([str, int, int], [str, int, type(None)])


def _is_part(name: object) -> bool:
    return name == WHOLE or is_split_name(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """The folders of a pack, held.

    Attributes:
        folder: output folder.
        work: work folder inside.
        parts: names of the splits, those of an interrupted pack too.
        lock: lock of the output folder.
        ended: the pack that made all that is there, and was killed before it let the folder go;
            None if there is anything to do.
    """

    folder: Folder
    work: Folder
    parts: Sequence[str]
    lock: Lock
    ended: Ended | None = None

    def end(self, ended: Ended) -> None:
        """Note in the lock that everything is whole, so that locks of splits may go."""
        lines = (json.dumps(line).encode("ascii") + b"\n" for line in (asdict(ended), _FINISHED))
        self.lock.write(b"".join(lines))


@contextmanager
def hold_folder(path: Path, parts: Sequence[str]) -> Iterator[Output]:
    """Hold the output folder.

    After an error it is left as it was before, or, if shards are finished, as an interrupted pack
    leaves it: locked, and to be taken up. If an earlier pack is found to have ended, what it
    made stays as it is.

    Args:
        path: path of the output folder.
        parts: names of the splits, each a folder inside; WHOLE for none.

    Raises:
        PackError: another pack holds it, or it has files that a pack would overwrite.
        OutputError: something in it is not written to, as a link.
        OSError: the folder cannot be made or written.
    """
    if path.exists() and not path.is_dir():
        raise PackError("it is a file", where=path, remedy="name a folder for the shards")
    if path.is_symlink():  # tasks open the folder again, and the link may lead elsewhere by then
        path = path.resolve()
    with _made(path), Folder.open(path) as folder:
        if folder.status(PACKING_NAME) is None:
            _refuse_output(folder, *dict.fromkeys((WHOLE, *parts)))
        with open_lock(folder, PACKING_NAME) as lock:
            if not lock.take():
                raise PackError(
                    "another pack is writing to this folder",
                    where=path,
                    remedy="wait for it, or name another output folder",
                )
            claim = read_claim(lock)
            if claim is not None and _has_ended(claim, folder):
                every = kept = claim.parts
                with folder.inside(WORK_FOLDER, make=True) as work:
                    ended = claim.ended or Ended(made="", bytes=0, image_sizes=None)
                    yield Output(folder=folder, work=work, parts=every, lock=lock, ended=ended)
            else:
                every = (*dict.fromkeys([*parts, *_claim(lock, claim, folder, parts)]),)
                kept = (*parts,)
                with _left_as_before(lock, folder, every, is_new=claim is None):
                    _prepare(folder, every)
                    with folder.inside(WORK_FOLDER) as work:
                        yield Output(folder=folder, work=work, parts=every, lock=lock)
            _remove_work(folder)
            for part in every:
                _leave_part(folder, part, keep=part in kept)
            lock.release()


@contextmanager
def _left_as_before(
    lock: Lock, folder: Folder, parts: Sequence[str], *, is_new: bool
) -> Iterator[None]:
    """Remove what the first run made if it fails before a shard is finished."""
    try:
        yield
    except BaseException:
        if is_new and not _has_finished(folder):
            with suppress(OSError, PackError):  # what stays does so under the lock
                _remove_output(folder, parts)
                lock.release()
        raise


def remove_others(output: Output, wanted: Collection[str]) -> None:
    """Remove what an interrupted pack left that this one will not make.

    Args:
        output: the folders, which this pack holds.
        wanted: paths of its shards, relative to the output folder.

    Raises:
        PackError: a file has the name of a shard, and no receipt says that a pack wrote it.
    """
    finished = {*finished_shards(output.work)}
    parts = {WHOLE, *output.parts}  # ledgers of splits lie above them
    for inside, name, shard in _unwanted(output.folder, parts, wanted):
        if is_shard_name(Path(shard).name) and shard not in finished:
            raise PackError(
                "it is not known whether the interrupted pack wrote this file",
                where=inside.path / name,
                remedy="move it away, or remove it, and run the pack again",
            )
    for inside, name, _ in _unwanted(output.folder, parts, wanted):
        inside.remove(name)
    remove_receipts(output.work, finished - {*wanted})


def _unwanted(
    folder: Folder, parts: Collection[str], wanted: Collection[str]
) -> Iterator[tuple[Folder, str, str]]:
    """Yield files with names that a pack gives: their open folder, name and shard."""
    for part in parts:
        for inside, name in _pack_files(folder, part):
            shard = path_in(part, name.removesuffix(INDEX_SUFFIX))
            if shard not in wanted:
                yield inside, name, shard


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder; after an error it and its parents are removed if they were made here."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for path in created:
                path.rmdir()
        raise


def _has_ended(claim: Claim, folder: Folder) -> bool:
    """Tell whether all that was claimed is packed, by a run that was killed at its end."""
    done = claim.finished >= {*claim.parts}
    return done and all(_is_packed(folder, part) for part in claim.parts)


def _is_packed(folder: Folder, part: str) -> bool:
    """Tell whether the folder of a split has a manifest."""
    if part and folder.status(part) is None:
        return False
    with folder.inside(part) as inside:
        return inside.find_file(MANIFEST_NAME) is not None


def _claim(lock: Lock, claim: Claim | None, folder: Folder, parts: Sequence[str]) -> Sequence[str]:
    """Claim a folder for a pack; returns the splits of the interrupted one that it takes up."""
    ours = list[str]()
    earlier = () if claim is None else claim.parts
    try:
        for part in dict.fromkeys((WHOLE, *parts, *earlier)):
            if claim is not None and _has_traces(folder, part, claim):
                _check_kinds(folder, part)
                ours.append(part)
            else:
                _refuse_output(folder, part)
    except BaseException:  # whatever it is, a folder that was not claimed is not locked
        if claim is None:
            lock.release()
        raise
    write_claim(lock, claim, parts)
    return [part for part in earlier if part in ours]


def _has_traces(folder: Folder, part: str, claim: Claim) -> bool:
    """Tell whether a folder of shards has what only a pack that wrote to it leaves."""
    has_work = folder.status(WORK_FOLDER) is not None
    if not part:
        if has_work and folder.status(MANIFEST_NAME) is not None:  # a pack wrote both, if receipts
            return _has_finished(folder)
        return has_work or bool(claim.finished)
    if part not in claim.parts or folder.status(part) is None:
        return False
    with folder.inside(part) as inside:
        return part in claim.finished or (is_claimed_part(inside) and has_work)


def _check_kinds(folder: Folder, part: str) -> None:
    """Raise OutputError if something else has the place of a file or folder of a pack."""
    for inside, name in _named_files(folder, part):
        inside.find_file(name)
    if not part and folder.status(WORK_FOLDER) is not None:
        with folder.inside(WORK_FOLDER) as work:
            check_work(work)


def _refuse_output(folder: Folder, *parts: str) -> None:
    """Raise PackError if a folder has files that a pack would overwrite."""
    for part in parts:
        if part and folder.status(part) is None:
            continue
        with folder.inside(part) as inside:
            refuse_foreign(inside.names(), inside.path)
            if part:
                is_claimed_part(inside)


def _prepare(folder: Folder, parts: Sequence[str]) -> None:
    """Make the folders, locked; no manifest stays in them."""
    folder.inside(WORK_FOLDER, make=True).close()
    for part in parts:
        with folder.inside(part, make=True) as inside:
            if part:
                claim_part(inside)
            inside.inside(INDEX_FOLDER, make=True).close()
            inside.remove(MANIFEST_NAME)


def _has_finished(folder: Folder) -> bool:
    """Tell whether shards are finished, or may be."""
    try:
        with folder.inside(WORK_FOLDER) as work:
            return bool(finished_shards(work))
    except FileNotFoundError:
        return False
    except (OSError, OutputError):
        return True


def _remove_output(folder: Folder, parts: Sequence[str]) -> None:
    for part in (*filter(None, parts), WHOLE):
        for inside, name in _pack_files(folder, part):
            inside.remove(name)
        _leave_part(folder, part, keep=False)
    _remove_work(folder)


def _remove_work(folder: Folder) -> None:
    with suppress(FileNotFoundError), folder.inside(WORK_FOLDER) as work:
        remove_all_receipts(work)
        for name in filter(is_work_name, work.names()):
            work.remove(name)
    with suppress(OSError):  # what a pack did not write stays
        folder.remove_folder(WORK_FOLDER)


def _leave_part(folder: Folder, part: str, *, keep: bool) -> None:
    """Unlock the folder of a split; unless it is kept or files of others are in it, remove it."""
    with suppress(FileNotFoundError), folder.inside(part) as inside:
        if part and is_claimed_part(inside):
            inside.remove(PACKING_NAME)
        if not keep:
            with suppress(OSError):
                inside.remove_folder(INDEX_FOLDER)
    if part and not keep:
        with suppress(OSError):
            folder.remove_folder(part)


def _pack_files(folder: Folder, part: str) -> Iterator[tuple[Folder, str]]:
    """Yield files with names that a pack gives from a folder that this pack holds."""
    if part:
        with suppress(FileNotFoundError), folder.inside(part) as inside:
            if is_claimed_part(inside):
                yield from _named_files(folder, part)
    else:
        yield from _named_files(folder, part)


def _named_files(folder: Folder, part: str) -> Iterator[tuple[Folder, str]]:
    """Yield entries of a folder of shards with names that a pack gives, temporary ones too."""
    for below in (INDEX_FOLDER, ""):
        with (
            suppress(FileNotFoundError),
            folder.inside(part) as shards,
            shards.inside(below) as inside,
        ):
            for name in inside.names():
                if is_ours(below, name):
                    yield inside, name

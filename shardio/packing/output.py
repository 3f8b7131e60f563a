"""Holding the output folder while a pack writes to it.

A lock file lies in the folder meanwhile, and in the folder of each split. It tells a second pack
that the folder is taken, a reader that shards may be missing, and a later pack that an
interrupted one left files behind, which it takes up. A pack claims the folder by writing into the
lock, after it has seen, with the lock held, that nothing is there that it would overwrite. Files
are removed only under a claim, and only those with names that a pack gives, where a pack has left
its traces: the work folder, the locks in the folders of splits, or the note that all is finished.
A lock alone, which anybody could have put there, gives nothing away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shardio.errors import OutputError, PackError
from shardio.index.manifest import INDEX_FOLDER, INDEX_SUFFIX, MANIFEST_NAME, PACKING_NAME
from shardio.packing.claims import (
    Claim,
    Ended,
    claim_part,
    is_claimed_part,
    read_claim,
    write_claim,
    write_finished,
)
from shardio.packing.locks import Lock, open_lock
from shardio.packing.names import (
    WHOLE,
    WORK_FOLDER,
    find_foreign,
    is_ours,
    is_shard_name,
    is_work_name,
    path_in,
)
from shardio.packing.receipts import (
    check_work,
    finished_shards,
    remove_all_receipts,
    remove_receipts,
)
from shardio.storage.folder import Folder


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
        """Note in the lock that everything is whole."""
        write_finished(self.lock, ended)


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
        raise PackError(f"{path}: it is a file; name a folder for the shards")
    if path.is_symlink():  # tasks open the folder again, and the link may lead elsewhere by then
        path = path.resolve()
    with _made(path), Folder.open(path) as folder:
        if folder.status(PACKING_NAME) is None:
            _refuse_output(folder, *dict.fromkeys((WHOLE, *parts)))
        with open_lock(folder, PACKING_NAME) as lock:
            if not lock.take():
                raise PackError(
                    f"{path}: another pack is writing to this folder; wait for it, "
                    "or name another output folder"
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
    """After an error remove what this run made, if it is the first and no shard is finished."""
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
                f"{inside.path / name}: it is not known whether the interrupted pack wrote this "
                "file; move it away, or remove it, and run the pack again"
            )
    for inside, name, _ in _unwanted(output.folder, parts, wanted):
        inside.remove(name)
    remove_receipts(output.work, finished - {*wanted})


def _unwanted(
    folder: Folder, parts: Collection[str], wanted: Collection[str]
) -> Iterator[tuple[Folder, str, str]]:
    """Files with names that a pack gives: their open folder, their name, and their shard."""
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
    """Whether all that was claimed is packed, by a run that was killed as it let the folder go."""
    done = claim.finished >= {*claim.parts}
    return done and all(_is_packed(folder, part) for part in claim.parts)


def _is_packed(folder: Folder, part: str) -> bool:
    """Whether the folder of a split has a manifest."""
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
    except BaseException:
        if claim is None:
            lock.release()
        raise
    write_claim(lock, claim, parts)
    return [part for part in earlier if part in ours]


def _has_traces(folder: Folder, part: str, claim: Claim) -> bool:
    """Whether a folder of shards has what only a pack that wrote to it leaves."""
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
            if found := find_foreign(inside.names()):
                what, name = found
                raise PackError(
                    f"{inside.path}: the folder has {what} already ({name}); "
                    "name another one, or remove them first"
                )
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
    """Whether shards are finished, or may be."""
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
    """Files in a folder of shards that this pack holds, with names that a pack gives."""
    if part:
        with suppress(FileNotFoundError), folder.inside(part) as inside:
            if is_claimed_part(inside):
                yield from _named_files(folder, part)
    else:
        yield from _named_files(folder, part)


def _named_files(folder: Folder, part: str) -> Iterator[tuple[Folder, str]]:
    """Entries of a folder of shards with names that a pack gives, temporary ones too."""
    for below in (INDEX_FOLDER, ""):
        with (
            suppress(FileNotFoundError),
            folder.inside(part) as shards,
            shards.inside(below) as inside,
        ):
            for name in inside.names():
                if is_ours(below, name):
                    yield inside, name

"""Holding the output folder while a pack writes to it.

A lock file lies in the folder meanwhile. It tells a second pack that the folder is taken, and a
later one that a killed pack left files behind, which are then written anew. A pack claims the
folder by writing into the lock, after it has seen, with the lock held, that nothing is there
that it would overwrite. So files are removed only under a claim, and only those with names that
a pack gives: an empty lock, or one that its owner removed meanwhile, claims nothing.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from shardio.errors import PackError
from shardio.index.catalog import SHARD_SUFFIXES
from shardio.index.manifest import INDEX_FOLDER, INDEX_SUFFIX, MANIFEST_NAME, PACKING_NAME
from shardio.packing.plan import SHARD_PATTERN
from shardio.storage.atomic import TEMPORARY_SUFFIX, final_name

SKIPPED_NAME = "skipped.jsonl"
RENAMED_NAME = "renamed.jsonl"

_SINGLE = (MANIFEST_NAME, SKIPPED_NAME, RENAMED_NAME)
_CLAIM = b"A pack writes to this folder; if none runs, run the same pack again to finish it.\n"
_OURS = re.escape(SHARD_PATTERN).replace(r"\*", "[0-9]{6,}")
_OUR_INDEXES = re.compile(_OURS + re.escape(INDEX_SUFFIX))
_OUR_FILES = re.compile("|".join([_OURS, *map(re.escape, _SINGLE)]))
_ANY_SHARDS = re.compile(f".*({'|'.join(map(re.escape, SHARD_SUFFIXES))})", re.DOTALL)
_ANY_OTHERS = re.compile(
    "|".join([*map(re.escape, _SINGLE), INDEX_FOLDER, rf"\..*{re.escape(TEMPORARY_SUFFIX)}"]),
    re.DOTALL,
)


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold the output folder; after an error it is left without anything of this pack.

    Raises:
        PackError: another pack holds it, or it has files that a pack would overwrite.
        OSError: the folder cannot be made or written.
    """
    lock = folder / PACKING_NAME
    if not lock.exists():
        _refuse_output(folder)
    with _made(folder), FileIO(lock, "a") as held:
        if not _is_ours(held, lock):
            raise PackError(
                f"{folder}: another pack is writing to this folder; wait for it, "
                "or name another output folder"
            )
        _claim(held, folder)
        _remove_output(folder)
        try:
            (folder / INDEX_FOLDER).mkdir(exist_ok=True)
            yield
        except BaseException:
            with suppress(OSError):  # what cannot be removed stays under the lock
                _remove_output(folder)
                lock.unlink()
            raise
        lock.unlink()


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


def _is_ours(held: FileIO, lock: Path) -> bool:
    """Lock the file; False if another pack has it, or removed it after it was opened here."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(held.fileno()), lock.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _claim(held: FileIO, folder: Path) -> None:
    if os.fstat(held.fileno()).st_size:
        return
    try:
        _refuse_output(folder)
        held.write(_CLAIM)
    except BaseException:
        (folder / PACKING_NAME).unlink()
        raise


def _refuse_output(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise PackError(f"{folder}: it is a file; name a folder for the shards")
    names = sorted(path.name for path in folder.iterdir())
    for what, pattern in (("shards", _ANY_SHARDS), ("files of a pack", _ANY_OTHERS)):
        if found := next(filter(pattern.fullmatch, names), None):
            raise PackError(
                f"{folder}: the folder has {what} already ({found}); "
                "name another one, or remove them first"
            )


def _remove_output(folder: Path) -> None:
    index = folder / INDEX_FOLDER
    for inside, ours in ((index, _OUR_INDEXES), (folder, _OUR_FILES)):
        for path in [*inside.iterdir()] if inside.is_dir() else []:
            if ours.fullmatch(final_name(path.name)):
                path.unlink()
    with suppress(OSError):  # files of others keep it
        index.rmdir()

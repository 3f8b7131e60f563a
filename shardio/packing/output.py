"""Holding the output folder while a pack writes to it.

A lock file lies in the folder meanwhile, and in the folder of each split. It tells a second pack
that the folder is taken, a reader that shards may be missing, and a later pack that an
interrupted one left files behind, which it takes up. A pack claims the folder by writing into the
lock, after it has seen, with the lock held, that nothing is there that it would overwrite. So
files are removed only under a claim, and only those with names that a pack gives: an empty lock,
or one that its owner removed meanwhile, claims nothing.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from shardio.errors import PackError
from shardio.index.catalog import SHARD_SUFFIXES
from shardio.index.manifest import INDEX_FOLDER, INDEX_SUFFIX, MANIFEST_NAME, PACKING_NAME
from shardio.packing.locks import take_lock
from shardio.packing.plan import SHARD_PATTERN
from shardio.packing.receipts import WORK_FOLDER, finished_shards, remove_receipts
from shardio.storage.atomic import TEMPORARY_SUFFIX, final_name

SKIPPED_NAME = "skipped.jsonl"
RENAMED_NAME = "renamed.jsonl"
DUPLICATES_NAME = "duplicates.jsonl"
DROPPED_NAME = "dropped.jsonl"

LEDGERS = (SKIPPED_NAME, RENAMED_NAME, DUPLICATES_NAME, DROPPED_NAME)
"""Files beside the shards with a line for each sample of a kind."""

_SINGLE = (MANIFEST_NAME, *LEDGERS)
_CLAIM = b"A pack writes to this folder; if none runs, run the same pack again to finish it.\n"
_PART_CLAIM = b"A pack writes to the folder above; if none runs, run the same pack again.\n"
_OURS = re.escape(SHARD_PATTERN).replace(r"\*", "[0-9]{6,}")
_OUR_INDEXES = re.compile(_OURS + re.escape(INDEX_SUFFIX))
_OUR_FILES = re.compile("|".join([_OURS, *map(re.escape, _SINGLE)]))
_ANY_SHARDS = re.compile(f".*({'|'.join(map(re.escape, SHARD_SUFFIXES))})", re.DOTALL)
_ANY_OTHERS = re.compile(
    "|".join(
        [
            *map(re.escape, (*_SINGLE, WORK_FOLDER)),
            INDEX_FOLDER,
            rf"\..*{re.escape(TEMPORARY_SUFFIX)}",
        ]
    ),
    re.DOTALL,
)


@contextmanager
def hold_folder(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Hold the output folder.

    After an error it is left as it was before, or, if shards are finished, as an interrupted pack
    leaves it: locked, and to be taken up.

    Args:
        folder: of the output.
        parts: names of the splits, each a folder inside; one empty name for none.

    Yields:
        The work folder inside.

    Raises:
        PackError: another pack holds it, or it has files that a pack would overwrite.
        OSError: the folder cannot be made or written.
    """
    lock, work = folder / PACKING_NAME, folder / WORK_FOLDER
    if not lock.exists():
        _refuse_output(*dict.fromkeys((folder, *(folder / part for part in parts))))
    with _made(folder), FileIO(lock, "a") as held:
        if not take_lock(held, lock):
            raise PackError(
                f"{folder}: another pack is writing to this folder; wait for it, "
                "or name another output folder"
            )
        earlier = _claim(held, folder, parts)
        every = [*dict.fromkeys([*parts, *earlier])]
        try:
            _prepare(folder, work, every)
            yield work
        except BaseException:
            if not finished_shards(work):
                with suppress(OSError):  # what cannot be removed stays under the lock
                    _remove_output(folder, every)
                    _unlock(folder, every)
            raise
        shutil.rmtree(work)
        _unlock(folder, every)
        for part in {*every} - {*parts}:
            _remove_part(folder, part)


def remove_others(folder: Path, wanted: Collection[str]) -> None:
    """Remove what an interrupted pack left that this one will not make.

    Args:
        folder: of the output, which this pack holds.
        wanted: paths of its shards, relative to the folder.
    """
    work = folder / WORK_FOLDER
    for part in {"", *_recorded_parts(folder / PACKING_NAME)}:  # ledgers of splits lie above them
        for path in _pack_files(folder / part):
            shard = str(Path(part, path.name.removesuffix(INDEX_SUFFIX)))
            if shard not in wanted:
                path.unlink()
    remove_receipts(work, {*finished_shards(work)} - {*wanted})


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


def _claim(held: FileIO, folder: Path, parts: Sequence[str]) -> list[str]:
    """Claim a folder for a pack; returns the splits of the interrupted one that it takes up."""
    lock = folder / PACKING_NAME
    text = lock.read_bytes()
    if text == _PART_CLAIM:
        raise PackError(
            f"{folder}: a pack of splits into {folder.parent} was interrupted or still runs; "
            "wait for it, run it again, or name another folder"
        )
    earlier = _recorded_parts(lock)
    try:
        if not text:
            _refuse_output(folder)
        _refuse_output(*(folder / part for part in parts if part and part not in earlier))
    except BaseException:
        if not text:
            lock.unlink()
        raise
    held.write((b"" if text else _CLAIM) + json.dumps([*parts]).encode("ascii") + b"\n")
    return earlier


def _unlock(folder: Path, parts: Sequence[str]) -> None:
    """Remove the locks, the one that is held last."""
    for part in (*filter(None, parts), ""):
        (folder / part / PACKING_NAME).unlink(missing_ok=True)


def _refuse_output(*folders: Path) -> None:
    """Raise PackError if a folder has files that a pack would overwrite."""
    for inside in folders:
        if not inside.exists():
            continue
        if not inside.is_dir():
            raise PackError(f"{inside}: it is a file; name a folder for the shards")
        names = sorted(path.name for path in inside.iterdir())
        for what, pattern in (("shards", _ANY_SHARDS), ("files of a pack", _ANY_OTHERS)):
            if found := next(filter(pattern.fullmatch, names), None):
                raise PackError(
                    f"{inside}: the folder has {what} already ({found}); "
                    "name another one, or remove them first"
                )


def _recorded_parts(lock: Path) -> list[str]:
    """Names of the splits that a pack has begun with, this one or an interrupted one.

    They are in the lock, a line for each run, so that they are known for as long as it lies there.
    """
    parts: list[str] = []
    for line in lock.read_bytes().removeprefix(_CLAIM).splitlines():
        with suppress(ValueError):  # a line that was cut off was never acted on
            parts += json.loads(line)
    return [*dict.fromkeys(parts)]


def _prepare(folder: Path, work: Path, parts: Sequence[str]) -> None:
    """Make the folders, locked; no manifest stays in them."""
    work.mkdir(exist_ok=True)
    for part in parts:
        (folder / part / INDEX_FOLDER).mkdir(parents=True, exist_ok=True)
        if part:
            (folder / part / PACKING_NAME).write_bytes(_PART_CLAIM)
        (folder / part / MANIFEST_NAME).unlink(missing_ok=True)


def _remove_output(folder: Path, parts: Sequence[str]) -> None:
    for part in (*filter(None, parts), ""):
        for path in _pack_files(folder / part):
            path.unlink()
        _remove_part(folder, part)
    shutil.rmtree(folder / WORK_FOLDER, ignore_errors=True)


def _remove_part(folder: Path, part: str) -> None:
    """Remove the folder of a split, unless files of others keep it."""
    if part:
        (folder / part / PACKING_NAME).unlink(missing_ok=True)
    with suppress(OSError):
        (folder / part / INDEX_FOLDER).rmdir()
        if part:
            (folder / part).rmdir()


def _pack_files(folder: Path) -> Iterator[Path]:
    """Files in a folder of shards with names that a pack gives, temporary ones too."""
    for inside, ours in ((folder / INDEX_FOLDER, _OUR_INDEXES), (folder, _OUR_FILES)):
        for path in [*inside.iterdir()] if inside.is_dir() else []:
            if ours.fullmatch(final_name(path.name)):
                yield path

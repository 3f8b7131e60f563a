"""Packing into a storage that is no local folder.

Shards are made in a folder of the temporary directory, as in any output folder; each is published
with its index as soon as it is whole, and removed here. The manifest comes last and only if none
is there: that is the commit. Until then a note lies in the folder, so that nobody takes what is
there for shards of others, and that a later pack may finish it.

Nothing that is there is overwritten. A file of the same contents is taken as it is, as an
interrupted run of the same pack left it; any other stops the pack. Size and digest tell which it
is, so that nothing is read or sent again where the storage knows digests. So of two packs of
different things into one folder at once, one wins at most, and the other says so; two of the same
thing make the same files, and both succeed. A run that goes on where another ended makes every
shard again, since whether the sources are still the same is known of local files alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from shardio.errors import PackError
from shardio.indexing.manifest import MANIFEST_NAME, PACKING_NAME, index_path
from shardio.packing.layout import LEDGERS, WHOLE, is_shard_name, path_in, refuse_foreign
from shardio.storage.base import FileStat, StoredBytes
from shardio.storage.folder import Folder
from shardio.storage.local import sha256_of
from shardio.storage.location import Location
from shardio.storage.temporary import temporary_folder

_NOTE = b"A pack writes to this folder; if none runs, run the same pack again to finish it.\n"


@contextmanager
def claim_storage(out: Location, parts: Sequence[str]) -> Iterator[Path]:
    """Claim a folder of a storage for a pack, and give it a local one to work in.

    After an error the folder is left as it was, or, if something has been published, as an
    interrupted pack leaves it.

    Args:
        out: output folder.
        parts: names of the splits, each a folder inside; WHOLE for none.

    Yields:
        A local folder for the pack; it is removed afterwards.

    Raises:
        PackError: the output folder has files that a pack would overwrite.
        OSError: the storage fails or refuses.
    """
    folders = {part: _folder(out, part) for part in (WHOLE, *parts)}
    for folder in folders.values():
        names = folder.names() if folder.can_list else []
        if PACKING_NAME in names:
            _check_note(folder / PACKING_NAME)
        else:
            refuse_foreign(names, folder)
    made = [folder for folder in folders.values() if _publish_note(folder / PACKING_NAME)]
    with temporary_folder() as scratch:
        local = Path(scratch) / "out"
        try:
            yield local
        except BaseException:
            with suppress(OSError):  # the first error says more
                if not any(_is_noted(place, local / part) for part, place in folders.items()):
                    _release(made)
            raise
    _release([*folders.values()])


def _is_noted(folder: Location, local: Path) -> bool:
    """Tell whether the note of a folder must stay after an error.

    With another manifest than that of this pack, another one has ended since this one looked.

    Args:
        folder: folder of the storage.
        local: folder that this pack works in.
    """
    names, mine = folder.names(), local / MANIFEST_NAME
    if MANIFEST_NAME not in names:
        return any(map(is_shard_name, names))
    manifest = folder / MANIFEST_NAME
    return mine.exists() and _is_same(manifest, manifest.storage.stat(manifest.path), mine)


def _publish_note(note: Location) -> bool:
    """Mark a folder as unfinished; returns False if an interrupted or running pack has done so."""
    try:
        note.storage.publish(note.path, _NOTE, only_if_absent=True)
    except FileExistsError:
        _check_note(note)
        return False
    return True


def _check_note(note: Location) -> None:
    """Raise PackError if the file in the place of a note is not one that a pack wrote."""
    file = note.open()
    if file.size != len(_NOTE) or file.read(0, file.size) != _NOTE:
        raise PackError(
            "it is not a note that a pack wrote, so nothing in the folder is touched",
            where=note,
            remedy="remove it if no other program needs it, or name another folder",
        )


def refuse_others(out: Location, parts: Sequence[str], wanted: set[str]) -> None:
    """Raise PackError if a folder has shards, of an interrupted pack, that this one does not make.

    Args:
        out: output folder.
        parts: names of the splits.
        wanted: paths of the shards of this pack, relative to the output folder.
    """
    for part in dict.fromkeys((WHOLE, *parts)):
        folder = _folder(out, part)
        for name in filter(is_shard_name, folder.names()):
            if path_in(part, name) not in wanted:
                raise _other_pack(folder / name)


def publish_shard(out: Location, part: str, shards: Folder, name: str) -> None:
    """Publish a shard and its index, and remove the local shard.

    Args:
        out: output folder.
        part: name of the split.
        shards: local folder of the shard.
        name: file name of the shard.

    Raises:
        PackError: another file is there.
        OSError: the storage fails or refuses.
    """
    folder, local = _folder(out, part), shards.path / name
    _publish(folder / name, local)
    _publish(index_path(folder / name), index_path(local))
    shards.remove(name)


def publish_rest(out: Location, local: Path, parts: Sequence[str]) -> None:
    """Publish the ledgers of a pack, then its manifests.

    Args:
        out: output folder.
        local: local folder of the pack.
        parts: names of the splits.

    Raises:
        PackError: another pack has finished there, or another file is there.
        OSError: the storage fails or refuses.
    """
    for name in LEDGERS:
        if (local / name).exists():
            _publish(out / name, local / name)
    for part in parts:
        if (local / part / MANIFEST_NAME).exists():  # not of a split without samples
            _publish(_folder(out, part) / MANIFEST_NAME, local / part / MANIFEST_NAME)


def _publish(target: Location, local: Path) -> None:
    there = target.find()
    if there is None:
        with suppress(FileExistsError):
            target.storage.publish(target.path, local, only_if_absent=True)
            return
        there = target.storage.stat(target.path)
    if not _is_same(target, there, local):
        raise _other_pack(target)


def _is_same(target: Location, there: FileStat, local: Path) -> bool:
    """Tell whether a file is there already; it is read where the storage knows no digest."""
    if there.size != local.stat().st_size:
        return False
    return (there.sha256 or StoredBytes(target.open()).sha256()) == sha256_of(local)


def _folder(out: Location, part: str) -> Location:
    return out / part if part else out


def _release(folders: Sequence[Location]) -> None:
    for folder in reversed(folders):
        folder.storage.remove((folder / PACKING_NAME).path)


def _other_pack(path: Location) -> PackError:
    return PackError(
        "another pack, of something else, wrote this file or still runs",
        where=path,
        remedy="wait for it, name another folder, or remove what it left",
    )

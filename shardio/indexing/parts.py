"""From what the user names to shards: folders, single shards, patterns, and lists of these."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import string
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import braceexpand

from shardio.errors import IndexFileError, RemoteDenied, SituationError, UsageError, quoted
from shardio.indexing.manifest import MANIFEST_NAME, PACKING_NAME, Manifest
from shardio.processes import in_threads
from shardio.storage.base import Storage, restore
from shardio.storage.compression import COMPRESSED_SUFFIXES
from shardio.storage.location import Location, Options, locate

_MOST_NAMES = 1_000_000  # that braces may stand for
_JOINT = re.compile(r"::(?![^\[\]]*\])")  # not those of an address in brackets
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")  # ranges, as braceexpand has them
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.-?(\d+))?")
_MOST_SPLITS = 8  # that a message names
_ALPHABET = string.ascii_uppercase + string.ascii_lowercase
SHARD_SUFFIXES = (".tar", *COMPRESSED_SUFFIXES)
ShardPaths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def list_parts(
    source: ShardPaths, storage: Storage | None = None, options: Options | None = None
) -> list[Location]:
    """List what a source names: folders, files and patterns; a manifest is its folder.

    Text may name several, joined by `::` as webdataset has it.

    Args:
        source: see open_catalog.
        storage: see open_catalog.
        options: see open_catalog.

    Raises:
        UsageError: it is neither a path nor a list of paths, or a URL, or the list is empty.
    """
    named = source
    if isinstance(source, os.PathLike) and not isinstance(source, Location):
        named = os.fspath(source)
    joined = _JOINT.split(named) if isinstance(named, str) and storage is None else []
    if len(joined) > 1 and not os.path.exists(named):  # type: ignore[arg-type]  # noqa: PTH110  any text
        if not all(joined):
            raise UsageError("nothing is named beside a '::'", where=named, remedy="leave it out")
        named = joined
    if isinstance(named, str | Location):
        part = locate(named, storage, options)
        if part.is_local:
            part = Location(part.storage, os.path.expanduser(part.path))  # noqa: PTH111  an unknown ~user stays
        return [part.parent if part.name == MANIFEST_NAME and part.is_file() else part]
    if not isinstance(named, Sequence) or isinstance(named, bytes | bytearray):
        raise UsageError(
            f"{quoted(source)} is not a source of shards",
            remedy="give a path or pattern as text, or a list of them",
        )
    if not named:
        raise UsageError("the list of shards is empty", remedy="name a packed folder or shards")
    parts = in_threads(partial(list_parts, storage=storage, options=options), named)
    return [part for some in parts for part in some]


def is_packed(part: Path | Location) -> bool:
    """Tell whether a part of a source is a folder with a manifest."""
    return (locate(part) / MANIFEST_NAME).is_file()


def find_splits(folder: Path | Location) -> list[Location]:
    """List the packed folders inside a folder, by name."""
    inside = locate(folder)
    paths = [inside / name for name in sorted(inside.names()) if not name.startswith(".")]
    return [path for path in paths if is_packed(path)]


def find_shards(part: Path) -> list[Path]:
    """Find the shard files of one part of a source, in order.

    Raises:
        UsageError: nothing is there, or something else than files.
        IndexFileError: a pack into the folder of a shard was interrupted or still runs.
    """
    if part.is_dir():
        refuse_unfinished(part)
        shards = sorted(path for path in part.iterdir() if path.name.endswith(SHARD_SUFFIXES))
        shards = [path for path in shards if not path.name.startswith(".")]
        _refuse_twins(shards)
        if not shards:
            splits = [path.name for path in find_splits(part)]
            way = (
                f"it has {', '.join(splits)}: name one"
                if splits
                else "make some with `shardio pack`"
            )
            raise SituationError(
                "no shards (*.tar, plain or compressed) in this folder", where=part, remedy=way
            )
    else:
        shards = [part] if part.exists() else expand_pattern(str(part))
    for folder in sorted({shard.parent for shard in shards}):
        refuse_unfinished(folder)
    for shard in shards:
        if not shard.is_file():
            raise SituationError(
                f"{part} names it as a shard, and it is not a file",
                where=shard,
                remedy=(
                    "use a pattern that matches only shards, such as *.tar, or a list of folders"
                ),
            )
    return shards


def find_stored(part: Location) -> list[Location]:
    """Find the shards of one part of a source that is not on a local file system, in order.

    Raises:
        UsageError: nothing is there, or it is named by a pattern and its storage cannot list.
        IndexFileError: a pack into the folder of a shard was interrupted or still runs.
        OSError: the storage fails or refuses.
    """
    if "{" in part.path:
        return [Location(part.storage, name) for name in _expand_braces(part.path)]
    is_pattern = bool(set("*?[") & set(part.name))
    with suppress(RemoteDenied):  # as servers answer that list no folders; a manifest is denied too
        if not is_pattern and part.is_file():
            return [part]
    folder = part.parent if is_pattern else part
    if not folder.can_list and not is_pattern and part.path.endswith(SHARD_SUFFIXES):
        raise SituationError("no such shard", where=part, remedy="check the URL")
    if not folder.can_list:
        raise SituationError(
            f"no packed folder is there (it has no {MANIFEST_NAME}), and this storage cannot list "
            "others",
            where=part,
            remedy="name the shards, as in shard-{000000..000007}.tar",
        )
    names = [name for name in folder.names() if not name.startswith(".")]
    if is_pattern:
        names = fnmatch.filter(names, part.name)
    shards = [folder / name for name in names if name.endswith(SHARD_SUFFIXES)]
    refuse_unfinished(folder)
    _refuse_twins(shards)
    if not shards:
        splits = ", ".join(path.name for path in find_splits(folder)[:_MOST_SPLITS])
        raise SituationError(
            "no shards (*.tar, plain or compressed) are there",
            where=part,
            remedy=f"it has {splits}: name one" if splits else "check the URL",
        )
    return shards


def _refuse_twins(shards: Sequence[Path] | Sequence[Location]) -> None:
    """Raise UsageError if a folder has a shard and a compressed copy of it, by their names."""
    known: dict[str, Path | Location] = {}
    for shard in shards:
        stem = shard.name.removesuffix(next(filter(shard.name.endswith, SHARD_SUFFIXES)))
        if stem in known:
            raise SituationError(
                f"{known[stem].name} and {shard.name} look like one shard twice",
                where=shard.parent,
                remedy="move one away, or name the shards in a list",
            )
        known[stem] = shard


def refuse_missing(folder: Path | Location, manifest: Manifest) -> None:
    """Raise IndexFileError if a shard of a manifest is not in its folder."""
    if not locate(folder).can_list:  # then a missing shard is noticed when it is opened
        return
    present = {*locate(folder).names()}
    missing = [shard.name for shard in manifest.shards if shard.name not in present]
    if missing:
        raise IndexFileError(
            f"{len(missing)} of {len(manifest.shards)} shards are missing, the first is "
            f"{missing[0]}",
            where=folder,
            remedy=restore("these shards"),
        )


def refuse_unfinished(folder: Path | Location) -> None:
    """Raise IndexFileError if a pack into the folder has begun and not ended."""
    if (locate(folder) / PACKING_NAME).exists():
        raise IndexFileError(
            "writing into this folder was interrupted or still runs, so shards may be missing",
            where=folder,
            remedy="wait for it, or run the same command again",
        )


def expand_pattern(pattern: str) -> list[Path]:
    """Find the files of a glob or a brace pattern, in order.

    Raises:
        UsageError: it is not a pattern, its braces stand for more than a million files, one of
            these does not exist, or none matches it.
    """
    names = _expand_braces(pattern)
    expanded = [Path(name) for name in names]
    missing = [str(path) for path in expanded if not path.exists()]
    if missing:
        raise SituationError(
            f"{len(missing)} of {len(expanded)} shards do not exist, the first is {missing[0]}",
            where=pattern,
        )
    shards = expanded or [Path(name) for name in sorted(glob.glob(pattern))]  # noqa: PTH207  absolute patterns too
    if not shards:
        raise SituationError("no such folder or shard, and no file matches it", where=pattern)
    return shards


def _expand_braces(pattern: str) -> list[str]:
    """Return the names that a brace pattern stands for, in order; none if it has no braces.

    Raises:
        UsageError: its braces are not a pattern, or stand for more than a million names.
    """
    names: list[str] = []
    try:
        named = count_names(pattern)
        if named <= _MOST_NAMES and "{" in pattern:
            names = [*braceexpand.braceexpand(pattern)]
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"no such file, and its braces are not a pattern ({error})",
            where=pattern,
            remedy="write them like shard-{000000..000007}.tar",
        ) from error
    if named > _MOST_NAMES:
        raise UsageError(
            f"its braces stand for more than {_MOST_NAMES:,} files",
            where=pattern,
            remedy="name their folder, or use * in place of the numbers",
        )
    return names


def count_names(pattern: str) -> int:
    """Count the names that the braces of a pattern stand for, without making them.

    Braces multiply, commas add, as braceexpand has it; what it does not take it refuses later.

    Raises:
        ValueError: a number in braces has thousands of digits.
    """
    outer: list[tuple[int, int, int]] = []  # of each open brace: product and sum before, place
    product, total, position, closed = 1, 0, 0, 0
    while position < len(pattern):
        character = pattern[position]
        if character == "\\":
            position += 1
        elif character == "{" and closed:
            closed -= 1
        elif character == "{":
            outer.append((product, total, position + 1))
            product, total = 1, 0
        elif character == "," and outer:
            product, total = 1, total + product
        elif character == "}" and outer:
            inside = total + product
            product, total, start = outer.pop()
            product *= _count_range(pattern[start:position]) or inside
        elif character == "}":
            closed += 1
        position += 1
    return product


def _count_range(inside: str) -> int:
    """Count the values of a range such as 000..007, which braces may hold; 0 if it is none."""
    if found := _NUMBERS.fullmatch(inside):
        first, last = int(found[1]), int(found[2])
    elif found := _LETTERS.fullmatch(inside):
        first, last = (_ALPHABET.index(found[side]) for side in (1, 2))
    else:
        return 0
    return abs(last - first) // (int(found[3] or 1) or 1) + 1


def absolute_parts(
    source: ShardPaths, storage: Storage | None, options: Options | None
) -> list[Location]:
    """Locate the parts of a source so that they are found from any directory.

    A pattern stays relative where the name of the current directory is one itself.
    """
    plain = not set(str(Path.cwd())) & set("*?[{")
    parts = list_parts(source, storage, options)
    return [part.absolute() if plain or part.exists() else part for part in parts]

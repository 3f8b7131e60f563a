"""The layout of an output folder: names of its files and folders, and which are a pack's own."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TypeGuard

from shardio.errors import PackError
from shardio.indexing.manifest import INDEX_FOLDER, INDEX_SUFFIX, MANIFEST_NAME
from shardio.indexing.parts import SHARD_SUFFIXES
from shardio.storage.folder import TEMPORARY_SUFFIX, final_name, is_plain_name

SHARD_PATTERN = "shard-*.tar"
WHOLE = ""
"""Name of the only part of a pack without splits."""

WORK_FOLDER = ".shardio-work"
LIST_NAME = "samples.jsonl"
VALUES_NAME = "values"
SKIPPED_NAME = "skipped.jsonl"
RENAMED_NAME = "renamed.jsonl"
DUPLICATES_NAME = "duplicates.jsonl"
DROPPED_NAME = "dropped.jsonl"

LEDGERS = (SKIPPED_NAME, RENAMED_NAME, DUPLICATES_NAME, DROPPED_NAME)
"""Files beside the shards with a line for each sample of a kind."""

_SINGLE = (MANIFEST_NAME, *LEDGERS)
_SHARD = re.compile(re.escape(SHARD_PATTERN).replace(r"\*", "[0-9]{6,}"))
_OUR_INDEXES = re.compile(_SHARD.pattern + re.escape(INDEX_SUFFIX))
_OUR_FILES = re.compile("|".join([_SHARD.pattern, *map(re.escape, _SINGLE)]))
_WORK = re.compile(
    "|".join(
        [
            *map(re.escape, (LIST_NAME, VALUES_NAME, *LEDGERS)),
            r"(whole|plain|fetched)-[0-9]{6,}\.(jsonl|tar)",
        ]
    )
)
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


def path_in(part: str, name: str) -> str:
    """Return the path of a file of a split, relative to the output folder."""
    return f"{part}/{name}" if part else name


def is_split_name(name: object) -> TypeGuard[str]:
    """Tell whether a value can name a split, and so a folder beside files of a pack."""
    if not is_plain_name(name) or name.startswith("."):
        return False
    return not (_ANY_SHARDS.fullmatch(name) or _ANY_OTHERS.fullmatch(name))


def is_shard_name(name: object) -> TypeGuard[str]:
    """Tell whether a value is the name that a pack gives to a shard."""
    return isinstance(name, str) and _SHARD.fullmatch(name) is not None


def is_work_name(name: str) -> bool:
    """Tell whether a pack or a repair gives a name to (temporary) files of its work folder."""
    return _WORK.fullmatch(final_name(name)) is not None


def is_ours(folder: str, name: str) -> bool:
    """Tell whether a pack gives a name to files, temporary ones too.

    Args:
        folder: name of the folder inside a folder of shards; an empty one for the latter itself.
        name: name of the file.
    """
    pattern = _OUR_INDEXES if folder == INDEX_FOLDER else _OUR_FILES
    return pattern.fullmatch(final_name(name)) is not None


def refuse_foreign(names: Collection[str], folder: object) -> None:
    """Raise PackError if entries are there that a pack must not meet where none has written.

    Args:
        names: names of entries, sorted.
        folder: path of their folder, for the error.
    """
    for what, pattern in (("shards", _ANY_SHARDS), ("files of a pack", _ANY_OTHERS)):
        if found := next(filter(pattern.fullmatch, names), None):
            raise PackError(
                f"the folder has {what} already ({found})",
                where=folder,
                remedy="remove them first, or name another folder",
            )

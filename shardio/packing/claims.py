"""What a pack writes into its lock, and what a later one may believe of it.

A sentence for people, then lines of JSON: for each run the names of the splits that it begins; when
all that was begun is whole, what was made, and "finished". A line that was cut off was never acted
on, and a lock without a whole line claims nothing. The lock in the folder of a split holds another
sentence alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shardio.errors import PackError
from shardio.index.manifest import PACKING_NAME
from shardio.packing.locks import LOCK_LIMIT, Lock, open_lock
from shardio.packing.names import WHOLE, is_split_name
from shardio.storage.folder import Folder

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
    """

    made: str
    bytes: int
    image_sizes: int | None


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
            f"{folder}: a pack of splits into {folder.parent} was interrupted or still runs; "
            "wait for it, run it again, or name another folder"
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


def write_finished(lock: Lock, ended: Ended) -> None:
    """Note that everything which was begun is whole, so that locks of splits may go."""
    lines = (json.dumps(line).encode("ascii") + b"\n" for line in (asdict(ended), _FINISHED))
    lock.write(b"".join(lines))


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
    """Whether the folder of a split has the lock that a pack into the folder above wrote.

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
        f"{lock.path}: it is no lock that a pack wrote, so nothing in the folder is touched; "
        "remove it if no other program needs it, or name another output folder"
    )


def _other_pack(folder: Folder) -> PackError:
    return PackError(
        f"{folder.path}: another pack into this folder was interrupted or still runs; wait for it, "
        "run it again, or name another folder"
    )


def _parse_line(line: bytes) -> Any:
    """The value of a line of JSON; None if it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_end(line: dict[str, Any]) -> bool:
    made = [type(line.get(name)) for name in ("made", "bytes", "image_sizes")]
    return len(line) == 3 and made in ([str, int, int], [str, int, type(None)])


def _is_part(name: object) -> bool:
    return name == WHOLE or is_split_name(name)

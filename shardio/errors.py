"""The exception hierarchy of shardio.

    ShardioError
    ├── UsageError          invalid argument (also a ValueError)
    │   └── SituationError  valid argument that does not fit the files or the machine
    │       └── MisfitError     sample whose shape or dtype differs from others of its batch
    ├── TarError            corrupt or truncated tar archive
    ├── TFRecordError       corrupt TFRecord file, or not a TFRecord file
    ├── IndexFileError      missing, corrupt or stale index or manifest
    ├── CodecError          data that cannot be decoded (also a ValueError)
    ├── SampleError         sample that cannot be delivered
    │   ├── TransformError  exception in the user's transform, map or collate
    │   └── Skip            raised by the user's map to leave a sample out
    ├── PackError           source or destination that cannot be packed
    │   └── OutputError     link, pipe or device in place of an output file or folder
    └── RemoteError         store that does not do what it is asked (also an OSError)
        ├── RemoteMissing       no such object (also a FileNotFoundError)
        ├── RemoteDenied        credentials missing, wrong, expired or not sufficient
        ├── RemoteChanged       object replaced while it was read
        └── RemoteUnreachable   no answer, or none in time, after all attempts

An error carries three values: what happened, where, and what to do. Its message is composed of
them as "where: what; remedy". Code that handles an error reads the values and never parses the
message. Every class accepts a single string, because a DataLoader recreates a worker's error from
its text.

Names in messages come from archives. They may be long and may contain terminal control
characters, so `shown` and `quoted` escape and shorten them. Every message is escaped once more, in
case a name was inserted without either function, and URLs in it lose their secrets.

An argument of a function is an option of a command. `argument` names it as the reader knows it:
`on_error='skip'` in Python, `--on-error skip` while a command runs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

_Error = TypeVar("_Error", bound="ShardioError")
_OPTIONS = "SHARDIO_OPTIONS"  # of the running command, for its processes too
_LONGEST = 200  # characters of a name
_USER = re.compile(r"\A(/?)[^/?#\n]*@")
_UNCLEAR = re.compile(r"(/?)[^/\s@?#[:]*:(?!\d*(?:[^\w%+~!$&*=-]|$))")  # a colon without a port
_QUERY = re.compile(r"[?#]")
_BLANKS = re.compile(r"(\s+)")
_WITH_PATTERNS = ("s3", "gs", "gcs", "az", "abfs", "abfss", "hf")
_ENDS = ":;,.)'\""  # of a URL in a sentence
_LONG_WORD = re.compile(r"\S{1001,}")  # shorter paths are shown whole


def escaped(text: str, *, kept: str = "") -> str:
    """Escape the characters that are not printable.

    Args:
        text: arbitrary text.
        kept: characters to leave unescaped.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode()
        for each in text
    )


def without_secrets(text: str) -> str:
    """Return a text with its URLs as they may be shown: without user name, password and query.

    It takes linear time. A `?` stays where it may be of a pattern. Only the scheme stays of a URL
    whose password has a slash, so that its end is unclear.
    """
    first, *others = text.split(":/")  # pathlib takes the second slash away
    before = [first, *others]
    shown_parts = (
        _without_secrets(part, has_patterns=previous.endswith(_WITH_PATTERNS))
        for previous, part in zip(before, others, strict=False)
    )
    return ":/".join([first, *shown_parts])


def _without_secrets(part: str, *, has_patterns: bool) -> str:
    """Return what follows a scheme, up to the next one, without secrets."""
    place, *others = _BLANKS.split(_USER.sub(r"\1", part, count=1))
    if unclear := _UNCLEAR.match(place):
        place = f"{unclear[1]}…{_ending(place)}"
    return "".join(
        [_without_query(place, not has_patterns), *(_without_query(each) for each in others)]
    )


def _without_query(word: str, always: bool = False) -> str:
    found = _QUERY.search(word)
    if found is None or not (always or "=" in word[found.end() :]):
        return word
    return word[: found.start()] + _ending(word[found.end() :])


def _ending(word: str) -> str:
    return word[len(word.rstrip(_ENDS)) :]


def shown(name: str) -> str:
    """Format a name for a message: escaped, on one line, and shortened in the middle if long."""
    return escaped(_cut(name))


def quoted(name: object) -> str:
    """Format a name for a message, in quotes; long names are shortened in the middle."""
    return _cut(repr(name))


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Format a count for a message, as in "1 shard" or "2,000 shards"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


@contextmanager
def as_options(options: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Have `argument` name the options of a command, also in processes that start inside.

    Args:
        options: options by argument, as {"seed": ["--seed"]}; for a flag one that sets it and one
            that clears it, or twice the same, as {"force": ["--force", "--force"]}.
    """
    before = os.environ.get(_OPTIONS)
    os.environ[_OPTIONS] = json.dumps(dict(options))
    try:
        yield
    finally:
        del os.environ[_OPTIONS]
        if before is not None:
            os.environ[_OPTIONS] = before


def argument(name: str, *value: object) -> str:
    """Name an argument in a message, as "shards=8" in Python and "--shards 8" for a command.

    Args:
        name: name of the argument in Python.
        *value: value of the argument; none to name the argument alone. A list is an option that is
            repeated.
    """
    options = json.loads(os.environ.get(_OPTIONS, "{}")).get(name)
    if not options:
        return "=".join([name, *map(quoted, value)])
    if value and isinstance(value[0], list):
        value = tuple(value[0])
    elif value and isinstance(value[0], bool):
        if len(options) == 2:
            return str(options[0 if value[0] else 1])
        value = (str(value[0]).lower(),)
    given = (f"{options[0]} {shlex.quote(shown(str(each)))}" for each in value)
    return " ".join(given) or str(options[0])


def type_argument(field: str, kind: str) -> str:
    """Name the type of a field, as "types={'wav': Audio()}" in Python, "--type wav=Audio" else."""
    option = argument("types", f"{field}={kind.removesuffix('()')}")
    return in_words(f"types={{{field!r}: {kind}}}", option)


def in_words(python: str, command: str) -> str:
    """Return the words that the reader knows: those of Python, or of a command while one runs."""
    return command if _OPTIONS in os.environ else python


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}...{text[-half:]}"


class ShardioError(Exception):
    """Base class of all shardio errors.

    Args:
        what: description of what happened.
        where: file, sample or argument at fault, as the user knows it.
        remedy: advice to the user.
        shard: path of the shard.
        offset: byte offset in the shard.
        key: key of the sample.
        field: field of the sample.

    Attributes:
        what: description of what happened.
        where: file, sample or argument at fault, or None.
        remedy: advice to the user, or None.
        shard: path of the shard, or None.
        offset: byte offset in the shard, or None.
        key: key of the sample, or None.
        field: field of the sample, or None.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        remedy: str | None = None,
        shard: str | None = None,
        offset: int | None = None,
        key: str | None = None,
        field: str | None = None,
    ) -> None:
        self.what = _fit_for_terminals(what)
        self.where = None if where is None else _fit_for_terminals(str(where))
        self.remedy = None if remedy is None else _fit_for_terminals(remedy)
        place = "" if self.where is None else f"{self.where}: "
        way = "" if self.remedy is None else f"; {self.remedy}"
        super().__init__(f"{place}{self.what}{way}")
        self.shard = shard
        self.offset = offset
        self.key = key
        self.field = field

    def at(
        self,
        where: object,
        kind: type[_Error],
        *,
        remedy: str | None = None,
        shard: str | None = None,
        offset: int | None = None,
        key: str | None = None,
        field: str | None = None,
    ) -> _Error:
        """Return a copy of this error with a location.

        Args:
            where: file, sample or argument at fault; an earlier location becomes part of the
                description.
            kind: class of the new error.
            remedy: additional advice, appended to that of this error.
            shard: path of the shard.
            offset: byte offset in the shard.
            key: key of the sample.
            field: field of the sample.
        """
        ways = [way for way in (self.remedy, remedy) if way is not None]
        return kind(
            self.what if self.where is None else f"{self.where}: {self.what}",
            where=where,
            remedy="; ".join(ways) or None,
            shard=shard,
            offset=offset,
            key=key,
            field=field,
        )


def _fit_for_terminals(text: str) -> str:
    whole = escaped(without_secrets(text), kept="\n")  # DataLoader puts a traceback into it
    return _LONG_WORD.sub(lambda word: _cut(word[0]), whole)


class UsageError(ShardioError, ValueError):
    """Invalid argument."""


class SituationError(UsageError):
    """Valid argument that does not fit the files or the machine."""


class MisfitError(SituationError):
    """A sample whose value has another shape or dtype than the others of its batch."""


class TarError(ShardioError):
    """Corrupt or truncated tar archive; carries the shard and the offset."""


class TFRecordError(ShardioError):
    """Corrupt TFRecord file, or not a TFRecord file; carries the file as shard, and the offset."""


class IndexFileError(ShardioError):
    """Missing or corrupt index or manifest, or one that does not match its shards."""


class CodecError(ShardioError, ValueError):
    """Data that cannot be decoded; the caller adds the location."""


class SampleError(ShardioError):
    """Sample that cannot be delivered; carries the shard, the key and the field."""


class TransformError(SampleError):
    """Exception in a function of the user, which no policy for bad samples suppresses."""


class Skip(SampleError):  # noqa: N818  what a function of the user raises
    """Raised by a function given as `map=` to leave a sample out; the argument says why.

    Another sample takes its place, marked with valid=False and counted in num_bad_samples.
    """

    def __init__(self, what: str = "left out by map", **details: str | None) -> None:
        super().__init__(str(what), **details)  # type: ignore[arg-type]  # as those of the base class


class PackError(ShardioError):
    """Source or destination that cannot be packed."""


class OutputError(PackError):
    """Link, pipe, device or the like in place of an output file or folder."""


class RemoteError(ShardioError, OSError):
    """Store that does not do what it is asked.

    The location is the URL without user name, password and query.

    Attributes:
        status: HTTP status of the answer; None if there was none.
        request_id: the store's own name of the request, for its support; None if it gave none.
    """

    status: int | None = None
    request_id: str | None = None


class RemoteMissing(RemoteError, FileNotFoundError):  # noqa: N818  named as the others of its tree
    """No such object."""


class RemoteDenied(RemoteError, PermissionError):  # noqa: N818
    """Credentials that are missing, wrong, expired or not sufficient."""


class RemoteChanged(RemoteError):  # noqa: N818
    """Object that was replaced while it was read."""


class RemoteUnreachable(RemoteError, ConnectionError):  # noqa: N818
    """Store that does not answer, or not in time, after all attempts."""

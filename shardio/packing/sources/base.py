"""What a source yields: samples, each field of which is a file, a part of one, or bytes.

`shardio.pack` reads any object that is a `Source`. A sample says where its data are; nobody reads
them before its shard is written. `shardio.testing.SourceContract` tests what a source promises.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

from shardio.errors import PackError, ShardioError, argument, counted, quoted, shown
from shardio.naming import join_member_name, split_member_name

if TYPE_CHECKING:
    from typing_extensions import Self

    from shardio.fields.base import FieldType
    from shardio.packing.options import PackOptions
    from shardio.storage.base import StoredFile


_LOG = logging.getLogger("shardio")


def name_coco() -> str:
    """Return the advice for a JSON file that is no sample."""
    return f"name it with {argument('coco')} if it has COCO's annotations of the images"


class FromFile(NamedTuple):
    """A whole file.

    Attributes:
        path: path relative to the source's root, or absolute.
    """

    path: bytes


class FromRange(NamedTuple):
    """A part of a file, with a checksum or a stamp by which a change is noticed.

    Attributes:
        path: path of the file, see FromFile.
        offset: start of the part in bytes.
        size: bytes of the part.
        checksum: CRC-32 of the part; None if it is not known.
        stamp: stamp of the file when the list was made (see shardio.packing.sources.reader; of a
            file of a storage its digest or version); None for a part that was read for the list, so
            that its checksum is known.
        before: bytes of headers directly before the part. Without a checksum they tell whether the
            part still is what was listed.
        headers: CRC-32 of these headers.
    """

    path: bytes
    offset: int
    size: int
    checksum: int | None
    stamp: str | None = None
    before: int = 0
    headers: int = 0


class FromMemory(NamedTuple):
    """Bytes made by the source, such as a label.

    Attributes:
        data: the bytes.
    """

    data: bytes


Origin: TypeAlias = FromFile | FromRange | FromMemory


class SourceField(NamedTuple):
    """One field of a sample.

    Attributes:
        name: name of the field; None for an image to be named after the format found in it.
        origin: place of its data.
    """

    name: str | None
    origin: Origin


class SourceSample(NamedTuple):
    """One sample.

    Attributes:
        key: key of the sample.
        path: path that it was found at, or a place in a file, for errors and ledgers.
        fields: fields in the order in which they are packed.
        label: number of its class; None without classes.
        renamed: whether the key is another than the path without its extension.
        place: place that lists the sample, if another sample may have the same path.
        split: name of its split, where the source says it.
    """

    key: str
    path: str
    fields: tuple[SourceField, ...]
    label: int | None = None
    renamed: bool = False
    place: str = ""
    split: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something in a source that cannot be packed.

    Attributes:
        path: path that it was found at, or a place in a file.
        reason: fault.
        remedy: advice to the user; None for the advice that fits all samples of the source.
    """

    path: str
    reason: str
    remedy: str | None = None

    @classmethod
    def of(cls, path: str, error: ShardioError) -> Problem:
        """Make a problem of an error."""
        where = "" if error.where is None else f"{error.where}: "
        return cls(path=path, reason=f"{where}{error.what}", remedy=error.remedy)

    def error(self, remedy: str) -> PackError:
        """Create the error that stops a pack because of the problem.

        Args:
            remedy: advice that fits all samples of the source.
        """
        return PackError(
            self.reason,
            where=shown(self.path),
            remedy=f"{self.remedy or remedy}, or leave all such samples out with "
            f"{argument('on_error', 'skip')}",
        )


class UnpackableError(ShardioError):
    """Something cannot be packed; whoever knows the sample adds the place."""


@runtime_checkable
class Source(Protocol):
    """Samples to pack, in an order that depends on the source's data alone.

    A source may have an attribute `types`, a mapping from names of fields to their types, which
    the manifest of the packed folder then records. One whose parts lie in files of a storage has an
    attribute `stored`, a mapping from the paths of these files to what opens them, which pickles;
    its stamps of them differ after a change.
    """

    @property
    def name(self) -> str:
        """Name of the source in errors."""

    @property
    def root(self) -> str:
        """Folder that relative paths start from."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes by number; None if they have no names."""

    def samples(self) -> Iterator[SourceSample | Problem]:
        """Yield all samples, and a problem in place of each one that cannot be packed.

        Raises:
            ShardioError: the source cannot be read.
        """


class PathSource(Source, Protocol):
    """A source that users name by a path; `shardio.packing.pack.SOURCES` lists them.

    Attributes:
        described: description for errors, as in "does not apply to tars".
        options: names of the options that apply, of those in PackOptions.SOURCE_OPTIONS.
        remedy: advice for a sample that cannot be packed.
    """

    described: ClassVar[str]
    options: ClassVar[tuple[str, ...]]
    remedy: ClassVar[str]

    @classmethod
    def claims(cls, path: str, options: PackOptions) -> bool:
        """Tell whether a path, with these options, is one of this source."""

    @classmethod
    def open(cls, path: str, options: PackOptions) -> Self:
        """Open the source at a path that it claims.

        Raises:
            PackError: it is not there, or not readable.
            UsageError: an option does not fit it.
        """


def log_notice(path: str, what: str) -> None:
    """Log what a source was taken for, or what it lacks, where the user did not say it."""
    _LOG.warning("%s: %s", path, what)


def remedy_for(source: Source) -> str:
    """Return the advice for a sample of a source that cannot be packed."""
    return getattr(source, "remedy", "fix the sample or leave it out")


def types_of(source: Source) -> Mapping[str, FieldType]:
    """Return the types that a source records for its fields; others follow from their names."""
    types: Mapping[str, FieldType] = getattr(source, "types", {})
    return types


class Stored(Protocol):
    """A file that is not read by its path; a value that pickles."""

    def open_source(self) -> StoredFile:
        """Open the file, in any process.

        Raises:
            ShardioError: it is not what was listed.
            OSError: it cannot be opened.
        """


def stored_of(source: Source) -> Mapping[bytes, Stored]:
    """Return the files of a source that are not read by their paths, by these."""
    stored: Mapping[bytes, Stored] = getattr(source, "stored", {})
    return stored


_JUNK = frozenset(
    {
        *("__macosx", ".appledouble", ".ds_store"),  # macOS
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("@eadir", "#recycle", "@recycle"),  # Synology, QNAP
        "lost+found",  # ext
    }
)


def junk_in(path: str) -> str | None:
    """Return the part of a path that names a file or folder of an operating system, or None.

    Such files lie among those of a user without their doing: thumbnails, resource forks, icons.
    """
    for part in path.split("/"):
        if part.startswith("._"):
            return "._*"
        if part.lower() in _JUNK:
            return part
    return None


def log_junk(source: str, found: Counter[str]) -> None:
    """Log once what a source leaves out.

    Args:
        source: name of the source.
        found: number of files or folders by what junk_in returned.
    """
    if found:
        _LOG.warning(
            "%s: left out %s of operating systems (%s)",
            source,
            counted(found.total(), "file or folder", "files or folders"),
            ", ".join(sorted(found)),
        )


def text_of(name: bytes) -> str:
    """Decode a name of the file system, the same way under every locale."""
    return name.decode("utf-8", "surrogateescape")


def place_in(root: str, path: str) -> bytes:
    """Return the path of a file below a folder, the same way under every locale.

    Args:
        root: path of the folder, as Python decoded it.
        path: path from there, as text_of decodes it.
    """
    return os.path.join(os.fsencode(root), path.encode("utf-8", "surrogateescape"))  # noqa: PTH118  bytes


def is_name(text: str) -> bool:
    """Tell whether a text can be a name of the file system."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def key_fault(key: str) -> str | None:
    """Explain why readers of shards would not find a key; None if they do."""
    if not is_name(key):
        return f"{quoted(key)} has characters that no name can have"
    base = key.rpartition("/")[2]
    if "." in base.lstrip("."):
        return (
            f"the key {quoted(key)} has a dot, at which readers of shards end a key: write it with "
            "another character"
        )
    if split_member_name(join_member_name(key, "x")) != (key, "x"):
        return f"readers of shards pass over a member with the key {quoted(key)}"
    if ".." in key.split("/"):
        return f"tar unpacks no member with the key {quoted(key)}, since it has the part '..'"
    return None

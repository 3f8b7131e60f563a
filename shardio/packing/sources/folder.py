"""A folder of files: in a folder with subfolders the first one on a file's path is its class.

Folders are walked in the order of their paths, which is that of the sorted list of all paths
because a folder sorts with a slash at its end; only one folder's names are held at a time. Files
whose names differ in their fields alone are one sample. Names are bytes, as the file system has
them, so that the order does not depend on a locale. Dot files and files of operating systems are
left out. Links are followed, also to folders that were walked before; but few links, in folders
that links lead to, can make billions of paths, so there is a limit on how often links may lead to
one folder.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from shardio.errors import PackError, UsageError, quoted, shown
from shardio.indexing.catalog import SHARD_SUFFIXES
from shardio.indexing.manifest import MANIFEST_NAME
from shardio.packing.sources.base import (
    FromFile,
    Problem,
    SourceField,
    SourceSample,
    junk_in,
    key_fault,
    log_junk,
    text_of,
)
from shardio.packing.sources.rules import (
    FieldRule,
    LabelEncoder,
    check_classes,
    label_fields,
    parse_fields,
)

if TYPE_CHECKING:
    from shardio.packing.options import PackOptions

_MOST_ENTERED = 100  # times that links lead to one folder

_Identity = tuple[int, int]  # device and inode of a folder
_Walk = Iterator["SourceSample | Problem | _Walk"]


def find_classes(folder: str) -> tuple[str, ...] | None:
    """List the names of the folders inside a folder, sorted; None if there are none.

    Raises:
        PackError: the folder does not exist or cannot be read.
    """
    names = _listed(os.fsencode(folder), b"").names
    return tuple(sorted(text_of(name[:-1]) for name in names if name.endswith(b"/"))) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSource:
    """The files below a folder.

    Attributes:
        root: path of the folder.
        rule: rule by which files become fields.
        labels: labels of its subfolders; None leaves samples without label.
    """

    described: ClassVar[str] = "a folder of files"
    options: ClassVar[tuple[str, ...]] = ("labels", "classes", "fields")
    remedy: ClassVar[str] = "fix, rename or remove the file"

    root: str
    rule: FieldRule
    labels: LabelEncoder | None

    @classmethod
    def claims(cls, path: str, options: PackOptions) -> bool:  # noqa: ARG003  as all sources
        """Claim every path: it is asked last, and opening it says what is wrong with others."""
        return True

    @classmethod
    def open(cls, path: str, options: PackOptions) -> FolderSource:
        """See PathSource."""
        if os.path.isfile(path):  # noqa: PTH113  bytes that are not UTF-8
            raise PackError(
                "it is a file, not a folder",
                where=path,
                remedy=(
                    "unpack it if it is an archive, pass it as the manifest if it is a "
                    "table, or name the folder that holds the images"
                ),
            )
        if not os.path.isdir(path):  # noqa: PTH112  bytes that are not UTF-8
            raise PackError(
                "no such folder", where=path, remedy="name the folder that holds the images"
            )
        classes = check_classes(options.classes) or find_classes(path)
        labels = LabelEncoder(classes) if options.labels and classes else None
        if not isinstance(options.fields, str | None):
            raise UsageError(
                "fields: field types are for samples of a program",
                remedy="for files, pass names of fields, as 'jpg;png,json'",
            )
        return cls(root=path, rule=parse_fields(options.fields), labels=labels)

    @property
    def name(self) -> str:
        """See Source."""
        return self.root

    @property
    def classes(self) -> tuple[str, ...] | None:
        """See Source."""
        return self.labels.classes if self.labels else None

    def samples(self) -> Iterator[SourceSample | Problem]:
        """Yield all samples, in the order of their paths.

        Raises:
            PackError: a folder cannot be read, or a link leads back to one above, or links lead
                to one too often.
        """
        junk = Counter[str]()
        walks = [self._walk(b"", (), Counter(), junk)]  # no recursion: folders may be 2,000 deep
        while walks:
            found = next(walks[-1], None)
            if found is None:
                walks.pop()
            elif isinstance(found, Iterator):
                walks.append(found)
            else:
                yield found
        log_junk(self.root, junk)

    def _walk(
        self,
        relative: bytes,
        parents: tuple[_Identity, ...],
        entered: Counter[_Identity],
        junk: Counter[str],
    ) -> _Walk:
        """Yield what is in a folder, and for each folder inside its walk."""
        root = os.fsencode(self.root)
        folder = os.path.join(root, relative) if relative else root  # noqa: PTH118  bytes
        names, problems, left_out = _listed(folder, relative)
        self._refuse_shards(folder, names)
        junk.update(left_out)
        yield from problems
        status = os.stat(folder)  # noqa: PTH116  bytes
        if (identity := (status.st_dev, status.st_ino)) in parents:
            raise PackError(
                "a link leads back to a folder above", where=text_of(folder), remedy="remove it"
            )
        if relative and os.path.islink(folder.rstrip(b"/")):  # noqa: PTH114  bytes
            entered[identity] += 1
            if entered[identity] > _MOST_ENTERED:
                raise PackError(
                    f"links lead to this folder more than {_MOST_ENTERED} times",
                    where=text_of(folder),
                    remedy="remove some of them",
                )
        names.sort()
        if self.rule.specs:
            names.sort(key=self._group_of)
        for group, files in groupby(names, self._group_of):
            if group.endswith(b"/"):
                yield self._walk(relative + group, (*parents, identity), entered, junk)
            else:
                yield from self._sample(relative, [*files])

    def _refuse_shards(self, folder: bytes, names: list[bytes]) -> None:
        """Raise PackError if a folder holds shards, and perhaps an index, instead of samples."""
        found = [text_of(name) for name in names]
        packed = [name for name in found if name.endswith((*SHARD_SUFFIXES, MANIFEST_NAME))]
        if not packed or any(match.field for name in found if (match := self.rule.match(name))):
            return
        raise PackError(
            f"the folder holds shards ({min(packed)}), not files of samples",
            where=text_of(folder),
            remedy="pack each folder of shards by itself, merge them with reshard, or move them "
            "out of the source",
        )

    def _group_of(self, name: bytes) -> bytes:
        """Return what the names of one sample's files have in common; for a folder its name."""
        if not self.rule.specs or name.endswith(b"/"):
            return name
        text = text_of(name)
        found = self.rule.match(text)
        if found is None or found.field is None:
            return b"\0" + name  # no stem has a NUL
        return text[: -len(found.field) - 1].encode("utf-8", "surrogateescape")

    def _sample(self, relative: bytes, names: list[bytes]) -> Iterator[SourceSample | Problem]:
        first = text_of(relative + names[0])
        label = None
        if self.labels is not None:
            group, slash, _ = text_of(relative).partition("/")
            if not slash:
                yield Problem(
                    path=first,
                    reason="it lies beside the class folders",
                    remedy="move it into one, or pack without classes (labels=False, --no-labels)",
                )
                return
            label = self.labels.encode(group)
            if label is None:
                yield Problem(path=first, reason=self.labels.fault(group))
                return
        fields: dict[str | None, bytes] = {}
        sample = self.rule.match(first)
        if sample is None:
            reason = "its name ends in none of the fields that were asked for"
            yield Problem(path=first, reason=reason)
            return
        for name in names:
            path = text_of(relative + name)
            found = self.rule.match(path) or sample
            if found.field in fields:
                holder = text_of(fields[found.field])
                reason = f"its key would be {quoted(found.key)}, as that of {shown(holder)}"
                yield Problem(path=path, reason=reason)
                continue
            fields[found.field] = relative + name
        if fault := key_fault(sample.key) or self.rule.fault(fields):
            yield Problem(path=first, reason=fault)
            return
        files = [SourceField(field, FromFile(place)) for field, place in fields.items()]
        yield SourceSample(
            key=sample.key,
            path=first,
            fields=(*label_fields(label), *files),
            label=label,
            renamed=sample.renamed,
        )


class _Listed(NamedTuple):
    """The entries of a folder.

    Attributes:
        names: names of files and folders, those of folders with a slash at the end.
        problems: entries that are neither.
        junk: entries of operating systems, see junk_in.
    """

    names: list[bytes]
    problems: list[Problem]
    junk: list[str]


def _listed(folder: bytes, relative: bytes) -> _Listed:
    names, problems, junk = list[bytes](), list[Problem](), list[str]()
    try:
        for entry in os.scandir(folder):
            if what := junk_in(text_of(entry.name)):
                junk.append(what)
            if what or entry.name.startswith(b"."):
                continue
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError as error:
                reason = error.strerror or str(error)
                problems.append(Problem(path=text_of(relative + entry.name), reason=reason))
                continue
            if is_folder or is_file:
                names.append(entry.name + b"/" if is_folder else entry.name)
                continue
            reason = "a link to nothing" if entry.is_symlink() else "neither a file nor a folder"
            problems.append(Problem(path=text_of(relative + entry.name), reason=reason))
    except OSError as error:
        raise PackError(
            error.strerror or str(error),
            where=text_of(folder),
            remedy="name a folder that can be read",
        ) from error
    return _Listed(names, sorted(problems, key=lambda problem: problem.path), junk)

"""A folder of files: in a folder with subfolders the first one on a file's path is its class.

Folders are walked in the order of their paths, which is that of the sorted list of all paths
because a folder sorts with a slash at its end; only one folder's names are held at a time. Files
whose names differ in their fields alone are one sample; which fields there are is asked for, or
found (see shardio.packing.sources.neighbours). Names are bytes, as the file system has
them, so that the order does not depend on a locale. Dot files and files of operating systems are
left out. Links are followed, also to folders that were walked before; but few links, in folders
that links lead to, can make billions of paths, so there is a limit on how often links may lead to
one folder.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from shardio.errors import (
    PackError,
    SituationError,
    UsageError,
    argument,
    quoted,
    shown,
    type_argument,
)
from shardio.fields.base import FieldType
from shardio.fields.formats import IMAGE_FIELDS, is_image
from shardio.indexing.manifest import MANIFEST_NAME
from shardio.indexing.parts import SHARD_SUFFIXES
from shardio.packing.sources.base import (
    FromFile,
    Problem,
    SourceField,
    SourceSample,
    junk_in,
    key_fault,
    log_junk,
    name_coco,
    place_in,
    text_of,
)
from shardio.packing.sources.neighbours import Neighbours, follows_an_image
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


_PICTURES = frozenset({"image", "images", "img", "imgs", "jpegimages"})
_ABOUT_PICTURES = re.compile(
    r"(.*[_-])?(mask|label|annotation|ann|segmentation)s?([_-].*)?", re.IGNORECASE
)


def _refuse_parts(path: str, classes: Sequence[str]) -> None:
    """Raise SituationError for folders that are parts of samples, such as images and masks."""
    images = next((name for name in classes if name.lower() in _PICTURES), None)
    about = next((name for name in classes if _ABOUT_PICTURES.fullmatch(name)), None)
    if images is not None and about is not None:
        raise SituationError(
            f"its folders {quoted(images)} and {quoted(about)} look like parts of samples, not "
            "like classes",
            where=path,
            remedy="pack a table of the files of each sample, with "
            f"{argument('path_columns', ['image', 'mask.png=mask'])}, a folder in which they lie "
            f"side by side, with {argument('fields')}, or one of the folders; if they are classes, "
            f"list them with {argument('classes')}",
        )


_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})


def _refuse_splits(path: str, classes: Sequence[str]) -> None:
    """Raise SituationError for folders that are parts of a dataset, such as train and val."""
    splits = [name for name in classes if name.lower() in _SPLITS]
    if not splits or (len(splits) == 1 < len(classes)):
        return
    names = [text_of(name) for name in _listed(place_in(path, splits[0]), b"").names]
    if any(name.endswith((*SHARD_SUFFIXES, MANIFEST_NAME)) for name in names):
        return  # the walk says what that is
    if len(splits) > 1 or any(name.endswith("/") for name in names):
        first = shown(os.fsdecode(place_in(path, splits[0])))
        raise SituationError(
            f"its {' and '.join(map(quoted, splits))} would be classes, and their names are those "
            "of splits",
            where=path,
            remedy=f"pack {first} by itself, and any other one likewise; if they are classes, list "
            f"them with {argument('classes')}, or pack without classes: "
            f"{argument('labels', False)}",
        )


def _refuse_alike(path: str, classes: Sequence[str]) -> None:
    """Raise SituationError for folders whose names look the same, since people mean one class."""
    seen: dict[str, str] = {}
    for name in classes:
        first = seen.setdefault(unicodedata.normalize("NFC", name).strip(), name)
        if first != name:
            raise SituationError(
                f"its folders {first!a} and {name!a} would be two classes, and differ "
                "in white space or in the way of writing accents alone",
                where=path,
                remedy=f"join them, or list both with {argument('classes')} if they are two "
                "classes",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSource:
    """The files below a folder.

    Attributes:
        root: path of the folder.
        rule: rule by which files become fields; without specs it is found.
        labels: labels of its subfolders; None leaves samples without label.
        given: types of a user by field name, which tell what is a file of its own.
    """

    described: ClassVar[str] = "a folder of files"
    options: ClassVar[tuple[str, ...]] = ("labels", "classes", "fields")
    remedy: ClassVar[str] = "fix, rename or remove the file"

    root: str
    rule: FieldRule
    labels: LabelEncoder | None
    given: Mapping[str, FieldType] = field(default_factory=dict)

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
        classes = check_classes(options.classes)
        if classes is None:
            classes = find_classes(path)
            if options.labels:
                _refuse_parts(path, classes or ())
                _refuse_splits(path, classes or ())
                _refuse_alike(path, classes or ())
        labels = LabelEncoder(classes) if options.labels and classes else None
        if not isinstance(options.fields, str | None):
            raise UsageError(
                "fields: field types are for samples of a program",
                remedy="for files, pass names of fields, as 'jpg;png,json', and types with types=, "
                "as {'wav': Audio()}",
            )
        rule, types = parse_fields(options.fields), options.types_by_field()
        return cls(root=path, rule=rule, labels=labels, given=types)

    @classmethod
    def below(cls, root: str, folder: str, rule: FieldRule) -> FolderSource:
        """Make a source of the files below a folder of a dataset.

        Args:
            root: path of the dataset.
            folder: path of the folder from the root.
            rule: rule by which files become fields.
        """
        return cls(root=os.fsdecode(place_in(root, folder)), rule=rule, labels=None)

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
        seen = _Seen(Counter(), Counter(), Neighbours(self.root, self.given))
        walks = [self._walk(b"", (), seen)]  # no recursion: folders may be 2,000 deep
        is_other = bool(self.rule.specs or self.given)
        first, has_images = None, is_other
        while walks:
            found = next(walks[-1], None)
            if found is None:
                walks.pop()
            elif isinstance(found, Iterator):
                walks.append(found)
            else:
                first = first or found.path
                has_images = has_images or _may_be_image(self.root, found)
                yield found
        if first is not None and not has_images:
            raise PackError(
                f"it has no images; the first of its files is {shown(first)}",
                where=self.root,
                remedy="name the folder that holds the images, or say what the files are, with "
                f"{argument('fields')} or {type_argument('wav', 'Audio()')}",
            )
        log_junk(self.root, seen.junk)
        seen.neighbours.log()

    def _walk(self, relative: bytes, parents: tuple[_Identity, ...], seen: _Seen) -> _Walk:
        """Yield what is in a folder, and for each folder inside its walk."""
        root = os.fsencode(self.root)
        folder = os.path.join(root, relative) if relative else root  # noqa: PTH118  bytes
        names, problems, left_out = _listed(folder, relative)
        self._refuse_shards(folder, names)
        seen.junk.update(left_out)
        yield from problems
        status = os.stat(folder)  # noqa: PTH116  bytes
        if (identity := (status.st_dev, status.st_ino)) in parents:
            raise PackError(
                "a link leads back to a folder above", where=text_of(folder), remedy="remove it"
            )
        if relative and os.path.islink(folder.rstrip(b"/")):  # noqa: PTH114  bytes
            seen.entered[identity] += 1
            if seen.entered[identity] > _MOST_ENTERED:
                raise PackError(
                    f"links lead to this folder more than {_MOST_ENTERED} times",
                    where=text_of(folder),
                    remedy="remove some of them",
                )
        names.sort()
        rule = self.rule if self.rule.specs else seen.neighbours.rule_for(relative, names)
        group_of = partial(_group_of, rule)
        if rule.specs:
            names.sort(key=group_of)
        for group, files in groupby(names, group_of):
            if group.endswith(b"/"):
                yield self._walk(relative + group, (*parents, identity), seen)
            else:
                yield from self._sample(rule, relative, [*files])

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

    def _sample(
        self, rule: FieldRule, relative: bytes, names: list[bytes]
    ) -> Iterator[SourceSample | Problem]:
        first = text_of(relative + names[0])
        label = None
        if self.labels is not None:
            group, slash, _ = text_of(relative).partition("/")
            if not slash:
                yield Problem(
                    path=first,
                    reason="it lies beside the class folders",
                    remedy="move it into one, or pack without classes: "
                    f"{argument('labels', False)}{_coco_hint(first)}",
                )
                return
            label = self.labels.encode(group)
            if label is None:
                yield Problem(path=first, reason=self.labels.fault(group))
                return
        fields: dict[str | None, bytes] = {}
        sample = rule.match(first)
        if sample is None:
            reason, hint = "its name ends in none of the fields that were asked for", ""
            if not self.rule.specs:
                own = "no image" + ", of no field with a given type" * bool(self.given)
                reason = f"it is {own}, and belongs to none as files beside the others do"
                hint = _coco_hint(first)
            yield Problem(path=first, reason=reason, remedy=self.remedy + hint)
            return
        is_found_alone = not self.rule.specs and len(rule.specs) < 2
        is_image = is_found_alone and sample.field in IMAGE_FIELDS
        if is_image and follows_an_image(text_of(names[0]), self.given):
            yield Problem(
                path=first,
                reason="its name says that it belongs to an image, and none of that name lies "
                "beside it",
                remedy=f"name the fields that are packed, as {argument('fields', 'mask.png')}, or "
                "rename or remove the file",
            )
            return
        for name in names:
            path = text_of(relative + name)
            found = rule.match(path) or sample
            if found.field in fields:
                holder = text_of(fields[found.field])
                reason = f"its key would be {quoted(found.key)}, as that of {shown(holder)}"
                yield Problem(path=path, reason=reason)
                continue
            fields[found.field] = relative + name
        if fault := key_fault(sample.key) or rule.fault(fields):
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


def _may_be_image(root: str, found: SourceSample | Problem) -> bool:
    """Tell whether a file has the name or the first bytes of an image, or cannot be read."""
    names = {name for name, _ in found.fields} if isinstance(found, SourceSample) else set()
    if names & IMAGE_FIELDS or found.path.rpartition(".")[2].lower() in IMAGE_FIELDS:
        return True
    place = Path(os.fsdecode(place_in(root, found.path)))
    try:
        with place.open("rb") if place.is_file() else nullcontext() as stream:  # no pipe
            return stream is None or is_image(stream.read(16))
    except OSError:
        return True


def _coco_hint(path: str) -> str:
    """End the remedy for a file that may hold the annotations of all images."""
    return f", or {name_coco()}" if path.lower().endswith(".json") else ""


def images_in(root: str, folder: str) -> Iterator[SourceSample | Problem]:
    """Yield the images below a folder of a dataset, each with the files beside it.

    Keys are paths from the folder, without extensions; paths start from the root.

    Args:
        root: path of the dataset.
        folder: path of the folder from the root.
    """
    before = f"{folder}/"
    for found in FolderSource.below(root, folder, FieldRule()).samples():
        if isinstance(found, Problem):
            yield replace(found, path=before + found.path)
            continue
        fields = tuple(
            SourceField(name, FromFile(place_in("", before) + origin.path))
            for name, origin in found.fields
            if isinstance(origin, FromFile)
        )
        yield found._replace(path=before + found.path, fields=fields)


def _group_of(rule: FieldRule, name: bytes) -> bytes:
    """Return what the names of one sample's files have in common; for a folder its name."""
    if not rule.specs or name.endswith(b"/"):
        return name
    text = text_of(name)
    found = rule.match(text)
    if found is None or found.field is None:
        return b"\0" + name  # no stem has a NUL
    return text[: -len(found.field) - 1].encode("utf-8", "surrogateescape")


class _Seen(NamedTuple):
    """What a walk has met so far.

    Attributes:
        entered: number of times that links led to a folder.
        junk: number of entries of operating systems, see junk_in.
        neighbours: files beside images.
    """

    entered: Counter[_Identity]
    junk: Counter[str]
    neighbours: Neighbours


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

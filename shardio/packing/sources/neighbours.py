"""Files beside images: which files make a sample where the user has not said.

A file belongs to the image whose stem begins its name, before a dot; what follows the dot is its
field: `a.json` and `a.mask.png` belong to `a.jpg`. Where several stems begin a name, the longest
one does. An image belongs to another one only if the name of its field means a mask or depth; other
images, as `a.left.png`, are samples of their own. So are files of a field whose name says nothing
and whose type is given, as `a.wav` with Audio, unless they lie beside an image: what is said of
images holds for them too.

Either no image has such files, or all images of the source have files of the same fields: anything
else is refused. The first folder that has images says which, so nothing is looked at twice.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import NamedTuple

from shardio.errors import PackError, argument, quoted, shown
from shardio.fields.base import BYTES, FieldType
from shardio.fields.defaults import type_of
from shardio.fields.formats import IMAGE_FIELDS
from shardio.fields.pictures import Image
from shardio.packing.sources.base import junk_in, log_notice, text_of
from shardio.packing.sources.rules import FieldRule, FieldSpec, is_field_name


def follows_an_image(name: str, given: Mapping[str, FieldType]) -> bool:
    """Tell whether an image file is a mask or depth of another image.

    Args:
        name: name of the file.
        given: types of a user by field name, which take precedence over what the name says.
    """
    stem, _, end = name.rpartition(".")
    before, dot, last = stem.rpartition(".")
    if not (dot and before and end.lower() in IMAGE_FIELDS):
        return False
    return not isinstance(type_of(f"{last}.{end}".lower(), given=given), Image)


def _heads_in(given: Mapping[str, FieldType]) -> tuple[str, ...]:
    """Return the fields that make a sample as images do, because of their given types."""
    return tuple(
        name
        for name, each in given.items()
        if type_of(name) == BYTES and each.geometry != "follows"
    )


class _Beside(NamedTuple):
    """The images of a folder.

    Attributes:
        endings: extensions of the images.
        fields: fields of the files that belong to each image, by its name.
    """

    endings: set[str]
    fields: dict[str, set[str]]

    @classmethod
    def of(cls, names: Iterable[str], given: Mapping[str, FieldType]) -> _Beside:
        """Tell images from what belongs to them."""
        stems, others, endings = dict[str, str](), list[str](), set[str]()
        for name in names:
            stem, _, end = name.rpartition(".")
            if stem and end.lower() in IMAGE_FIELDS and not follows_an_image(name, given):
                stems[stem] = name
                endings.add(end.lower())
            else:
                others.append(name)
        for head in _heads_in(given):
            alike = [name for name in others if name[1:].lower().endswith(f".{head}")]
            if own := [name for name in alike if _owner(name, stems) is None]:
                stems.update((name[: -len(head) - 1], name) for name in own)
                endings.add(head)
        fields: dict[str, set[str]] = {name: set() for name in stems.values()}
        for name in others:
            owner = None if name in fields else _owner(name, stems)
            if owner is not None:
                fields[stems[owner]].add(name[len(owner) + 1 :].lower())
        return cls(endings, fields)


def _owner(name: str, stems: Container[str]) -> str | None:
    """Return the longest of the stems that begins the name of a file that belongs to it."""
    stem = name
    while stem := stem.rpartition(".")[0]:
        if stem in stems and is_field_name(name[len(stem) + 1 :].lower()):
            return stem
    return None


class Neighbours:
    """Finds out which files beside images belong to them, folder by folder.

    Args:
        root: path of the source.
        given: types of a user by field name.
    """

    def __init__(self, root: str, given: Mapping[str, FieldType]) -> None:
        self._root = root
        self._given = given
        self._heads = _heads_in(given)
        self._kind = "file" if self._heads else "image"
        self._fields: set[str] | None = None
        self._first = ""

    def rule_for(self, relative: bytes, names: Iterable[bytes]) -> FieldRule:
        """Return the rule by which the files of a folder become samples.

        Args:
            relative: path of the folder, with a slash at its end unless it is the source.
            names: names in it, sorted, those of folders with a slash at the end.

        Raises:
            PackError: some images of the source have files beside them, and others not.
        """
        files = (text_of(name) for name in names if not name.endswith(b"/"))
        found = _Beside.of(files, self._given)
        for name, fields in found.fields.items():
            path = text_of(relative) + name
            if self._fields is None:
                self._fields, self._first = fields, path
            if fields != self._fields:
                raise self._mixed(path, fields)
        fields = self._fields or set()
        if not (fields or self._heads):
            return FieldRule()
        heads = {*IMAGE_FIELDS, *self._heads} - fields
        parts = ((*sorted(heads),), *((name,) for name in sorted(fields)))
        return FieldRule(specs=tuple(FieldSpec(names=names, optional=False) for names in parts))

    def log(self) -> None:
        """Log which files were found to belong to images, if there are any."""
        if self._fields:
            log_notice(
                self._root,
                f"each {self._kind} is packed with the files beside it, "
                f"{', '.join(sorted(self._fields))}",
            )

    def _mixed(self, path: str, fields: set[str]) -> PackError:
        """Name the first image that lacks a file, and a way to pack all of them."""
        before = self._fields or set()
        lacks = min(fields - before, default="")
        at, other = (self._first, path) if lacks else (path, self._first)
        lacks = lacks or min(before - fields)
        images, endings, counts = 0, set[str](), Counter[str]()
        for found in self._survey():
            images += len(found.fields)
            endings |= found.endings
            for each in found.fields.values():
                counts.update(each)
        asked = ";".join(sorted(endings))
        for name, count in sorted(counts.items()):
            asked += f",{name}" if count == images else f",{name}?"
        return PackError(
            f"no file of the field {quoted(lacks)} lies beside this {self._kind}, as beside "
            f"{shown(other)} ({counts[lacks]:,} of {images:,} {self._kind}s have one)",
            where=f"{self._root}: {shown(at)}",
            remedy="name the files of a sample, with a question mark where samples may lack them, "
            f"as {argument('fields', asked)}, or remove or add files so that all {self._kind}s are "
            "alike",
        )

    def _survey(self) -> Iterator[_Beside]:
        """Look through the source for an error, past what cannot be read."""
        for _, folders, names in os.walk(self._root):
            folders[:] = [name for name in folders if _is_meant(name)]
            yield _Beside.of(sorted(filter(_is_meant, names)), self._given)


def _is_meant(name: str) -> bool:
    return not name.startswith(".") and not junk_in(name)

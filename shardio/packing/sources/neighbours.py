"""Files beside images: which files make a sample where the user has not said.

A file belongs to the image whose stem begins its name, before a dot; what follows the dot is its
field: `a.json` and `a.mask.png` belong to `a.jpg`. Where several stems begin a name, the longest
one does. An image belongs to another one only if the name of its field means a mask or depth; other
images, as `a.left.png`, are samples of their own.

Either no image has such files, or all images of the source have files of the same fields: anything
else is refused. The first folder that has images says which, so nothing is looked at twice.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from shardio.errors import PackError, quoted, shown
from shardio.fields.defaults import type_of
from shardio.fields.formats import IMAGE_FIELDS
from shardio.fields.pictures import Image
from shardio.packing.sources.base import junk_in, log_notice, text_of
from shardio.packing.sources.rules import FieldRule, FieldSpec, is_field_name

_IMAGES = FieldSpec(names=tuple(sorted(IMAGE_FIELDS)), optional=False)


def follows_an_image(name: str) -> bool:
    """Tell whether the name of an image file says that it is a mask or depth of another image."""
    stem, _, end = name.rpartition(".")
    before, dot, last = stem.rpartition(".")
    if not (dot and before and end.lower() in IMAGE_FIELDS):
        return False
    return not isinstance(type_of(f"{last}.{end}".lower()), Image)


class _Beside(NamedTuple):
    """The images of a folder.

    Attributes:
        endings: extensions of the images.
        fields: fields of the files that belong to each image, by its name.
    """

    endings: set[str]
    fields: dict[str, set[str]]

    @classmethod
    def of(cls, names: Iterable[str]) -> _Beside:
        """Tell images from what belongs to them."""
        stems, others, endings = dict[str, str](), list[str](), set[str]()
        for name in names:
            stem, _, end = name.rpartition(".")
            if stem and end.lower() in IMAGE_FIELDS and not follows_an_image(name):
                stems[stem] = name
                endings.add(end.lower())
            else:
                others.append(name)
        fields: dict[str, set[str]] = {name: set() for name in stems.values()}
        for name in others:
            stem = name
            while stem := stem.rpartition(".")[0]:
                field = name[len(stem) + 1 :].lower()
                if stem in stems and is_field_name(field):
                    fields[stems[stem]].add(field)
                    break
        return cls(endings, fields)


class Neighbours:
    """Finds out which files beside images belong to them, folder by folder.

    Args:
        root: path of the source.
    """

    def __init__(self, root: str) -> None:
        self._root = root
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
        found = _Beside.of(text_of(name) for name in names if not name.endswith(b"/"))
        for name, fields in found.fields.items():
            path = text_of(relative) + name
            if self._fields is None:
                self._fields, self._first = fields, path
            if fields != self._fields:
                raise self._mixed(path, fields)
        if not self._fields:
            return FieldRule()
        beside = (FieldSpec(names=(name,), optional=False) for name in sorted(self._fields))
        return FieldRule(specs=(_IMAGES, *beside))

    def log(self) -> None:
        """Log which files were found to belong to images, if there are any."""
        if self._fields:
            log_notice(
                self._root,
                f"each image is packed with the files beside it, {', '.join(sorted(self._fields))}",
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
            f"no file of the field {quoted(lacks)} lies beside this image, as beside "
            f"{shown(other)} ({counts[lacks]:,} of {images:,} images have one)",
            where=f"{self._root}: {shown(at)}",
            remedy=f"name the files of a sample, with a question mark where samples may lack them "
            f"(--fields {quoted(asked)}), or remove or add files so that all images are alike",
        )

    def _survey(self) -> Iterator[_Beside]:
        """Look through the source for an error, past what cannot be read."""
        for _, folders, names in os.walk(self._root):
            folders[:] = [name for name in folders if _is_meant(name)]
            yield _Beside.of(sorted(filter(_is_meant, names)))


def _is_meant(name: str) -> bool:
    return not name.startswith(".") and not junk_in(name)

"""COCO's annotations: one JSON file with lists of images, annotations and categories.

The file is decoded twice, an element at a time, and never held: first to learn where the elements
lie and which belong together, then image by image. That takes about 200 bytes of memory an image
and 40 an annotation.

Each image of the list becomes a sample with a field json: `boxes` as COCO has them (left, top,
width, height), `labels`, which are the ids of categories as they are, `names` of these, and a list
for everything else that annotations have, with null where one lacks it. Images without annotations
have empty lists.
"""

from __future__ import annotations

import codecs
import json
import math
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, NamedTuple

import numpy as np

from shardio.errors import PackError, SituationError, argument, quoted, shown
from shardio.fields.annotations import Boxes
from shardio.fields.base import FieldType
from shardio.fields.text import encode_json, unique_names
from shardio.packing.sources.base import (
    FromFile,
    FromMemory,
    Problem,
    SourceField,
    SourceSample,
    UnpackableError,
    is_name,
    log_notice,
)
from shardio.packing.sources.reader import has_stamp, stamp_of
from shardio.packing.sources.rules import FieldRule
from shardio.packing.sources.yolo import YoloSource
from shardio.storage.local import refuse_url

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shardio.packing.options import PackOptions

BESIDE = "_annotations.coco.json"
"""Name of the file beside the images of a folder, as several tools export it."""

_FIELD = "json"
_OF_ANNOTATION = frozenset({"bbox", "category_id", "image_id"})
_OURS = frozenset({"boxes", "labels", "names", "image", "image_id"})
_IN_PIXELS = frozenset({"area", "keypoints", "segmentation"})
"""What annotations have that is true of the picture as it is, beside the box."""
_SIDES = frozenset({"height", "width"})
_PIECE = 1 << 20  # bytes that are read at once
_LARGEST = 1 << 26  # characters of an element
_DEEP = 2  # brackets inside others, what is in which is read and passed over bit by bit
_MOST = 1 << 31  # pixels
_INT64 = 1 << 63


@dataclass(slots=True, kw_only=True)
class _Contents:
    """Where the elements of a file lie, and which belong together.

    Attributes:
        categories: names by id.
        numbers: numbers of the images by id, in the order in which the file speaks of them.
        order: numbers of the images that it lists, in the order of the list.
        images: offset and size of each image's element by its number; (-1, 0) if none lists it.
        owners: number of the image of each annotation.
        annotations: offset and size of each annotation.
        left_out: names of what annotations have and samples do not get.
        columns: names of what annotations have beside boxes and labels and samples get.
    """

    left_out: frozenset[str] = frozenset()
    categories: dict[int, str] = field(default_factory=dict)
    numbers: dict[int | str, int] = field(default_factory=dict)
    order: array[int] = field(default_factory=lambda: array("q"))
    images: array[int] = field(default_factory=lambda: array("q"))
    owners: array[int] = field(default_factory=lambda: array("q"))
    annotations: array[int] = field(default_factory=lambda: array("q"))
    columns: set[str] = field(default_factory=set)

    def add(self, name: str, element: Any, offset: int, size: int) -> None:
        """Add an element of a list.

        Raises:
            ValueError: it is not what the list holds.
        """
        if not isinstance(element, dict):
            raise ValueError("it is not a JSON object")  # noqa: TRY004  data, not an argument
        if name == "categories":
            self._add_category(element)
        elif name == "images":
            number = self._number(element, "id")
            if self.images[2 * number] >= 0:
                raise ValueError(f"an image before it has the id {quoted(element['id'])}")
            self.order.append(number)
            self.images[2 * number : 2 * number + 2] = array("q", (offset, size))
        else:
            if clash := (element.keys() - _OF_ANNOTATION) & _OURS:
                raise ValueError(f"{quoted(min(clash))} is a name that shardio gives")
            self.owners.append(self._number(element, "image_id"))
            self.annotations.extend((offset, size))
            self.columns |= element.keys() - _OF_ANNOTATION - self.left_out

    def _number(self, element: Mapping[str, Any], name: str) -> int:
        given = element.get(name)
        if not isinstance(given, int | str) or isinstance(given, bool):
            raise ValueError(  # noqa: TRY004  data, not an argument
                f"its {name} is {quoted(given)}, not a number or text"
            )
        number = self.numbers.setdefault(given, len(self.numbers))
        if 2 * number == len(self.images):
            self.images.extend((-1, 0))
        return number

    def _add_category(self, element: Mapping[str, Any]) -> None:
        number, name = element.get("id"), element.get("name")
        if type(number) is not int or not -_INT64 <= number < _INT64:
            raise ValueError(f"its id {quoted(number)} is not a whole number of 64 bits")
        if not isinstance(name, str) or not name:
            raise ValueError(f"its name is {quoted(name)}, not a text")
        if number in self.categories:
            raise ValueError(f"a category before it has the id {number}")
        self.categories[number] = name


_LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoSource:
    """The images of a folder with the annotations of a file.

    Attributes:
        root: path of the folder.
        file: path of the annotations.
        contents: places of images and annotations in them.
        stamp: stamp of the file when it was looked through.
        classes: names by category id, where the ids are 0, 1, 2 and so on; None otherwise.
        types: types of the fields.
    """

    described: ClassVar[str] = "COCO annotations"
    options: ClassVar[tuple[str, ...]] = ("coco",)
    remedy: ClassVar[str] = "fix or remove the image's entry, or its annotations"

    root: str
    file: str
    contents: _Contents
    stamp: str
    classes: tuple[str, ...] | None
    types: Mapping[str, FieldType]

    @classmethod
    def claims(cls, path: str, options: PackOptions) -> bool:
        """See PathSource."""
        if options.coco is not None:
            return options.manifest is None
        return options.fields is None and bool(_find_files(path))

    @classmethod
    def open(cls, path: str, options: PackOptions) -> CocoSource:
        """See PathSource."""
        if options.coco is None:
            path, file = _choose_file(path, options)
            log_notice(path, f"taken for images with COCO's annotations, {file}")
        else:
            file = os.fspath(options.coco)
        refuse_url(file)
        if not os.path.isdir(path):  # noqa: PTH112  text
            raise PackError(
                "no such folder", where=path, remedy="name the folder that holds the images"
            )
        contents = _Contents(left_out=_IN_PIXELS if options.resizes else frozenset())
        stamp = _look_through(file, contents)
        ids = [*contents.categories]
        names = tuple(contents.categories[number] for number in sorted(ids))
        dense = sorted(ids) == [*range(len(ids))] and len({*names}) == len(names) > 0
        columns = ("labels", "names", *sorted(contents.columns))
        if ids and not dense:
            log_notice(
                file,
                f"labels are the ids of its categories, {min(ids)} to {max(ids)}, and no positions "
                "in a list of classes; the field json has the name of each box in names",
            )
        if options.resizes:
            log_notice(
                file,
                "boxes follow the pictures that are resized; what else is in pixels is left out: "
                f"{', '.join(sorted(_IN_PIXELS))} of annotations, {' and '.join(sorted(_SIDES))} "
                "of images",
            )
        return cls(
            root=path,
            file=file,
            contents=contents,
            stamp=stamp,
            classes=names if dense else None,
            types=MappingProxyType({_FIELD: Boxes(_FIELD, format="xywh", also=columns)}),
        )

    @property
    def name(self) -> str:
        """See Source."""
        return self.file

    def samples(self) -> Iterator[SourceSample | Problem]:
        """Yield all samples, in the order of the list of images.

        Raises:
            PackError: the file changes meanwhile.
        """
        owners = np.frombuffer(self.contents.owners, np.int64)
        places = np.frombuffer(self.contents.annotations, np.int64).reshape(-1, 2)
        by_image = np.argsort(owners, kind="stable")
        bounds = np.searchsorted(owners[by_image], np.arange(len(self.contents.numbers) + 1))
        try:
            with open(self.file, "rb") as stream:  # noqa: PTH123  text
                for number in self.contents.order:
                    own = by_image[bounds[number] : bounds[number + 1]]
                    yield self._sample(stream, number, places[own])
                for number, start in enumerate(self.contents.images[::2]):
                    if start < 0:
                        own = by_image[bounds[number] : bounds[number + 1]]
                        yield from self._strays(stream, places[own])
                self._refuse_changes(stream)
        except OSError as error:
            raise _unreadable(self.file, error) from error

    def _sample(
        self, stream: BinaryIO, number: int, places: NDArray[np.int64]
    ) -> SourceSample | Problem:
        offset, size = self.contents.images[2 * number : 2 * number + 2]
        image = self._element(stream, offset, size)
        place = f"{self.file}, image {image['id']}"
        try:
            path = _checked_path(image.get("file_name"))
            match = FieldRule().name(path)
            found = [self._element(stream, *each) for each in places.tolist()]
            data = self._document(image, found)
        except UnpackableError as error:
            return Problem.of(place, error)
        return SourceSample(
            key=match.key,
            path=path,
            fields=(
                SourceField(match.field, FromFile(path.encode("utf-8", "surrogateescape"))),
                SourceField(_FIELD, FromMemory(data)),
            ),
            renamed=match.renamed,
            place=place,
        )

    def _document(self, image: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> bytes:
        """Write the field json of an image and its annotations."""
        for each in found:
            if fault := _box_fault(each) or self._category_fault(each):
                raise UnpackableError(f"its annotation {quoted(each.get('id'))} {fault}")
        labels = [each["category_id"] for each in found]
        left_out = {"id"} | (_SIDES if self.contents.left_out else frozenset())
        document = {
            "image_id": image["id"],
            "boxes": [each["bbox"] for each in found],
            "labels": labels,
            "names": [self.contents.categories[label] for label in labels],
            **{name: [each.get(name) for each in found] for name in sorted(self.contents.columns)},
            "image": {name: value for name, value in image.items() if name not in left_out},
        }
        try:
            return encode_json(document)
        except (TypeError, ValueError, RecursionError) as error:
            raise UnpackableError(f"JSON cannot hold what is said about it ({error})") from error

    def _category_fault(self, annotation: Mapping[str, Any]) -> str | None:
        label = annotation.get("category_id")
        if type(label) is int and label in self.contents.categories:
            return None
        return f"has the category_id {quoted(label)}, which no category has"

    def _strays(self, stream: BinaryIO, places: NDArray[np.int64]) -> Iterator[Problem]:
        """Yield a problem for each annotation of an image that is not listed."""
        for offset, size in places.tolist():
            found = self._element(stream, offset, size)
            yield Problem(
                path=f"{self.file}, annotation {quoted(found.get('id'))}",
                reason=f"its image_id is {quoted(found['image_id'])}, which no image has",
                remedy="add the image to the list, or remove the annotation",
            )

    def _element(self, stream: BinaryIO, offset: int, size: int) -> dict[str, Any]:
        data = os.pread(stream.fileno(), size, offset)
        try:
            found: dict[str, Any] = _DECODER.decode(data.decode("utf-8"))
        except ValueError:
            self._refuse_changes(stream)
            raise
        return found

    def _refuse_changes(self, stream: BinaryIO) -> None:
        if not has_stamp(os.fstat(stream.fileno()), self.stamp):
            raise PackError(
                "the file changed while it was packed", where=self.file, remedy="pack again"
            )


def _find_files(path: str) -> list[str]:
    """List annotations that lie where tools put them: beside images, or in `annotations`."""
    beside = f"{path}/{BESIDE}"
    if os.path.isfile(beside):  # noqa: PTH113  text
        return [beside]
    if not os.path.isdir(path):  # noqa: PTH112  text
        return []
    return sorted(map(str, Path(path).glob("annotations/instances_*.json")))


def _choose_file(path: str, options: PackOptions) -> tuple[str, str]:
    """Return the only annotations of a folder, and the folder of their images.

    Raises:
        SituationError: there are several, or it is not clear where their images are.
    """
    files = _find_files(path)
    if files == [f"{path}/{BESIDE}"]:
        return path, files[0]
    part = os.path.basename(files[0]).removeprefix("instances_").removesuffix(".json")  # noqa: PTH119  text
    places = (f"{path}/{part}", f"{path}/images/{part}", f"{path}/images")
    images = next((each for each in places if os.path.isdir(each)), None)  # noqa: PTH112  text
    if len(files) == 1 and images is not None and not YoloSource.claims(path, options):
        return images, files[0]
    found = "several annotations" if len(files) > 1 else "COCO's annotations among other things"
    raise SituationError(
        f"it has {found}",
        where=path,
        remedy=f"name the images and their annotations, as {shown(images or 'images')} and "
        f"{argument('coco', files[0])}",
    )


def _checked_path(given: Any) -> str:
    """Return the path of an image in its folder."""
    if not isinstance(given, str) or not given or "\0" in given or not is_name(given):
        raise UnpackableError(f"its file_name is {quoted(given)}, which no file can be called")
    path = os.path.normpath(given)
    if os.path.isabs(path) or path.partition("/")[0] == "..":  # noqa: PTH117  text
        raise UnpackableError(
            f"its file_name {quoted(given)} leads out of the folder of images",
            remedy="name a folder above, and write paths from there",
        )
    return path


def _box_fault(annotation: Mapping[str, Any]) -> str | None:
    box = annotation.get("bbox")
    if box is None:
        return "has no bbox; captions and panoptic annotations are not read"
    numbers = isinstance(box, list) and all(type(each) in (int, float) for each in box)
    if not numbers or len(box) != 4:
        return f"has a bbox that is not four numbers: {quoted(box)}"
    if not all(math.isfinite(each) and abs(each) < _MOST for each in box):
        return f"has a bbox beyond all pictures: {quoted(box)}"
    if box[2] < 0 or box[3] < 0:
        return f"has a bbox of a negative size, which is left, top, width, height: {quoted(box)}"
    return None


def _unreadable(path: str, error: OSError) -> PackError:
    return PackError(
        error.strerror or str(error),
        where=path,
        remedy=f"name the file of annotations with {argument('coco')}",
    )


def _look_through(path: str, contents: _Contents) -> str:
    """Learn what lies where in a file of annotations; return the stamp of the file.

    Args:
        path: path of the file.
        contents: contents without elements, to which they are added.

    Raises:
        PackError: it cannot be read, or is none.
    """
    counts = dict.fromkeys(_LISTS, 0)
    try:
        with open(path, "rb") as stream:  # noqa: PTH123  text
            stamp = stamp_of(os.fstat(stream.fileno()))
            scanner = _Scanner(stream)
            try:
                for name, element, offset, size in scanner.elements(_LISTS):
                    contents.add(name, element, offset, size)
                    counts[name] += 1
            except (ValueError, RecursionError) as error:
                inside = scanner.inside
                place = f"{inside}[{counts[inside]}]" if inside else "the file"
                raise PackError(
                    f"{place} is not read, about byte {scanner.byte:,}: {error}",
                    where=path,
                    remedy="name COCO's annotations, a JSON object with lists of images, "
                    "annotations and categories, in UTF-8",
                ) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if lacking := [name for name in _LISTS if name not in scanner.met]:
        raise SituationError(
            f"it has no list {' or '.join(map(quoted, lacking))}, as COCO's annotations do",
            where=path,
            remedy="name annotations of instances or key points",
        )
    return stamp


class _Element(NamedTuple):
    """An element of a list.

    Attributes:
        list: name of the list.
        value: the element.
        offset: offset in the file.
        size: number of bytes.
    """

    list: str
    value: Any
    offset: int
    size: int


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=unique_names, parse_constant=_refuse_constant)


class _Scanner:
    """Reads an object of JSON with large lists, an element at a time.

    Args:
        stream: file, at its start.

    Attributes:
        byte: offset in the file of what is read next.
        inside: name of the list that is read; empty outside of lists.
        met: names of the lists that were met.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text, self._at, self._ended = "", 0, False
        self.byte, self.inside, self.met = 0, "", set[str]()

    def elements(self, lists: Sequence[str]) -> Iterator[_Element]:
        """Yield the elements of some lists, and pass over everything else.

        Raises:
            ValueError: it is not JSON, or not an object with such lists.
        """
        names: set[str] = set()
        if self._peek() == "\ufeff":
            self._advance(self._at + 1)
        for _ in self._separated("{", "}"):
            name = self._value()
            if not isinstance(name, str) or name in names:
                raise ValueError(f"the object has {quoted(name)} twice, or as a name")
            names.add(name)
            self._take(":")
            if name not in lists:
                self._pass_over(_DEEP)
                continue
            self.inside = name
            self.met.add(name)
            for _ in self._separated("[", "]"):
                start = self.byte
                value = self._value()
                yield _Element(name, value, start, self.byte - start)
            self.inside = ""
        if self._peek():
            raise ValueError("more follows the object")

    def _pass_over(self, depth: int) -> None:
        """Pass over a value, with little of it in memory."""
        opening = self._peek() if depth else ""
        if opening == "[":
            for _ in self._separated("[", "]"):
                self._pass_over(depth - 1)
        elif opening == "{":
            for _ in self._separated("{", "}"):
                if not isinstance(self._value(), str):
                    raise ValueError("the name of a value is not a text")  # noqa: TRY004  data
                self._take(":")
                self._pass_over(depth - 1)
        else:
            self._value()

    def _separated(self, opening: str, closing: str) -> Iterator[None]:
        """Stop at each of the values between brackets."""
        self._take(opening)
        if self._peek() != closing:
            while True:
                self._peek()
                yield
                if self._peek() == closing:
                    break
                self._take(",")
        self._take(closing)

    def _peek(self) -> str:
        """Pass over white space; return the next character, or nothing at the end."""
        while True:
            end = self._at
            while end < len(self._text) and self._text[end] in " \t\r\n":
                end += 1
            self._advance(end)
            if end < len(self._text) or self._ended:
                return self._text[end : end + 1]
            self._more()

    def _take(self, wanted: str) -> None:
        found = self._peek()
        if found != wanted:
            raise ValueError(f"{quoted(found)} stands where {quoted(wanted)} is expected")
        self._advance(self._at + 1)

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or len(self._text) - self._at > _LARGEST:
                    raise ValueError(error.msg) from None
            else:
                if end < len(self._text) or self._ended:
                    self._advance(end)
                    return value
            self._more()

    def _advance(self, end: int) -> None:
        part = end - self._at
        if not self._text.isascii():
            part = len(self._text[self._at : end].encode("utf-8"))
        self.byte += part
        self._at = end

    def _more(self) -> None:
        """Read on, twice as much as is left, so that long elements cost no more than others."""
        rest = self._text[self._at :]
        data = self._stream.read(max(_PIECE, len(rest)))
        self._ended = not data
        self._text, self._at = rest + self._decode(data, self._ended), 0

"""Pascal VOC: `JPEGImages`, with `Annotations` in XML and masks in `SegmentationClass`.

VOC counts pixels from 1, and the right and lower edges of a box are the last pixels inside it. They
become edges in pixels once, here: left - 1, top - 1, right, bottom. A box with a side below 1 was
not written so, and is refused. Masks are packed as they are.

XML is read without document types: entities are neither declared nor loaded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree import ElementTree as ET

from shardio.errors import PackError, SituationError, counted, quoted
from shardio.fields.annotations import Boxes
from shardio.fields.base import FieldType
from shardio.fields.pictures import Mask
from shardio.fields.text import encode_json, integer_in
from shardio.packing.sources.base import (
    FromFile,
    FromMemory,
    Problem,
    SourceField,
    SourceSample,
    UnpackableError,
    is_name,
    log_notice,
    place_in,
)
from shardio.packing.sources.folder import images_in
from shardio.packing.sources.reader import read_small
from shardio.packing.sources.rules import FieldRule, LabelEncoder, check_classes

if TYPE_CHECKING:
    from shardio.packing.options import PackOptions

_IMAGES, _BOXES = "JPEGImages", "Annotations"
_MASKS = {"mask.png": "SegmentationClass", "instance.png": "SegmentationObject"}
_SETS = "ImageSets"
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_FLAGS = ("difficult", "truncated", "occluded")
_OURS = frozenset({"name", "bndbox", "boxes", "labels", "names"})
_IN_PIXELS = frozenset({"part", "point", "polygon"})
"""What objects have that is true of the picture as it is, beside the box."""
_MOST = 1 << 22  # bytes of an annotation


@dataclass(frozen=True, slots=True, kw_only=True)
class VocSource:
    """The images of a VOC dataset, or of one of its lists.

    Attributes:
        root: path of the folder that holds `JPEGImages`.
        images: path of a list in `ImageSets`; None for all images.
        labels: classes of boxes; None without annotations.
        columns: names of what objects have and every sample gets, if pictures may be stored at
            another size, so that they leave with their boxes; None for what each image has.
    """

    described: ClassVar[str] = "a Pascal VOC dataset"
    options: ClassVar[tuple[str, ...]] = ("classes",)
    remedy: ClassVar[str] = "fix or remove the file"

    root: str
    images: str | None
    labels: LabelEncoder | None
    columns: tuple[str, ...] | None = None

    @classmethod
    def claims(cls, path: str, options: PackOptions) -> bool:
        """See PathSource."""
        return options.labels and options.fields is None and _find_root(path) is not None

    @classmethod
    def open(cls, path: str, options: PackOptions) -> VocSource:
        """See PathSource; names of classes that nobody lists are sorted."""
        root = _find_root(path) or path
        source = cls(root=root, images=None if root == path else path, labels=None)
        classes = check_classes(options.classes)
        has_boxes = _exists(root, _BOXES)
        columns = None
        if has_boxes and (classes is None or options.resizes):
            names, others = source._look_through()
            classes = classes or names
            columns = others if options.resizes else None
        if columns is not None:
            log_notice(
                path,
                "boxes follow the pictures that are resized; what else is in pixels is left out: "
                f"{', '.join(sorted(_IN_PIXELS))} of objects, size of images",
            )
        masks = [folder for folder in _MASKS.values() if _exists(root, folder)]
        log_notice(
            path,
            f"taken for a Pascal VOC dataset, {', '.join([_IMAGES, *[_BOXES] * has_boxes, *masks])}"
            f", with {counted(len(classes or ()), 'class', 'classes')} of boxes; name its "
            f"{_IMAGES} to pack images alone",
        )
        labels = LabelEncoder(classes) if has_boxes and classes else None
        return cls(root=root, images=source.images, labels=labels, columns=columns)

    @property
    def name(self) -> str:
        """See Source."""
        return self.images or self.root

    @property
    def types(self) -> Mapping[str, FieldType]:
        """Types of the fields."""
        also = ("labels", "names", *_FLAGS, *(self.columns or ()))
        return {
            "json": Boxes("json", format="xyxy", also=also),
            **{name: Mask(f"{name}?") for name in _MASKS},
        }

    @property
    def classes(self) -> tuple[str, ...] | None:
        """See Source."""
        return self.labels.classes if self.labels else None

    def samples(self) -> Iterator[SourceSample | Problem]:
        """Yield all samples, in the order of the images' paths or of the list.

        Raises:
            PackError: a folder cannot be read.
        """
        for found in self._listed():
            if isinstance(found, Problem):
                yield found
                continue
            stem = _stem(found)
            try:
                about = self._about(stem)
            except UnpackableError as error:
                yield Problem.of(f"{_BOXES}/{stem}.xml", error)
                continue
            masks = (
                SourceField(name, FromFile(path.encode("utf-8", "surrogateescape")))
                for name, folder in _MASKS.items()
                if _exists(self.root, path := f"{folder}/{stem}.png")
            )
            yield found._replace(fields=(*found.fields, *about, *masks))

    def _listed(self) -> Iterator[SourceSample | Problem]:
        if self.images is None:
            yield from images_in(self.root, _IMAGES)
            return
        for number, line in enumerate(_read_list(self.images), start=1):
            place = f"{self.images}, line {number}"
            if len(line.split()) > 1:
                raise PackError(
                    f"it says more than the name of an image: {quoted(line)}",
                    where=place,
                    remedy="name a list of all classes, such as train.txt",
                )
            if line:
                yield self._image(line, place)

    def _image(self, stem: str, place: str) -> SourceSample | Problem:
        if not is_name(stem) or "\0" in stem or os.path.normpath(stem) != stem or stem[0] in "/.":
            return Problem(path=place, reason=f"{quoted(stem)} is not the name of an image")
        ends = (
            end for end in ("jpg", "jpeg", "png") if _exists(self.root, f"{_IMAGES}/{stem}.{end}")
        )
        path = f"{_IMAGES}/{stem}.{next(ends, 'jpg')}"
        try:
            match = FieldRule().name(path.removeprefix(f"{_IMAGES}/"))
        except UnpackableError as error:
            return Problem.of(place, error)
        image = SourceField(match.field, FromFile(path.encode("utf-8", "surrogateescape")))
        return SourceSample(
            key=match.key, path=path, fields=(image,), renamed=match.renamed, place=place
        )

    def _look_through(self) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
        """Collect the names of all classes, and of what objects have, sorted."""
        names, columns = set[str](), set[str]()
        for found in self._listed():
            if isinstance(found, SourceSample):
                try:
                    document = _read_boxes(self.root, _stem(found))
                except UnpackableError:
                    continue  # a problem of that sample, which listing tells
                names |= {*document["names"]}
                columns |= document.keys()
        others = columns - _OURS - {*_FLAGS, "image"} - _IN_PIXELS
        return tuple(sorted(names)) or None, tuple(sorted(others))

    def _about(self, stem: str) -> tuple[SourceField, ...]:
        """Return the field json of an image; nothing if the dataset has no annotations."""
        if not _exists(self.root, _BOXES):
            return ()
        document = _read_boxes(self.root, stem)
        labels = []
        for name in document["names"]:
            label = None if self.labels is None else self.labels.encode(name)
            if label is None:
                raise UnpackableError(f"its class {quoted(name)} is not one of the classes")
            labels.append(label)
        if self.columns is not None:
            document = _without_pixels(document, self.columns)
        data = encode_json({**document, "labels": labels})
        return (SourceField("json", FromMemory(data)),)


def _exists(root: str, path: str) -> bool:
    return os.path.lexists(place_in(root, path))


def _stem(sample: SourceSample) -> str:
    return sample.path.removeprefix(f"{_IMAGES}/").rpartition(".")[0]


def _find_root(path: str) -> str | None:
    """Find the folder of JPEGImages: the path, or the one above ImageSets for a list in it."""
    root = path
    if path.endswith(".txt"):
        whole = os.path.abspath(path)  # noqa: PTH100  text
        root, found, _ = whole.rpartition(f"/{_SETS}/")
        if not found:
            return None
    beside = (_BOXES, *_MASKS.values())
    if os.path.isdir(os.path.join(root, _IMAGES)) and any(_exists(root, each) for each in beside):  # noqa: PTH112, PTH118
        return root
    return None


def _read_list(path: str) -> list[str]:
    folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100  text
    try:
        return [line.strip() for line in read_small(folder, name).decode("utf-8").splitlines()]
    except (UnpackableError, UnicodeDecodeError) as error:
        raise SituationError(
            f"the list of images is not read ({error})", where=path, remedy="save it as UTF-8"
        ) from error


def _read_boxes(root: str, stem: str) -> dict[str, Any]:
    """Read the annotation of an image: lists of what its objects have, and the rest by name.

    Raises:
        UnpackableError: it is not there, or says nothing that can be kept.
    """
    tree = _parse(read_small(root, f"{_BOXES}/{stem}.xml", _MOST))
    objects = tree.findall("object")
    width, height = (_number_in(tree.find("size"), side, 0.0) for side in ("width", "height"))
    plain = [_plain(each) for each in objects]
    if not all(isinstance(each, dict) and isinstance(each.get("name"), str) for each in plain):
        raise UnpackableError("an object has no name, or several")
    columns = {name: None for each in plain for name in each if name not in _OURS}
    if clash := {name for each in plain for name in each} & (_OURS - {"name", "bndbox"}):
        raise UnpackableError(f"an object has {quoted(min(clash))}, a name that shardio gives")
    document: dict[str, Any] = {
        "boxes": [_box(each, width, height) for each in objects],
        "names": [each["name"] for each in plain],
    }
    for name in (*_FLAGS, *(name for name in columns if name not in _FLAGS)):
        values = [each.get(name) for each in plain]
        document[name] = [_flag(value, name) for value in values] if name in _FLAGS else values
    document["image"] = {each.tag: _plain(each) for each in tree if each.tag != "object"}
    return document


def _without_pixels(document: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Return boxes with some columns, without what is in pixels of the picture as it is."""
    kept = {name: document[name] for name in ("boxes", "names", *_FLAGS)}
    empty = [None] * len(document["boxes"])
    image = {name: value for name, value in document["image"].items() if name != "size"}
    return {**kept, **{name: document.get(name, empty) for name in columns}, "image": image}


def _parse(data: bytes) -> ET.Element:
    if b"\0" in data or b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise UnpackableError("it is XML with a document type or in UTF-16, which is not read")
    try:
        tree = ET.fromstring(data)  # noqa: S314  it declares no entities
    except (ET.ParseError, ValueError, LookupError) as error:
        raise UnpackableError(f"it is not XML: {error}") from error
    if tree.tag != "annotation":
        raise UnpackableError(f"it is not an annotation, but {quoted(tree.tag)}")
    return tree


def _plain(element: ET.Element, depth: int = 0) -> Any:
    """Return the text of an element, or what is in it by name; a list where a name comes twice."""
    if depth > 20:
        raise UnpackableError("it is nested too deep")
    if not len(element):
        return (element.text or "").strip()
    made: dict[str, list[Any]] = {}
    for each in element:
        value = _plain(each, depth + 1)
        made.setdefault(each.tag, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in made.items()}


def _flag(value: Any, name: str) -> int:
    """Return 0 or 1 of a flag, which is 0 where it is not said."""
    if value in (None, ""):
        return 0
    number = integer_in(value) if isinstance(value, str) else None
    if number is None:
        raise UnpackableError(f"an object has {name} {quoted(value)}, not a number")
    return number


def _box(found: ET.Element, width: float, height: float) -> list[int | float]:
    """Return the edges of a box."""
    boxes = found.findall("bndbox")
    if len(boxes) != 1:
        raise UnpackableError(f"an object has {len(boxes)} bndbox, and must have one")
    left, top, right, bottom = (_number_in(boxes[0], side) for side in _SIDES)
    text = f"{left:g}, {top:g}, {right:g}, {bottom:g}"
    if left < 1 or top < 1:
        raise UnpackableError(
            f"the box {text} begins before pixel 1, and VOC counts pixels from 1",
            remedy="write boxes with pixels counted from 1",
        )
    if right < left or bottom < top:
        raise UnpackableError(f"the box {text} ends before it begins")
    if (width and right > width) or (height and bottom > height):
        raise UnpackableError(f"the box {text} leaves the picture of {width:g} x {height:g} pixels")
    edges = (left - 1, top - 1, right, bottom)
    return [int(edge) if edge == int(edge) else edge for edge in edges]


def _number_in(element: ET.Element | None, name: str, default: float | None = None) -> float:
    text = None if element is None else element.findtext(name)
    if text is None and default is not None:
        return default
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not abs(number) < 1 << 31:
        raise UnpackableError(f"{name} is {quoted(text)}, not a number of pixels")
    return number

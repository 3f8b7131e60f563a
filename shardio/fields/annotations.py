"""Field types of what is said about pictures: boxes, points, and sets of classes.

Boxes and points follow the crop of the sample's picture. Coordinates are in pixels of the picture
as it is shown, (0, 0) being the upper left corner of its first pixel. Formats of boxes have the
names that torchvision.ops.box_convert and albumentations give them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from shardio.errors import CodecError, TransformError, UsageError, quoted
from shardio.fields.arrays import Array, as_array, decode_npy, is_npy
from shardio.fields.base import Batching, FieldType, Geometry
from shardio.fields.summary import FieldSummary, count_classes
from shardio.fields.text import decode_json, decode_txt, encode_json
from shardio.fields.yolo import YoloBox, may_be_yolo, parse_yolo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shardio.fields.geometry import View
    from shardio.fields.probe import Buffer

MAX_CLASSES = 1 << 24
"""Greatest number of classes of MultiLabel: a sample takes 64 MiB then."""


BoxFormat = Literal["xyxy", "xywh", "cxcywh", "yolo"]

_CHECK_FORMAT = "check the format of their Boxes, and the size and orientation of the pictures"
_INVERTED = ("end before they begin", _CHECK_FORMAT)
_EMPTY = ("have no width or no height", "a transform drops them")
_BOX_OUTSIDE = ("lie outside their pictures", _CHECK_FORMAT)
_REACHES_OUT = ("reach outside their pictures", "a transform clips them")
_POINT_OUTSIDE = (
    "lie outside their pictures",
    "readers deliver them; check the size and orientation of the pictures",
)
_NO_NUMBER = ("have a coordinate that is not finite", "readers deliver them; mark them otherwise")


class _Small(FieldType):
    """Data that cost so little to decode that no check leaves that out."""

    def check(self, data: Buffer, *, deep: bool) -> None:
        """Decode the data."""
        del deep
        self.decode(data)


@dataclass(frozen=True)
class Boxes(_Small):
    """Boxes in a picture, and what belongs to each: a dictionary of tensors a sample.

        Boxes("json", boxes="boxes", format="xywh", also=["labels"])

    The entry of a batch is a list of dictionaries, one for each sample. `boxes` is float32 [n, 4],
    the left, top, right and bottom edges in pixels, whatever the format stored is. A crop clips
    boxes; those of which less than a pixel of the slot is left in width or height leave, and what
    `also` names leaves with them.

    Data are a JSON object that holds lists, a JSON list of objects, one for each box, an array
    [n, 4] in `.npy` format, or YOLO's lines of class, center, width and height.

    Attributes:
        boxes: name of the boxes in the JSON object or in the objects of the list.
        format: "xyxy" for left, top, right, bottom; "xywh" for left, top, width, height;
            "cxcywh" for center, width, height; all three in pixels. "yolo" is lines of text of a
            class number and "cxcywh" as fractions of the picture's width and height; the class
            numbers become `labels`.
        also: names of other lists, with a value for each box. Whole numbers become int64 tensors
            and fractions float64 ones; other lists stay lists.
    """

    boxes: str = "boxes"
    format: BoxFormat = "xyxy"
    also: Sequence[str] = ()

    holds = "boxes"
    batching = "list"
    geometry: ClassVar[Geometry | None] = "follows"

    def __post_init__(self) -> None:
        if self.format not in get_args(BoxFormat):
            raise UsageError(
                f"Boxes: format={quoted(self.format)}: it must be one of "
                f"{', '.join(map(repr, get_args(BoxFormat)))}"
            )
        if isinstance(self.also, str):
            raise UsageError(f"Boxes: also={quoted(self.also)}: write also=[{quoted(self.also)}]")
        object.__setattr__(self, "also", tuple(self.also))
        if not all(isinstance(name, str) for name in (self.boxes, *self.also)):
            raise UsageError(f"Boxes: boxes={self.boxes!r}, also={self.also!r}: names are text")
        if self.boxes in self.also:
            raise UsageError(f"Boxes: also names {quoted(self.boxes)}, which are the boxes")

    def decode(self, data: Buffer) -> dict[str, Any]:
        """Decode to `boxes`, float32 [n, 4] as edges, and the lists of `also`.

        The edges of "yolo" are fractions of the picture's size until `follow` knows that.
        """
        if self.format == "yolo":
            return _boxes_of_yolo(parse_yolo(data))
        return self._value(self._found(data))

    def _found(self, data: Buffer) -> Any:
        """Return what data in pixels hold: an object of JSON, or a list of them."""
        if is_npy(data):
            return {self.boxes: decode_npy(data)}
        try:
            return decode_json(data)
        except CodecError as error:
            if not may_be_yolo(data):
                raise
            what = (
                "is lines of a class number and four fractions"
                if bytes(data).strip()
                else "is empty"
            )
            raise CodecError(
                f"{error.what}: the text {what}",
                remedy=f"if it is YOLO's, write Boxes({self.fields!r}, format='yolo')",
            ) from None

    def _value(self, found: Any) -> dict[str, Any]:
        columns = _columns(found, (self.boxes, *self.also))
        boxes = _numbers(columns[self.boxes], self.boxes)
        if boxes.size == 0:
            boxes = boxes.reshape(0, 4)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise CodecError(f"{quoted(self.boxes)} is {[*boxes.shape]}, and must be [n, 4]")
        if not np.isfinite(boxes).all():
            raise CodecError(f"{quoted(self.boxes)} holds a number that is not finite")
        value: dict[str, Any] = {"boxes": _float32(_edges(boxes, self.format), self.boxes)}
        for name in self.also:
            if len(columns[name]) != len(boxes):
                raise CodecError(
                    f"{quoted(name)} has {len(columns[name])} values for {len(boxes)} boxes"
                )
            value[name] = _list_or_array(columns[name])
        return value

    def contradiction(self, recorded: FieldType) -> str | None:
        """Compare the format, which is that of the data and no choice of a reader."""
        if not isinstance(recorded, Boxes) or recorded.format == self.format:
            return None
        return f"its boxes are recorded with format={recorded.format!r}, not {self.format!r}"

    def follow(self, value: dict[str, Any], view: View | None) -> dict[str, Any]:
        """Move boxes with the crop, clip them, and drop those of which nothing is left."""
        boxes = value["boxes"]
        if self.format == "yolo":
            if view is None:
                raise CodecError(
                    "YOLO's boxes are fractions of a picture, and the sample has none",
                    remedy="name a picture in fields=",
                )
            boxes = _in_pixels(boxes, view)
        if view is None or view.crop is None:
            return {**value, "boxes": boxes}
        boxes, kept = _in_slot(boxes, view)
        rest = {name: _rows(each, kept) for name, each in value.items() if name != "boxes"}
        return {"boxes": boxes[kept], **rest}

    def resized(self, data: Buffer, view: View) -> bytes | None:
        """Write boxes as `follow` moves them, in the same form; those that leave are not written.

        Everything else in the JSON keeps its value. Fractions of a picture that is stored whole
        stay as they are.

        Raises:
            CodecError: a box leaves, and with it perhaps a value of a list that `also` lacks.
        """
        if self.format == "yolo":
            return _resized_yolo(parse_yolo(data), view)
        found = self._found(data)
        value = self._value(found)
        if view.crop is None:
            return None
        edges, kept = _in_slot(value["boxes"], view)
        boxes = _stored(edges[kept].astype(np.float64), self.format)
        if is_npy(data):
            return Array().encode(boxes.astype(np.float32))
        numbers = _plain_numbers(boxes)
        if isinstance(found, list):
            rows = _rows(found, kept)
            made = [{**row, self.boxes: box} for row, box in zip(rows, numbers, strict=True)]
            return _encoded(made)
        if not kept.all() and (others := self._perhaps_columns(found, len(kept))):
            raise CodecError(
                f"a box leaves with the part of the picture that is not stored, and "
                f"{quoted(others[0])} has as many values as there are boxes",
                remedy="name it in also= of its Boxes, so that its value leaves too",
            )
        rest = {name: _rows(found[name], kept) for name in self.also}
        return _encoded({**found, self.boxes: numbers, **rest})

    def _perhaps_columns(self, found: Mapping[str, Any], number: int) -> list[str]:
        """List the entries that may have a value for each box, and are not known to."""
        known = (self.boxes, *self.also)
        return [
            name
            for name, each in found.items()
            if name not in known and isinstance(each, list) and len(each) == number
        ]

    def summarize(self, value: dict[str, Any], view: View | None) -> FieldSummary:
        """Count boxes, those that are odd, and their classes.

        Each box has one note at most, the worst. A pixel more than the picture is left to rounding.
        Classes are the integers named `labels`, or else the only integers of `also`.
        """
        boxes = value["boxes"]
        low, high = boxes[:, :2], boxes[:, 2:]
        odd = {_INVERTED: (high < low).any(axis=1), _EMPTY: (high == low).any(axis=1)}
        if view is not None:
            sides = np.array([view.width, view.height], np.float32)
            odd[_BOX_OUTSIDE] = ((high <= 0) | (low >= sides)).any(axis=1)
            odd[_REACHES_OUT] = ((low < -1) | (high > sides + 1)).any(axis=1)
        notes, left = {}, np.ones(len(boxes), np.bool_)
        for note, which in odd.items():
            if number := int((left & which).sum()):
                notes[note] = number
            left &= ~which
        whole = {
            name: count_classes(each)
            for name, each in value.items()
            if name != "boxes" and isinstance(each, np.ndarray)
            if each.ndim == 1 and each.dtype.kind == "i"
        }
        classes = whole.get("labels", next(iter(whole.values())) if len(whole) == 1 else None)
        return FieldSummary(unit="boxes", values=len(boxes), classes=classes, notes=notes)

    def encode(self, value: Any) -> bytes:
        """Encode a mapping of `boxes` as edges and the lists of `also` as JSON.

        Raises:
            NotImplementedError: the format stored is not "xyxy"; such data are packed as they are.
        """
        if self.format != "xyxy":
            raise NotImplementedError(f"boxes are not encoded as {quoted(self.format)}")
        if others := [name for name in value if name not in ("boxes", *self.also)]:
            raise ValueError(f"{quoted(others[0])} would be lost, since also= does not name it")
        boxes = {self.boxes: as_array(value["boxes"])}
        data = encode_json({**boxes, **{name: value[name] for name in self.also}})
        self.decode(data)
        return data

    def preview(self, data: Buffer) -> str:
        """Show the number of boxes."""
        number = len(self.decode(data)["boxes"])
        return f"{number} box{'' if number == 1 else 'es'}"


def _columns(found: Any, names: Sequence[str]) -> dict[str, Sequence[Any]]:
    """Take lists of values from a JSON object of lists, or from a list of JSON objects."""
    if isinstance(found, list):
        for number, row in enumerate(found):
            lacking = [name for name in names if not isinstance(row, dict) or name not in row]
            if lacking:
                raise CodecError(f"item {number} of the list has no {quoted(lacking[0])}")
        return {name: [row[name] for row in found] for name in names}
    if not isinstance(found, dict):
        raise CodecError(f"boxes are a JSON object or list, not {quoted(found)}")
    for name in names:
        if name not in found:
            raise CodecError(
                f"the JSON object has no {quoted(name)}",
                remedy=f"it has {', '.join(map(quoted, found)) or 'nothing'}",
            )
        if not isinstance(found[name], list | np.ndarray):
            raise CodecError(f"{quoted(name)} is no list: {quoted(found[name])}")
    return {name: found[name] for name in names}


def _numbers(values: Sequence[Any] | NDArray[Any], name: str) -> NDArray[np.float64]:
    """Return numbers; NumPy would make some of true and false, null, text, dates and complex ones.

    Raises:
        CodecError: the values are something else.
    """
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "iuf":
            raise CodecError(f"{quoted(name)} is {values.dtype}, and must be numbers")
        return values.astype(np.float64)
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise CodecError(f"{quoted(name)} is no list of lists of numbers of one length") from None
    if not _are_numbers(values):
        raise CodecError(
            f"{quoted(name)} holds something else among its numbers: true, false, null or text"
        )
    return found


def _are_numbers(values: Any) -> bool:
    if isinstance(values, list):
        return all(map(_are_numbers, values))
    return type(values) in (int, float)


def _float32(values: NDArray[np.float64], name: str) -> NDArray[np.float32]:
    """Return numbers as float32.

    Raises:
        CodecError: one would become infinite.
    """
    try:
        with np.errstate(over="raise"):
            return values.astype(np.float32)
    except FloatingPointError:
        raise CodecError(f"{quoted(name)} holds a number that float32 cannot hold") from None


def _list_or_array(values: Sequence[Any]) -> Any:
    """Return an array of numbers of one shape; a list of others, and of integers beyond 64 bits."""
    if isinstance(values, np.ndarray):
        return values
    if not values:
        return np.zeros(0, np.int64)
    if len({isinstance(value, bool) for value in values}) > 1:
        return list(values)
    try:
        found = np.asarray(values)
    except ValueError:
        return list(values)
    if found.dtype.kind == "f":
        whole = all(isinstance(value, int) for value in values)  # beyond 64 bits
        return list(values) if whole else found
    return found if found.dtype.kind in "bi" else list(values)


def _rows(values: Any, kept: NDArray[np.bool_]) -> Any:
    if isinstance(values, np.ndarray):
        return values[kept]
    return [value for value, keep in zip(values, kept.tolist(), strict=True) if keep]


def _boxes_of_yolo(lines: Sequence[YoloBox]) -> dict[str, Any]:
    """Return edges as fractions, and labels."""
    boxes = _edges(np.array([each.box for each in lines], np.float64).reshape(-1, 4), "cxcywh")
    labels = np.array([each.label for each in lines], np.int64)
    return {"boxes": _float32(boxes, "boxes"), "labels": labels}


def _resized_yolo(lines: Sequence[YoloBox], view: View) -> bytes | None:
    """Write YOLO's lines for a part of their picture; None for the whole, as fractions stay."""
    if view.crop is None or view.crop[:4] == (0, 0, view.height, view.width):
        return None
    value = _boxes_of_yolo(lines)
    edges, kept = _in_slot(_in_pixels(value["boxes"], view), view)
    boxes = _stored(edges[kept] / np.array([*view.size[::-1]] * 2, np.float64), "cxcywh")
    rows = zip(value["labels"][kept].tolist(), boxes.tolist(), strict=True)
    return "".join(f"{label} {' '.join(map(repr, box))}\n" for label, box in rows).encode()


def _in_pixels(fractions: NDArray[np.float32], view: View) -> NDArray[np.float32]:
    return fractions * np.array([view.width, view.height] * 2, np.float32)


def _in_slot(
    boxes: NDArray[np.float32], view: View
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Move boxes with the crop and clip them; tell which of them are left.

    Args:
        boxes: edges in pixels of the picture, [n, 4].
        view: view with a crop.
    """
    moved = view.move(boxes.reshape(-1, 2, 2))
    edges = np.array(view.covered, np.float32)
    low, high = (each(axis=1).clip(edges[:2], edges[2:]) for each in (moved.min, moved.max))
    return np.concatenate([low, high], axis=1), (high - low >= 1).all(axis=1)


def _plain_numbers(values: NDArray[Any]) -> Any:
    """Return the numbers of an array as lists, whole ones as integers, as most data have them."""
    if values.ndim:
        return [_plain_numbers(each) for each in values]
    number = float(values)
    return int(number) if number.is_integer() else number


def _encoded(value: Any) -> bytes:
    """Encode what was decoded from JSON.

    Raises:
        CodecError: it holds what is no JSON, as NaN, which Python reads all the same.
    """
    try:
        return encode_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise CodecError(f"JSON cannot hold what it holds ({error})") from None


def _edges(boxes: NDArray[np.float64], format_: BoxFormat) -> NDArray[np.float64]:
    """Return left, top, right and bottom edges."""
    if format_ == "xyxy":
        return boxes
    start, size = boxes[:, :2], boxes[:, 2:]
    with np.errstate(over="ignore"):  # such numbers are refused where they become float32
        if format_ == "cxcywh":
            start = start - size / 2
        return np.concatenate([start, start + size], axis=1)


def _stored(edges: NDArray[np.float64], format_: BoxFormat) -> NDArray[np.float64]:
    """Return edges in the format of stored data: the inverse of _edges."""
    if format_ == "xyxy":
        return edges
    start, size = edges[:, :2], edges[:, 2:] - edges[:, :2]
    return np.concatenate([start + size / 2 if format_ == "cxcywh" else start, size], axis=1)


@dataclass(frozen=True)
class Points(_Small):
    """Points in a picture, such as key points: float32 [..., n, 2], x and y in pixels.

    Points that a crop leaves outside keep their place, below zero or beyond the slot's size, since
    their order is what they mean. A third value of a point, as COCO's visibility, is kept.

    Data are a JSON list [..., n, 2 or 3], a JSON object that holds it, or a `.npy` array.

    Attributes:
        points: name of the list in a JSON object; "" if the data are the list.
        flip_pairs: pairs of points that change places when a picture is mirrored, such as left
            and right eye; [] if none do. None, the default, refuses a transform that mirrors.
        ragged: whether samples differ in their number of points; a batch is a list then.
        width: number of values of a point in flat lists, [..., n x width], as COCO has key points
            (3: x, y and visibility) and polygons (2). None if each point is a list of its own.
    """

    points: str = ""
    flip_pairs: Sequence[tuple[int, int]] | None = None
    ragged: bool = False
    width: Literal[2, 3] | None = None

    holds = "points"
    geometry: ClassVar[Geometry | None] = "follows"

    def __post_init__(self) -> None:
        if not isinstance(self.points, str):
            raise UsageError(f"Points: points={quoted(self.points)}: it must be text")
        if self.width not in (None, 2, 3):
            raise UsageError(f"Points: width={quoted(self.width)}: it must be 2, 3 or None")
        if not isinstance(self.ragged, bool):
            raise UsageError(f"Points: ragged={quoted(self.ragged)}: it must be True or False")
        if self.flip_pairs is not None:
            object.__setattr__(self, "flip_pairs", _check_pairs(self.flip_pairs))

    @property
    def batching(self) -> Batching:  # type: ignore[override]  # it depends on the value
        """How points are batched."""
        return "list" if self.ragged else "stack"

    @property
    def mirrors(self) -> bool:  # type: ignore[override]  # it depends on the value
        """Whether it is known which points change places."""
        return self.flip_pairs is not None

    def decode(self, data: Buffer) -> NDArray[np.float32]:
        """Decode to float32 [..., n, 2 or 3]."""
        return self._value(self._found(data))

    def _found(self, data: Buffer) -> Any:
        return decode_npy(data) if is_npy(data) else decode_json(data)

    def _value(self, found: Any) -> NDArray[np.float32]:
        if self.points and not isinstance(found, np.ndarray):
            found = _columns(found, (self.points,))[self.points]
        name = self.points or "the data"
        points = _float32(_numbers(found, name), name)
        if points.size == 0 and points.ndim < 2:
            points = points.reshape(0, 2)
        if self.width is not None and points.size:
            if points.shape[-1] % self.width:
                raise CodecError(
                    f"lists of {points.shape[-1]} values do not divide into points of {self.width}"
                )
            points = points.reshape(*points.shape[:-1], -1, self.width)
        if points.ndim < 2 or points.shape[-1] not in (2, 3):
            raise CodecError(
                f"the points are {[*points.shape]}, and must be [..., n, 2 or 3]",
                remedy="for flat lists, as COCO has them, give Points width=3 (x, y, visibility)",
            )
        most = max((place for pair in self.flip_pairs or () for place in pair), default=-1)
        if points.size and points.shape[-2] <= most:
            raise CodecError(f"there are {points.shape[-2]} points, but flip_pairs names {most}")
        return points

    def follow(self, value: NDArray[np.float32], view: View | None) -> NDArray[np.float32]:
        """Move points with the crop."""
        if view is None:
            return value
        moved = np.concatenate([view.move(value[..., :2]), value[..., 2:]], axis=-1)
        if view.flipped:
            if self.flip_pairs is None:
                raise TransformError(
                    "the transform mirrors a picture with points",
                    remedy=(
                        "give Points flip_pairs=, the pairs of points that change places "
                        "([] for none), or the transform flip=0"
                    ),
                )
            for one, other in self.flip_pairs if value.size else ():
                moved[..., [one, other], :] = moved[..., [other, one], :]
        return moved

    def resized(self, data: Buffer, view: View) -> bytes | None:
        """Write points as `follow` moves them, in the same form; all else keeps its value."""
        found = self._found(data)
        value = self._value(found)
        if view.crop is None:
            return None
        moved = self.follow(value, view)
        if self.width is not None and value.size:
            moved = moved.reshape(*moved.shape[:-2], -1)
        if isinstance(found, np.ndarray):
            return Array().encode(moved)
        if not value.size:
            return None
        numbers = _plain_numbers(moved.astype(np.float64))
        if not self.points:
            return _encoded(numbers)
        if isinstance(found, list):
            rows = zip(found, numbers, strict=True)
            return _encoded([{**row, self.points: each} for row, each in rows])
        return _encoded({**found, self.points: numbers})

    def summarize(self, value: NDArray[np.float32], view: View | None) -> FieldSummary:
        """Count points and those outside the picture by more than a pixel, or not finite."""
        places = value[..., :2].reshape(-1, 2)
        notes = {_NO_NUMBER: int((~np.isfinite(places)).any(axis=1).sum())}
        if view is not None:
            sides = np.array([view.width, view.height], np.float32)
            outside = ((places < -1) | (places > sides + 1)) & np.isfinite(places)
            notes[_POINT_OUTSIDE] = int(outside.any(axis=1).sum())
        return FieldSummary(
            unit="points", values=len(places), notes={note: n for note, n in notes.items() if n}
        )

    def encode(self, value: Any) -> bytes:
        """Encode numbers [..., n, 2 or 3] as JSON.

        Raises:
            NotImplementedError: the data are flat lists, which are packed as they are.
        """
        if self.width is not None:
            raise NotImplementedError("points are not encoded as flat lists")
        points = as_array(value)
        data = encode_json({self.points: points} if self.points else points)
        self.decode(data)
        return data


def _check_pairs(given: Any) -> tuple[tuple[int, int], ...]:
    """Return pairs of points as tuples.

    Raises:
        UsageError: they are no such pairs, or a point stands in two.
    """
    try:
        pairs = tuple((index(one), index(other)) for one, other in given)
    except (TypeError, ValueError):
        pairs = ((-1, -1),)
    flat = [place for pair in pairs for place in pair]
    if len({*flat}) < len(flat) or min(flat, default=0) < 0:
        raise UsageError(
            f"Points: flip_pairs={quoted(given)}: it must be pairs of point numbers from 0, as "
            "[(0, 1), (2, 3)], and no point may stand in two"
        )
    return pairs


@dataclass(frozen=True)
class MultiLabel(_Small):
    """Sets of classes: float32 [classes], 1 for each class of the sample and 0 for the others.

    Data are a JSON list of class numbers, class numbers in text with white space or commas between
    them, or a `.npy` array [classes] of zeros and ones.

    Attributes:
        classes: number of classes.
    """

    classes: int = 0

    name = "multilabel"
    holds = "class sets"
    batching = "stack"

    def __post_init__(self) -> None:
        whole = isinstance(self.classes, int) and not isinstance(self.classes, bool)
        if not whole or not 1 <= self.classes <= MAX_CLASSES:
            raise UsageError(
                f"MultiLabel: classes={quoted(self.classes)}: it must be the number of classes, 1 "
                f"to {MAX_CLASSES:,}"
            )

    def decode(self, data: Buffer) -> NDArray[np.float32]:
        """Decode to float32 [classes]."""
        if is_npy(data):
            given = decode_npy(data)
            if given.shape != (self.classes,) or given.dtype.kind not in "biuf":
                raise CodecError(
                    f"the array is {given.dtype} {[*given.shape]}, and must be [{self.classes}]"
                )
            if not np.isin(given, (0, 1)).all():
                raise CodecError("the array holds something else than 0 and 1")
            return given.astype(np.float32)
        labels = np.zeros(self.classes, np.float32)
        for number in _class_numbers(data):
            if not 0 <= number < self.classes:
                raise CodecError(f"class {number} is not one of the {self.classes} classes")
            labels[number] = 1
        return labels

    def blank(self, view: View | None) -> NDArray[np.float32]:
        """Return a set of no classes."""
        del view
        return np.zeros(self.classes, np.float32)

    def summarize(self, value: NDArray[np.float32], view: View | None) -> FieldSummary:
        """Count the classes."""
        del view
        numbers = np.flatnonzero(value)
        return FieldSummary(unit="labels", values=len(numbers), classes=count_classes(numbers))

    def encode(self, value: Any) -> bytes:
        """Encode class numbers, or an array [classes] of zeros and ones, as a JSON list."""
        given = as_array(value)
        if hasattr(value, "dtype") or (given.dtype.kind in "bf" and given.size):
            if given.shape != (self.classes,) or not np.isin(given, (0, 1)).all():
                raise ValueError(f"it is no array [{self.classes}] of zeros and ones")
            numbers = np.flatnonzero(given).tolist()
        else:
            if isinstance(value, str | bytes | Mapping):
                raise TypeError("it is not a list of class numbers")
            numbers = [index(number) for number in value]
        data = encode_json(numbers)
        self.decode(data)
        return data


def _class_numbers(data: Buffer) -> list[int]:
    text = decode_txt(data).strip()
    if text.startswith("["):
        found = decode_json(data)
        if isinstance(found, list) and all(type(number) is int for number in found):
            return found
        raise CodecError(f"not a JSON list of class numbers: {quoted(text)}")
    words = text.replace(",", " ").split()
    if not all(word.isascii() and word.removeprefix("-").isdecimal() for word in words):
        raise CodecError(f"not class numbers with white space or commas between: {quoted(text)}")
    return [int(word) for word in words]

"""YOLO's lines of text: the one rule of what a line is, for packing and for reading.

A line is a box: a class number, and center, width and height as fractions of the picture. Polygons,
rotated boxes and key points have more numbers in a line, and are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from shardio.errors import CodecError, quoted
from shardio.fields.text import decode_txt, integer_in

if TYPE_CHECKING:
    from shardio.fields.probe import Buffer

_SLACK = 0.01  # by which rounded fractions may leave the picture, as in Ultralytics' loader


class YoloBox(NamedTuple):
    """A line of YOLO's text.

    Attributes:
        line: number of the line, from 1.
        label: class number.
        box: center x, center y, width and height, as fractions of the picture.
    """

    line: int
    label: int
    box: tuple[float, ...]


def parse_yolo(data: Buffer) -> list[YoloBox]:
    """Read YOLO's lines: class, center x, center y, width, height, the last four from 0 to 1.

    Raises:
        CodecError: a line is something else.
    """
    return [*_lines_of_yolo(decode_txt(data))]


def _lines_of_yolo(text: str) -> Iterator[YoloBox]:
    for number, line in enumerate(text.splitlines(), 1):
        if not (words := line.split()):
            continue
        try:
            yield _line_of_yolo(number, words)
        except CodecError as error:
            raise CodecError(f"line {number} {error.what}: {quoted(line)}") from None


def _line_of_yolo(number: int, words: Sequence[str]) -> YoloBox:
    try:
        values = tuple(float(word) for word in words)
    except ValueError:
        raise CodecError("holds something else than numbers") from None
    if len(values) != 5:
        raise CodecError(
            f"has {len(values)} numbers, and a box is five: a class number and four fractions; "
            "polygons, rotated boxes, key points and confidences are not read"
        )
    label = integer_in(words[0])
    if label is None or label < 0:
        raise CodecError("does not begin with a class number")
    if not all(-_SLACK <= each <= 1 + _SLACK for each in values[1:]):
        raise CodecError("holds a number that is not a fraction of the picture, from 0 to 1")
    return YoloBox(number, label, values[1:])


def may_be_yolo(data: Buffer) -> bool:
    """Tell whether data are such lines, or none."""
    try:
        parse_yolo(data)
    except CodecError:
        return False
    return True

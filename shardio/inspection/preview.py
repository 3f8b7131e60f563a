"""Draw a contact sheet: a grid of images from samples spread evenly, labelled with their classes.

A sample without a picture is shown by its mask or depth, if it has one. Images keep their aspect
ratio. Large images are reduced to their cell by averaging, and small ones are enlarged by a whole
factor so that their pixels stay visible. The same shards give the same sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from shardio.errors import CodecError, SituationError, counted
from shardio.fields.arrays import decode_cls
from shardio.fields.base import LABEL_FIELD, FieldType
from shardio.fields.image import encode_image, one_opencv_thread
from shardio.indexing.entry import ShardEntry
from shardio.inspection.counts import class_name
from shardio.storage.base import StoredFile
from shardio.storage.folder import atomic_file

COLUMNS = 8
CELL_HEIGHT, CELL_WIDTH = 150, 200
LABEL_HEIGHT = 22
GAP, MARGIN = 14, 24

_PAPER, _CELL, _INK = 255, 238, (50, 50, 50)
_FONT, _SCALE, _BASELINE = cv2.FONT_HERSHEY_SIMPLEX, 0.5, 6

Pixels = NDArray[np.uint8]


def write_sheet(
    path: Path,
    entries: Sequence[ShardEntry],
    classes: tuple[str, ...] | None,
    count: int,
    types: Callable[[str], FieldType],
) -> None:
    """Write a contact sheet.

    Args:
        path: path of the PNG file.
        entries: shards in order.
        classes: class names by number; if None, images are labelled with their keys.
        count: maximum number of images.
        types: called with the name of a field, returns its type.

    Raises:
        UsageError: none of the selected samples has an image.
        IndexFileError: an index is missing or corrupt.
        TarError: a shard is missing, truncated or changed.
        OSError: a shard cannot be read, or the sheet cannot be written.
    """
    with one_opencv_thread():
        cells = _Cells(classes, types)
        for entry, rows in _choose(entries, count):
            cells.add(entry, rows)
        if not any(pixels is not None for pixels, _ in cells.found):
            raise SituationError(
                f"there is no image to preview in {counted(len(cells.found), 'sample')}",
                remedy="pack samples with a field such as jpg, png, rgb.npy, mask.png or depth.png",
            )
        encoded = encode_image(_draw(cells.found), "png", 0)
    with atomic_file(path) as stream:
        stream.write(encoded)


def _choose(entries: Sequence[ShardEntry], count: int) -> list[tuple[ShardEntry, list[int]]]:
    """Return the positions of evenly spread samples, by shard."""
    ends = np.cumsum([entry.samples for entry in entries], dtype=np.int64)
    samples = int(ends[-1]) if len(ends) else 0
    count = min(count, samples)
    numbers = (2 * np.arange(count, dtype=np.int64) + 1) * samples // (2 * max(count, 1))
    shards = np.searchsorted(ends, numbers, side="right")
    return [
        (
            entries[shard],
            (numbers[shards == shard] - ends[shard] + entries[shard].samples).tolist(),
        )
        for shard in sorted({*shards.tolist()})
    ]


class _Cells:
    """Collection of images, resized to their cells, and labels.

    Args:
        classes: class names by number.
        types: called with the name of a field, returns its type.

    Attributes:
        found: image as RGB uint8 [h, w, 3], or None for a sample without one, and label
            of each sample.
    """

    def __init__(self, classes: tuple[str, ...] | None, types: Callable[[str], FieldType]) -> None:
        self.found: list[tuple[Pixels | None, str]] = []
        self._types = types
        self._classes = classes

    def add(self, entry: ShardEntry, rows: Sequence[int]) -> None:
        index, file = entry.load_index(), entry.open_file()
        for row in rows:
            stored = {name: each[:2] for name, each in index.members(row).items()}
            field = self._choose(stored)
            label = self._class_of(file, stored) or index.key(row)
            if field is None:
                self.found.append((None, f"no image: {label}"))
                continue
            try:
                pixels = self._types(field).picture(file.read(*stored[field]))
            except CodecError:
                self.found.append((None, f"corrupt: {label}"))
            else:
                blends = self._types(field).geometry == "leads"
                self.found.append((_fit(pixels, blends=blends), label))

    def _choose(self, fields: Iterable[str]) -> str | None:
        """Return the picture of a sample, otherwise another field that can be drawn, or None."""
        drawn = [name for name in fields if self._types(name).is_drawn]
        pictures = (name for name in drawn if self._types(name).geometry == "leads")
        return next(pictures, drawn[0] if drawn else None)

    def _class_of(self, file: StoredFile, stored: dict[str, tuple[int, int]]) -> str | None:
        if LABEL_FIELD not in stored:
            return None
        try:
            return class_name(decode_cls(file.read(*stored[LABEL_FIELD])), self._classes)
        except CodecError:
            return None


def _fit(pixels: Pixels, *, blends: bool) -> Pixels:
    """Resize an image to its cell: reduced to fit, or enlarged by a whole factor.

    Args:
        pixels: image.
        blends: whether its pixels may be averaged; those of masks have colours of classes.
    """
    height, width = pixels.shape[:2]
    scale = min(CELL_HEIGHT / height, CELL_WIDTH / width)
    if scale >= 1:
        return pixels.repeat(int(scale), axis=0).repeat(int(scale), axis=1)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if blends else cv2.INTER_NEAREST_EXACT
    return np.asarray(cv2.resize(pixels, size, interpolation=how), np.uint8)


def _draw(cells: Sequence[tuple[Pixels | None, str]]) -> Pixels:
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    step_down, step_right = CELL_HEIGHT + LABEL_HEIGHT + GAP, CELL_WIDTH + GAP
    shape = (2 * MARGIN - GAP + rows * step_down, 2 * MARGIN - GAP + columns * step_right, 3)
    sheet = np.full(shape, _PAPER, np.uint8)
    for place, (pixels, label) in enumerate(cells):
        top = MARGIN + place // columns * step_down
        left = MARGIN + place % columns * step_right
        cell = sheet[top : top + CELL_HEIGHT, left : left + CELL_WIDTH]
        cell[:] = _CELL
        if pixels is not None:
            height, width = pixels.shape[:2]
            down, right = (CELL_HEIGHT - height) // 2, (CELL_WIDTH - width) // 2
            cell[down : down + height, right : right + width] = pixels
        text = _shorten(label)
        below = (left + (CELL_WIDTH - _width(text)) // 2, top + CELL_HEIGHT + LABEL_HEIGHT)
        cv2.putText(
            sheet, text, (below[0], below[1] - _BASELINE), _FONT, _SCALE, _INK, 1, cv2.LINE_AA
        )
    return sheet


def _shorten(label: str) -> str:
    """Return a label in ASCII, shortened in the middle to the width of a cell."""
    text = label.encode("unicode_escape").decode("ascii")
    kept = len(text)
    shown = text
    while _width(shown) > CELL_WIDTH:
        kept -= 1
        shown = f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"
    return shown


def _width(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, _SCALE, 1)[0][0])

"""Orientation: the one policy for JPEG, PNG and WebP.

EXIF says the orientation in tag 0x0112 of the first image file directory of a TIFF structure
(EXIF 2.32 and TIFF 6.0). Only that tag is looked for, by offset and with a bound on the work, so
nothing else in the metadata matters. Where EXIF has no such tag, or there is no EXIF, XMP's
`tiff:Orientation` counts. So EXIF wins where the two disagree, as in Pillow's exif_transpose and
in the guidelines of the Metadata Working Group; browsers and libvips ignore XMP. Of several pieces
of one kind, the first counts.

Metadata that are broken, or that say something other than 1 to 8, mean orientation 1: the picture
is shown as it is stored. Turning is done on numpy views.
"""

from __future__ import annotations

import re
from struct import unpack_from
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

ORIENTATION_TAG = 0x0112
UPRIGHT = 1
FIRST_TURNED = 5
"""From this orientation on, height and width as shown are width and height as stored."""

_PREFIX = b"Exif\0\0"
_XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
_IN_XMP = re.compile(rb"""tiff:Orientation(?:\s{0,9}=\s{0,9}["']|>)\s{0,9}(\d+)""")
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_VALUE_FORMATS = {1: "B", 3: "H", 4: "I"}  # TIFF's BYTE, SHORT (what EXIF asks for) and LONG
_MAX_ENTRIES = 1024


def is_exif(segment: bytes | memoryview) -> bool:
    """Tell whether a JPEG segment of kind APP1 holds EXIF metadata, by its prefix."""
    return bytes(segment[: len(_PREFIX)]) == _PREFIX


def is_xmp(segment: bytes | memoryview) -> bool:
    """Tell whether a JPEG segment of kind APP1 holds XMP metadata, by its prefix."""
    return bytes(segment[: len(_XMP_PREFIX)]) == _XMP_PREFIX


def orientation_of(exif: bytes | memoryview | None, xmp: bytes | memoryview | None) -> int:
    """Read the orientation from the metadata of a picture.

    Args:
        exif: a TIFF structure, with or without the prefix that JPEG puts before it.
        xmp: an XMP packet, with or without a prefix.

    Returns:
        The orientation, 1 to 8; 1 when there is none or the metadata are broken.
    """
    value = None if exif is None else _orientation_in_exif(exif)
    if value is None and xmp is not None:
        found = _IN_XMP.search(xmp)
        value = int(found[1]) if found and len(found[1]) == 1 else None
    return value if value is not None and 1 <= value <= 8 else UPRIGHT


def _orientation_in_exif(exif: bytes | memoryview) -> int | None:
    tiff = exif[len(_PREFIX) :] if is_exif(exif) else exif
    order = _BYTE_ORDERS.get(bytes(tiff[:4]))
    if order is None or len(tiff) < 8:
        return None
    directory: int = unpack_from(order + "I", tiff, 4)[0]
    if directory + 2 > len(tiff):
        return None
    announced: int = unpack_from(order + "H", tiff, directory)[0]
    present = (len(tiff) - directory - 2) // 12
    for index in range(min(announced, present, _MAX_ENTRIES)):
        entry = directory + 2 + 12 * index
        tag, kind = unpack_from(order + "HH", tiff, entry)
        if tag == ORIENTATION_TAG and kind in _VALUE_FORMATS:
            return int(unpack_from(order + _VALUE_FORMATS[kind], tiff, entry + 8)[0])
    return None


def apply_orientation(pixels: NDArray[T], orientation: int) -> NDArray[T]:
    """Turn a picture from how it is stored to how it is shown.

    Args:
        pixels: [H, W, C] as stored.
        orientation: EXIF orientation, 1 to 8.

    Returns:
        A view of the same memory: [H, W, C] for orientations 1 to 4, [W, H, C] for 5 to 8.
    """
    if orientation >= FIRST_TURNED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return pixels


def place_as_stored(
    row: float, column: float, *, orientation: int, height: int, width: int
) -> tuple[float, float]:
    """Convert a place in a picture as shown to one in the picture as stored.

    Args:
        row: 0 at the upper edge of the first row, height at the lower edge of the last.
        column: counted likewise.
        orientation: EXIF orientation, 1 to 8.
        height: rows as shown.
        width: columns as shown.

    Returns:
        Row and column as stored, edges counted likewise.
    """
    if orientation in {3, 4, 7, 8}:
        row = height - row
    if orientation in {2, 3, 6, 7}:
        column = width - column
    return (column, row) if orientation >= FIRST_TURNED else (row, column)

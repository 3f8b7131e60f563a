"""BMP: what its header says, and pixels whose channels are named by masks.

Headers are Windows' BITMAPFILEHEADER and BITMAPINFOHEADER with its later versions, and OS/2's
BITMAPCOREHEADER. OpenCV decodes palettes, run lengths, and 8 bits a channel in the usual order. It
gives 5 and 6 bits a channel too dark, or refuses them, and knows one order of channels alone; so
pixels of 16 bits, and those of 32 bits in another order, are decoded here. A channel of n bits is
scaled to 0 to 255 and rounded down, as Pillow does.
"""

from __future__ import annotations

from struct import unpack_from
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.errors import CodecError
from shardio.fields.probe import ImageInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

_CORE, _INFO = 12, 40  # sizes of the headers of OS/2 and of Windows
_RUNS_OF_8, _RUNS_OF_4, _MASKS, _MASKS_AND_ALPHA = 1, 2, 3, 6  # kinds of compression; 0 for none
_KINDS = {0: {1, 4, 8, 16, 24, 32}, _RUNS_OF_8: {8}, _RUNS_OF_4: {4}, _MASKS: {16, 32},
          _MASKS_AND_ALPHA: {16, 32}}  # fmt: skip
"""Bits of a pixel by kind of compression."""
_MASKS_PLACE = 54
_FIVE_BITS = (0x7C00, 0x3E0, 0x1F)
_EIGHT_BITS = (0xFF0000, 0xFF00, 0xFF)
_MOST_BITS = 16  # of a channel


class BmpHeader(NamedTuple):
    """What the two headers say.

    Attributes:
        width: columns of the image.
        height: rows of the image.
        is_top_down: whether the first row comes first.
        offset: offset of the pixels.
        size: number of bytes of the header after the file header.
        bits: bits of a pixel.
        compression: kind of compression.
        announced: number of bytes of run-length coded pixels.
        masks: bits of red, green and blue, where pixels are decoded by masks; else empty.
    """

    width: int
    height: int
    is_top_down: bool
    offset: int
    size: int
    bits: int
    compression: int
    announced: int
    masks: tuple[int, ...]


def probe_bmp(view: memoryview) -> ImageInfo:
    """Read the size from the header of a BMP.

    Raises:
        CodecError: the header is broken.
    """
    if len(view) < 26:
        raise CodecError("truncated BMP: it ends inside its header")
    width, height = _sides(view)
    return ImageInfo(format="bmp", height=abs(height), width=width)


def check_bmp(view: memoryview, _: ImageInfo) -> None:
    """Compare where the rows end with the file's size; run-length coded rows tell theirs.

    Raises:
        CodecError: the file is truncated, or of a kind that is not decoded.
    """
    header = _header(view)
    if header.offset < 14 + header.size:
        raise CodecError(
            f"broken BMP header: its pixels would start inside it, at byte {header.offset}"
        )
    if header.bits not in _KINDS.get(header.compression, ()):
        raise CodecError(
            f"a BMP of {header.bits} bits a pixel and the compression {header.compression}, which "
            "is not decoded",
            remedy="save it as a PNG",
        )
    if not _are_sound(header.masks):
        raise CodecError("broken BMP header: the masks of its channels", remedy="save it as a PNG")
    needed = header.announced
    if header.compression not in {_RUNS_OF_8, _RUNS_OF_4}:
        needed = _stride(header) * header.height
    if header.offset + needed > len(view):
        raise CodecError(f"truncated BMP: {len(view)} of {header.offset + needed} bytes")


def decode_masked_bmp(view: memoryview) -> NDArray[np.uint8] | None:
    """Decode a BMP that check_bmp accepted by the masks of its channels.

    Returns:
        uint8 [H, W, 3], RGB; None if OpenCV decodes it.
    """
    header = _header(view)
    if not header.masks:
        return None
    size = header.bits // 8
    stored = np.frombuffer(
        view, f"<u{size}", _stride(header) // size * header.height, header.offset
    )
    stored = stored.reshape(header.height, -1)[:, : header.width]
    if not header.is_top_down:
        stored = stored[::-1]
    pixels = np.empty((*stored.shape, 3), np.uint8)
    for channel, mask in enumerate(header.masks):
        shift = _shift(mask)
        most = mask >> shift
        values = (np.arange(most + 1) * 255 // most).astype(np.uint8)
        np.take(values, (stored & stored.dtype.type(mask)) >> shift, out=pixels[..., channel])
    return pixels


def _sides(view: memoryview) -> tuple[int, int]:
    size: int = unpack_from("<I", view, 14)[0]
    if size != _CORE and size < _INFO:
        raise CodecError(f"broken BMP header: it announces its own size as {size} bytes")
    width, height = unpack_from("<HH" if size == _CORE else "<ii", view, 18)
    return width, height  # a negative height: first row on top


def _header(view: memoryview) -> BmpHeader:
    width, height = _sides(view)
    offset, size = unpack_from("<II", view, 10)
    bits, compression, announced = unpack_from("<H", view, 24)[0], 0, 0
    masks: tuple[int, ...] = ()
    if size != _CORE:
        if len(view) < 38:
            raise CodecError("truncated BMP: it ends inside its header")
        bits, compression, announced = unpack_from("<HII", view, 28)
        if compression in {_MASKS, _MASKS_AND_ALPHA} and len(view) >= _MASKS_PLACE + 12:
            masks = unpack_from("<III", view, _MASKS_PLACE)
            if bits == 32 and compression == _MASKS and masks == _EIGHT_BITS:
                masks = ()
    if (bits, compression) == (16, 0):
        masks = _FIVE_BITS
    return BmpHeader(
        width, abs(height), height < 0, offset, size, bits, compression, announced, masks
    )


def _stride(header: BmpHeader) -> int:
    """Return the bytes of a row, which is padded to four bytes."""
    return (header.width * header.bits + 31) // 32 * 4


def _are_sound(masks: Sequence[int]) -> bool:
    """Tell whether each mask is one run of bits."""
    values = [mask >> _shift(mask) for mask in masks if mask]
    return len(values) == len(masks) and all(
        value & (value + 1) == 0 and value.bit_length() <= _MOST_BITS for value in values
    )


def _shift(mask: int) -> int:
    return (mask & -mask).bit_length() - 1

"""Field types of what is laid out in rows and columns: images, masks, depth, stored pixels.

The first image of a sample decides the crop of its transform. Masks and depth follow it: their
values are names or measurements, which are never blended. A file that cannot hold such values, as a
JPEG cannot hold class numbers, is refused. OpenCV and simplejpeg load when the first image is
decoded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from shardio.errors import CodecError, UsageError, quoted
from shardio.fields.arrays import (
    Array,
    as_array,
    decode_npy,
    decode_pixels,
    is_npy,
    is_picture,
    npy_header,
)
from shardio.fields.base import PIXELS_FIELD, FieldType, Geometry
from shardio.fields.formats import FORMATS, IMAGE_FIELDS, check_complete, probe_image
from shardio.fields.limits import MAX_PIXELS
from shardio.fields.probe import ImageInfo
from shardio.fields.summary import FieldSummary, count_classes, summarize_numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from shardio.fields.geometry import View
    from shardio.fields.probe import Buffer

MASK_NAMES = ("mask", "seg", "label", "labels", "semantic", "instance", "panoptic")
"""Last but one components of the names of images that are masks by default."""

_PNG_FIELDS = frozenset(FORMATS["png"].fields)
_INT32 = np.iinfo(np.int32)
_FLOAT32_BITS = np.uint64(24)  # of a whole number, from the first to the last that is set
_LEAST, _GREATEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)

DEPTH_NAMES = ("depth", "disparity")
"""Last but one components of the names of images that are depth by default."""


@dataclass(frozen=True)
class Image(FieldType):
    """JPEG, PNG, WebP and BMP files in colour, turned by their EXIF orientation.

        ShardDataset("xrays", fields={"image": Image("png", channels=1)})   # uint8 [B, 1, H, W]

    Attributes:
        max_pixels: greatest number of pixels of an image, see shardio.fields.limits.
        crop: "shared" gives all images of a sample the crop of the first one; "own" gives this
            one a random crop of its own.
        bits: 8 reduces images of 16 bits per channel to the high byte; None refuses them.
        channels: 3 for RGB, without alpha; 1 for gray, which takes the luma of colours, as a JPEG
            stores it; 4 for RGBA, where images without alpha have 255, and BMP is refused.
    """

    max_pixels: int = MAX_PIXELS
    crop: Literal["shared", "own"] = "shared"  # type: ignore[misc]  # it depends on the value
    bits: Literal[8] | None = None
    channels: int = 3  # type: ignore[misc]  # it depends on the value

    names = IMAGE_FIELDS
    magic: ClassVar[Mapping[bytes, str]] = {
        format_.magic: format_.fields[0] for format_ in FORMATS.values()
    }
    batching = "stack"
    geometry: ClassVar[Geometry | None] = "leads"
    image_file = True
    sized = True
    native = "picture"

    def __post_init__(self) -> None:
        if self.crop not in ("shared", "own"):
            raise UsageError(f"Image: crop={quoted(self.crop)}: it must be 'shared' or 'own'")
        if self.bits not in (None, 8):
            raise UsageError(f"Image: bits={quoted(self.bits)}: it must be 8 or None")
        _check_channels(self)

    def limited(self, max_pixels: int) -> Image:
        """Return the type with a limit on the number of pixels."""
        return replace(self, max_pixels=max_pixels)

    def decode(self, data: Buffer) -> NDArray[np.uint8]:
        """Decode to uint8 [H, W, channels]."""
        return _image_decoder()(data, self.probe(data), channels=self.channels)

    def decode_verified(self, data: Buffer) -> NDArray[np.uint8]:
        """Decode to uint8 [H, W, channels]."""
        return _image_decoder()(data, self.probe(data), verified=True, channels=self.channels)

    def probe(self, data: Buffer) -> ImageInfo:
        """Read format, height, width and orientation from the header."""
        info = probe_image(data, max_pixels=self.max_pixels)
        if info.bits > 8 and self.bits is None:
            raise CodecError(
                f"the image has {info.bits} bits per channel, and a batch of images holds 8",
                remedy="read it as Depth or Mask, or reduce it to 8 bits with Image(…, bits=8)",
            )
        return info

    def check(self, data: Buffer, *, deep: bool) -> None:
        """Check header and end, or decode."""
        if deep:
            self.decode(data)
        else:
            check_complete(data, self.probe(data))

    def for_field(self, field: str) -> Image:
        """Return the type for one field."""
        return replace(self, fields=field)

    def encode(self, value: Any) -> bytes:
        """Encode a picture, uint8 [H, W, channels], as a PNG; others would change its colours.

        A gray picture may be [H, W].
        """
        from shardio.fields.image import encode_image  # noqa: PLC0415  loads OpenCV

        if (last := _last_part(self)) not in _PNG_FIELDS:
            raise TypeError(f"{last} changes colours; encode it yourself, or name the field png")
        pixels = as_array(value)
        if self.channels == 1 and pixels.ndim == 2:
            pixels = pixels[..., None]
        if not is_picture(pixels.dtype, pixels.shape, self.channels):
            space = {1: "gray", 3: "RGB", 4: "RGBA"}[self.channels]
            gray = "; Image(channels=1) takes gray" if pixels.ndim == 2 else ""
            raise TypeError(
                f"a picture is uint8 [H, W, {self.channels}] in {space}, not {pixels.dtype} "
                f"{[*pixels.shape]}{gray}"
            )
        return bytes(encode_image(np.ascontiguousarray(pixels), "png", 0))

    def preview(self, data: Buffer) -> str:
        """Show format, height and width."""
        info = self.probe(data)
        check_complete(data, info)
        return f"{info.format}, {info.height} × {info.width}"


def _check_channels(type_: Image | Pixels) -> None:
    if type_.channels not in (1, 3, 4) or isinstance(type_.channels, bool | float):
        raise UsageError(
            f"{type(type_).__name__}: channels={quoted(str(type_.channels))}: it must be 1 (gray), "
            "3 (RGB) or 4 (RGBA)"
        )


@cache  # an import statement costs a microsecond
def _image_decoder() -> Callable[..., NDArray[np.uint8]]:
    from shardio.fields.image import decode_image  # noqa: PLC0415  loads OpenCV

    return decode_image


@dataclass(frozen=True)
class _Values(FieldType):
    """Values in rows and columns: a PNG of one channel, or an array [H, W]."""

    max_pixels: int = MAX_PIXELS

    batching = "stack"
    geometry: ClassVar[Geometry | None] = "follows"
    sized = True
    margin: ClassVar[int | None] = 0

    def limited(self, max_pixels: int) -> _Values:
        """Return the type with a limit on the number of pixels."""
        return replace(self, max_pixels=max_pixels)

    def probe(self, data: Buffer) -> ImageInfo:
        """Read height and width from the header."""
        if is_npy(data):
            _, shape, *_ = npy_header(memoryview(data))
            height, width = _plane(shape)
            return ImageInfo(format="npy", height=height, width=width)
        info = probe_image(data, max_pixels=self.max_pixels)
        format_ = FORMATS[info.format]
        if not format_.holds_values or info.channels != 1:
            raise CodecError(
                f"the {format_.title} holds colours, not {self.holds}",
                remedy=(
                    f"save {self.holds} as a gray PNG or one with a palette, or read the colours "
                    "with Image(…)"
                ),
            )
        return info

    def check(self, data: Buffer, *, deep: bool) -> None:
        """Check header and end, or decode."""
        info = self.probe(data)
        if deep or info.format == "npy":
            self.decode(data)
        else:
            check_complete(data, info)

    def for_field(self, field: str) -> _Values:
        """Return the type for one field."""
        return replace(self, fields=field)

    def follow(self, value: NDArray[Any], view: View | None) -> NDArray[Any]:
        """Take the values under the centres of the slot's pixels."""
        return value if view is None else view.nearest(value, self.margin)

    def resized(self, data: Buffer, view: View) -> bytes | None:
        """Take the values under the centres of the picture's pixels, at the same bit depth."""
        values = self._stored(data)
        moved = np.ascontiguousarray(view.nearest(values))
        if view.crop is None:
            return None
        if is_npy(data):
            return Array().encode(moved)
        from shardio.fields.image import encode_values  # noqa: PLC0415  loads OpenCV

        return bytes(encode_values(moved, moved.dtype))

    def _encoded(self, values: NDArray[Any]) -> bytes:
        """Encode values [H, W] or [1, H, W]: whole numbers as a gray PNG, or any as `.npy`."""
        from shardio.fields.image import encode_values  # noqa: PLC0415  loads OpenCV

        values = values.reshape(_plane(values.shape))
        last = _last_part(self)
        if last == "npy":
            return Array().encode(values)
        if last in IMAGE_FIELDS - _PNG_FIELDS:
            raise TypeError(f"{last} does not keep {self.holds}; name the field png or npy")
        kind = type(self).__name__
        way = f"name the field x.npy, and give it the type {kind}('x.npy')"
        if values.dtype.kind == "f":
            raise TypeError(f"a PNG holds whole numbers, not {values.dtype}; {way}")
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 0xFFFF:
            raise ValueError(f"a PNG holds 0 to 65535, not {low} to {high}; {way}")
        return bytes(encode_values(values, np.uint8 if high <= 0xFF else np.uint16))

    def _stored(self, data: Buffer) -> NDArray[Any]:
        """Decode to the values as stored, [H, W]."""
        from shardio.fields.image import decode_values  # noqa: PLC0415  loads OpenCV

        if is_npy(data):
            values = decode_npy(data)
            return values.reshape(_plane(values.shape))
        found: NDArray[Any] = decode_values(data, self.probe(data))
        return found


def _plane(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return height and width of an array [H, W] or [1, H, W].

    Raises:
        CodecError: the array has another shape.
    """
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2 or 0 in shape:
        raise CodecError(f"the array is {[*shape]}, and must be [H, W]")
    return shape[0], shape[1]


@dataclass(frozen=True)
class Mask(_Values):
    """Class numbers of pixels, as stored: PNG of gray or palette, or an integer array [H, W].

    The indices of a palette are the values; its colours are not looked at.

    Attributes:
        max_pixels: greatest number of pixels of a mask, see shardio.fields.limits.
        dtype: dtype of the batch, "uint8" or "int32".
        fill: class number of the margin that a transform leaves beside a picture, such as the 255
            that a loss ignores. None, the default, refuses a transform that leaves one.
    """

    dtype: Literal["uint8", "int32"] = "uint8"
    fill: int | None = None

    names = frozenset(f"{mask}.{last}" for mask in MASK_NAMES for last in IMAGE_FIELDS)
    holds = "class numbers"
    native = "values"

    def __post_init__(self) -> None:
        if self.dtype not in ("uint8", "int32"):
            raise UsageError(f"Mask: dtype={quoted(self.dtype)}: it must be 'uint8' or 'int32'")
        limits = np.iinfo(self.dtype)
        whole = isinstance(self.fill, int | np.integer) and not isinstance(self.fill, bool)
        if self.fill is not None and not (whole and limits.min <= self.fill <= limits.max):
            raise UsageError(
                f"Mask: fill={quoted(str(self.fill))}: it must be a class number that {self.dtype} "
                f"holds, {limits.min} to {limits.max}"
            )

    @property
    def margin(self) -> int | None:  # type: ignore[override]  # it depends on the value
        """Class number of the margin."""
        return self.fill

    @property
    def fills(self) -> bool:  # type: ignore[override]  # it depends on the value
        """Whether there is a class number for the margin."""
        return self.fill is not None

    def decode(self, data: Buffer) -> NDArray[np.generic]:
        """Decode to the values as stored, uint8 or int32 [H, W]."""
        values = self._stored(data)
        if values.dtype.kind not in "biu":
            raise CodecError(f"a mask of {values.dtype}: class numbers are whole numbers")
        wanted = np.dtype(self.dtype)
        if values.dtype != wanted and not np.can_cast(values.dtype, wanted):
            low, high = int(values.min()), int(values.max())
            limits = np.iinfo(wanted)
            if low < limits.min or high > limits.max:
                raise CodecError(
                    f"the mask has class numbers from {low} to {high}, and {wanted} holds "
                    f"{limits.min} to {limits.max}",
                    remedy="" if self.dtype == "int32" else "read it with Mask(…, dtype='int32')",
                )
        return values.astype(wanted, copy=False)

    def summarize(self, value: NDArray[Any], view: View | None) -> FieldSummary:
        """Count the pixels of each class."""
        del view
        return FieldSummary(unit="pixels", values=value.size, classes=count_classes(value))

    def blank(self, view: View | None) -> NDArray[np.generic] | None:
        """Return zeros of the size of the slot."""
        return None if view is None else np.zeros(view.size, self.dtype)

    def encode(self, value: Any) -> bytes:
        """Encode class numbers, an integer array [H, W], as a PNG of 8 or 16 bits, or as `.npy`."""
        values = as_array(value)
        if values.dtype.kind not in "biu":
            raise TypeError(f"class numbers are whole numbers, not {values.dtype}")
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        if low < _INT32.min or high > _INT32.max:
            raise ValueError(f"class numbers are of 32 bits, not {low} to {high}")
        return self._encoded(values)

    def picture(self, data: Buffer) -> NDArray[np.uint8]:
        """Give each of the first 256 classes a colour of its own, and 0 alone black."""
        numbers = self._stored(data).astype(np.int64)
        few = (numbers >= 0) & (numbers < 256)
        return _colours()[np.where(few, numbers, 1 + numbers % 251)]

    def preview(self, data: Buffer) -> str:
        """Show size and class numbers."""
        values = self.decode(data)
        found = np.unique(values)
        shown = ", ".join(map(str, found[:8])) + (", …" if len(found) > 8 else "")
        return f"mask, {values.shape[0]} × {values.shape[1]}, classes {shown}"


@cache
def _colours() -> NDArray[np.uint8]:
    """Return 256 colours, uint8 [256, 3]: those of Pascal VOC, whose bits the numbers spread."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.int64)
    for bit in range(8):
        colours[:, bit % 3] |= (numbers >> bit & 1) << (7 - bit // 3)
    return colours.astype(np.uint8)


@dataclass(frozen=True)
class Depth(_Values):
    """Depth or disparity, float32 [1, H, W]: PNG of gray, 8 or 16 bits, or an array [H, W].

    Where a transform leaves a margin beside a picture, depth is 0.

    Attributes:
        max_pixels: greatest number of pixels of a file, see shardio.fields.limits.
        scale: factor from stored values to units, such as 1 / 256 for KITTI's depth in metres.
    """

    scale: float = 1.0

    names = frozenset(f"{depth}.{last}" for depth in DEPTH_NAMES for last in IMAGE_FIELDS)
    holds = "depth"

    def __post_init__(self) -> None:
        number = isinstance(self.scale, int | float | np.number) and not isinstance(
            self.scale, bool
        )
        if not (number and _LEAST <= self.scale <= _GREATEST):
            raise UsageError(
                f"Depth: scale={quoted(self.scale)}: it must be a number above 0 that float32 holds"
            )

    def decode(self, data: Buffer) -> NDArray[np.float32]:
        """Decode to scaled values, float32 [1, H, W]."""
        values = self._stored(data)
        if values.dtype.kind not in "iuf":
            raise CodecError(f"depth of {values.dtype}: it must be numbers")
        _check_exact(values)
        try:
            with np.errstate(over="raise"):
                return (values.astype(np.float32) * np.float32(self.scale))[None]
        except FloatingPointError:
            raise CodecError("the depth has a value that float32 cannot hold") from None

    def summarize(self, value: NDArray[np.float32], view: View | None) -> FieldSummary:
        """Tell the range, and how many pixels are zero or not finite."""
        del view
        return summarize_numbers(value, "pixels")

    def blank(self, view: View | None) -> NDArray[np.float32] | None:
        """Return zeros of the size of the slot."""
        return None if view is None else np.zeros((1, *view.size), np.float32)

    def encode(self, value: Any) -> bytes:
        """Encode values as stored, before `scale`: whole numbers [H, W] as a PNG, any as `.npy`."""
        values = as_array(value)
        if values.dtype.kind not in "iuf":
            raise TypeError(f"depth is numbers, not {values.dtype}")
        _check_exact(values)
        if values.dtype.kind == "f" and self.scale != 1:
            raise TypeError(
                f"it is {values.dtype}, which readers would multiply by scale={self.scale:g}; give "
                "whole numbers as stored, or no scale"
            )
        return self._encoded(values)

    def picture(self, data: Buffer) -> NDArray[np.uint8]:
        """Draw the least value black and the greatest white; what is not finite is black."""
        values = self.decode(data)[0].astype(np.float64)
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        gray = np.nan_to_num((values - low) / ((high - low) or 1) * 255, posinf=0, neginf=0)
        return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=-1)

    def preview(self, data: Buffer) -> str:
        """Show size and range."""
        values = self.decode(data)[0]
        found = summarize_numbers(values, "pixels")
        span = "none finite" if found.low is None else f"{found.low:g} to {found.high:g}"
        return f"depth, {values.shape[0]} × {values.shape[1]}, {span}"


def _check_exact(values: NDArray[Any]) -> None:
    """Raise CodecError for whole numbers that change when they become float32."""
    if values.dtype.kind == "f":
        return
    signed = values.dtype.kind == "i"
    sizes = (np.abs(values.astype(np.int64)) if signed else values).astype(np.uint64)
    last_bits = np.maximum(sizes & (~sizes + np.uint64(1)), 1)
    changed = sizes >> _FLOAT32_BITS >= last_bits
    if changed.any():
        first = values[changed][0]
        raise CodecError(
            f"the depth {first} is {first.astype(np.float32):.0f} as float32",
            remedy=f"store whole numbers up to {1 << 24:,}, or floating point numbers",
        )


def _last_part(type_: FieldType) -> str:
    """Return the last component of the name of the field that a type encodes."""
    return (type_.alternatives or ("png",))[0].rpartition(".")[2]


@dataclass(frozen=True)
class Pixels(Array):
    """Decoded pictures, stored as `.npy` arrays, uint8 [H, W, channels].

    Attributes:
        channels: 1 for gray, 3 for RGB, 4 for RGBA.
    """

    channels: int = 3  # type: ignore[misc]  # it depends on the value

    names = frozenset({PIXELS_FIELD})
    geometry: ClassVar[Geometry | None] = "leads"
    sized = True
    native = "rows"

    def __post_init__(self) -> None:
        _check_channels(self)

    def decode(self, data: Buffer) -> NDArray[np.uint8]:
        """Decode to uint8 [H, W, channels]."""
        return decode_pixels(data, self.channels)

    def probe(self, data: Buffer) -> ImageInfo:
        """Read height and width from the header."""
        dtype, shape, *_ = npy_header(memoryview(data))
        if not is_picture(dtype, shape, self.channels):
            self.decode(data)
        return ImageInfo(format="npy", height=shape[0], width=shape[1])

    def decode_rows(
        self, block: NDArray[np.uint8], sizes: NDArray[np.int64]
    ) -> NDArray[np.generic] | None:
        """Decode pictures of one size."""
        found = super().decode_rows(block, sizes)
        if found is None or not is_picture(found.dtype, found.shape[1:], self.channels):
            return None
        return found

    def summarize(self, value: NDArray[Any], view: View | None) -> None:
        """Tell nothing: the numbers are colours."""
        del value, view

    def encode(self, value: Any) -> bytes:
        """Encode a picture."""
        data = super().encode(value)
        self.decode(data)
        return data


class PixelMask(FieldType):
    """Decoded pictures whose colours are names of classes, uint8 [3, H, W] in a batch."""

    name = "pixels"
    names = frozenset(f"{mask}.{PIXELS_FIELD}" for mask in MASK_NAMES)
    batching = "stack"
    geometry: ClassVar[Geometry | None] = "follows"
    sized = True
    fills = False

    def decode(self, data: Buffer) -> NDArray[np.uint8]:
        """Decode to uint8 [3, H, W]."""
        return np.moveaxis(decode_pixels(data), -1, 0)

    def probe(self, data: Buffer) -> ImageInfo:
        """Read height and width from the header."""
        return _PIXELS.probe(data)

    def follow(self, value: NDArray[Any], view: View | None) -> NDArray[Any]:
        """Take the colours under the centres of the slot's pixels."""
        return value if view is None else view.nearest(value)

    def encode(self, value: Any) -> bytes:
        """Encode a picture, uint8 [H, W, 3]."""
        return _PIXELS.encode(value)

    def picture(self, data: Buffer) -> NDArray[np.uint8]:
        """Decode the picture."""
        return decode_pixels(data)

    def resized(self, data: Buffer, view: View) -> bytes | None:
        """Take the colours under the centres of the picture's pixels."""
        moved = view.nearest(self.decode(data))
        return None if view.crop is None else self.encode(np.moveaxis(moved, 0, -1))

    def preview(self, data: Buffer) -> str:
        """Show dtype and shape."""
        return _PIXELS.preview(data)


_PIXELS = Pixels()

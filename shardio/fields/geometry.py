"""Crops: which part of a picture fills a slot, and where its pixels, boxes and points come from.

A crop is a rectangle of the picture as it is shown. The rectangle is resized, and a window of the
result fills the slot, mirrored if the crop says so. A window may reach beyond the rectangle, which
leaves a margin in the slot. One crop applies to all fields of a sample.

Where values are names, such as class numbers, each pixel of the slot takes the value of the pixel
under its centre. The positions are those of Pillow's nearest, to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from shardio.errors import CodecError, TransformError
from shardio.fields.exif import FIRST_TURNED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shardio.fields.probe import ImageInfo

Interpolation = Literal["nearest", "bilinear", "bicubic"]
Fill = int | tuple[int, ...] | Literal["reflect"]
"""Value of the pixels of a margin, for all channels or for each; "reflect" mirrors the picture."""


class Resampling(NamedTuple):
    """How the pixels of a crop become those of a slot.

    Attributes:
        interpolation: method of interpolation.
        antialias: whether each pixel of a slot averages all pixels under it.
    """

    interpolation: Interpolation = "bilinear"
    antialias: bool = False


PLAIN = Resampling()


class Crop(NamedTuple):
    """A rectangle of a picture as shown, and how it fills a slot.

    Attributes:
        top: first row of the rectangle.
        left: first column of the rectangle.
        height: number of rows.
        width: number of columns.
        flip: whether to mirror the result left to right.
        resized: height and width that the rectangle is resized to; None for those of the slot.
        window: first row and column, in the resized rectangle, of what fills the slot; negative
            where the slot begins with a margin.
        resampling: method of resizing.
        fill: value of pixels of the slot outside of the resized rectangle.
    """

    top: int
    left: int
    height: int
    width: int
    flip: bool = False
    resized: tuple[int, int] | None = None
    window: tuple[int, int] = (0, 0)
    resampling: Resampling = PLAIN
    fill: Fill = 0


class Axis(NamedTuple):
    """Which pixels of a picture fill a slot, along one of its sides.

    The picture may be one at 1/shrink of the size that the crop was chosen for.

    Attributes:
        offset: first pixel of the crop's rectangle, before shrinking.
        length: number of pixels of the rectangle, before shrinking.
        resized: number of pixels that the rectangle is resized to.
        window: first of those that are in the slot.
        kept: number of pixels of the slot.
        shrink: divisor of the picture's size.
    """

    offset: int
    length: int
    resized: int
    window: int
    kept: int
    shrink: int

    @property
    def first(self) -> int:
        """First pixel of the picture that the rectangle touches."""
        return self.offset // self.shrink

    @property
    def reach(self) -> int:
        """Number of pixels of the picture that the rectangle touches."""
        return -(-(self.offset + self.length) // self.shrink) - self.first

    @property
    def start(self) -> float:
        """Distance of the rectangle from the edge of the first pixel."""
        return self.offset / self.shrink - self.first

    @property
    def scale(self) -> float:
        """Pixels of the picture per pixel of the slot."""
        return self.length / (self.resized * self.shrink)

    @property
    def in_slot(self) -> slice:
        """Pixels of the resized rectangle that are in the slot."""
        return slice(self.window, self.window + self.kept)

    @property
    def covered(self) -> slice:
        """Pixels of the slot that the resized rectangle reaches."""
        return slice(max(0, -self.window), min(self.kept, self.resized - self.window))

    def mirrored(self) -> NDArray[np.int64]:
        """Return, for each pixel of the slot, one of those covered: itself, or its mirror image."""
        period = max(2 * (self.resized - 1), 1)
        places = (np.arange(self.kept) + self.window) % period
        return np.minimum(places, period - places) - max(0, self.window)

    def needed(self, support: int) -> int:
        """Return how many pixels from `first` on the slot needs.

        Args:
            support: reach of the filter to each side: 1 if linear, 2 if cubic.
        """
        centre = self.start + (self.window + self.kept - 0.5) * self.scale
        return min(self.reach, int(centre + support * max(self.scale, 1.0) + 0.5))

    def nearest(self) -> NDArray[np.int64]:
        """Return the pixel, from `first` on, under the centre of each pixel of the slot.

        A centre can lie on the edge between two pixels. Pillow, and OpenCV with it, takes the one
        that its sum of steps comes to, so the same sum is formed here.
        """
        steps = np.full(self.window + self.kept, self.scale)
        steps[0] = self.start + self.scale / 2
        return np.add.accumulate(steps)[self.in_slot].astype(np.int64)


def axes(crop: Crop, size: tuple[int, int], shrink: int = 1) -> tuple[Axis, Axis]:
    """Return how a crop fills a slot, along the rows and along the columns.

    Args:
        crop: a rectangle of a picture as shown.
        size: height and width of the slot.
        shrink: divisor of the size of the picture that gives the pixels.
    """
    height, width = crop.resized or size
    top, left = crop.window
    return (
        Axis(crop.top, crop.height, height, top, size[0], shrink),
        Axis(crop.left, crop.width, width, left, size[1], shrink),
    )


class Placed(NamedTuple):
    """The part of a slot that a picture covers, and what is in the margin.

    Attributes:
        crop: crop that fills that part.
        place: rows and columns of the part.
        mirrored: for each row, and for each column, of the slot the one of the part that it
            repeats; None if the margin has one value.
    """

    crop: Crop
    place: tuple[slice, slice]
    mirrored: tuple[NDArray[np.int64], NDArray[np.int64]] | None

    def fill_margin(self, out: NDArray[Any], fill: Any) -> None:
        """Fill the margin of a slot whose part is filled.

        Args:
            out: array [..., H, W], the slot.
            fill: value that the array's margin takes, if it is not mirrored.
        """
        if self.mirrored is not None:
            rows, columns = self.mirrored
            out[...] = out[..., self.place[0], self.place[1]].take(rows, -2).take(columns, -1)
            return
        rows_, columns_ = self.place
        out[..., : rows_.start, :] = fill
        out[..., rows_.stop :, :] = fill
        out[..., rows_, : columns_.start] = fill
        out[..., rows_, columns_.stop :] = fill


def placed(crop: Crop, size: tuple[int, int]) -> Placed | None:
    """Return the part of a slot that a picture covers; None if that is all of it.

    Args:
        crop: crop that fills the slot.
        size: height and width of the slot.
    """
    if crop.resized is None:
        return None
    down, across = axes(crop, size)
    rows, columns = down.covered, across.covered
    part = rows.stop - rows.start, columns.stop - columns.start
    if part == size:
        return None
    window = max(0, down.window), max(0, across.window)
    mirrored = (down.mirrored(), across.mirrored()) if crop.fill == "reflect" else None
    if crop.flip:
        columns = slice(size[1] - columns.stop, size[1] - columns.start)
        mirrored = mirrored and (mirrored[0], part[1] - 1 - mirrored[1][::-1])
    resized = None if crop.resized == part else crop.resized  # the usual one, which is faster
    return Placed(crop._replace(resized=resized, window=window), (rows, columns), mirrored)


class View(NamedTuple):
    """What is shown of a sample's picture, for the fields that follow it.

    Attributes:
        height: rows of the picture as shown.
        width: columns of the picture as shown.
        size: height and width of the slot.
        turned: whether the picture's orientation swapped its rows and columns.
        field: name of the picture's field.
        crop: crop that fills the slot; None shows the whole picture as it is.
        info: header of the picture, if it was read.
    """

    height: int
    width: int
    size: tuple[int, int]
    turned: bool = False
    field: str = ""
    crop: Crop | None = None
    info: ImageInfo | None = None

    @classmethod
    def of(
        cls,
        info: ImageInfo,
        field: str,
        size: tuple[int, int] | None = None,
        crop: Crop | None = None,
    ) -> View:
        """Return the view of a picture by its header.

        Args:
            info: header of the picture.
            field: name of the picture's field.
            size: height and width of the slot; None for those of the picture.
            crop: crop that fills the slot; None for the whole picture as it is.
        """
        height, width, turned = info.height, info.width, info.orientation >= FIRST_TURNED
        return cls(height, width, size or (height, width), turned, field, crop, info)

    @property
    def flipped(self) -> bool:
        """Whether the slot is mirrored left to right."""
        return self.crop is not None and self.crop.flip

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the slot, margin included, in pixels of the picture."""
        if self.crop is None:
            return 0, 0, self.width, self.height
        down, right = axes(self.crop, self.size)
        top, left = (
            down.offset + down.window * down.scale,
            right.offset + right.window * right.scale,
        )
        return left, top, left + right.kept * right.scale, top + down.kept * down.scale

    def reduction(self, height: int, width: int) -> int:
        """Return how many times smaller a field is than the picture that it belongs to, 1 if equal.

        Args:
            height: rows of the field.
            width: columns of the field.

        Raises:
            CodecError: the field's size is neither the picture's nor a whole fraction of it.
        """
        reduction = self.height // max(height, 1)
        if (height * reduction, width * reduction) == (self.height, self.width):
            return reduction
        because = ""
        if self.turned and (width, height) == (self.height, self.width):
            because = ", which its EXIF orientation turned"
        raise CodecError(
            f"it is {height} × {width}, but the picture {self.field!r} of the sample is "
            f"{self.height} × {self.width}{because}",
            remedy=(
                "rotate one of them before packing"
                if because
                else "make the sizes equal, or the field's a whole fraction of the picture's"
            ),
        )

    @property
    def covered(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the picture in the slot, without a margin."""
        found = None if self.crop is None else placed(self.crop, self.size)
        rows, columns = (slice(0, side) for side in self.size) if found is None else found.place
        return columns.start, rows.start, columns.stop, rows.stop

    def nearest(self, values: NDArray[Any], fill: Any = None) -> NDArray[Any]:
        """Take the values of the slot's pixels, without blending any.

        Args:
            values: array [..., H, W], as large as the picture or smaller by a whole factor.
            fill: value of the pixels of a margin.

        Returns:
            Array [..., h, w] of the size of the slot; the values themselves without a crop.

        Raises:
            CodecError: see reduction.
            TransformError: the slot has a margin, and no value is given for it.
        """
        reduction = self.reduction(*values.shape[-2:])
        if self.crop is None:
            return values
        found = placed(self.crop, self.size)
        if found is None:
            return _nearest(values, self.crop, self.size, reduction)
        if fill is None and found.mirrored is None:
            raise TransformError(
                "the transform leaves a margin beside the picture, and the type of the field has "
                "no value for it",
                remedy="give one, as in Mask(…, fill=255)",
            )
        out = np.empty((*values.shape[:-2], *self.size), values.dtype)
        rows, columns = found.place
        size = rows.stop - rows.start, columns.stop - columns.start
        out[..., rows, columns] = _nearest(values, found.crop, size, reduction)
        found.fill_margin(out, fill)
        return out

    def move(self, points: NDArray[Any]) -> NDArray[np.float32]:
        """Move places in the picture to where they are in the slot, which may be outside it.

        Args:
            points: x and y in pixels of the picture as shown, [..., 2]; (0, 0) is the upper left
                corner of the first pixel.

        Returns:
            x and y in pixels of the slot, float32 [..., 2].

        Raises:
            TransformError: margins mirror the picture.
        """
        moved = np.array(points, np.float64)
        if self.crop is not None:
            if self.crop.fill == "reflect":
                raise TransformError(
                    "the transform mirrors pictures into their margin, where boxes and points "
                    "cannot follow",
                    remedy="fill it with a value, as in fill=0",
                )
            for place, axis in zip((1, 0), axes(self.crop, self.size), strict=True):
                moved[..., place] -= axis.offset
                moved[..., place] /= axis.scale
                moved[..., place] -= axis.window
            if self.crop.flip:
                moved[..., 0] = self.size[1] - moved[..., 0]
        return moved.astype(np.float32)


def _nearest(
    values: NDArray[Any], crop: Crop, size: tuple[int, int], reduction: int
) -> NDArray[Any]:
    """Take the values under the centres of pixels; see View.nearest."""
    rows, columns = ((axis.nearest() + axis.first) // reduction for axis in axes(crop, size))
    if crop.flip:
        columns = columns[::-1]
    first = rows[0]
    part = values[..., first : rows[-1] + 1, :]
    found: NDArray[Any] = part.take(columns, axis=-1).take(rows - first, axis=-2)
    return found

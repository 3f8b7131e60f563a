"""Crops: which part of a picture fills a slot, and where its pixels, boxes and points come from.

A crop is a rectangle of the picture as it is shown. The rectangle is resized, and a window of the
result fills the slot, mirrored if the crop says so. One crop applies to all fields of a sample.

Where values are names, such as class numbers, each pixel of the slot takes the value of the pixel
under its centre. The positions are those of Pillow's nearest, to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from shardio.errors import CodecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shardio.fields.probe import ImageInfo

Interpolation = Literal["nearest", "bilinear", "bicubic"]


class Resampling(NamedTuple):
    """How the pixels of a crop become those of a slot.

    Attributes:
        interpolation: method of interpolation.
        antialias: whether each pixel of a slot averages all pixels under it.
    """

    interpolation: Interpolation = "bilinear"
    antialias: bool = False


PLAIN = Resampling()


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle of a picture as shown, and how it fills a slot.

    Attributes:
        top: first row of the rectangle.
        left: first column of the rectangle.
        height: number of rows.
        width: number of columns.
        flip: whether to mirror the result left to right.
        resized: height and width that the rectangle is resized to; None for those of the slot.
        window: first row and column, in the resized rectangle, of what fills the slot.
        resampling: method of resizing.
    """

    top: int
    left: int
    height: int
    width: int
    flip: bool = False
    resized: tuple[int, int] | None = None
    window: tuple[int, int] = (0, 0)
    resampling: Resampling = PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
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

    @property
    def flipped(self) -> bool:
        """Whether the slot is mirrored left to right."""
        return self.crop is not None and self.crop.flip

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of what is shown, in pixels of the picture."""
        if self.crop is None:
            return 0, 0, self.width, self.height
        crop = self.crop
        rows, columns = crop.resized or self.size
        down, right = crop.height / rows, crop.width / columns
        top, left = crop.top + crop.window[0] * down, crop.left + crop.window[1] * right
        return left, top, left + self.size[1] * right, top + self.size[0] * down

    def reduction(self, height: int, width: int) -> int:
        """Return how many times smaller a field is than the picture that it belongs to.

        Args:
            height: rows of the field.
            width: columns of the field.

        Raises:
            CodecError: the sizes are neither equal nor a whole fraction of each other.
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
                else "make the sizes equal, or one a whole fraction of the other"
            ),
        )

    def nearest(self, values: NDArray[Any]) -> NDArray[Any]:
        """Take the values of the slot's pixels, without blending any.

        Args:
            values: array [..., H, W], as large as the picture or smaller by a whole factor.

        Returns:
            Array [..., h, w] of the size of the slot; the values themselves without a crop.

        Raises:
            CodecError: see reduction.
        """
        reduction = self.reduction(*values.shape[-2:])
        if self.crop is None:
            return values
        crop = self.crop
        resized = crop.resized or self.size
        rows, columns = (
            _nearest(start / reduction, length / reduction, total, first, kept, most)
            for start, length, total, first, kept, most in zip(
                (crop.top, crop.left),
                (crop.height, crop.width),
                resized,
                crop.window,
                self.size,
                values.shape[-2:],
                strict=True,
            )
        )
        if crop.flip:
            columns = columns[::-1]
        top, bottom = int(rows.min()), int(rows.max()) + 1
        return np.take(values[..., top:bottom, :], columns, axis=-1).take(rows - top, axis=-2)

    def move(self, points: NDArray[Any]) -> NDArray[np.float32]:
        """Move places in the picture to where they are in the slot, which may be outside it.

        Args:
            points: x and y in pixels of the picture as shown, [..., 2]; (0, 0) is the upper left
                corner of the first pixel.

        Returns:
            x and y in pixels of the slot, float32 [..., 2].
        """
        moved = np.array(points, np.float64)
        if self.crop is not None:
            crop = self.crop
            rows, columns = crop.resized or self.size
            first_row, first_column = crop.window
            moved[..., 0] = (moved[..., 0] - crop.left) * (columns / crop.width) - first_column
            moved[..., 1] = (moved[..., 1] - crop.top) * (rows / crop.height) - first_row
            if crop.flip:
                moved[..., 0] = self.size[1] - moved[..., 0]
        return moved.astype(np.float32)


def _nearest(
    start: float, length: float, resized: int, first: int, kept: int, most: int
) -> NDArray[np.int64]:
    """Return the pixels of one side that lie under the centres of a slot's, as Pillow does.

    Pillow adds up the step, so that its rounding is that of a running sum.

    Args:
        start: where the rectangle starts.
        length: length of the rectangle.
        resized: number of pixels that the rectangle is resized to.
        first: first of these that is kept.
        kept: number of these that are kept.
        most: number of pixels of the side.
    """
    whole = int(start)
    step = length / resized
    steps = np.full(first + kept, step)
    steps[0] = start - whole + 0.5 * step
    return np.minimum(np.cumsum(steps).astype(np.int64)[first:] + whole, most - 1)

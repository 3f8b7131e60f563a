"""Field types of pictures: image files, and pixels stored as arrays.

Both decode to uint8 [H, W, 3], and a crop applies to both. A picture whose name says that it is a
mask holds names of classes, which must not be blended. OpenCV and simplejpeg load when the first
image is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from shardio.fields.arrays import Array, decode_pixels, is_picture
from shardio.fields.base import PIXELS_FIELD, FieldType, Geometry
from shardio.fields.formats import FORMATS, IMAGE_FIELDS, check_complete, probe_image
from shardio.fields.limits import MAX_PIXELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from shardio.fields.probe import Buffer, ImageInfo

_MASKS = ("mask", "seg", "label", "labels", "semantic", "instance", "panoptic")


@dataclass(frozen=True)
class Image(FieldType):
    """JPEG, PNG, WebP and BMP files, turned by their EXIF orientation.

    Attributes:
        max_pixels: greatest number of pixels of an image, see shardio.fields.limits.
    """

    max_pixels: int = MAX_PIXELS

    names = IMAGE_FIELDS
    magic: ClassVar[Mapping[bytes, str]] = {
        format_.magic: format_.fields[0] for format_ in FORMATS.values()
    }
    batching = "stack"
    geometry: ClassVar[Geometry | None] = "blended"
    image_file = True

    def limited(self, max_pixels: int) -> Image:
        """Return the type with a limit on the number of pixels."""
        return replace(self, max_pixels=max_pixels)

    def decode(self, data: Buffer) -> NDArray[np.uint8]:
        """Decode to uint8 [H, W, 3]."""
        from shardio.fields.image import decode_image  # noqa: PLC0415  loads OpenCV

        return decode_image(data, max_pixels=self.max_pixels)

    def decode_verified(self, data: Buffer) -> NDArray[np.uint8]:
        """Decode to uint8 [H, W, 3]."""
        from shardio.fields.image import decode_image  # noqa: PLC0415  loads OpenCV

        return decode_image(data, max_pixels=self.max_pixels, verified=True)

    def probe(self, data: Buffer) -> ImageInfo:
        """Read format, height, width and orientation from the header."""
        return probe_image(data, max_pixels=self.max_pixels)

    def check(self, data: Buffer, *, deep: bool) -> None:
        """Check header and end, or decode."""
        if deep:
            self.decode(data)
        else:
            check_complete(data, self.probe(data))

    def preview(self, data: Buffer) -> str:
        """Show format, height and width."""
        info = self.probe(data)
        check_complete(data, info)
        return f"{info.format}, {info.height} × {info.width}"


class Mask(Image):
    """Image files whose colours are names of classes."""

    name = "image"
    names = frozenset(f"{mask}.{last}" for mask in _MASKS for last in IMAGE_FIELDS)
    geometry = "nearest"


class Pixels(Array):
    """Decoded pictures, stored as `.npy` arrays, uint8 [H, W, 3]."""

    names = frozenset({PIXELS_FIELD})
    geometry: ClassVar[Geometry | None] = "blended"
    decode = staticmethod(decode_pixels)

    def decode_rows(
        self, block: NDArray[np.uint8], sizes: NDArray[np.int64]
    ) -> NDArray[np.generic] | None:
        """Decode pictures of one size."""
        found = super().decode_rows(block, sizes)
        return found if found is not None and is_picture(found.dtype, found.shape[1:]) else None

    def encode(self, value: Any) -> bytes:
        """Encode a picture."""
        data = super().encode(value)
        decode_pixels(data)
        return data


class PixelMask(Pixels):
    """Decoded pictures whose colours are names of classes."""

    name = "pixels"
    names = frozenset(f"{mask}.{PIXELS_FIELD}" for mask in _MASKS)
    geometry = "nearest"

"""How images are stored: files as they are, encoded anew, or their pixels, and at what size.

The geometry of resizing is here, without pixels, so that it costs nothing to import.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from shardio.codecs.limits import MAX_PIXELS, check_max_pixels
from shardio.errors import UsageError

StoreKind = Literal["original", "raw"]


class Cut(NamedTuple):
    """A rectangle of a picture as shown, and the height and width at which it is stored."""

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """How the images of a pack are stored.

    Attributes:
        kind: "original" for image files, "raw" for pixels as NumPy arrays.
        resize: what the shorter side shrinks to, or height and width exactly, or None.
        max_side: what the longer side shrinks to, or None.
        quality: of JPEG and WebP files, which are all encoded anew; None encodes anew only what
            is resized.
        max_pixels: greatest number of pixels of an image, see shardio.codecs.limits.

    Raises:
        UsageError: a value cannot be meant.
    """

    kind: StoreKind = "original"
    resize: int | tuple[int, int] | None = None
    max_side: int | None = None
    quality: int | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        check_max_pixels(self.max_pixels)
        if self.kind not in get_args(StoreKind):
            raise UsageError(f"store={self.kind!r}: it must be 'original' or 'raw'")
        if self.resize is not None:
            self._check_resize(self.resize)
        if self.max_side is not None and (type(self.max_side) is not int or self.max_side < 1):
            raise UsageError(f"max_side={self.max_side!r}: it must be a whole number, at least 1")
        if self.resize is not None and self.max_side is not None:
            raise UsageError("resize and max_side both say how large images become; give one")
        if self.quality is not None and not (
            type(self.quality) is int and 1 <= self.quality <= 100
        ):
            raise UsageError(f"quality={self.quality!r}: it must be a whole number from 1 to 100")
        if self.kind == "raw" and self.quality is not None:
            raise UsageError("quality is of image files; store='raw' stores pixels")

    @property
    def decodes(self) -> bool:
        """Whether images have to be decoded."""
        given = (self.resize, self.max_side, self.quality)
        return self.kind == "raw" or any(value is not None for value in given)

    def cut(self, height: int, width: int) -> Cut:
        """Choose the part of a picture of height x width, and its size in the shard."""
        if isinstance(self.resize, tuple):
            rows, columns = self.resize
            kept_height = min(height, max(1, round(width * rows / columns)))
            kept_width = min(width, max(1, round(height * columns / rows)))
            top, left = (height - kept_height) // 2, (width - kept_width) // 2
            return Cut(top, left, kept_height, kept_width, self.resize)
        wanted = self.resize if self.max_side is None else self.max_side
        side = min(height, width) if self.max_side is None else max(height, width)
        if wanted is None or side <= wanted:
            return Cut(0, 0, height, width, (height, width))
        rows, columns = (max(1, round(length * wanted / side)) for length in (height, width))
        return Cut(0, 0, height, width, (rows, columns))

    def _check_resize(self, resize: int | tuple[int, int]) -> None:
        sides = resize if isinstance(resize, tuple) else (resize, resize)
        if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
            raise UsageError(
                f"resize={resize!r}: it must be a whole number for the shorter side, or a "
                "tuple (height, width), all at least 1"
            )
        if isinstance(resize, tuple) and sides[0] * sides[1] > self.max_pixels:
            raise UsageError(
                f"resize={resize!r}: more pixels than max_pixels={self.max_pixels} allows an image"
            )

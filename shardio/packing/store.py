"""How images are stored: files as they are, or their pixels, and which of these.

The geometry of resizing is here, without pixels, so that it costs nothing to import.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from shardio.codecs.probe import MAX_PIXELS
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
        kind: "original" for the files as they are, "raw" for pixels as NumPy arrays.
        resize: what the shorter side shrinks to, or height and width exactly, or None.

    Raises:
        UsageError: a value cannot be meant.
    """

    kind: StoreKind = "original"
    resize: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(StoreKind):
            raise UsageError(f"store={self.kind!r}: it must be 'original' or 'raw'")
        if self.resize is None:
            return
        sides = self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)
        if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
            raise UsageError(
                f"resize={self.resize!r}: it must be a whole number for the shorter side, or a "
                "tuple (height, width), all at least 1"
            )
        if isinstance(self.resize, tuple) and sides[0] * sides[1] > MAX_PIXELS:
            raise UsageError(
                f"resize={self.resize!r}: more pixels than the limit of {MAX_PIXELS:,} for an image"
            )
        if self.kind != "raw":
            raise UsageError(
                f"resize={self.resize!r}: files stored as they are cannot be resized; "
                "store pixels with store='raw' (--store raw), or leave resize out"
            )

    def cut(self, height: int, width: int) -> Cut:
        """Choose the part of a picture of height x width, and its size in the shard."""
        if isinstance(self.resize, tuple):
            rows, columns = self.resize
            kept_height = min(height, max(1, round(width * rows / columns)))
            kept_width = min(width, max(1, round(height * columns / rows)))
            top, left = (height - kept_height) // 2, (width - kept_width) // 2
            return Cut(top, left, kept_height, kept_width, self.resize)
        shorter = min(height, width)
        if self.resize is None or shorter <= self.resize:
            return Cut(0, 0, height, width, (height, width))
        rows, columns = (round(side * self.resize / shorter) for side in (height, width))
        return Cut(0, 0, height, width, (rows, columns))

"""Whether the data of a field are what its name says."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardio.codecs.limits import check_max_pixels
from shardio.codecs.probe import check_complete, probe_image
from shardio.codecs.registry import decode_field, kind_of
from shardio.errors import CodecError
from shardio.packing.shard import decoding

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldCheck:
    """How closely the data of fields are looked at.

    Attributes:
        deep: whether they are decoded whole; otherwise only the header and the end of images
            are looked at.
        max_pixels: greatest number of pixels of an image, see shardio.codecs.limits.

    Raises:
        UsageError: invalid max_pixels.
    """

    deep: bool
    max_pixels: int

    def __post_init__(self) -> None:
        check_max_pixels(self.max_pixels)

    def fault(self, field: str, data: memoryview) -> str | None:
        """Say why the data of a field are not sound; None if they are."""
        kind = kind_of(field)
        try:
            if self.deep and kind != "bytes":
                decode_field(field, data, max_pixels=self.max_pixels)
            elif kind == "image":
                check_complete(data, probe_image(data, max_pixels=self.max_pixels))
        except CodecError as error:
            return str(error)
        except MemoryError:
            return "this machine does not have the memory to decode it"
        return None

    def context(self) -> AbstractContextManager[None]:
        """The context of checks, which decode images if they are deep."""
        return decoding() if self.deep else nullcontext()

"""Whether the data of a field are what its name says."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from shardio.codecs.probe import check_complete, probe_image
from shardio.codecs.registry import decode_field, kind_of
from shardio.errors import CodecError
from shardio.packing.shard import decoding

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


def field_fault(field: str, data: memoryview, *, deep: bool) -> str | None:
    """Why the data of a field are not sound, or None.

    Args:
        field: name of the field.
        data: its bytes.
        deep: decode them whole; otherwise look at the header and the end of images alone.
    """
    try:
        if deep and kind_of(field) != "bytes":
            decode_field(field, data)
        elif kind_of(field) == "image":
            check_complete(data, probe_image(data))
    except CodecError as error:
        return str(error)
    return None


def maybe_decoding(deep: bool) -> AbstractContextManager[None]:
    """The context of checks, which decode images if they are deep."""
    return decoding() if deep else nullcontext()

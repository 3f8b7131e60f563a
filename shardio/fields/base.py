"""Which field is decoded how: by the last dot component of its name, as WebDataset does.

Fields of unknown kinds stay bytes. OpenCV and simplejpeg load when the first image is decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from shardio.fields.arrays import decode_cls, decode_json, decode_npy, decode_pixels, decode_txt
from shardio.fields.boundary import decoder
from shardio.fields.limits import MAX_PIXELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardio.fields.probe import Buffer

Kind = Literal["image", "pixels", "cls", "txt", "json", "npy", "bytes"]

IMAGE_FIELDS = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp"})
"""Last dot components of fields that hold images; which format, the bytes themselves say."""

LABEL_FIELD = "cls"
"""Name of the field that holds the class number of a sample, in text."""

PIXELS_FIELD = "rgb.npy"
"""Name, or end of the name, of fields that hold decoded pictures, uint8 [H, W, 3]."""

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(IMAGE_FIELDS, "image"),
    "cls": "cls",
    "index": "cls",
    "txt": "txt",
    "text": "txt",
    "json": "json",
    "npy": "npy",
}


_MASKS = frozenset({"mask", "seg", "label", "labels", "semantic", "instance", "panoptic"})


def is_mask(field: str) -> bool:
    """Tell whether the values of an image field are names of classes, which must not be blended.

    The component before the format says so, as in `mask.png`, `left.seg.png`, `mask.rgb.npy`.

    Args:
        field: name of a field of kind "image" or "pixels", in lower case.
    """
    stem = field.removesuffix(f".{PIXELS_FIELD}").removesuffix("." + field.rpartition(".")[2])
    return stem != field and stem.rpartition(".")[2] in _MASKS


def kind_of(field: str) -> Kind:
    """Say what kind of data a field holds, by the last dot component of its name.

    Args:
        field: the name of a field, in lower case, as "jpg" or "seg.png".

    Returns:
        "image", "pixels" (a decoded picture), "cls" (an integer), "txt", "json", "npy", or
        "bytes" for whatever else.
    """
    if field == PIXELS_FIELD or field.endswith("." + PIXELS_FIELD):
        return "pixels"
    return _KINDS.get(field.rpartition(".")[2], "bytes")


@decoder
def decode_field(
    field: str, data: Buffer, *, max_pixels: int = MAX_PIXELS, verified: bool = False
) -> object:
    """Decode one field of one sample.

    Args:
        field: the name of the field; it chooses the decoder.
        data: the field's bytes.
        max_pixels: greatest number of pixels of an image, see shardio.fields.limits.
        verified: whether the data have the checksum that an index recorded.

    Returns:
        By the field's kind: uint8 [H, W, 3] for an image or pixels, int, str, whatever JSON
        holds, a NumPy array, or bytes.

    Raises:
        CodecError: the bytes do not decode as what the field's name announces.
    """
    kind = kind_of(field)
    if kind == "image":
        from shardio.fields.image import decode_image  # noqa: PLC0415  loads OpenCV

        return decode_image(data, max_pixels=max_pixels, verified=verified)
    return _DECODERS[kind](data)


_DECODERS: dict[Kind, Callable[[Buffer], object]] = {
    "pixels": decode_pixels,
    "cls": decode_cls,
    "txt": decode_txt,
    "json": decode_json,
    "npy": decode_npy,
    "bytes": bytes,
}

"""The table of image formats: one entry a format, from which all else follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shardio.errors import CodecError
from shardio.fields.defaults import IMAGE
from shardio.fields.formats import FORMATS, IMAGE_FIELDS, check_complete, probe_image
from shardio.fields.image import decode_image, encode_image
from shardio.fields.probe import ImageInfo

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_format_encodes_it_recognises_and_decodes(name: str) -> None:
    data = encode_image(PIXELS, name, 95)
    info = probe_image(data)
    assert (info.format, info.height, info.width) == (name, 24, 40)
    check_complete(data, info)
    found = decode_image(data)
    if not FORMATS[name].is_lossy:
        np.testing.assert_array_equal(found, PIXELS)
    assert found.shape == PIXELS.shape
    assert IMAGE.name_of(data) == FORMATS[name].fields[0]
    assert IMAGE_FIELDS.issuperset(FORMATS[name].fields)


def test_a_new_format_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte a side, then the pixels as they are."""

    def probe(view: memoryview) -> ImageInfo:
        return ImageInfo(format="raw", height=view[4], width=view[5])

    def check(view: memoryview, info: ImageInfo) -> None:
        if len(view) < 6 + 3 * info.height * info.width:
            raise CodecError("truncated")

    def decode(
        view: memoryview, info: ImageInfo, *_: object
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        check(view, info)
        return np.frombuffer(view, np.uint8, offset=6).reshape(info.height, info.width, 3)

    entry = replace(
        FORMATS["png"], title="Raw", magic=b"RAW!", probe=probe, check=check, decode=decode
    )
    monkeypatch.setitem(FORMATS, "raw", entry)
    data = b"RAW!" + bytes([24, 40]) + PIXELS.tobytes()
    np.testing.assert_array_equal(IMAGE.decode(data), PIXELS)
    assert IMAGE.preview(data) == "raw, 24 × 40"
    with pytest.raises(CodecError, match="truncated"):
        IMAGE.check(data[:-1], deep=False)

"""Whether a JPEG is sound, by the core and by decoding."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from shardio.errors import CodecError
from shardio.fields import jpeg
from shardio.fields.formats import check_complete, find_corrupt, probe_image
from shardio.native import is_active
from shardio.native.checking import are_sound_jpegs

pytestmark = pytest.mark.skipif(not is_active(), reason="the native core was not built")

SAMPLINGS = ("444", "422", "420", "440", "411")
MUTANTS = 150  # of each picture
EXTRA = (b"\xff\xd9", b"\0", b"\xff\0", b"\xff\xd0", b"\xff\xda")


def encode(
    height: int = 93, width: int = 141, quality: int = 85, *options: int, noise: float = 40.0
) -> bytes:
    generator = np.random.default_rng(height * width)
    small = generator.normal(128, 60, (6, 8, 3)).astype(np.float32)
    pixels = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels = pixels + generator.normal(0, noise, pixels.shape)
    pixels = pixels.clip(0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality, *options])[1].tobytes()


def sampled(name: str, *options: int) -> bytes:
    factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}")
    return encode(93, 141, 85, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor, *options)


def gray() -> bytes:
    pixels = cv2.imdecode(np.frombuffer(encode(), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    return cv2.imencode(".jpg", pixels)[1].tobytes()


PICTURES = {
    **{name: sampled(name) for name in SAMPLINGS},
    "gray": gray(),
    "optimized": encode(93, 141, 85, cv2.IMWRITE_JPEG_OPTIMIZE, 1),
    "restarts": sampled("420", cv2.IMWRITE_JPEG_RST_INTERVAL, 3),
    "restarts at the end": encode(64, 64, 85, cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
    "full blocks": encode(64, 80, 100, noise=120.0),
    "empty blocks": encode(200, 300, 1, noise=0.0),
    "one pixel": encode(1, 1),
}


def decodes(data: bytes) -> bool:
    """Tell whether a file passes without the core."""
    try:
        info = probe_image(data)
        check_complete(data, info)
        jpeg.check_jpeg_data(memoryview(data), info)
    except CodecError:
        return False
    return True


def is_sound(data: bytes | bytearray) -> bool:
    (answer,) = are_sound_jpegs([memoryview(data)])
    return bool(answer)


def mutants(data: bytes) -> Iterator[bytes]:
    generator = np.random.default_rng(len(data))
    for _ in range(MUTANTS):
        place = int(generator.integers(2, len(data)))
        changed = bytearray(data)
        changed[place] ^= 1 << int(generator.integers(8))
        yield bytes(changed)
        yield data[:place] + data[place + 1 :]
        yield data[:place] + EXTRA[place % len(EXTRA)] + data[place:]
        yield data[:place] + b"\xff\xd9"


@pytest.mark.parametrize("name", PICTURES)
def test_the_core_takes_the_common_kinds(name: str) -> None:
    assert is_sound(PICTURES[name])
    assert is_sound(PICTURES[name] + b"a thumbnail")


@pytest.mark.parametrize("name", PICTURES)
def test_what_the_core_takes_decodes(name: str) -> None:
    taken = [data for data in mutants(PICTURES[name]) if is_sound(data)]
    assert 0 < len(taken) < 2 * MUTANTS
    assert all(decodes(data) for data in taken)


def test_files_together_have_the_answers_that_they_have_alone() -> None:
    files = [data for picture in PICTURES.values() for data in [picture, *mutants(picture)][::7]]
    np.random.default_rng(0).shuffle(files)
    together = are_sound_jpegs([memoryview(data) for data in files])
    assert together.tolist() == [is_sound(data) for data in files]
    assert 0 < together.sum() < len(files)


@pytest.mark.parametrize("sampling", [0x00, 0x51])
def test_a_sampling_that_is_none_goes_the_python_way(sampling: int) -> None:
    data = bytearray(PICTURES["gray"])
    data[data.index(b"\xff\xc0") + 11] = sampling
    assert not is_sound(data)


def test_a_progressive_picture_goes_the_python_way() -> None:
    data = encode(93, 141, 85, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert not is_sound(data)
    assert find_corrupt([(memoryview(data), probe_image(data))]) is None


def test_a_damaged_picture_is_refused_with_the_core() -> None:
    data = PICTURES["420"]
    cut = data[: len(data) // 2] + data[-2:]
    pictures = [(memoryview(each), probe_image(each)) for each in (data, cut, data)]
    found = find_corrupt(pictures)
    assert found is not None
    assert found[0] == 1
    assert "do not decode" in str(found[1])

"""What an image may ask for in memory and work, and the argument that lifts each limit."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import zlib
from functools import cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from shardio.errors import CodecError
from shardio.fields.formats import probe_image
from shardio.fields.image import decode_image
from shardio.fields.limits import MAX_PIXELS

if TYPE_CHECKING:
    from pathlib import Path

FREE = 1 << 24  # pixels that may compress as well as they like


def png(height: int, width: int, packed: bytes, *, depth: int, colour: int) -> bytes:
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
        (b"IDAT", packed),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@cache
def zeros(size: int) -> bytes:
    """Zeros, as small as deflate makes them."""
    packing = zlib.compressobj(9)
    sizes = [min(1 << 24, size - start) for start in range(0, size, 1 << 24)]
    return b"".join([*(packing.compress(bytes(some)) for some in sizes), packing.flush()])


def empty_png(height: int, width: int, *, depth: int, colour: int = 0) -> bytes:
    row = (width * depth * (3 if colour == 2 else 1) + 7) // 8
    return png(height, width, zeros(height * (1 + row)), depth=depth, colour=colour)


def run_length_bmp(height: int, width: int) -> bytes:
    """A BMP of one colour that ends before its first row."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 2, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1080, 0, 0, 1078) + header + bytes(1024) + b"\0\1"


def one_colour(suffix: str, height: int, width: int, *options: int) -> bytes:
    return cv2.imencode(suffix, np.full((height, width, 3), 200, np.uint8), options)[1].tobytes()


def with_scans(height: int, width: int, scans: int) -> bytes:
    """A progressive JPEG of so many scans, all but the first ten of them the last one again."""
    data = one_colour(".jpg", height, width, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (scans - 10) + data[-2:]


TOO_MUCH = {
    "few bytes of PNG": lambda: empty_png(13_377, 13_377, depth=1),
    "few bytes of BMP": lambda: run_length_bmp(13_377, 13_377),
    "many bytes of PNG": lambda: png(8, 8, zeros(90_000_000), depth=8, colour=2),
    "many scans": lambda: with_scans(512, 512, 128),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_work_beyond_a_limit_is_refused_before_it_is_done_and_max_pixels_lifts_it(
    name: str,
) -> None:
    data = TOO_MUCH[name]()
    with pytest.raises(CodecError, match="if the file is trusted, max_pixels=") as raised:
        probe_image(data)
    needed = int(re.findall(r"max_pixels=(\d+)", str(raised.value))[0])
    assert needed > MAX_PIXELS
    assert probe_image(data, max_pixels=needed).width >= 8
    with pytest.raises(CodecError, match=f"max_pixels={needed}"):
        probe_image(data, max_pixels=needed - 1)


def test_a_lower_max_pixels_refuses_pixels_and_leaves_the_other_limits() -> None:
    for data in (with_scans(64, 64, 127), empty_png(64, 64, depth=1)):
        assert probe_image(data, max_pixels=64 * 64).height == 64
        with pytest.raises(CodecError, match=r"the limit of 4095; .*max_pixels=4096 lets"):
            probe_image(data, max_pixels=64 * 64 - 1)


def test_scans_in_metadata_and_behind_the_end_are_not_counted() -> None:
    data = with_scans(64, 64, 127)
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 4000) + b"\xff\xda\0\2" * 1000
    fake = b"\xff\xfe\0\4\xff\xd9"  # no end of the image
    scan = data.rindex(b"\xff\xda")
    probe_image(data[:2] + comment + data[2:scan] + comment + data[scan:] + b"\xff\xda" * 1000)
    with pytest.raises(CodecError, match="a JPEG of 128 scans"):
        probe_image(data[:scan] + fake + data[scan:-2] + data[scan:])


def test_endless_segments_between_scans_are_refused() -> None:
    data = with_scans(8, 8, 10)
    with pytest.raises(CodecError, match="more than 10000 segments between its scans"):
        probe_image(data[:-2] + b"\xff\xfe\0\2" * 10_001 + data[-2:])


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", ()),
        (".jpg", ()),
        (".jpg", (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
        (".webp", (cv2.IMWRITE_WEBP_QUALITY, 101)),
        (".webp", (cv2.IMWRITE_WEBP_QUALITY, 50)),
        (".bmp", ()),
    ],
)
def test_one_colour_of_15_megapixels_passes(suffix: str, options: tuple[int, ...]) -> None:
    pixels = decode_image(one_colour(suffix, 3000, 5000, *options))
    assert pixels.shape == (3000, 5000, 3)
    assert abs(int(pixels.min()) - 200) <= 2
    assert abs(int(pixels.max()) - 200) <= 2


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_an_empty_mask_of_16_megapixels_passes(depth: int) -> None:
    assert not decode_image(empty_png(1 << 12, 1 << 12, depth=depth)).any()


def test_an_empty_mask_of_8_bits_passes_at_any_size() -> None:
    assert probe_image(empty_png(8192, 8192, depth=8)).height == 8192
    assert probe_image(empty_png(5000, 5000, depth=8, colour=2)).height == 5000


@pytest.mark.parametrize("level", [0, 1, 9])
def test_pixels_that_do_not_compress_pass(level: int) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (64, 1 + 64 * 8), np.uint8)
    rows[:, 0] = 0
    packed = zlib.compress(rows.tobytes(), level)
    assert decode_image(png(64, 64, packed, depth=16, colour=6)).shape == (64, 64, 3)


def test_real_photos_pass(shared_data: Path) -> None:
    files = [*(shared_data / "large").iterdir(), *(shared_data / "photos").rglob("*.*")]
    for path in files:
        probe_image(path.read_bytes())
    assert len(files) > 500


def test_memory_that_the_machine_does_not_have_is_no_bad_image(tmp_path: Path) -> None:
    """A sound image under a limit of memory: of the process, not of the bytes."""
    code = """
import resource, sys
from shardio.fields.image import decode_image
data = open(sys.argv[1], "rb").read()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 20_000_000, resource.RLIM_INFINITY))
try:
    decode_image(data)
except MemoryError:
    print("MemoryError")
"""
    for number, suffix in enumerate([".png", ".jpg", ".webp", ".bmp"]):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(one_colour(suffix, 3000, 5000))
        command = [sys.executable, "-c", code, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("MemoryError\n", ""), suffix


def test_decoding_takes_a_small_multiple_of_the_pixels(tmp_path: Path) -> None:
    code = """
import resource, sys
from shardio.fields.image import decode_image
data = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode_image(data)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    pixels = 5000 * 5000
    for suffix in (".png", ".jpg", ".bmp"):
        path = tmp_path / f"image{suffix}"
        path.write_bytes(one_colour(suffix, 5000, 5000))
        command = [sys.executable, "-c", code, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) * 1024 < 7 * pixels + 80_000_000, suffix

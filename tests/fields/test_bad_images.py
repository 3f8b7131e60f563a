"""Files that broke other decoders, if they are at hand: from the test suites of Pillow and
libjpeg-turbo and from AFL's corpus, in a folder beside the repository.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from shardio.errors import CodecError
from shardio.fields.formats import probe_image
from shardio.fields.image import decode_image

FOLDER = Path(__file__).parents[2] / "../shared/data/bad-images"
PILLOW = FOLDER / "pillow"
FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())

pytestmark = pytest.mark.skipif(not FILES, reason="the folder of bad images is not at hand")

REFUSED = {
    "bmp_b_badwidth.bmp": "announces -127 x 64 pixels",
    "bmp_b_reallybig.bmp": "3000000 x 2000000 pixels, more than the limit",
    "bmp_b_shortfile.bmp": "truncated BMP: 273 of 1086 bytes",
    "broken.png": "truncated PNG",
    "broken_data_stream.png": "truncated PNG",
    "crash-0c7e0e8e11ce787078f00b5b0ca409a167f070e0.tif": "a TIFF",
    "crash-86214e58da443d2b80820cff9677a38a33dcbbca.tif": "a TIFF",
    "decompression_bomb.gif": "a GIF",
    "decompression_bomb.ico": "an icon",
    "hopper_unknown_pixel_mode.tif": "a TIFF",
    "libtiff_segfault.tif": "a TIFF",
    "oom-225817ca0f8c663be7ab4b9e717b02c661e66834.tif": "a TIFF",
    "pngtest_bad.png.bin": "not a JPEG, PNG, WebP or BMP",
    "seek_too_large.tif": "not a JPEG, PNG, WebP or BMP",
    "timeout-6646305047838720": "a TIFF",
    "truncated_end_chunk.png": "truncated PNG: it ends before its IEND chunk",
    "truncated_image.png": "truncated PNG: its chunk b'IDAT' reaches past the end",
    "truncated_jpeg.jpg": "Premature end of JPEG file",
    "zero_width.gif": "a GIF",
}

HARMLESS = [
    "broken_exif_dpi.jpg",
    "exif_typeerror.jpg",
    "hopper_16bit_qtables.jpg",
    "hopper_gray.jpg",
    "hopper_idat_after_image_end.png",
    "icc-after-SOF.jpg",
    "icc_profile_big.jpg",
    "invalid-exif.jpg",
    "jpeg_ff00_header.jpg",
    "junk_jpeg_header.jpg",
    "multiple_exif.jpg",
    "photoshop-200dpi-broken.jpg",
    "pil_sample_cmyk.jpg",
    "png_decompression_dos.png",
    "sugarshack_bad_mpo_header.jpg",
    "truncated_app14.jpg",
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_bad_image_decodes_or_raises_a_codec_error_in_silence(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start = time.perf_counter()
    try:
        pixels = decode_image(path.read_bytes())
    except CodecError as error:
        assert str(error)  # noqa: PT017  it may or may not be raised
    else:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2:] == (3,)
    assert capfd.readouterr() == ("", "")
    assert time.perf_counter() - start < 5


def test_no_bad_image_takes_much_memory() -> None:
    code = """
import pathlib, resource, sys
from shardio.fields.image import decode_image
from shardio.errors import CodecError
for path in pathlib.Path(sys.argv[1]).rglob("*"):
    if path.is_file():
        try:
            decode_image(path.read_bytes())
        except CodecError:
            pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    command = [sys.executable, "-c", code, str(FOLDER)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 1_500_000_000


@pytest.mark.parametrize("name", REFUSED)
def test_truncated_broken_and_huge_files_are_refused(name: str) -> None:
    with pytest.raises(CodecError, match=REFUSED[name]):
        decode_image((PILLOW / name).read_bytes())


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_odd_but_harms_no_pixel_decodes(name: str) -> None:
    data = (PILLOW / name).read_bytes()
    info = probe_image(data)
    assert decode_image(data).shape == (info.height, info.width, 3)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_pictures_stored_in_any_orientation_look_alike(orientation: int) -> None:
    upright = decode_image((PILLOW / "hopper.jpg").read_bytes())
    data = (PILLOW / f"hopper_orientation_{orientation}.jpg").read_bytes()
    assert probe_image(data).orientation == orientation
    assert np.abs(decode_image(data).astype(int) - upright).mean() < 6


def test_cmyk_looks_like_its_rgb_twin() -> None:
    cmyk = decode_image((PILLOW / "pil_sample_cmyk.jpg").read_bytes())
    rgb = decode_image((PILLOW / "pil_sample_rgb.jpg").read_bytes())
    assert np.abs(cmyk.astype(int) - rgb).mean() < 6

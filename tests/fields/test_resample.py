"""Resizing with antialiasing and to nearest pixels is Pillow's, whoever does it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from shardio.fields import geometry, resample
from shardio.fields.formats import probe_image
from shardio.fields.geometry import Crop, Resampling
from shardio.fields.image import DecodedPart, encode_image, write_crop, write_part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

FILTERS: dict[str, Any] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@pytest.fixture(params=["torch", "numpy"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Resample as on this machine, or as on one whose processor torch has no kernel for."""
    resample._torch_kernel.cache_clear()
    if request.param == "numpy":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    yield request.param
    resample._torch_kernel.cache_clear()


def side(rng: np.random.Generator, longest: int = 200) -> int:
    return int(2 ** rng.uniform(0, np.log2(longest)))


def noise(rng: np.random.Generator, height: int, width: int) -> Pixels:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def written(pixels: Pixels, crop: Crop, size: tuple[int, int]) -> NDArray[np.int64]:
    out = np.zeros((*size, 3), np.uint8)
    write_crop(pixels, crop, out)
    return out.astype(np.int64)


def by_pillow(pixels: Pixels, crop: Crop, size: tuple[int, int]) -> NDArray[np.int64]:
    """Cut, resize, cut again and mirror, one after the other."""
    bottom, right = crop.top + crop.height, crop.left + crop.width
    part = Image.fromarray(np.ascontiguousarray(pixels)).crop((crop.left, crop.top, right, bottom))
    height, width = crop.resized or size
    resized = np.array(part.resize((width, height), FILTERS[crop.resampling.interpolation]))
    top, left = crop.window
    kept = resized[top : top + size[0], left : left + size[1]]
    return (kept[:, ::-1] if crop.flip else kept).astype(np.int64)


def by_torch(pixels: Pixels, crop: Crop, size: tuple[int, int]) -> NDArray[np.int64]:
    """Do the same with what torchvision calls. Pillow clips cubic overshoots in another order."""
    bottom, right = crop.top + crop.height, crop.left + crop.width
    part = torch.from_numpy(pixels[crop.top : bottom, crop.left : right].copy())
    images = part.permute(2, 0, 1)[None]
    how = crop.resampling.interpolation
    resized = torch.nn.functional.interpolate(
        images, crop.resized or size, mode=how, antialias=True
    )
    top, left = crop.window
    kept = resized[0].permute(1, 2, 0)[top : top + size[0], left : left + size[1]].numpy()
    return (kept[:, ::-1] if crop.flip else kept).astype(np.int64)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.usefixtures("engine")
def test_a_picture_is_resized_as_by_pillow_or_torch_to_one_grey_level(
    interpolation: Any,
) -> None:
    rng = np.random.default_rng(0)
    for number in range(300):
        height, width, size = side(rng), side(rng), (side(rng), side(rng))
        pixels = noise(rng, height, width)
        top, left = int(rng.integers(height)), int(rng.integers(width))
        crop = Crop(
            top,
            left,
            int(rng.integers(1, height - top + 1)),
            int(rng.integers(1, width - left + 1)),
            bool(number % 2),
            resampling=Resampling(interpolation, antialias=True),
        )
        if number % 3:
            above, before, below, behind = rng.integers(0, 60, 4).tolist()
            resized = size[0] + above + below, size[1] + before + behind
            crop = crop._replace(resized=resized, window=(above, before))
        expected = by_torch if interpolation == "bicubic" else by_pillow
        apart = written(pixels, crop, size) - expected(pixels, crop, size)
        assert np.abs(apart).max() <= (interpolation != "nearest"), (pixels.shape, crop, size)


@pytest.mark.usefixtures("engine")
def test_sides_that_happen_to_be_as_long_as_what_is_computed_are_resized() -> None:
    """A window can end at row 100 of a picture of 100 rows that is resized to 110."""
    pixels = noise(np.random.default_rng(0), 100, 100)
    for resized, window in (((110, 110), (90, 90)), ((110, 100), (90, 0)), ((100, 110), (0, 90))):
        size = (10 if window[0] else 100, 10 if window[1] else 100)
        crop = Crop(0, 0, 100, 100, False, resized, window, Resampling(antialias=True))
        assert np.abs(written(pixels, crop, size) - by_pillow(pixels, crop, size)).max() <= 1


@pytest.mark.usefixtures("engine")
def test_a_picture_that_keeps_its_size_keeps_its_pixels() -> None:
    pixels = noise(np.random.default_rng(0), 30, 40)
    for interpolation in ("nearest", "bilinear", "bicubic"):
        crop = Crop(3, 4, 20, 30, True, (20, 30), (5, 6), Resampling(interpolation, antialias=True))
        expected = pixels[8:15, 10:18][:, ::-1]
        np.testing.assert_array_equal(written(pixels, crop, (7, 8)), expected)


@pytest.mark.usefixtures("engine")
def test_any_view_of_a_picture_is_resized_like_a_copy() -> None:
    whole = noise(np.random.default_rng(0), 40, 50)
    locked = whole.copy()
    locked.flags.writeable = False
    crop = Crop(2, 3, 30, 31, resampling=Resampling("bicubic", antialias=True))
    views = whole.transpose(1, 0, 2), whole[::-1], whole[:, ::-1], whole[5:, 7:], locked
    for view in views:
        found = written(view, crop._replace(height=20), (9, 7))
        expected = written(view.copy(), crop._replace(height=20), (9, 7))
        np.testing.assert_array_equal(found, expected)


def between_edges(axis: geometry.Axis) -> NDArray[np.bool_]:
    """Tell where the centre of a pixel of the slot lies on no edge between two of the source."""
    unit = 2 * axis.resized
    centres = axis.offset * unit + (2 * (axis.window + np.arange(axis.kept)) + 1) * axis.length
    return np.asarray(centres % (unit * axis.shrink) != 0)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("shrink", [2, 3, 5])
def test_a_smaller_picture_follows_the_crop_of_a_larger(
    interpolation: Any, antialias: bool, shrink: int
) -> None:
    """A picture at 1/k of the size that the crop was chosen for; its box begins at fractions."""
    rng = np.random.default_rng(shrink)
    small = noise(rng, 60, 70)
    info = probe_image(encode_image(np.zeros((60 * shrink, 70 * shrink, 3), np.uint8), "png", 0))
    resampling, compared = Resampling(interpolation, antialias), 0
    for number in range(40):
        top, left = rng.integers(0, 20 * shrink, 2).tolist()
        height, width = rng.integers(20 * shrink, 40 * shrink, 2).tolist()
        crop = Crop(top, left, height, width, bool(number % 2), (40, 30), (7, 5), resampling)
        out = np.zeros((20, 21, 3), np.uint8)
        write_part(DecodedPart(small, shrink), info, crop, out)
        box = tuple(x / shrink for x in (left, top, left + width, top + height))
        resized = Image.fromarray(small).resize((30, 40), FILTERS[interpolation], box=box)
        expected = np.array(resized)[7:27, 5:26].astype(int)
        apart = np.abs(expected[:, ::-1] if crop.flip else expected) - out
        if interpolation == "nearest":
            rows, columns = geometry.axes(crop, (20, 21), shrink)
            clear = between_edges(rows)[:, None] & between_edges(columns)
            assert not apart[clear[:, ::-1] if crop.flip else clear].any()
            compared += int(clear.sum())
        elif antialias:
            assert np.abs(apart).max() <= 1
        elif max(height, width) <= 20 * shrink:  # enlarged, where averaging changes nothing
            assert np.abs(apart).max() <= 8
    assert interpolation != "nearest" or compared > 8_000


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_of_a_long_strip_only_what_the_slot_shows_is_computed(interpolation: Any) -> None:
    """Resized as a whole, this one would take six gigabytes."""
    strip = noise(np.random.default_rng(0), 1, 65_000)
    resampling = Resampling(interpolation, antialias=True)
    crop = Crop(0, 0, 1, 65_000, False, (256, 256 * 65_000), (16, 256 * 32_500 - 112), resampling)
    around = Crop(0, 32_490, 1, 20, False, (256, 256 * 20), (16, 256 * 10 - 112), resampling)
    apart = written(strip, crop, (224, 224)) - by_torch(strip, around, (224, 224))
    assert np.abs(apart).max() <= 1


def test_resizing_starts_no_threads_and_gives_the_same_in_any_thread() -> None:
    """As those of torch would multiply the threads of a loader."""
    if not Path("/proc/self/task").exists():
        pytest.skip("threads are counted in /proc")
    code = """
import os, threading
import numpy as np, torch
from shardio.fields.geometry import Crop, Resampling
from shardio.fields.image import write_crop
pixels = np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8)
torch.set_num_threads(8)
before, found, most = len(os.listdir("/proc/self/task")), [], []
def work():
    for name in ("bilinear", "bicubic"):
        for crop in (Crop(0, 0, 500, 700), Crop(3, 4, 300, 300), Crop(0, 0, 224, 224)):
            out = np.empty((224, 224, 3), np.uint8)
            resampling = Resampling(name, antialias=True)
            write_crop(pixels, Crop(crop.top, crop.left, crop.height, crop.width,
                                    resampling=resampling), out)
            found.append(out.tobytes())
    most.append(len(os.listdir("/proc/self/task")))
work()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(max(most) - before <= 4, len(set(found)))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "8"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["True", "5"]  # a copy is the same by any filter


def test_torch_is_loaded_by_what_averages_only() -> None:
    code = """
import sys
import numpy as np
from shardio.fields.geometry import Crop, Resampling
from shardio.fields.image import write_crop
pixels, out = np.zeros((9, 9, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
for resampling in (Resampling(), Resampling("nearest", True), Resampling("bicubic")):
    write_crop(pixels, Crop(0, 0, 9, 9, resampling=resampling), out)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

"""Packing pixels: `store="raw"` and `resize`."""

from __future__ import annotations

import io
import json
import multiprocessing
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from webdataset.autodecode import Decoder

import shardio
from shardio.fields.image import decode_image, one_opencv_thread
from shardio.fields.limits import MAX_PIXELS
from shardio.indexing.manifest import index_path, read_manifest
from shardio.indexing.shard_index import read_index
from shardio.packing.plan import ImageEncoding
from shardio.testing import make_images, read_members

Pixels = NDArray[np.uint8]
SIDES = st.integers(1, 70)


def picture(height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_picture(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def arrays(folder: Path) -> dict[str, Pixels]:
    return {
        name.removesuffix(".rgb.npy"): np.load(io.BytesIO(data), allow_pickle=False)
        for name, data in read_members(folder).items()
        if name.endswith(".rgb.npy")
    }


def stored(tmp_path: Path, pixels: Pixels, resize: int | tuple[int, int] | None) -> Pixels:
    write_picture(tmp_path / "in/a.png", pixels)
    shardio.pack(tmp_path / "in", tmp_path / "out", shards=1, store="raw", resize=resize)
    return arrays(tmp_path / "out")["a"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of images of one size, and one of other formats, sizes and a long key."""
    source = make_images(tmp_path_factory.mktemp("mixed") / "in", classes=3, per_class=20, size=24)
    for extension in ("jpg", "webp", "bmp"):
        write_picture(source / f"class03/a.{extension[0]}.{extension}", picture(30, 41))
    write_picture(source / f"class03/{'long' * 15}/{'long' * 15}.png", picture(9, 11))
    turned = cv2.imencode(".jpg", picture(40, 20))[1].tobytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (source / "class03/turned.jpg").write_bytes(turned[:2] + segment + turned[2:])
    return source


def test_pixels_are_those_of_decode_image(mixed: Path, tmp_path: Path) -> None:
    summary = shardio.pack(mixed, tmp_path / "out", shards=4, store="raw")
    assert (summary.samples, summary.classes, summary.image_sizes) == (65, 4, 4)
    assert read_manifest(tmp_path / "out").fields == ("cls", "rgb.npy")
    found = arrays(tmp_path / "out")
    assert len(found) == 65
    for path in mixed.rglob("*.*"):
        key = str(path.relative_to(mixed).with_suffix("")).replace(".", "_")
        assert np.array_equal(found[key], decode_image(path.read_bytes()))
    assert found["class03/turned"].shape == (20, 40, 3)


def test_members_are_npy_files_as_numpy_writes_them(mixed: Path, tmp_path: Path) -> None:
    shardio.pack(mixed, tmp_path / "out", shards=4, store="raw")
    for name, data in read_members(tmp_path / "out").items():
        if name.endswith(".cls"):
            continue
        array = np.load(io.BytesIO(data), allow_pickle=False)
        expected = io.BytesIO()
        np.lib.format.write_array(expected, np.ascontiguousarray(array), version=(1, 0))
        assert data == expected.getvalue()
        assert array.flags.c_contiguous
        assert b"'|u1'" in data[:128]


@pytest.mark.parametrize("labels", [True, False])
def test_images_of_one_size_lie_at_one_stride(mixed: Path, tmp_path: Path, labels: bool) -> None:
    """Whatever the lengths of their keys."""
    out = tmp_path / "out"
    summary = shardio.pack(mixed, out, shards=4, store="raw", resize=(9, 7), labels=labels)
    assert summary.image_sizes == 1
    for shard in read_manifest(out).shards:
        index = read_index(index_path(out / shard.name))
        column = index.fields.index("rgb.npy")
        assert len({*np.diff(index.offsets[:, column]).tolist()}) == 1
        assert {*index.sizes[:, column].tolist()} == {128 + 9 * 7 * 3}
        start, stride = index.offsets[:2, column].tolist()
        whole = np.memmap(out / shard.name, np.uint8, "r")
        gathered = np.lib.stride_tricks.as_strided(
            whole[start + 128 :], (shard.samples, 9, 7, 3), (stride - start, 21, 3, 1)
        )
        found = arrays(out)
        for row in range(shard.samples):
            assert np.array_equal(gathered[row], found[index.key(row)])


def test_webdataset_decodes_the_same_arrays(
    mixed: Path, tmp_path: Path, read_with_webdataset: Callable[[Path], list[dict[str, Any]]]
) -> None:
    shardio.pack(mixed, tmp_path / "out", shards=1, store="raw")
    samples = read_with_webdataset(tmp_path / "out/shard-000000.tar")
    expected = arrays(tmp_path / "out")
    assert {sample["__key__"] for sample in samples} == expected.keys()
    for sample in map(Decoder([]), samples):
        assert np.array_equal(sample["rgb.npy"], expected[sample["__key__"]])
        assert sample["__key__"].startswith(f"class{sample['cls']:02d}/")


@pytest.mark.parametrize("side", [3, 12, 40])
def test_an_exact_size_keeps_the_centre_of_wide_and_tall_pictures(
    tmp_path: Path, side: int
) -> None:
    wide = np.zeros((12, 60, 3), np.uint8)
    wide[:, 24:36] = 200
    for name, pixels in {"wide": wide, "tall": wide.transpose(1, 0, 2)}.items():
        centre = stored(tmp_path / name, pixels, (side, side))
        assert centre.shape == (side, side, 3)
        assert np.all(centre == 200)


@given(SIDES, SIDES, SIDES, SIDES)
def test_a_cut_for_an_exact_size_is_the_largest_centred_one(
    height: int, width: int, rows: int, columns: int
) -> None:
    cut = ImageEncoding(store="raw", resize=(rows, columns)).crop(height, width)
    assert cut.size == (rows, columns)
    assert cut.height == height or cut.width == width
    assert 1 <= cut.height <= height
    assert 1 <= cut.width <= width
    assert height - cut.height - 2 * cut.top in {0, 1}
    assert width - cut.width - 2 * cut.left in {0, 1}
    ideal = min(height, width * rows / columns), min(width, height * columns / rows)
    assert abs(cut.height - ideal[0]) <= 0.5 or cut.height == 1
    assert abs(cut.width - ideal[1]) <= 0.5 or cut.width == 1


@given(SIDES, SIDES, SIDES)
def test_a_shorter_side_shrinks_and_never_grows(height: int, width: int, side: int) -> None:
    cut = ImageEncoding(store="raw", resize=side).crop(height, width)
    assert cut[:4] == (0, 0, height, width)
    if min(height, width) <= side:
        assert cut.size == (height, width)
    else:
        assert min(cut.size) == side
        assert abs(max(cut.size) - side * max(height, width) / min(height, width)) <= 0.5


RESIZED: list[tuple[tuple[int, int], int | tuple[int, int], tuple[slice, slice], int | None]] = [
    ((40, 60), 20, (slice(40), slice(60)), cv2.INTER_AREA),
    ((60, 40), 33, (slice(60), slice(40)), cv2.INTER_AREA),
    ((40, 60), 40, (slice(40), slice(60)), None),
    ((40, 60), 50, (slice(40), slice(60)), None),
    ((40, 60), (20, 20), (slice(40), slice(10, 50)), cv2.INTER_AREA),
    ((60, 40), (10, 20), (slice(20, 40), slice(40)), cv2.INTER_AREA),
    ((40, 60), (40, 20), (slice(40), slice(20, 40)), None),
    ((40, 60), (80, 80), (slice(40), slice(10, 50)), cv2.INTER_LINEAR),
    ((1, 90), (2, 3), (slice(1), slice(44, 46)), cv2.INTER_LINEAR),
    ((400, 700), (300, 400), (slice(400), slice(83, 616)), cv2.INTER_AREA),
]


@pytest.mark.parametrize(("size", "resize", "part", "how"), RESIZED)
def test_resizing_averages_when_it_shrinks_and_interpolates_when_it_enlarges(
    tmp_path: Path,
    size: tuple[int, int],
    resize: int | tuple[int, int],
    part: tuple[slice, slice],
    how: int | None,
) -> None:
    pixels = picture(*size)
    found = stored(tmp_path, pixels, resize)
    expected: NDArray[Any] = pixels[part]
    if how is not None:
        expected = cv2.resize(expected, found.shape[1::-1], interpolation=how)
    assert np.array_equal(found, expected)


def test_a_turned_photo_is_resized_as_shown(mixed: Path, tmp_path: Path) -> None:
    shardio.pack(mixed, tmp_path / "out", shards=1, store="raw", resize=10)
    shown = decode_image((mixed / "class03/turned.jpg").read_bytes())
    expected = cv2.resize(shown, (20, 10), interpolation=cv2.INTER_AREA)
    assert np.array_equal(arrays(tmp_path / "out")["class03/turned"], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"store": "png"}, "store='png': it must be 'original' or 'raw'"),
        ({"resize": 8, "max_side": 9}, "resize and max_side exclude each other"),
        ({"max_side": 0}, "max_side=0: it must be a whole number, at least 1"),
        ({"quality": 101}, "quality=101: it must be a whole number from 1 to 100"),
        ({"store": "raw", "quality": 9}, "quality: it applies to image files; leave it out"),
        ({"store": "raw", "resize": 0}, "resize=0: it must be a whole number for the shorter"),
        ({"store": "raw", "resize": (8, -1)}, r"resize=\(8, -1\): it must be"),
        ({"store": "raw", "resize": (8, 8, 3)}, r"resize=\(8, 8, 3\): it must be"),
        ({"store": "raw", "resize": [8, 8]}, r"resize=\[8, 8\]: .* a tuple \(height, width\)"),
        ({"store": "raw", "resize": True}, "resize=True: it must be"),
        ({"store": "raw", "resize": 8.5}, r"resize=8\.5: it must be"),
        (
            {"store": "raw", "resize": (MAX_PIXELS, 2)},
            "more pixels than max_pixels=",
        ),
    ],
)
def test_a_store_that_cannot_be_meant_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(shardio.UsageError, match=message):
        shardio.pack(tmp_path / "in", tmp_path / "out", shards=1, **options)


def spoil(path: Path) -> None:
    """Change a byte in the middle, which files stored as they are may have."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def test_an_image_that_does_not_decode_is_found_at_packing(tmp_path: Path) -> None:
    source = make_images(tmp_path / "in", classes=2, per_class=90, size=160)
    spoil(source / "class01/image0070.png")
    assert shardio.pack(source, tmp_path / "files", shards=2).samples == 180
    with pytest.raises(shardio.PackError, match=r"class01/image0070\.png: .*; fix, rename or"):
        shardio.pack(source, tmp_path / "out", shards=1, store="raw")
    assert not (tmp_path / "out").exists()
    summary = shardio.pack(source, tmp_path / "out", shards=2, store="raw", on_error="skip")
    assert (summary.samples, summary.skipped) == (179, 1)
    (row,) = (tmp_path / "out/skipped.jsonl").read_text().splitlines()
    assert json.loads(row)["path"] == "class01/image0070.png"
    assert "class01/image0070" not in arrays(tmp_path / "out")


def test_pixels_whose_longer_field_needs_a_pax_header_are_read_as_all_others(
    tmp_path: Path,
) -> None:
    source = make_images(tmp_path / "in", classes=0, per_class=3)
    shardio.pack(source, tmp_path / "short", shards=1, store="raw", shuffle=False)
    long = source / f"image0001{'n' * 85}.png"
    (source / "image0001.png").rename(long)
    shardio.pack(source, tmp_path / "out", shards=1, store="raw", shuffle=False)
    with tarfile.open(tmp_path / "out/shard-000000.tar") as tar:
        assert f"{long.stem}.rgb.npy" in tar.getnames()
    short, found = (
        [*shardio.ShardDataset(tmp_path / name, batch_size=3)] for name in ("short", "out")
    )
    assert found[0]["__key__"] == ["image0000", long.stem, "image0002"]
    assert torch.equal(found[0]["image"], short[0]["image"])


@pytest.mark.parametrize("jobs", [2, 4])
def test_the_number_of_jobs_changes_no_byte(mixed: Path, tmp_path: Path, jobs: int) -> None:
    shardio.pack(mixed, tmp_path / "a", shards=5, store="raw", resize=(300, 310), jobs=1)
    shardio.pack(mixed, tmp_path / "b", shards=5, store="raw", resize=(300, 310), jobs=jobs)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_tasks_hold_all_that_shards_depend_on(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that share nothing with this one write the same bytes."""
    shardio.pack(mixed, tmp_path / "here", shards=3, store="raw", resize=30, jobs=1)
    spawn = multiprocessing.get_context("spawn")
    monkeypatch.setattr("shardio.packing.engine.multiprocessing.get_context", lambda: spawn)
    shardio.pack(mixed, tmp_path / "there", shards=3, store="raw", resize=30, jobs=2)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


KILLED_PACK = """
import os, signal, sys
import shardio

def start(_):
    calls = iter(range(30))
    return lambda _: next(calls, None) is None and os.kill(os.getpid(), signal.SIGKILL)

shardio.pack(*sys.argv[1:], shards=2, store="raw", progress=start, jobs=1)
"""


@pytest.mark.parametrize("options", [{"store": "raw"}, {"store": "raw", "resize": 6}, {}])
def test_a_killed_pack_is_finished_by_the_same_or_another_one(
    mixed: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED_PACK, str(mixed), str(out)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [*out.iterdir()]
    shardio.pack(mixed, out, shards=2, **options)
    shardio.pack(mixed, tmp_path / "whole", shards=2, **options)
    assert contents(out) == contents(tmp_path / "whole")


def test_opencv_has_one_thread_until_the_last_pack_ends(mixed: Path, tmp_path: Path) -> None:
    before = cv2.getNumThreads()
    seen = []

    def start(_: int) -> Callable[[int], None]:
        return lambda _: seen.append(cv2.getNumThreads())

    try:
        cv2.setNumThreads(3)
        shardio.pack(mixed, tmp_path / "a", shards=2, store="raw", progress=start, jobs=1)
        assert {*seen} == {1}
        assert cv2.getNumThreads() == 3
        with one_opencv_thread():
            shardio.pack(mixed, tmp_path / "b", shards=2, store="raw")
            assert cv2.getNumThreads() == 1
        assert cv2.getNumThreads() == 3
        shardio.pack(mixed, tmp_path / "c", shards=2)
        with pytest.raises(shardio.PackError):
            shardio.pack(mixed, tmp_path / "a", shards=2, store="raw")
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)

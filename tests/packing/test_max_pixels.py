"""The limit of pixels, and its argument, wherever images are looked at."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

import shardio
from shardio.cli import commands
from shardio.testing import make_images, make_shard

LARGE = r"6 x 4 pixels, more than the limit of 23; .*max_pixels=24 lets it through"


def png() -> bytes:
    return cv2.imencode(".png", np.full((4, 6, 3), 7, np.uint8))[1].tobytes()


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return make_shard(tmp_path / "in" / "a.tar", {"a": {"png": png()}})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()


@pytest.mark.parametrize("options", [{}, {"store": "raw"}, {"dedupe": "perceptual"}])
def test_a_pack_refuses_larger_images(tmp_path: Path, options: dict[str, Any]) -> None:
    images = make_images(tmp_path / "images", classes=1, per_class=1)  # 8 x 8 pixels
    shardio.pack(images, tmp_path / "out", shards=1, max_pixels=64, **options)
    with pytest.raises(shardio.PackError, match=r"8 x 8 pixels.*max_pixels=64 lets it through"):
        shardio.pack(images, tmp_path / "small", shards=1, max_pixels=63, **options)


@pytest.mark.parametrize("deep", [False, True])
def test_verifying_and_repairing_refuse_larger_images(
    tmp_path: Path, shard: Path, deep: bool
) -> None:
    assert shardio.verify(shard, deep=deep, max_pixels=24).sound
    found = shardio.verify(shard, deep=deep, max_pixels=23)
    assert "max_pixels=24" in str(found.problems[0])
    assert shardio.repair(shard, tmp_path / "new", deep=deep, max_pixels=24).samples == 1
    with pytest.raises(shardio.PackError):
        shardio.repair(shard, tmp_path / "none", deep=deep, max_pixels=23)


def test_info_says_that_an_image_is_larger(tmp_path: Path, shard: Path) -> None:
    sheet = tmp_path / "sheet.png"
    found = shardio.info(shard, max_pixels=24, preview=sheet).sample
    assert found is not None
    assert found.fields[0].value == "png, 4 × 6"
    found = shardio.info(shard, max_pixels=23).sample
    assert found is not None
    assert "max_pixels=24" in found.fields[0].value
    with pytest.raises(shardio.UsageError, match="no image to preview in 1 sample;"):
        shardio.info(shard, max_pixels=23, preview=sheet)


def test_a_predicate_sees_no_larger_image(tmp_path: Path, shard: Path) -> None:
    def looks(_: str, fields: Any) -> bool:
        return bool(fields["png"].any())

    assert (
        shardio.reshard(shard, tmp_path / "out", shards=1, where=looks, max_pixels=24).samples == 1
    )
    with pytest.raises(shardio.PackError, match=LARGE):
        shardio.reshard(shard, tmp_path / "small", shards=1, where=looks, max_pixels=23)


def test_a_limit_that_cannot_be_meant_is_refused(tmp_path: Path, shard: Path) -> None:
    out = tmp_path / "out"
    calls: list[Callable[[], object]] = [
        lambda: shardio.pack(shard.parent, out, max_pixels=0),
        lambda: shardio.reshard(shard, out, max_pixels=True),
        lambda: shardio.verify(shard, max_pixels=-1),
        lambda: shardio.repair(shard, out, max_pixels=0),
        lambda: shardio.info(shard, max_pixels=1.5),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(shardio.UsageError, match=r"max_pixels=.*: it must be a whole number"):
            call()


def test_commands_take_the_limit(tmp_path: Path, shard: Path) -> None:
    images = make_images(tmp_path / "images", classes=0, per_class=1)
    cases = [
        (["verify", str(shard)], 23),
        (["info", str(shard)], 23),
        (["pack", str(images), str(tmp_path / "out"), "--shards", "1"], 63),
    ]
    for command, limit in cases:
        done = CliRunner().invoke(commands, [*command, "--max-pixels", str(limit)])
        told = " ".join([*done.output.split(), str(done.exception)])
        assert f"--max-pixels {limit + 1} lets it through" in told


def test_verify_deep_finds_a_boolean_shape(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (True,)}"
    data = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + b"1"
    shard = make_shard(tmp_path / "b.tar", {"a": {"npy": data}})
    found = shardio.verify(shard, deep=True)
    assert "the shape is (True,)" in str(found.problems[0])


def test_a_larger_image_packs_when_it_is_resized_or_the_limit_is_raised(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    scan = cv2.imencode(
        ".png",
        np.zeros((5000, 5000), np.uint8),
        [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 9],
    )[1]
    (images / "scan.png").write_bytes(scan.tobytes())
    with pytest.raises(shardio.PackError) as refused:
        shardio.pack(images, tmp_path / "a", shards=1, labels=False)
    found = re.search(r"max_pixels=(\d+) lets it through", str(refused.value))
    assert found is not None
    shardio.pack(images, tmp_path / "b", shards=1, labels=False, max_pixels=int(found[1]))
    with pytest.raises(shardio.PackError, match=r"only \d+ bytes for 5000 x 5000 pixels"):
        shardio.pack(images, tmp_path / "c", shards=1, labels=False, resize=64)
    with pytest.raises(shardio.PackError, match="more than the limit of 4999"):
        shardio.pack(images, tmp_path / "d", shards=1, labels=False, resize=64, max_pixels=4999)


def test_a_picture_beyond_the_limit_packs_when_it_is_resized(tmp_path: Path) -> None:
    """180 megapixels, with the bytes that a picture of this size has."""
    (tmp_path / "scans").mkdir()
    scan = cv2.imencode(".jpg", np.zeros((12_000, 15_000), np.uint8))[1]
    (tmp_path / "scans" / "scan.jpg").write_bytes(scan.tobytes())
    with pytest.raises(shardio.PackError, match="more than the limit of 178956970"):
        shardio.pack(tmp_path / "scans", tmp_path / "a", shards=1, labels=False)
    shardio.pack(tmp_path / "scans", tmp_path / "b", shards=1, labels=False, resize=64)
    assert next(iter(shardio.ShardDataset(tmp_path / "b")))["image"].shape == (3, 64, 80)

"""Hostile files give the same pixels or errors with the native core as without it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import shardio
from children import in_child
from shardio.native import is_active, status
from shardio.reading import chunks, reader
from shardio.testing import make_shard

pytestmark = pytest.mark.skipif(not is_active(), reason=f"the native core is {status()}")

MEMORY = 1 << 30
TRANSFORMS = [
    shardio.RandomResizedCrop(32),
    shardio.RandomCrop(16, padding=3),
]


def outcome(shard: Path, transform: Any, *, core: bool, taken: list[bool]) -> Any:
    """Pixels of a batch, or the text of the error."""
    fill = chunks.CoreChunks.fill

    def watched(chunk: chunks.CoreChunks, slots: range, watch: Any) -> Any:
        left = fill(chunk, slots, watch)
        taken.append(len(left) < len(slots))
        return left

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "is_active", lambda: core)
        patch.setattr(chunks.CoreChunks, "fill", watched)
        fields = {"image": shardio.Image("jpg", bits=8)}
        dataset: Any = shardio.ShardDataset(
            shard, fields=fields, transform=transform, batch_size=4, reduced_decoding=False
        )
        try:
            return next(iter(dataset))["image"]
        except shardio.ShardioError as error:
            return str(error)


def compare(files: Mapping[str, bytes], folder: Path, *, indexed: bool) -> tuple[int, list[str]]:
    """Read each file four times, and tell how many the core took, and which read otherwise."""
    other, taken = [], list[bool]()
    for number, (name, data) in enumerate(files.items()):
        inside = folder / f"{number}"
        inside.mkdir(parents=True)
        make_shard(inside / "a.tar", {f"{at}": {"jpg": data} for at in range(4)})
        if indexed:
            shardio.index(str(inside))
        for transform in TRANSFORMS:
            read = partial(outcome, inside / "a.tar", transform, taken=taken)
            ours, wanted = read(core=True), read(core=False)
            same = (
                ours == wanted
                if isinstance(ours, str) or isinstance(wanted, str)
                else (torch.equal(ours, wanted))
            )
            if not same:
                other.append(f"{name}, {transform}: {ours:.200}, and not {wanted:.200}")
    return sum(taken), other


def announced(height: int, width: int) -> dict[str, bytes]:
    """Small files whose headers say a size."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    size, made = struct.pack(">HH", height, width), {}
    for name, option in {"baseline": [], "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]}.items():
        data = cv2.imencode(".jpg", pixels, option)[1].tobytes()
        frame = data.find(b"\xff\xc2" if option else b"\xff\xc0")
        made[f"{name} {height} {width}"] = data[: frame + 5] + size + data[frame + 9 :]
    data = cv2.imencode(".png", pixels)[1].tobytes()
    header = b"IHDR" + struct.pack(">II", height * 15, width * 15) + data[24:29]
    checksum = struct.pack(">I", zlib.crc32(header))
    made[f"PNG {height} {width}"] = data[:12] + header + checksum + data[33:]
    return made


@pytest.mark.parametrize("indexed", [False, True])
def test_files_that_broke_other_decoders(indexed: bool, shared_data: Path, tmp_path: Path) -> None:
    """Of files whose checksums are known, the core may deliver one damaged below the crop."""
    folder = shared_data / "bad-images"
    files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if not files:
        pytest.skip("there are no bad images in the shared test data")
    ended = in_child(partial(compare, files, tmp_path, indexed=indexed), memory=MEMORY)
    taken, other = ended.check().value
    assert (ended.error, ended.message) == ("", "")
    assert taken > 50
    assert other == []


@pytest.mark.parametrize("indexed", [False, True])
def test_sizes_that_files_only_announce(indexed: bool, tmp_path: Path) -> None:
    sizes = [(1, 65500), (65500, 1), (65535, 65535), (3000, 3000), (13_000, 13_000), (0, 5), (5, 0)]
    files = {name: data for size in sizes for name, data in announced(*size).items()}
    ended = in_child(partial(compare, files, tmp_path, indexed=indexed), memory=MEMORY)
    _, other = ended.check().value
    assert (ended.error, ended.message) == ("", "")
    assert other == []

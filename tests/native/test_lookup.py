"""Batches that are looked up together are those that are looked up alone."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import shardio
from shardio.native import status
from shardio.planning.order import uniform_numbers
from shardio.reading.chunks import CoreChunks
from shardio.reading.readahead import ReadAhead
from shardio.testing import make_images

needs_core = pytest.mark.skipif(not status().active, reason=f"the native core is {status()}")
NUMBERS = [b"0", b"-0", b"007", b" 7\n", b"\x0b5\x0c", b"-12", b"9" * 18, b"-" + b"9" * 18]
NUMBERS += [b"9223372036854775807", b"-9223372036854775808"]
NO_NUMBERS = [b"", b"+5", b"1e3", b"- 1", b"1 2", b"9" * 19, "\u0663".encode(), b"5\0", b"0x1"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lookup")
    images = make_images(folder / "images", classes=2, per_class=40, extension="jpg")
    shardio.pack(images, folder / "out", shards=4, shuffle=False)
    return folder / "out"


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each call of the core has put into their slots."""
    fill, counts = CoreChunks.fill, list[int]()

    def noted(chunks: CoreChunks, slots: range, watch: Any) -> Sequence[int]:
        left = fill(chunks, slots, watch)
        counts.append(len(slots) - len(left))
        return left

    monkeypatch.setattr(CoreChunks, "fill", noted)
    return counts


def picture() -> bytes:
    done, data = cv2.imencode(".jpg", np.full((9, 7, 3), 90, np.uint8))
    assert done
    return data.tobytes()


def array() -> bytes:
    stream = BytesIO()
    np.save(stream, np.arange(6).reshape(2, 3))
    return stream.getvalue()


def make_tar(path: Path, names: Sequence[str], label: bytes = b"1", field: str = "jpg") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            first = array() if field.endswith("npy") else picture()
            for extension, data in ((field, first), ("cls", label)):
                member = tarfile.TarInfo(f"{name}.{extension}")
                member.size = len(data)
                tar.addfile(member, BytesIO(data))


def outcome(source: Path, monkeypatch: pytest.MonkeyPatch, *, core: bool) -> Any:
    monkeypatch.setattr("shardio.reading.reader.is_active", lambda: core and status().active)
    dataset = shardio.ShardDataset(source, transform=shardio.CenterCrop(5, resize=6), batch_size=4)
    try:
        return next(iter(dataset))["label"].tolist()
    except shardio.ShardioError as error:
        return str(error)


@pytest.mark.parametrize("text", [*NUMBERS, *NO_NUMBERS], ids=repr)
def test_class_numbers_are_read_as_in_python(
    text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tar(tmp_path / "a.tar", [f"{number}" for number in range(4)], text)
    shardio.index(tmp_path)
    ours, wanted = (outcome(tmp_path, monkeypatch, core=core) for core in (True, False))
    assert ours == wanted
    assert ours == [int(text)] * 4 if text in NUMBERS else "64-bit decimal integer" in ours


@needs_core
def test_shards_that_are_verified_otherwise_keep_the_core(
    photos: Path, tmp_path: Path, taken: list[int]
) -> None:
    """A foreign tar has checksums of headers alone, so batches beside it are looked up alone."""
    make_tar(tmp_path / "foreign" / "a.tar", [f"{number}" for number in range(20)])
    sources: Any = [photos, tmp_path / "foreign"]
    crop = shardio.CenterCrop(5, resize=6)
    dataset = shardio.ShardDataset(sources, shuffle=False, transform=crop, batch_size=20)
    assert len([*dataset]) == 5
    assert sum(taken) == 100


@needs_core
def test_alternatives_of_other_batches_do_not_matter(tmp_path: Path, taken: list[int]) -> None:
    for number, field in enumerate(("a.npy", "b.npy")):
        names = [f"{number}{at:02d}" for at in range(40)]
        make_tar(tmp_path / f"{number}.tar", names, field=field)
    shardio.index(tmp_path)
    dataset = shardio.ShardDataset(
        tmp_path,
        fields={"array": "a.npy;b.npy", "label": "cls"},
        shuffle=False,
        batch_size=8,
    )
    assert len([*dataset]) == 10
    assert sum(taken) == 80


class Refusing(shardio.RandomResizedCrop):
    """Refuses one sample of the third batch, by its random numbers."""

    def crops(
        self,
        heights: np.ndarray[Any, Any],
        widths: np.ndarray[Any, Any],
        uniforms: np.ndarray[Any, Any],
    ) -> Any:
        """See RandomResizedCrop."""
        if (uniforms == REFUSED[0]).all(axis=1).any():
            raise shardio.TransformError("no")
        return super().crops(heights, widths, uniforms)


REFUSED: list[Any] = []


def test_a_fault_of_a_transform_comes_with_its_own_batch(photos: Path) -> None:
    dataset = shardio.ShardDataset(photos, transform=Refusing(8), batch_size=10, shuffle=True)
    key = dataset.transform_key(0)
    REFUSED[:] = [uniform_numbers(key, np.array([25]), Refusing(8).draws)[0]]
    loop = iter(dataset)
    assert [len(next(loop)["__key__"]) for _ in range(2)] == [10, 10]
    with pytest.raises(shardio.TransformError, match="no"):
        next(loop)


def test_a_shard_that_goes_is_missed_by_its_own_batch(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReadAhead, "_ask_for_samples", lambda *_: None)  # which opens shards
    monkeypatch.setattr(ReadAhead, "_ask_for_window", lambda *_: None)
    shutil.copytree(photos, tmp_path / "out")
    dataset = shardio.ShardDataset(
        tmp_path / "out", transform=shardio.CenterCrop(5, resize=6), batch_size=10, shuffle=False
    )
    loop = iter(dataset)
    first = next(loop)
    (tmp_path / "out" / "shard-000003.tar").unlink()
    found = [first, *(next(loop) for _ in range(5))]
    assert torch.cat([batch["label"] for batch in found]).tolist() == [0] * 40 + [1] * 20
    with pytest.raises(shardio.TarError, match=r"shard-000003\.tar"):
        next(loop)


def test_an_index_that_is_overwritten_is_missed_by_the_next_batch(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be read through its map, where a file cut short ends the process."""
    monkeypatch.setattr("shardio.indexing.shard_index._MOST_READ", 0)
    shutil.copytree(photos, tmp_path / "out")
    dataset = shardio.ShardDataset(
        tmp_path / "out",
        transform=shardio.CenterCrop(5, resize=6),
        batch_size=8,
        shuffle=True,
        map=lambda sample: {**sample},
    )
    loop = iter(dataset)
    assert len([next(loop) for _ in range(4)]) == 4
    index = tmp_path / "out" / "index" / "shard-000000.tar.idx"
    content = index.read_bytes()
    index.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(shardio.IndexFileError, match=r"shard-000000\.tar\.idx"):
        [next(loop) for _ in range(2)]

"""Members of one size are gathered a batch at a time, with all the guarantees of one by one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shardio
from shardio.reading import batch as batch_module
from shardio.testing import make_images, make_shard


def npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


pytestmark = pytest.mark.usefixtures("python_path")  # the core gathers without these steps


def gathered(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each gathering succeeded."""
    outcomes: list[bool] = []
    fill = batch_module.Batch.put_rows

    def spy(*arguments: Any) -> Sequence[int]:
        left = fill(*arguments)
        outcomes.append(not left)
        return left

    monkeypatch.setattr(batch_module.Batch, "put_rows", spy)
    return outcomes


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name]
        for name in a
    )


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    shardio.pack(
        make_images(tmp_path / "images", classes=12, per_class=25),
        tmp_path / "raw",
        shards=5,
        store="raw",
        resize=(8, 8),
    )
    return tmp_path / "raw"


def test_gathered_batches_are_those_read_one_by_one(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = shardio.ShardDataset(raw, shuffle=True, batch_size=64)
    outcomes = gathered(monkeypatch)
    found = [*shardio.Loader(dataset, threads=2)]
    assert outcomes == [True] * len(found)
    assert found[0]["image"].shape == (64, 3, 8, 8)
    assert found[0]["image"].is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(batch_module.Batch, "put_rows", lambda _, slots, *__: slots)
    dataset.set_epoch(0)
    assert all(same(a, b) for a, b in zip(found, dataset, strict=True))


def test_pixels_take_transforms_like_images(raw: Path) -> None:
    plain = shardio.ShardDataset(raw, batch_size=300)
    cropped = plain.replace(transform=shardio.Resize((8, 8)))
    called = plain.replace(transform=lambda image: image)
    (a,), (b,), (c,) = [*plain], [*cropped], [*called]
    assert torch.equal(a["image"], b["image"])
    assert torch.equal(a["image"], c["image"])


@pytest.mark.parametrize("field", ["cls", "rgb.npy"])
def test_a_flipped_bit_is_found_and_located(
    raw: Path, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = shardio.ShardDataset(raw, batch_size=50)
    index = dataset.catalog.shards[0].load_index()
    column = index.fields.index(field)
    offset, size = int(index.offsets[7, column]), int(index.sizes[7, column])
    with Path(dataset.catalog.shards[0].path).open("r+b") as stream:
        stream.seek(offset + size - 1)
        stream.write(b"\x07")
    outcomes = gathered(monkeypatch)
    with pytest.raises(shardio.SampleError, match=rf"'{field}' at offset {offset}: .*CRC-32"):
        [*shardio.ShardDataset(raw, batch_size=50)]
    assert outcomes == [False]
    skipping = shardio.ShardDataset(raw, batch_size=50, on_bad_sample="skip")
    assert sum(int((~batch["valid"]).sum()) for batch in skipping) == 1
    assert skipping.num_bad_samples == 1


@pytest.mark.parametrize(
    "odd",
    [
        {"npy": npy(np.zeros(4, np.float32)), "cls": b" 3"},
        {"npy": npy(np.zeros(4, np.float32)), "cls": b"-3"},
        {"npy": npy(np.asfortranarray(np.zeros((2, 2), np.float32))), "cls": b"3"},
        {"npy": npy(np.zeros(4, ">f4")), "cls": b"3"},
    ],
)
def test_what_is_not_alike_is_read_one_by_one(
    tmp_path: Path, odd: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (2, 2) if b"(2, 2)" in odd["npy"] else (4,)
    samples = {
        f"{i}": {"npy": npy(np.full(shape, i, np.float32)), "cls": b"%d" % i} for i in range(9)
    }
    shard = make_shard(tmp_path / "a.tar", samples | {"odd": odd})
    outcomes = gathered(monkeypatch)
    (batch,) = shardio.ShardDataset(shard, batch_size=10)
    assert outcomes == [False]
    assert batch["label"].tolist() == [*range(9), int(odd["cls"])]
    assert batch["npy"].reshape(10, -1)[:, 0].tolist() == [*map(float, range(9)), 0.0]


class Lists(shardio.Array):
    batching = "list"


def test_arrays_of_different_shapes_are_explained(tmp_path: Path) -> None:
    samples = {f"{i}": {"npy": npy(np.zeros(4 + i // 9))} for i in range(10)}
    shard = make_shard(tmp_path / "a.tar", samples)
    advice = r"others of the batch are 4 float64; .*class Lists\(shardio\.Array\): batching='list'"
    with pytest.raises(shardio.UsageError, match=f"it is 5 float64, {advice}"):
        [*shardio.ShardDataset(shard, batch_size=10)]
    shardio.reshard(shard, tmp_path / "out", shards=1)
    (batch,) = shardio.ShardDataset(tmp_path / "out", batch_size=10, fields={"npy": Lists("npy")})
    assert [len(each) for each in batch["npy"]] == [4] * 9 + [5]


def test_a_shard_that_was_cut_off_is_an_error(raw: Path) -> None:
    steps = iter(shardio.ShardDataset(raw, batch_size=10))
    next(steps)
    shard = raw / "shard-000000.tar"
    with shard.open("r+b") as stream:
        stream.truncate(shard.stat().st_size // 2)
    with pytest.raises(shardio.TarError, match="truncated"):
        list(steps)


def test_pixels_that_are_no_picture_are_refused(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", {"a": {"rgb.npy": npy(np.zeros((4, 4), np.uint8))}})
    with pytest.raises(shardio.SampleError, match=r"must be uint8 \[H, W, 3\], not uint8 \[4, 4\]"):
        shardio.ShardDataset(shard)[0]


@pytest.mark.parametrize("dtype", ["datetime64[s]", "S4", np.longdouble])
def test_arrays_that_torch_has_no_dtype_for_are_located(tmp_path: Path, dtype: Any) -> None:
    samples = {f"{i}": {"npy": npy(np.zeros(4, dtype))} for i in range(4)}
    shard = make_shard(tmp_path / "a.tar", samples)
    with pytest.raises(shardio.SampleError, match=r"a\.tar: sample '0', field 'npy' at offset"):
        list(shardio.ShardDataset(shard, batch_size=4))


def test_empty_fields_are_an_error_with_a_place(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", {f"{i}": {"cls": b""} for i in range(8)})
    with pytest.raises(shardio.SampleError, match="sample '0', field 'cls'"):
        list(shardio.ShardDataset(shard, batch_size=4))
    far = {f"{i}": {"cls": b"", "jpg": bytes(9000), "npy": npy(np.arange(3))} for i in range(8)}
    shard = make_shard(tmp_path / "b.tar", far)
    wanted = {"label": "cls", "npy": "npy"}
    with pytest.raises(shardio.SampleError, match="sample '0', field 'cls'"):
        list(shardio.ShardDataset(shard, batch_size=4, fields=wanted))


def test_rows_far_apart_and_very_wide_are_gathered_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = {
        f"{number}": {
            "cls": b"%d" % number,
            "jpg": bytes(5000 * number),
            "npy": npy(np.full(1_000_000, number, np.uint8)),
        }
        for number in range(12)
    }
    shard = make_shard(tmp_path / "a.tar", samples)
    dataset = shardio.ShardDataset(
        shard, shuffle=True, batch_size=12, fields={"label": "cls", "npy": "npy"}
    )
    outcomes = gathered(monkeypatch)
    (batch,) = dataset
    assert outcomes == [True]
    for slot, key in enumerate(batch["__key__"]):
        assert batch["label"][slot] == int(key) == batch["npy"][slot].min()
        assert batch["npy"][slot].max() == int(key)

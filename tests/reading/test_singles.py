"""Single samples that are read together are those that are read alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import shardio
from shardio.native import status
from shardio.reading.chunks import CoreChunks
from shardio.testing import make_images

pytestmark = pytest.mark.skipif(not status().active, reason=f"the native core is {status()}")
CROP = shardio.RandomResizedCrop(12)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    images = make_images(tmp_path / "images", classes=3, per_class=30, extension="jpg")
    shardio.pack(images, tmp_path / "out", shards=2)
    return tmp_path / "out"


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each call of the core was for."""
    fill, sizes = CoreChunks.fill, list[int]()

    def noted(chunks: CoreChunks, slots: range, watch: Any) -> Any:
        sizes.append(len(slots))
        return fill(chunks, slots, watch)

    monkeypatch.setattr(CoreChunks, "fill", noted)
    return sizes


def alone(dataset: shardio.ShardDataset, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    with monkeypatch.context() as patch:
        patch.setattr("shardio.reading.reader.is_active", lambda: False)
        return [*dataset.replace()]


def assert_same(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, b[name])
                assert value.stride() == b[name].stride()
            elif not isinstance(value, dict):
                assert value == b[name]


def test_samples_are_read_together_and_are_the_same(
    photos: Path, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = shardio.ShardDataset(photos, shuffle=True, transform=CROP, crops=True)
    found = [*dataset]
    assert taken == [16, 16, 16, 16, 16, 10]
    assert_same(found, alone(dataset, monkeypatch))
    assert len({sample["image"].untyped_storage().data_ptr() for sample in found}) == len(found)


def test_a_function_on_samples_sees_each_of_them(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def note(sample: dict[str, Any], rng: Any) -> dict[str, Any]:
        return {**sample, "drawn": int(rng.integers(1 << 30))}

    dataset = shardio.ShardDataset(photos, shuffle=True, transform=CROP, map=note)
    assert_same([*dataset], alone(dataset, monkeypatch))


def test_values_unlike_each_other_are_read_alone(
    photos: Path, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lengthen(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "tokens": torch.zeros(int(sample["__key__"][-1]) + 1)}

    dataset = shardio.ShardDataset(photos, transform=CROP, map=lengthen)
    assert_same([*dataset], alone(dataset, monkeypatch))
    assert taken == [16, 16, 16, 16]  # after which no more are tried


def test_an_error_comes_when_its_sample_is_due(photos: Path) -> None:
    def refuse(sample: dict[str, Any]) -> dict[str, Any]:
        if sample["__key__"] == bad:
            raise ValueError("no")
        return sample

    keys = [sample["__key__"] for sample in shardio.ShardDataset(photos, transform=CROP)]
    bad = keys[21]
    loop = iter(shardio.ShardDataset(photos, transform=CROP, map=refuse))
    assert [next(loop)["__key__"] for _ in range(21)] == keys[:21]
    with pytest.raises(shardio.SampleError, match="map refuse raised ValueError: no"):
        next(loop)


def test_a_sample_left_out_is_replaced_and_counted(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave_out(sample: dict[str, Any]) -> dict[str, Any]:
        if sample["__key__"][-1] == "7":
            raise shardio.Skip("it ends in 7")
        return sample

    dataset = shardio.ShardDataset(photos, transform=CROP, map=leave_out)
    found = [*dataset]
    assert sum(not sample["valid"] for sample in found) == dataset.num_bad_samples == 9
    assert_same(found, alone(dataset, monkeypatch))

"""Batches on a device; the CPU takes the same steps, with events that a test can hold back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import shardio
from shardio.reading import loader as transfer_module
from shardio.reading.loader import Transfer


def keys(loader: shardio.Loader) -> list[str]:
    return [key for batch in loader for key in batch["__key__"]]


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_on_a_device_are_those_of_the_dataset(packed: Path, threads: int) -> None:
    def dataset() -> shardio.ShardDataset:
        return shardio.ShardDataset(
            packed, shuffle=True, batch_size=50, transform=shardio.RandomResizedCrop(64)
        )

    loader = shardio.Loader(dataset(), threads=threads, device="cpu")
    for batch, expected in zip(loader, dataset(), strict=True):
        assert batch["__key__"] == expected["__key__"]
        assert batch["image"].device == torch.device("cpu")
        assert torch.equal(batch["image"], expected["image"])
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch["label"], expected["label"])
    assert loader.state_dict()["epoch"] == 1


class Held:
    """An event that is reached when the test says so."""

    reached = False

    def query(self) -> bool:
        return self.reached

    def wait(self) -> None:
        waited.append(self)


waited: list[Held] = []


def test_memory_is_lent_again_only_when_its_copy_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[Held] = []

    def record(_: Any) -> Held:
        events.append(Held())
        return events[-1]

    monkeypatch.setattr(transfer_module._NoStream, "record", record)
    monkeypatch.setattr(Transfer, "_move", lambda _, value: value.clone())
    transfer = Transfer("cpu")
    shape = (1, 3, 256, 256)
    places = []
    for _ in range(4):
        batch = {"image": transfer.allocate(shape, torch.uint8)}
        places.append(batch["image"].data_ptr())
        transfer.deliver(transfer.begin(batch))
        del batch
    assert len(set(places)) == 4
    assert waited[-4:] == events
    for event in events[:2]:
        event.reached = True
    transfer.begin({"image": transfer.allocate(shape, torch.uint8)})
    again = {transfer.allocate(shape, torch.uint8).data_ptr() for _ in range(1)}
    held = [transfer.allocate(shape, torch.uint8) for _ in range(2)]
    assert {*again, *(tensor.data_ptr() for tensor in held)} & set(places[:2])
    assert not {tensor.data_ptr() for tensor in held} & set(places[2:])


def test_an_error_on_the_way_to_a_device_comes_in_its_turn(packed: Path) -> None:
    calls = []

    def transform(image: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 120:
            raise ValueError("no more")
        return image

    dataset = shardio.ShardDataset(packed, batch_size=50, transform=transform)
    loop = iter(shardio.Loader(dataset, threads=1, device="cpu"))
    next(loop)
    next(loop)
    with pytest.raises(shardio.TransformError, match="no more"):
        next(loop)


@pytest.mark.parametrize("device", ["cuda:99", "nothing", 3.5])
def test_a_device_that_is_not_there_is_explained(packed: Path, device: Any) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=50)
    with pytest.raises(shardio.UsageError, match=r"device=.* cannot be used here"):
        shardio.Loader(dataset, device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_cuda_device_are_those_of_the_dataset(packed: Path) -> None:
    def dataset() -> shardio.ShardDataset:
        return shardio.ShardDataset(
            packed, shuffle=True, batch_size=20, transform=shardio.RandomResizedCrop(64)
        )

    busy = torch.ones(4096, 4096, device="cuda")
    kept = []
    for batch in shardio.Loader(dataset(), threads=4, device="cuda"):
        for _ in range(20):
            busy @ busy  # the device lags behind, so that copies wait and memory must too
        kept.append({**batch, "sum": batch["image"].sum(dtype=torch.int64)})
    for batch, expected in zip(kept, dataset(), strict=True):
        assert batch["__key__"] == expected["__key__"]
        assert batch["image"].is_cuda
        assert torch.equal(batch["image"].cpu(), expected["image"])
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        assert batch["sum"].item() == expected["image"].sum(dtype=torch.int64)
        assert torch.equal(batch["label"].cpu(), expected["label"])

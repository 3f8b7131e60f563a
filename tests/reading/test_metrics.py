"""A metric over padded batches, the same on any number of ranks."""

from __future__ import annotations

import ast
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import shardio
from shardio.planning.epoch import Tail


def accuracy_of(dataset: shardio.ShardDataset) -> float:
    """Of a model that is right where one of the 600 images is bright."""
    mean = shardio.MaskedMean()
    for batch in dataset:
        hits = batch["image"].float().mean(dim=(1, 2, 3)) > 127
        mean.add(hits, batch["valid"])
    assert mean.count() == 600
    return mean.result()


def _run(rank: int, ranks: int, folder: Path, out: Path, size: int, tail: Tail) -> None:
    rendezvous = f"file://{out}/rendezvous-of-{ranks}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=ranks)
    dataset = shardio.ShardDataset(folder, batch_size=size, tail=tail)
    sizes = [len(batch["valid"]) for batch in dataset]
    valid = [int(batch["valid"].sum()) for batch in dataset]
    (out / f"{ranks}-{rank}").write_text(repr((accuracy_of(dataset), sizes, min(valid))))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("size", "tail", "counts"), [(7, "pad", (1, 3)), (7, "even", (2, 8)), (598, "even", (2, 3))]
)
def test_validation_accuracy_is_the_same_on_any_number_of_ranks(
    packed: Path, tmp_path: Path, size: int, tail: Tail, counts: tuple[int, ...]
) -> None:
    everything = shardio.ShardDataset(packed, batch_size=600)
    (batch,) = everything
    right = int((batch["image"].float().mean(dim=(1, 2, 3)) > 127).sum())
    assert 0 < right < 600
    alone = accuracy_of(shardio.ShardDataset(packed, batch_size=7))
    assert alone == right / 600
    assert accuracy_of(shardio.ShardDataset(packed, batch_size=7, tail="short")) == alone
    context: Any = multiprocessing.get_context("forkserver")
    for ranks in counts:
        processes = [
            context.Process(target=_run, args=(rank, ranks, packed, tmp_path, size, tail))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        found = [
            ast.literal_eval((tmp_path / f"{ranks}-{rank}").read_text()) for rank in range(ranks)
        ]
        accuracies, sizes, least = zip(*found, strict=True)
        assert {*accuracies} == {alone}
        assert all(each == sizes[0] for each in sizes)
        assert ranks * sum(sizes[0]) - 600 < (ranks if tail == "even" else ranks * size)
        assert min(least) > 0 or tail == "pad"


def test_a_mean_counts_valid_samples_of_any_dtype() -> None:
    mean = shardio.MaskedMean()
    assert torch.isnan(torch.tensor(mean.result()))
    assert mean.count() == 0
    mean.add(torch.tensor([1.5, float("nan")]), torch.tensor([True, False]))
    mean.add(torch.tensor([3, 4]), torch.tensor([True, True]))
    assert mean.result() == pytest.approx(8.5 / 3)
    assert mean.count() == 3


def test_what_is_no_mask_is_refused() -> None:
    mean, hits = shardio.MaskedMean(), torch.tensor([1.0, 0.0])
    with pytest.raises(shardio.UsageError, match=r"valid has dtype torch\.float32: pass"):
        mean.add(torch.tensor([True, False]), hits)
    with pytest.raises(shardio.UsageError, match="values and valid must be tensors"):
        mean.add([1.0], [True])  # type: ignore[arg-type]


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(shardio.UsageError, match=r"values are \[4, 1\] and valid is \[4\]"):
        shardio.MaskedMean().add(torch.zeros(4, 1), torch.ones(4, dtype=torch.bool))


def test_pixels_count_when_they_are_one_row() -> None:
    mean, values, valid = shardio.MaskedMean(), torch.zeros(2, 3), torch.ones(2, 3).bool()
    with pytest.raises(shardio.UsageError, match=r"of pixels, flatten\(\) both"):
        mean.add(values, valid)
    mean.add(values.flatten(), valid.flatten())
    assert mean.count() == 6


def test_a_short_tail_is_for_one_rank_alone(packed: Path) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=70, tail="short")
    sizes = [len(batch["__key__"]) for batch in dataset]
    assert sizes == [70] * 8 + [40]
    assert all(batch["valid"].all() for batch in dataset)
    with pytest.raises(shardio.UsageError, match="tail='short' with 2 ranks would give them uneq"):
        shardio.ShardDataset(packed, batch_size=70, tail="short", rank=0, world_size=2)

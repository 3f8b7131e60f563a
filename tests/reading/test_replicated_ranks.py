"""Ranks of a tensor-parallel group get the same samples, those of data parallelism others."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import DataLoader

import shardio


def _run(rank: int, folder: Path, out: Path) -> None:
    meeting = f"file://{out}/rendezvous"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=4)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    options: Any = {"transform": shardio.RandomResizedCrop(8), "shuffle": True}
    dataset = shardio.ShardDataset(folder, global_batch_size=50, group=mesh["dp"], **options)
    mix = shardio.MixUp(1000)
    found: dict[str, Any] = {"place": mesh.get_coordinate(), "mixed": []}
    keys = []
    for batch in DataLoader(dataset, batch_size=None, num_workers=1):
        keys += [key for key, ok in zip(batch["__key__"], batch["valid"], strict=True) if ok]
        image = mix(batch)["image"].numpy()
        found["mixed"].append(hashlib.sha256(image.tobytes()).hexdigest())
    found["keys"] = keys
    others = [dataset.replace(group=mesh["dp"].get_group()), dataset.replace(group=mesh["tp"])]
    found["shares"] = [[*each.share[:2]] for each in (dataset, *others)]
    try:
        shardio.ShardDataset(folder, batch_size=5, group=mesh)
    except shardio.UsageError as error:
        found["error"] = str(error)
    (out / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_ranks_of_a_mesh_get_the_samples_of_their_data_parallel_rank(
    packed: Path, tmp_path: Path
) -> None:
    """streaming#854: a dataset took no rank of a DeviceMesh."""
    context: Any = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=_run, args=(rank, packed, tmp_path)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    first, second = found[0], found[2]
    for one, other in ((0, 1), (2, 3)):
        assert found[one]["keys"] == found[other]["keys"]
        assert found[one]["mixed"] == found[other]["mixed"]
    assert first["mixed"] != second["mixed"]
    alone = {
        key for batch in shardio.ShardDataset(packed, batch_size=50) for key in batch["__key__"]
    }
    assert len(first["keys"]) + len(second["keys"]) == len(alone)
    assert {*first["keys"], *second["keys"]} == alone
    for each in found:
        data, tensor = each["place"]
        assert each["shares"] == [[data, 2], [data, 2], [tensor, 2]]
        assert "has 2 dimensions; give that of the ranks with different samples" in each["error"]


def test_what_is_no_group_is_refused(packed: Path) -> None:
    with pytest.raises(shardio.UsageError, match="group='dp': it must be a process group or a"):
        shardio.ShardDataset(packed, group="dp")  # type: ignore[arg-type]
    with pytest.raises(shardio.UsageError, match="group says rank and world_size, which exclude"):
        shardio.ShardDataset(packed, group=object(), rank=0, world_size=1)  # type: ignore[arg-type]

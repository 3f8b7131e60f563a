"""A dataset divides its samples among the ranks; that nobody divides them again is looked after."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, IterableDataset

import shardio
from shardio.testing import make_shard

REFUSED = r"divides among the ranks what this dataset has divided already.* rank=0, world_size=1"


class IterableDatasetShard(IterableDataset[Any]):
    """What accelerate and transformers make of an iterable dataset, for batches of one sample."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        for number, element in enumerate(self.dataset):
            if number % 2 == 0:
                yield element


class Told(IterableDataset[Any]):
    """Yields an error instead of raising it: torch takes seconds to end a worker that raised."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.dataset
        except shardio.UsageError as error:
            yield str(error)


class Numbered(IterableDataset[Any]):
    """A dataset of a user's around a dataset of shardio."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        yield from enumerate(self.dataset)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return make_shard(tmp_path / "a.tar", {f"{i:02}": {"cls": b"%d" % i} for i in range(48)})


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", ["samples", "batches", "Loader", "Mix", "Numbered"])
def test_a_second_division_is_refused_wherever_it_reads(
    shard: Path, kind: str, num_workers: int
) -> None:
    batch_size = None if kind in {"samples", "Numbered"} else 4
    dataset = shardio.ShardDataset(shard, batch_size=batch_size, rank=0, world_size=2)
    wrapped: Any = dataset
    if kind == "Loader":
        wrapped = shardio.Loader(dataset, threads=1)
    elif kind == "Mix":
        wrapped = shardio.Mix([dataset, dataset.replace(seed=1)], weights=[0.5, 0.5])
    elif kind == "Numbered":
        wrapped = Numbered(dataset)
    told = Told(IterableDatasetShard(wrapped))
    (message,) = DataLoader(told, batch_size=None, num_workers=num_workers)
    assert re.search(REFUSED, message)


def test_a_wrapper_that_only_sets_the_epoch_is_refused_too(shard: Path) -> None:
    dataset = shardio.ShardDataset(shard, rank=1, world_size=2)
    with pytest.raises(shardio.UsageError, match=REFUSED):
        IterableDatasetShard(dataset).set_epoch(3)
    dataset.set_epoch(3)
    assert len([*dataset]) == 24


def test_a_dataset_for_one_rank_is_divided_once(shard: Path) -> None:
    dataset = shardio.ShardDataset(shard, rank=0, world_size=1)
    assert len([*IterableDatasetShard(dataset)]) == 24


WAYS = """
import json, sys, torch, shardio
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration as Configuration
from torch.utils.data import DataLoader

def collate(samples):
    return {"label": torch.tensor([sample["label"] for sample in samples])}

def samples(**options):
    return shardio.ShardDataset(sys.argv[1], shuffle=True, **options)

def batched(workers=0, **options):
    return DataLoader(samples(**options), batch_size=4, collate_fn=collate, num_workers=workers)

def whole():
    return samples(batch_size=4)

one = {"rank": 0, "world_size": 1}
ways = {
    "refused: samples": (None, batched),
    "refused: samples, workers": (None, lambda: batched(1)),
    "refused: samples, each rank reads": (False, batched),
    "refused: samples, each rank reads, workers": (False, lambda: batched(1)),
    "refused: batches": (None, lambda: DataLoader(whole(), batch_size=None)),
    "refused: batches, each rank reads": (False, lambda: DataLoader(whole(), batch_size=None)),
    "whole: Loader": (None, lambda: shardio.Loader(whole(), threads=1)),
    "whole: for one rank": (None, lambda: batched(**one)),
    "whole: for one rank, each rank reads": (False, lambda: batched(**one)),
    "whole: for one rank, each rank reads, workers": (False, lambda: batched(1, **one)),
    "whole: not prepared": ("no", lambda: DataLoader(whole(), batch_size=None)),
}
for name, (dispatch, make) in ways.items():
    if dispatch == "no":
        loader = make()
    else:
        configuration = Configuration(dispatch_batches=dispatch)
        loader = Accelerator(cpu=True, dataloader_config=configuration).prepare(make())
    try:
        found = [label for batch in loader for label in batch["label"].tolist()]
    except shardio.UsageError as error:
        found = str(error)
    line = json.dumps([name, found]) + "\\n"
    sys.stdout.write(line)
    sys.stdout.flush()
"""


@pytest.mark.skipif(not importlib.util.find_spec("accelerate"), reason="accelerate is missing")
def test_accelerate_delivers_each_sample_once_or_is_refused(shard: Path, tmp_path: Path) -> None:
    script = tmp_path / "ways.py"
    script.write_text(WAYS)
    launch = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launch, "--nproc-per-node", "2", str(script), str(shard)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[Any]] = {}
    for line in done.stdout.splitlines():
        name, result = json.loads(line)
        found.setdefault(name, []).append(result)
    assert len(found) == 11
    for name, (one, other) in found.items():
        if name.startswith("refused"):
            assert one == other
            assert one.startswith("accelerate divides among the ranks"), name
        else:
            assert sorted([*one, *other]) == [*range(48)], name

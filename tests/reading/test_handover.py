"""Batches that come from worker processes, in memory that is lent again."""

from __future__ import annotations

import copy
import gc
import io
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import shardio
from shardio.reading import handover
from shardio.testing import make_shard

SIZE = 64  # of images: large enough that a batch of 20 is shared
CROP = shardio.RandomResizedCrop(SIZE)


def load(
    packed: Path, *, workers: int = 2, persistent: bool = False, **arguments: Any
) -> DataLoader[dict[str, Any]]:
    dataset = shardio.ShardDataset(packed, transform=CROP, shuffle=True, batch_size=20, **arguments)
    return DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=persistent)


def pixels(batches: Iterator[dict[str, Any]] | DataLoader[dict[str, Any]]) -> torch.Tensor:
    """All images, copied as they come."""
    return torch.cat([batch["image"].clone() for batch in batches])


def test_batches_are_those_of_one_process_and_may_be_kept(packed: Path) -> None:
    expected = pixels(load(packed, workers=0))
    kept = list(load(packed))
    assert torch.equal(torch.cat([batch["image"] for batch in kept]), expected)
    assert all(type(batch) is dict for batch in kept)
    assert all(batch["image"].is_contiguous(memory_format=torch.channels_last) for batch in kept)
    kept[0]["image"].zero_()  # ours alone
    kept[0]["valid"].zero_()
    assert torch.equal(torch.cat([batch["image"] for batch in kept[1:]]), expected[20:])


def test_memory_that_is_given_back_is_filled_again(packed: Path) -> None:
    expected, addresses = pixels(load(packed, workers=0)), []
    found = []
    for batch in load(packed, workers=1):
        addresses.append(batch["image"].data_ptr())
        found.append(batch["image"].clone())
    assert torch.equal(torch.cat(found), expected)
    assert len(addresses) == 30
    assert len({*addresses}) <= 6  # one in the loop, two prefetched, one in the making, and room


def test_a_view_alone_keeps_its_memory(packed: Path) -> None:
    expected, views = pixels(load(packed, workers=0)), []
    for batch in load(packed, workers=1):
        views.append(batch["image"][3:5, 1])
        del batch
    assert torch.equal(
        torch.stack(views), torch.stack([part[3:5, 1] for part in expected.split(20)])
    )


def test_segments_are_let_go_when_their_loop_has_ended(packed: Path) -> None:
    for persistent in (False, True):
        loader = load(packed, persistent=persistent)
        for _ in range(3):
            for batch in loader:
                batch["image"].sum()
        mapped = len(handover._mapped)
        assert 0 < mapped <= 2 * 6  # those of one loop, not of three
        del loader, batch
        gc.collect()
    assert not handover._mapped


class Changed(IterableDataset[dict[str, Any]]):
    """What code in a worker may do with batches."""

    def __init__(self, dataset: shardio.ShardDataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[dict[str, Any]]:
        before = None
        for batch in self.dataset:
            assert get_worker_info() is not None
            assert torch.equal(copy.deepcopy(batch)["image"], batch["image"])
            assert type(pickle.loads(pickle.dumps(batch))) is dict  # noqa: S301
            batch["top"] = batch["image"][:, :, :8]
            batch["half"] = batch["image"][:, :1].to(torch.bfloat16)
            batch["sparse"] = batch["label"].to_sparse()
            batch["words"] = batch["image"].permute(0, 2, 3, 1).reshape(-1)[:400].view(torch.int32)
            batch["before"] = batch["image"] if before is None else before["image"]
            yield {**batch} if batch["__step__"] % 2 else batch
            before = batch


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_tensors_in_lists_of_dictionaries_take_no_descriptor_each(tmp_path: Path) -> None:
    boxes = b'{"boxes": [[1, 2, 3, 4]], "labels": [7]}'
    path = make_shard(tmp_path / "a.tar", {f"{n}": {"json": boxes} for n in range(64)})
    types = {"target": shardio.Boxes("json", also=["labels"])}
    dataset = shardio.ShardDataset(path, fields=types, batch_size=16)
    before = len([*Path("/proc/self/fd").iterdir()])
    kept = list(DataLoader(dataset, batch_size=None, num_workers=1))
    assert len([*Path("/proc/self/fd").iterdir()]) - before < 16
    assert [one["labels"].tolist() for batch in kept for one in batch["target"]] == [[7]] * 64


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_what_a_workers_code_makes_of_batches_arrives(packed: Path) -> None:
    expected = pixels(load(packed, workers=0)).split(20)
    dataset = load(packed).dataset
    assert isinstance(dataset, shardio.ShardDataset)
    for step, batch in enumerate(DataLoader(Changed(dataset), batch_size=None, num_workers=1)):
        assert torch.equal(batch["image"], expected[step])
        assert torch.equal(batch["top"], expected[step][:, :, :8])
        assert torch.equal(batch["half"], expected[step][:, :1].to(torch.bfloat16))
        assert torch.equal(batch["sparse"].to_dense(), batch["label"])
        words = expected[step].permute(0, 2, 3, 1).reshape(-1)[:400].view(torch.int32)
        assert torch.equal(batch["words"], words)
        assert torch.equal(batch["before"], expected[max(step - 1, 0)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("keeper", ["parent", "child"])
def test_what_a_fork_holds_too_is_not_filled_again(packed: Path, keeper: str) -> None:
    batches = iter(load(packed, workers=1))
    batch = next(batches)
    image = batch["image"].clone()
    context = multiprocessing.get_context("fork")
    looked, read_on = context.Queue(), context.Event()

    def look() -> None:
        if keeper == "parent":
            batch.clear()
        else:
            read_on.wait()
            looked.put(bool((batch["image"].numpy() == image.numpy()).all()))

    process = context.Process(target=look)
    process.start()
    if keeper == "parent":
        process.join()
    else:
        batch.clear()
    for _ in range(10):
        next(batches)
    read_on.set()
    assert torch.equal(batch["image"], image) if keeper == "parent" else looked.get(timeout=60)
    process.join()
    batch.clear()
    del batches
    gc.collect()
    assert not handover._used


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="maps are Linux's to show")
def test_forks_at_every_step_do_not_add_up(packed: Path) -> None:
    batches = iter(load(packed, workers=1))
    (worker,) = batches._workers  # type: ignore[attr-defined]
    for _ in range(25):
        batch = next(batches)
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        del batch
    assert 0 < segments_of(worker.pid) < 12


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="maps are Linux's to show")
def test_memory_of_batches_that_were_kept_goes_when_they_go(packed: Path) -> None:
    batches = iter(load(packed, workers=1))
    (worker,) = batches._workers  # type: ignore[attr-defined]
    kept = [next(batches) for _ in range(20)]
    assert segments_of(worker.pid) >= 20
    kept.clear()
    for _ in range(8):
        next(batches)
    assert 0 < segments_of(worker.pid) < 16


def segments_of(process: int) -> int:
    """How many segments of shared memory a process has mapped."""
    return Path(f"/proc/{process}/maps").read_text("utf-8").count("/memfd:shardio")


def test_batches_of_many_sizes_need_few_segments(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    samples = {}
    for number in range(300):
        height = int(numbers.integers(150, 1500))
        stream = io.BytesIO()
        np.save(stream, np.full((height, 500), number % 256, np.uint8))
        samples[f"{number:04d}"] = {"npy": stream.getvalue()}
    shard = make_shard(tmp_path / "a.tar", samples)
    dataset = shardio.ShardDataset(shard, batch_size=1, shuffle=True)
    most = 0
    for batch in DataLoader(dataset, batch_size=None, num_workers=1):
        assert int(batch["__key__"][0]) % 256 == batch["npy"].min() == batch["npy"].max()
        most = max(most, len(handover._mapped))
    assert most < 30


SMALL = """
import sys, torch, shardio
from torch.utils.data import DataLoader
torch.multiprocessing.set_sharing_strategy(sys.argv[2])
crop = shardio.RandomResizedCrop(256)
dataset = shardio.ShardDataset(sys.argv[1], transform=crop, batch_size=60)
def load(workers):
    dataset.set_epoch(0)
    kept = [*DataLoader(dataset, batch_size=None, num_workers=workers)]
    return torch.stack([batch["image"].sum() for batch in kept])
if __name__ == "__main__":
    expected = load(0)
    try:
        assert load(1).equal(expected)
        print("read")
    except shardio.ShardioError as error:
        print(str(error).splitlines()[-1])
"""


def load_in_8_mb(packed: Path, strategy: str) -> str:
    """What the script prints where /dev/shm holds 8 MB; it keeps batches of 118 MB."""
    script = 'mount -t tmpfs -o size=8m shardio-test /dev/shm || exit 77; exec "$@"'
    words = [sys.executable, "-c", SMALL, str(packed), strategy]
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, so that no other process sees a small /dev/shm")
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare: " in done.stderr:
        pytest.skip("only root may mount a small /dev/shm")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_batches_need_no_room_in_dev_shm(packed: Path) -> None:
    assert load_in_8_mb(packed, "file_descriptor") == "read"


def test_a_full_dev_shm_is_one_sentence_with_the_way_out(packed: Path) -> None:
    """Where torch names its memory, batches lie in /dev/shm."""
    found = load_in_8_mb(packed, "file_system")
    assert found.startswith("shardio.errors.ShardioError: a worker process got no shared memory")
    assert "11,796,544 bytes of a batch (unable to allocate" in found
    assert found.endswith("make it larger (docker run --shm-size=8g)")


class Twice(IterableDataset[dict[str, Any]]):
    """Each batch comes two times."""

    def __init__(self, dataset: shardio.ShardDataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.dataset:
            yield from (batch, batch)


def test_a_batch_that_is_sent_twice_arrives_twice(packed: Path) -> None:
    dataset = load(packed).dataset
    assert isinstance(dataset, shardio.ShardDataset)
    kept = []
    for number, batch in enumerate(DataLoader(Twice(dataset), batch_size=None, num_workers=1)):
        if number % 2:
            kept.append(batch["image"])
        del batch
    assert torch.equal(torch.cat(kept), pixels(load(packed, workers=0)))


def shared_files() -> set[Path]:
    folder = Path("/dev/shm")  # noqa: S108
    return {*folder.iterdir()} if folder.is_dir() else set()


def test_nothing_is_left_of_a_worker_that_was_killed(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    before = shared_files()
    loader = load(packed, workers=1)
    batches = iter(loader)
    batch = next(batches)
    image = batch["image"].clone()
    (worker,) = batches._workers  # type: ignore[attr-defined]
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert torch.equal(batch["image"], image)
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(batches)
    del batches, batch, loader
    gc.collect()
    assert not handover._mapped
    assert not {path for path in shared_files() - before if path.name.startswith("torch")}

"""Epochs and ranks are found out right however processes are started and datasets are copied."""

from __future__ import annotations

import copy
import fcntl
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

import shardio
from tests import programs


def keys_of(batches: Iterable[dict[str, Any]]) -> list[str]:
    return [*chain(*(batch["__key__"] for batch in batches))]


def open_dataset(folder: Path, **options: Any) -> shardio.ShardDataset:
    return shardio.ShardDataset(
        folder, **{"shuffle": True, "decode": False, "batch_size": 50} | options
    )


def _keys_of_rank(rank: int, dataset: shardio.ShardDataset, out: Path, workers: int) -> None:
    method = f"file://{out}/rendezvous"
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=2)
    options: Any = {"multiprocessing_context": "spawn"} if workers else {}
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, **options)
    (out / str(rank)).write_text("\n".join(keys_of(loader)))
    dist.destroy_process_group()


@pytest.mark.parametrize(("method", "workers"), [("fork", 0), ("forkserver", 1)])
def test_a_dataset_handed_to_ranks_before_they_know_their_rank_serves_each_its_share(
    packed: Path, tmp_path: Path, method: str, workers: int
) -> None:
    context: Any = multiprocessing.get_context(method)
    dataset = open_dataset(packed)
    ranks = [
        context.Process(target=_keys_of_rank, args=(rank, dataset, tmp_path, workers))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    parts = [(tmp_path / str(rank)).read_text().split() for rank in range(2)]
    assert [len(part) for part in parts] == [300, 300]
    assert len({*parts[0], *parts[1]}) == 600


def test_a_copy_takes_its_rank_from_the_environment_when_it_is_read(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(packed)
    copies = [copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))]  # noqa: S301  our own
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [len(some) for some in (dataset, *copies)] == [6, 6, 6]


@pytest.mark.parametrize("persistent", [False, True])
def test_every_loop_of_workers_is_the_next_epoch_or_the_one_that_is_set(
    packed: Path, persistent: bool
) -> None:
    """webdataset#172: the epoch never counted on; datasets#6673: workers that stay did not hear."""
    dataset = open_dataset(packed)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=persistent)
    wanted = [keys_of(epoch) for epoch in [open_dataset(packed)] for _ in range(4)]
    assert [keys_of(loader), keys_of(loader)] == wanted[:2]
    assert wanted[0] != wanted[1]
    for epoch in (3, 0, 3):
        dataset.set_epoch(epoch)
        assert keys_of(loader) == wanted[epoch]


def test_threads_that_load_at_once_get_whole_epochs(packed: Path) -> None:
    """Their workers start interleaved."""
    dataset = open_dataset(packed)
    found: list[Counter[str]] = []

    def loop() -> None:
        loader = DataLoader(dataset, batch_size=None, num_workers=3, multiprocessing_context="fork")
        found.extend(Counter(keys_of(loader)) for _ in range(3))

    threads = [threading.Thread(target=loop) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(counts) for counts in found] == [600] * 6


def _write_epoch(dataset: shardio.ShardDataset, out: Path) -> None:
    out.write_text(str(next(iter(dataset))["__epoch__"]))


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_process_starts_with_the_epoch_of_its_parent(
    packed: Path, tmp_path: Path, method: str
) -> None:
    context: Any = multiprocessing.get_context(method)
    dataset = open_dataset(packed)
    dataset.set_epoch(3)
    dataset.set_epoch(5)
    process = context.Process(target=_write_epoch, args=(dataset, tmp_path / "epoch"))
    process.start()
    process.join()
    assert (tmp_path / "epoch").read_text() == "5"
    assert next(iter(dataset))["__epoch__"] == 5


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_load_leave_no_files_behind(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    code = f"""
import multiprocessing, sys, shardio
from torch.utils.data import DataLoader

def load(dataset):
    list(DataLoader(dataset, batch_size=None, num_workers=1))

if __name__ == "__main__":
    dataset = shardio.ShardDataset(sys.argv[1], decode=False, batch_size=100)
    process = multiprocessing.get_context({method!r}).Process(target=load, args=(dataset,))
    process.start()
    process.join()
    assert process.exitcode == 0
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    with tempfile.TemporaryDirectory() as folder:  # sockets lie there, so its path is short
        monkeypatch.setenv("TMPDIR", folder)
        done = programs.run(script, packed)
        assert done.returncode == 0, done.stderr
        assert not [*Path(folder).glob("shardio-*/*")]


def test_a_count_that_a_killed_process_wrote_by_half_does_no_harm(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dataset = open_dataset(packed)
    dataset.set_epoch(4)
    (file,) = tmp_path.glob("shardio-*/*")
    file.write_text('{"next": ')
    assert next(iter(dataset))["__epoch__"] == 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are Linux's to show")
def test_a_fork_while_the_count_is_held_does_not_keep_it(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dataset = open_dataset(packed)
    reading, writing = os.pipe()
    with dataset._epochs._shared():
        (file,) = tmp_path.glob("shardio-*/*")
        child = os.fork()
        if not child:  # as another thread may fork at any time
            held = {path.resolve() for path in Path("/proc/self/fd").iterdir()}
            os.write(writing, b"held" if file.resolve() in held else b"free")
            signal.pause()
    assert os.read(reading, 4) == b"free"
    with file.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)


def test_a_full_temporary_directory_is_one_sentence_and_the_count_stays(
    packed: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    counted = open_dataset(packed)
    counted.set_epoch(3)
    (small_disk / "full").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
    sentence = rf"^{small_disk}: the temporary directory cannot be written \(No space.* set TMPDIR"
    with pytest.raises(shardio.ShardioError, match=sentence):
        next(iter(open_dataset(packed)))
    assert next(iter(counted))["__epoch__"] == 3


def test_an_epoch_may_be_any_whole_number(packed: Path) -> None:
    dataset = open_dataset(packed)
    dataset.set_epoch(int(np.int64(4)))
    dataset.set_epoch(np.int64(5))  # type: ignore[arg-type]
    assert next(iter(dataset))["__epoch__"] == 5
    for wrong in ("1", 1.5, -1, None):
        with pytest.raises(shardio.UsageError, match="it must be a whole number, at least 0"):
            dataset.set_epoch(wrong)  # type: ignore[arg-type]


def test_a_transform_whose_result_needs_a_gradient_goes_through_workers(packed: Path) -> None:
    class Brighten(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(()))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.float() * self.gain

    dataset = shardio.ShardDataset(packed, batch_size=300, transform=Brighten())
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork")
    assert [batch["image"].requires_grad for batch in loader] == [False, False]


@pytest.mark.parametrize("step", [0, 3])
def test_setting_the_epoch_of_a_loaded_state_keeps_its_step(packed: Path, step: int) -> None:
    """A trainer that resumes sets the epoch too, before every epoch."""
    dataset = open_dataset(packed)
    dataset.set_epoch(2)
    state = dataset.state_dict() | {"step": step}
    again = open_dataset(packed)
    again.load_state_dict(state)
    again.set_epoch(2)
    assert [batch["__step__"] for batch in again] == [*range(step, 12)]
    again.set_epoch(2)  # anew, since the state was taken up
    assert next(iter(again))["__step__"] == 0
    again.load_state_dict(state)
    again.set_epoch(3)
    assert again.state_dict() == state | {"epoch": 3, "step": 0}


@pytest.mark.parametrize("kind", ["dataset", "Loader", "Mix"])
def test_the_rank_is_asked_for_when_a_loop_begins(
    packed: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Under Lightning's launcher there is WORLD_SIZE, and no RANK until the group is made."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    dataset = open_dataset(packed, batch_size=None, global_batch_size=50)
    loop: Any = dataset
    if kind == "Loader":
        loop = shardio.Loader(dataset, threads=1)
    elif kind == "Mix":
        loop = shardio.Mix([dataset, dataset.replace(seed=1)], weights=[1, 1])
    with pytest.raises(
        shardio.UsageError, match=r"RANK=None and WORLD_SIZE=2; .*or begin the loop"
    ):
        iter(loop)
    monkeypatch.setenv("RANK", "1")
    assert len(next(iter(loop))["__key__"]) == 25
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(shardio.UsageError, match="global_batch_size=50 does not divide among 4"):
        iter(loop)


def test_streams_for_several_ranks_are_no_fault_of_a_dataset_made_before_them(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(packed, batch_size=15, streams=2)
    with pytest.raises(
        shardio.UsageError, match="streams=2 do not divide the global batch size 15"
    ):
        next(iter(dataset))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len([*dataset]) == 20

"""What a dataset keeps to itself: paths, stopwatches, torch's tables, and how short it works."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from torch.utils.data import DataLoader

import shardio
from shardio.native import is_active
from shardio.reading.readahead import ReadAhead
from shardio.reading.times import Stopwatch
from shardio.testing import make_images


def count_calls(dataset: shardio.ShardDataset) -> Counter[tuple[str, int]]:
    """Count the calls of shardio's functions in this thread until the first batch is there."""
    root, calls = str(Path(shardio.__file__).parent), Counter[tuple[str, int]]()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(root):
            calls[frame.f_code.co_filename, frame.f_code.co_firstlineno] += 1

    sys.setprofile(note)
    try:
        next(iter(dataset))
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("way", ["core", "python_path"])
def test_the_way_to_a_first_batch_is_short(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """All is read in this thread; most of the calls left are those of fields and planning.

    The first of two datasets fills the caches of the process.
    """
    if way == "core" and not is_active():
        pytest.skip("the native core is off")
    if way == "python_path":
        request.getfixturevalue(way)
    monkeypatch.setattr(ReadAhead, "_ask_for_samples", lambda *_: None)
    monkeypatch.setattr(ReadAhead, "_ask_for_window", lambda *_: None)
    photos = make_images(tmp_path / "photos", classes=2, per_class=10, extension="jpg")
    shardio.pack(photos, tmp_path / "out", shards=2)
    calls = Counter[tuple[str, int]]()
    for _ in range(2):
        crop = shardio.RandomResizedCrop(4)
        dataset = shardio.ShardDataset(tmp_path / "out", batch_size=4, transform=crop, shuffle=True)
        calls = count_calls(dataset)
    own = {at: count for at, count in calls.items() if Path(at[0]).parent.name == "reading"}
    found = calls.total(), len(calls), sum(own.values()), len(own)
    most = {"core": (472, 280, 235, 168), "python_path": (606, 258, 224, 129)}[way]
    assert all(each <= limit for each, limit in zip(found, most, strict=True)), found


def test_counting_steps_formats_no_text(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=50)
    monkeypatch.setattr(shardio.ShardDataset, "__repr__", lambda _: pytest.fail("it is formatted"))
    assert dataset.num_steps() == len([*dataset])


@pytest.mark.parametrize("pattern", ["out", "out/*.tar", "out/shard-{000000..000001}.tar"])
def test_a_dataset_is_read_from_another_directory(
    pattern: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("SHARDIO_CACHE", "cache")
    shardio.pack(images, "out", shards=2)
    if pattern != "out":
        (tmp_path / "here" / "out" / "shardio.json").unlink()
    dataset = shardio.ShardDataset(pattern, batch_size=200)
    wanted = [batch["__key__"] for batch in dataset]
    monkeypatch.chdir(tmp_path / "there")
    assert dataset[3]["__key__"] == wanted[0][3]
    unpickled: Any = "forkserver"
    loops: list[Any] = [
        dataset,
        shardio.Loader(dataset, threads=2),
        DataLoader(dataset, batch_size=None, num_workers=2),
        DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=unpickled),
        dataset.replace(decode=False),
    ]
    for number, loop in enumerate(loops):
        assert [batch["__key__"] for batch in loop] == wanted, number


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataloader_that_batches_again_is_refused(workers: int, packed: Path) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=50)
    again = iter(DataLoader(dataset, batch_size=2, num_workers=workers))
    with pytest.raises(shardio.UsageError, match=r"makes batches already.*pass batch_size=None"):
        next(again)
    threaded = iter(DataLoader(shardio.Loader(dataset, threads=1), num_workers=workers))
    with pytest.raises(shardio.UsageError, match="makes batches already"):
        next(threaded)
    firsts = DataLoader(dataset, batch_size=1, collate_fn=lambda batches: batches[0])
    assert len(next(iter(firsts))["__key__"]) == 50
    single = shardio.ShardDataset(packed)
    assert next(iter(DataLoader(single, batch_size=2, num_workers=workers)))["label"].shape == (2,)


def test_torch_keeps_its_tables() -> None:
    code = (
        "import torch; from torch.utils.data._utils import collate; tables = lambda: "
        "(dict(collate.default_collate_fn_map), torch.serialization.get_safe_globals()); "
        "before = tables(); import shardio; shardio.ShardDataset, shardio.Loader; "
        "assert tables() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class CountingWatch(Stopwatch):
    """Counts what it times."""

    stopped: list[int] = []  # noqa: RUF012  of all of them

    def stop(self, samples: int = 1) -> None:
        super().stop(samples)
        self.stopped.append(samples)


def test_another_stopwatch_is_lent_for_a_while(packed: Path) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=50)
    CountingWatch.stopped.clear()
    with dataset.timed_by(CountingWatch):
        batches = [*shardio.Loader(dataset, threads=2)]
        with (
            pytest.raises(shardio.UsageError, match="the dataset is timed already"),
            dataset.timed_by(CountingWatch),
        ):
            pass
    assert sum(CountingWatch.stopped) == sum(len(batch["__key__"]) for batch in batches) == 600
    list(dataset)
    assert sum(CountingWatch.stopped) == 600


def test_a_repeated_dataset_has_its_samples_several_times(packed: Path) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=60)
    for part in (dataset, dataset.subset(range(7, 67))):
        keys = [key for batch in part for key in batch["__key__"]]
        twice: list[str] = [key for batch in part.repeated(2) for key in batch["__key__"]]
        assert twice == [*keys, *keys]
    assert dataset.repeated(2).contents != dataset.contents


EXIT = """
import ctypes, sys, shardio
images = shardio.ShardDataset(sys.argv[1], batch_size=4, transform=shardio.RandomResizedCrop(4))
labels = shardio.ShardDataset(sys.argv[1], batch_size=4, fields={"label": "cls"})
kept = [images[0], iter(images), iter(shardio.Loader(images)), iter(shardio.Loader(labels))]
batches = [next(loop) for loop in kept[1:]]
# As dill does: this module outlives others, whose names are set to None at the interpreter's end.
ctypes.pythonapi.Py_IncRef(ctypes.py_object(sys.modules["__main__"]))
"""


def test_the_end_of_the_interpreter_is_silent_while_loops_are_alive(packed: Path) -> None:
    command: list[Any] = [sys.executable, "-W", "error", "-c", EXIT, packed]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")

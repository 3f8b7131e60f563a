"""What lies in the output folder before, during and after a pack, and who may remove it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

import shardio
from shardio.storage.folder import Folder
from shardio.testing import make_images
from tests.storage.memory import MemoryStorage

LOCK = ".shardio-pack"
DYING_PACK = """
import os, sys
import shardio
from shardio.storage.folder import Folder
Folder.sync = lambda folder: os._exit(9)
shardio.pack(sys.argv[1], sys.argv[2], shards=4)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_images(tmp_path / "in", classes=0, per_class=8)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "name",
    [
        "skipped.jsonl",
        "renamed.jsonl",
        ".mine.tmp",
        "shardio.json",
        "index/mine",
        "a.tar",
        "shard-mine.tar.gz",
    ],
)
def test_a_folder_with_a_file_that_a_pack_may_write_is_refused_and_left_alone(
    source: Path, tmp_path: Path, name: str
) -> None:
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    top = name.partition("/")[0]
    with pytest.raises(
        shardio.PackError, match=rf"out: the folder has .* already \({top}\); remove"
    ):
        shardio.pack(source, tmp_path / "out", shards=2)
    assert contents(tmp_path / "out") == {name: b"mine"}


@pytest.mark.parametrize("end", ["whole", "failed"])
def test_files_that_came_while_packing_are_kept(source: Path, tmp_path: Path, end: str) -> None:
    out = tmp_path / "out"
    mine = {".a.tmp", "shard-1.tar", "shard-mine.tar", "index/notes", "shard-000009.tar.idx"}

    def start(_: int) -> Callable[[int], None]:
        for name in mine:
            (out / name).write_text("mine")
        if end == "failed":
            (source / "image0000.png").write_bytes(b"no")
        return lambda _: None

    try:
        shardio.pack(source, out, shards=1, progress=start)
    except shardio.PackError:
        assert end == "failed"
        assert contents(out) == dict.fromkeys(mine, b"mine")
    else:
        assert end == "whole"
        assert mine < set(contents(out))


def test_a_pack_after_a_killed_one_removes_what_that_left_and_nothing_else(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    subprocess.run([sys.executable, "-c", DYING_PACK, str(source), str(out)], check=False)
    assert {LOCK, "shard-000003.tar", "index/shard-000003.tar.idx"} < set(contents(out))
    (out / ".shard-000001.tar.12-34.tmp").touch()
    (out / "index/.shard-000001.tar.idx.12-34.tmp").touch()
    (out / "notes.txt").write_text("mine")
    shardio.pack(source, out, shards=2)
    shardio.pack(source, tmp_path / "other", shards=2)
    assert contents(out) == {**contents(tmp_path / "other"), "notes.txt": b"mine"}


def test_a_failed_pack_removes_the_folders_it_made_and_no_others(
    source: Path, tmp_path: Path
) -> None:
    (source / "image0000.png").write_bytes(b"no")
    (tmp_path / "old").mkdir()
    with pytest.raises(shardio.PackError, match=r"image0000\.png"):
        shardio.pack(source, tmp_path / "old/a/b/out", shards=1)
    assert [*(tmp_path / "old").iterdir()] == []


def test_a_file_in_a_folder_the_pack_made_does_not_hide_the_error(
    source: Path, tmp_path: Path
) -> None:
    (source / "image0000.png").write_bytes(b"no")

    def start(_: int) -> Callable[[int], None]:
        (tmp_path / "a/notes.txt").touch()
        return lambda _: None

    with pytest.raises(shardio.PackError, match=r"image0000\.png: not a JPEG"):
        shardio.pack(source, tmp_path / "a/out", shards=1, progress=start)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["notes.txt"]


def test_output_that_cannot_be_removed_stays_under_the_lock(source: Path, tmp_path: Path) -> None:
    (source / "image0000.png").write_bytes(b"no")
    out = tmp_path / "out"

    def start(_: int) -> Callable[[int], None]:
        (out / "skipped.jsonl").mkdir()
        return lambda _: None

    with pytest.raises(shardio.PackError, match=r"image0000\.png: not a JPEG"):
        shardio.pack(source, out, shards=1, progress=start)
    assert (out / LOCK).exists()


def finish_at(moment: str, finish: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Let another pack finish between two steps of taking the folder."""
    done: list[object] = []

    def once() -> None:
        if not done:
            done.append(None)
            finish()

    real_open, real = Folder.open_lock, fcntl.flock

    def open_lock(folder: Folder, name: str) -> FileIO:
        if moment == "before the lock is opened":
            once()
        return real_open(folder, name)

    def flock(*arguments: Any) -> None:
        if moment == "before the lock is held":
            once()
        real(*arguments)

    patch.setattr(Folder, "open_lock", open_lock)
    patch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("moment", ["before the lock is opened", "before the lock is held"])
@pytest.mark.parametrize("renewed", [False, True], ids=["lock gone", "lock of a third pack"])
def test_a_pack_that_finishes_while_a_second_takes_the_folder_is_kept(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    renewed: bool,
) -> None:
    shardio.pack(source, tmp_path / "whole", shards=2)
    expected = contents(tmp_path / "whole")
    out = tmp_path / "out"
    out.mkdir()
    (out / LOCK).write_text("[]\n")  # of a pack that runs

    def finish() -> None:
        (out / LOCK).unlink()
        (tmp_path / "whole").rename(tmp_path / "gone")
        for path in (tmp_path / "gone").iterdir():
            path.rename(out / path.name)
        if renewed:
            (out / LOCK).touch()

    finish_at(moment, finish, monkeypatch)
    with pytest.raises(shardio.PackError, match=r"has shards already|another pack is writing"):
        shardio.pack(source, out, shards=2)
    left = contents(out)
    if renewed and moment == "before the lock is held":
        assert left.pop(LOCK) == b"", "the third pack's lock is not ours to remove"
    assert left == expected
    assert os.path.lexists(out / LOCK) == (renewed and moment == "before the lock is held")


def test_of_packs_of_the_same_thing_at_once_one_makes_it(source: Path, tmp_path: Path) -> None:
    shardio.pack(source, tmp_path / "alone", shards=2)
    command = [sys.executable, "-m", "shardio", "pack", str(source), str(tmp_path / "out")]
    running = [
        subprocess.Popen([*command, "--shards", "2"], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate()[1] for process in running]
    assert sorted(process.returncode for process in running) == [0, 1, 1]
    for process, text in zip(running, said, strict=True):
        refused = "another pack is writing" in text or "has shards already" in text
        assert refused == bool(process.returncode), text
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_packs_of_the_same_thing_into_one_storage_at_once_make_the_same_files(
    source: Path,
) -> None:
    alone, shared = MemoryStorage("alone of two packs"), MemoryStorage("shared by two packs")
    shardio.pack(source, "memory://out", shards=3, storage=alone, jobs=1)
    published: list[int] = []

    def start(_: int) -> Callable[[int], None]:
        def advance(_: int) -> None:
            published.append(sum(path.endswith(".tar") for path in shared.files))
            if len(published) == 5:  # the first pack is in its second shard
                shardio.pack(source, "memory://out", shards=3, storage=shared, jobs=1)

        return advance

    shardio.pack(source, "memory://out", shards=3, storage=shared, jobs=1, progress=start)
    assert published[4:6] == [1, 3]
    assert shared.files == alone.files
    assert len(shardio.ShardDataset("memory://out", storage=shared)) == 8


def interrupt(source: Path, out: Path, **options: Any) -> None:
    """Leave a folder as a pack that was interrupted after its first shards."""
    passes: list[list[int]] = []

    def start(_: int) -> Callable[[int], None]:
        passes.append([])
        return advance

    def advance(count: int) -> None:
        passes[-1].append(count)
        if len(passes[-1]) > 5 and len(passes) > ("dedupe" in options):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shardio.pack(source, out, jobs=1, progress=start, **options)
    assert (out / LOCK).exists()


def test_a_dataset_inside_the_folder_of_an_interrupted_pack_is_kept(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shardio.pack(source, out / "val", shards=2)
    expected = contents(out / "val")
    interrupt(source, out, shards=4)
    split = {"train": 0.5, "val": 0.5}
    with pytest.raises(shardio.PackError, match=r"val: the folder has shards already"):
        shardio.pack(source, out, shards=4, split=split)
    assert contents(out / "val") == expected
    shardio.pack(source, out, shards=4)
    assert contents(out / "val") == expected


def test_splits_inside_the_folder_of_a_pack_without_splits_are_told(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    shardio.pack(source, out, shards=4, split={"train": 0.5, "val": 0.5})
    assert "packed folders" not in caplog.text
    shardio.pack(source, out, shards=2)
    assert f"{out}: it holds packed folders already, train, val, which stay" in caplog.text


def test_a_split_of_an_interrupted_pack_is_no_folder_for_another_pack(
    source: Path, tmp_path: Path
) -> None:
    out, split = tmp_path / "out", {"train": 0.5, "val": 0.5}
    interrupt(source, out, shards=4, split=split)
    with pytest.raises(shardio.PackError, match=r"a pack of splits into .*out was interrupted"):
        shardio.pack(source, out / "train", shards=1)
    with pytest.raises(shardio.IndexFileError, match="interrupted or still runs"):
        shardio.ShardDataset(out / "train")
    shardio.pack(source, out, shards=4, split=split)
    assert not (out / "train" / LOCK).exists()


def test_ledgers_above_splits_are_those_of_the_pack_that_ended(
    source: Path, tmp_path: Path
) -> None:
    out, split = tmp_path / "out", {"train": 0.5, "val": 0.5}
    (source / "copy.png").write_bytes((source / "image0000.png").read_bytes())
    interrupt(source, out, shards=4, split=split, dedupe="exact")
    for name in (".skipped.jsonl.12-34.tmp", "skipped.jsonl", "renamed.jsonl"):
        (out / name).touch()
    shardio.pack(source, out, shards=4, split=split)
    assert sorted(path.name for path in out.iterdir()) == ["train", "val"]


def test_a_source_that_is_one_of_the_splits_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(shardio.PackError, match="the output lies inside the source"):
        shardio.pack(source, tmp_path, shards=2, split={"in": 0.5, "other": 0.5})
    assert not (source / "index").exists()

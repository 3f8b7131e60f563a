"""Shards in a storage that is no file system: packed, verified and read by the public functions."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

import shardio
from shardio.indexing import shard_index
from shardio.packing import upload
from shardio.storage import location
from shardio.storage.base import FileStat, StoredFile
from shardio.storage.local import LOCAL, LocalFiles
from shardio.storage.remote import RemoteStorage
from shardio.testing import digests
from tests.storage.memory import MemoryStorage

OUT = "memory://bucket/out"
_buckets = count()


@pytest.fixture
def memory() -> MemoryStorage:
    return MemoryStorage(f"remote {next(_buckets)}")


@pytest.fixture
def copied(memory: MemoryStorage, packed: Path) -> MemoryStorage:
    """The packed images, copied as they are."""
    for path in packed.rglob("*"):
        if path.is_file():
            memory.publish(f"{OUT}/{path.relative_to(packed)}", path)
    return memory


def read_all(dataset: shardio.ShardDataset, workers: int = 0) -> list[tuple[str, int, bytes]]:
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    return [
        (key, int(label), image.numpy().tobytes())
        for batch in loader
        for key, label, image in zip(batch["__key__"], batch["label"], batch["image"], strict=True)
    ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", [OUT, f"{OUT}/", f"{OUT}/shardio.json", [OUT]])
def test_batches_are_those_of_local_files(
    copied: MemoryStorage, packed: Path, source: str | list[str], workers: int
) -> None:
    options: dict[str, Any] = {"batch_size": 50, "shuffle": True, "seed": 3}
    there = shardio.ShardDataset(source, storage=copied, **options)
    here = shardio.ShardDataset(packed, **options)
    assert there.contents == here.contents
    assert read_all(there, workers) == read_all(here)


def test_large_indexes_are_read_too(
    copied: MemoryStorage, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_index, "_MOST_READ", 0)
    dataset = shardio.ShardDataset(OUT, storage=copied, batch_size=50)
    assert all(entry.load_index().file is None for entry in dataset.catalog.shards)
    assert read_all(dataset) == read_all(shardio.ShardDataset(packed, batch_size=50))


def test_rows_of_equal_size_are_read(memory: MemoryStorage, tmp_path: Path) -> None:
    rows = [np.full(4, number, np.float32) for number in range(40)]
    samples = [{"__key__": f"{number:03d}", "x.npy": row} for number, row in enumerate(rows)]
    shardio.pack(samples, tmp_path / "out", shards=2, shuffle=False)
    for path in (tmp_path / "out").rglob("*.*"):
        memory.publish(f"{OUT}/{path.relative_to(tmp_path / 'out')}", path)
    dataset = shardio.ShardDataset(OUT, storage=memory, batch_size=40)
    (batch,) = dataset
    assert np.array_equal(batch["x.npy"].numpy(), np.stack(rows))


def test_other_arguments_and_parts_keep_the_storage(copied: MemoryStorage) -> None:
    dataset = shardio.ShardDataset(OUT, storage=copied, batch_size=50)
    part, _ = dataset.replace(batch_size=10).split(0.5, 0.5)
    assert len(read_all(part)) == 300
    assert dataset.by_key("class03/image0005")["label"] == 3


def test_it_verifies(copied: MemoryStorage) -> None:
    found = shardio.verify(OUT, storage=copied, jobs=2)
    assert found.sound
    assert (found.shards, found.samples, found.findings) == (8, 600, ())


def flip(memory: MemoryStorage, name: str) -> None:
    data = bytearray(memory.files[f"{OUT}/{name}"])
    data[len(data) // 2] ^= 1
    memory.publish(f"{OUT}/{name}", bytes(data))


DAMAGES: dict[str, tuple[Callable[[MemoryStorage], None], str]] = {
    "shard flipped": (lambda memory: flip(memory, "shard-000003.tar"), "CRC-32 differs"),
    "shard missing": (
        lambda memory: memory.remove(f"{OUT}/shard-000003.tar"), "the shard is missing"
    ),
    "index flipped": (
        lambda memory: flip(memory, "index/shard-000003.tar.idx"), "its checksum differs"
    ),
    "index missing": (
        lambda memory: memory.remove(f"{OUT}/index/shard-000003.tar.idx"), "the index is missing"
    ),
    "manifest flipped": (lambda memory: flip(memory, "shardio.json"), "the manifest is damaged"),
    "temporary file": (
        lambda memory: memory.publish(f"{OUT}/.shard-000000.tar.1-2.tmp", b""),
        "a temporary file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(copied: MemoryStorage, damage: str) -> None:
    harm, told = DAMAGES[damage]
    harm(copied)
    found = shardio.verify(OUT, storage=copied, jobs=1)
    assert [finding for finding in found.problems if told in finding.what], found.findings


def test_a_shard_that_changes_in_an_epoch_is_an_error(copied: MemoryStorage) -> None:
    steps = iter(shardio.ShardDataset(OUT, storage=copied, batch_size=10))
    next(steps)
    for number in range(8):
        flip(copied, f"shard-{number:06d}.tar")
    with pytest.raises(shardio.ShardioError, match="changed after it was opened"):
        for _ in steps:
            pass


def test_what_is_no_packed_folder_is_told(copied: MemoryStorage) -> None:
    copied.remove(f"{OUT}/shardio.json")
    with pytest.raises(shardio.SituationError, match="no packed folder is there"):
        shardio.ShardDataset(OUT, storage=copied)
    with pytest.raises(shardio.SituationError, match=r"no shards .* are there; check the URL"):
        shardio.verify("memory://bucket/missing", storage=copied)


def test_urls_without_a_storage_are_refused_as_ever() -> None:
    with pytest.raises(shardio.UsageError, match="memory storage is not read or written here"):
        shardio.ShardDataset(OUT)


def test_what_is_no_storage_is_refused(images: Path, tmp_path: Path) -> None:
    wrong: Any = "s3"
    for call in (shardio.ShardDataset, shardio.verify):
        with pytest.raises(shardio.UsageError, match="storage='s3': it must have the methods"):
            call(OUT, storage=wrong)
    with pytest.raises(shardio.UsageError, match="storage='s3'"):
        shardio.pack(images, tmp_path / "out", storage=wrong, **OPTIONS)


# Packing.

OPTIONS: dict[str, Any] = {"shards": 3, "seed": 5, "jobs": 1}


class UnpluggedError(Exception):
    """The process is killed, as far as the storage can tell."""


@dataclass(frozen=True)
class Watched(MemoryStorage):
    """A storage that notes what is published, and may fail instead.

    Args:
        noted: paths in the order in which they were published.
        fails_at: end of the path whose publishing fails.
        after: fail after the file is there, not before.
    """

    noted: list[str] = field(default_factory=list, compare=False)
    fails_at: str | None = field(default=None, compare=False)
    after: bool = field(default=False, compare=False)

    def publish(self, path: str, content: bytes | Path, /, *, only_if_absent: bool = False) -> None:
        fails = self.fails_at is not None and path.endswith(self.fails_at)
        if fails and not self.after:
            raise UnpluggedError(path)
        super().publish(path, content, only_if_absent=only_if_absent)
        self.noted.append(path.removeprefix(f"{OUT}/"))
        if fails:
            raise UnpluggedError(path)


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        f"{OUT}/{path.relative_to(folder)}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def expected(images: Path, tmp_path: Path) -> dict[str, bytes]:
    """What a local pack writes."""
    shardio.pack(images, tmp_path / "expected", **OPTIONS)
    return files_below(tmp_path / "expected")


def test_pack_verify_read_whole(
    memory: MemoryStorage, images: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    summary = shardio.pack(images, OUT, storage=memory, **OPTIONS)
    assert (summary.samples, summary.shards) == (600, 3)
    assert memory.files == expected
    assert shardio.verify(OUT, storage=memory, jobs=1).sound
    there = shardio.ShardDataset(OUT, storage=memory, batch_size=50, shuffle=True)
    here = shardio.ShardDataset(tmp_path / "expected", batch_size=50, shuffle=True)
    assert read_all(there) == read_all(here)
    assert len({key for key, _, _ in read_all(there)}) == 600


def test_splits_and_ledgers_are_published(
    memory: MemoryStorage, images: Path, tmp_path: Path
) -> None:
    source = tmp_path / "images"
    shutil.copytree(images, source)
    (source / "class00/image0000.png").write_bytes(b"no image")
    options = OPTIONS | {"split": {"train": 0.8, "val": 0.2}, "on_error": "skip"}
    shardio.pack(source, tmp_path / "out", **options)
    summary = shardio.pack(source, OUT, storage=memory, **options)
    assert summary.skipped == 1
    assert memory.files == files_below(tmp_path / "out")
    assert shardio.verify(OUT, storage=memory, jobs=1).sound
    assert len(shardio.ShardDataset(f"{OUT}/val", storage=memory)) == 120


def test_samples_of_a_program_are_packed(memory: MemoryStorage) -> None:
    samples = [{"__key__": f"{number}", "txt": f"{number}"} for number in range(10)]
    shardio.pack(samples, OUT, storage=memory, shards=2, jobs=1)
    texts = [sample["txt"] for sample in shardio.ShardDataset(OUT, storage=memory)]
    assert sorted(texts, key=int) == [f"{number}" for number in range(10)]


def test_tasks_in_other_processes_get_the_storage(images: Path, tmp_path: Path) -> None:
    """The storage of local files, under a name that is not local."""
    storage = Prefixed(str(tmp_path / "bucket"))
    (tmp_path / "bucket").mkdir()
    shardio.pack(images, OUT, storage=storage, shards=4, jobs=2)
    assert shardio.verify(OUT, storage=storage, jobs=2).sound
    assert len(shardio.ShardDataset(OUT, storage=storage)) == 600


@dataclass(frozen=True)
class Prefixed:
    """Files below a local folder by their URLs."""

    folder: str

    def names(self, folder: str, /) -> list[str]:
        return LOCAL.names(self.local(folder))

    def stat(self, path: str, /) -> FileStat:
        return LOCAL.stat(self.local(path))

    def open(self, path: str, name: str, /) -> StoredFile:
        return LOCAL.open(self.local(path), name)

    def publish(self, path: str, content: bytes | Path, /, *, only_if_absent: bool = False) -> None:
        LOCAL.publish(self.local(path), content, only_if_absent=only_if_absent)

    def remove(self, path: str, /) -> None:
        LOCAL.remove(self.local(path))

    def local(self, path: str) -> str:
        return f"{self.folder}/{path.removeprefix('memory://')}"


def test_the_manifest_is_published_last(images: Path) -> None:
    memory = Watched(f"remote {next(_buckets)}")
    shardio.pack(images, OUT, storage=memory, **OPTIONS)
    shards = [f"shard-{number:06d}.tar" for number in range(3)]
    each = [name for shard in shards for name in (shard, f"index/{shard}.idx")]
    assert memory.noted == [".shardio-pack", *each, "shardio.json"]


POINTS = ["shard-000000.tar", "shard-000001.tar", "shard-000001.tar.idx", "shardio.json"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("point", POINTS)
def test_a_pack_that_was_interrupted_is_finished_by_the_same_call(
    images: Path, expected: dict[str, bytes], point: str, *, after: bool
) -> None:
    bucket = f"remote {next(_buckets)}"
    broken = Watched(bucket, fails_at=point, after=after)
    with pytest.raises(UnpluggedError):
        shardio.pack(images, OUT, storage=broken, **OPTIONS)
    committed = after and point == "shardio.json"
    if committed:
        assert len(shardio.ShardDataset(OUT, storage=broken)) == 600
    elif point == "shard-000000.tar" and not after:
        assert broken.files == {}
    else:
        with pytest.raises(shardio.IndexFileError, match="interrupted or still runs"):
            shardio.ShardDataset(OUT, storage=broken)
    before = dict(broken.files)
    again = Watched(bucket)
    shardio.pack(images, OUT, storage=again, **OPTIONS)
    assert again.files == expected
    wanted = {*expected, f"{OUT}/.shardio-pack"} - {*before}
    assert {*again.noted} == {path.removeprefix(f"{OUT}/") for path in wanted}


def test_another_pack_does_not_take_up_what_was_interrupted(images: Path) -> None:
    broken = Watched(f"remote {next(_buckets)}", fails_at="shard-000001.tar")
    with pytest.raises(UnpluggedError):
        shardio.pack(images, OUT, storage=broken, **OPTIONS)
    memory, before = MemoryStorage(broken.bucket), dict(broken.files)
    for change in ({"seed": 6}, {"shards": 2}):
        with pytest.raises(shardio.PackError, match=r"shard-000000\.tar: another pack"):
            shardio.pack(images, OUT, storage=memory, **OPTIONS | change)
        assert memory.files == before


def test_a_shard_that_an_interrupted_pack_alone_would_make_is_refused(images: Path) -> None:
    broken = Watched(f"remote {next(_buckets)}", fails_at="shardio.json")
    with pytest.raises(UnpluggedError):
        shardio.pack(images, OUT, storage=broken, **OPTIONS)
    memory, before = MemoryStorage(broken.bucket), dict(broken.files)
    with pytest.raises(shardio.PackError, match=r"shard-000002\.tar: another pack"):
        shardio.pack(images, OUT, storage=memory, **OPTIONS | {"shards": 2})
    assert memory.files == before


@dataclass(frozen=True)
class Raced(MemoryStorage):
    """A storage to which somebody else publishes a manifest first."""

    def publish(self, path: str, content: bytes | Path, /, *, only_if_absent: bool = False) -> None:
        if path.endswith("shardio.json"):
            super().publish(path, b"theirs")
        super().publish(path, content, only_if_absent=only_if_absent)


def test_of_two_packs_at_once_the_second_says_so(images: Path) -> None:
    memory = Raced(f"remote {next(_buckets)}")
    with pytest.raises(shardio.PackError, match=r"shardio\.json: another pack"):
        shardio.pack(images, OUT, storage=memory, **OPTIONS)
    assert memory.files[f"{OUT}/shardio.json"] == b"theirs"


@dataclass(frozen=True)
class Overtaken(MemoryStorage):
    """A storage where another pack begins and ends between this one's look and its note."""

    images: Path = field(default=Path(), compare=False)

    def publish(self, path: str, content: bytes | Path, /, *, only_if_absent: bool = False) -> None:
        if path.endswith(".shardio-pack"):
            shardio.pack(self.images, OUT, storage=MemoryStorage(self.bucket), **OPTIONS)
        super().publish(path, content, only_if_absent=only_if_absent)


def test_a_pack_that_was_overtaken_leaves_the_others_folder_finished(
    images: Path, expected: dict[str, bytes]
) -> None:
    memory = Overtaken(f"remote {next(_buckets)}", images)
    with pytest.raises(shardio.PackError, match="another pack"):
        shardio.pack(images, OUT, storage=memory, **OPTIONS | {"seed": 6})
    assert memory.files == expected


@pytest.mark.parametrize("name", ["shardio.json", "a.tar", "index/a.tar.idx"])
def test_a_folder_with_shards_is_not_packed_into(
    memory: MemoryStorage, images: Path, name: str
) -> None:
    memory.publish(f"{OUT}/{name}", b"x")
    with pytest.raises(shardio.PackError, match=r"the folder has .* already"):
        shardio.pack(images, OUT, storage=memory, **OPTIONS)
    assert memory.files == {f"{OUT}/{name}": b"x"}


def test_a_note_that_no_pack_wrote_is_neither_replaced_nor_removed(
    memory: MemoryStorage, images: Path
) -> None:
    memory.publish("memory://bucket/out/.shardio-pack", b"precious")
    memory.publish("memory://bucket/out/other.tar", b"x")
    with pytest.raises(shardio.PackError, match="it is not a note that a pack wrote"):
        shardio.pack(images, "memory://bucket/out", storage=memory, shards=2, jobs=1)
    found = memory.open("memory://bucket/out/.shardio-pack", "note")
    assert found.read(0, found.size) == b"precious"


def test_a_pack_that_fails_leaves_the_note_of_another(memory: MemoryStorage, images: Path) -> None:
    memory.publish("memory://bucket/out/.shardio-pack", upload._NOTE)
    with pytest.raises(shardio.PackError):
        shardio.pack(images / "none", "memory://bucket/out", storage=memory, shards=2, jobs=1)
    assert memory.names("memory://bucket/out") == [".shardio-pack"]


def test_a_pack_that_fails_at_its_source_leaves_nothing(
    memory: MemoryStorage, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"no image")
    with pytest.raises(shardio.PackError, match=r"a\.png"):
        shardio.pack(tmp_path / "images", OUT, storage=memory, shards=1, jobs=1)
    assert memory.files == {}


def test_local_scratch_is_removed(
    memory: MemoryStorage, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    shardio.pack(images, OUT, storage=memory, **OPTIONS)
    assert not [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()]


def test_resharding_writes_to_a_storage(
    memory: MemoryStorage, packed: Path, tmp_path: Path
) -> None:
    shardio.reshard(packed, tmp_path / "out", shards=2, jobs=1)
    shardio.reshard(packed, OUT, storage=memory, shards=2, jobs=1)
    assert memory.files == files_below(tmp_path / "out")


def test_the_storage_of_local_files_packs_in_place(images: Path, tmp_path: Path) -> None:
    shardio.pack(images, tmp_path / "a", storage=LocalFiles(), **OPTIONS)
    shardio.pack(images, tmp_path / "b", **OPTIONS)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_ray_is_refused(memory: MemoryStorage, images: Path) -> None:
    with pytest.raises(shardio.UsageError, match="engine='ray': it writes to a folder"):
        shardio.pack(images, OUT, storage=memory, shards=2, engine="ray")


def test_one_line_of_the_table_gives_a_scheme_its_storage(
    memory: MemoryStorage, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location, "STORAGES", {"memory": lambda url, _: (memory, url)})
    shardio.pack(images, OUT, **OPTIONS)
    assert shardio.verify(OUT, jobs=1).sound
    assert len(shardio.ShardDataset(OUT)) == 600


_meeting = threading.Barrier(2)


@dataclass(frozen=True, kw_only=True)
class Meeting(RemoteStorage):
    """A storage whose client connects when that of another does."""

    name: str

    def connect(self) -> Any:
        _meeting.wait(30)
        return SimpleNamespace(stat=lambda path: FileStat(len(path), "1"))


def test_two_stores_connect_without_waiting_for_each_other() -> None:
    with ThreadPoolExecutor(2) as threads:
        found = threads.map(lambda name: Meeting(name=name).stat("x"), ["one", "other"])
        assert [each.size for each in found] == [1, 1]

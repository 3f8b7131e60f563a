"""Shards without checksums that change while they are read give no bytes under another's name."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

import shardio
from shardio.storage.copying import RowCopier
from shardio.storage.local import LocalShard
from shardio.testing import make_shard

Loop = Callable[[shardio.ShardDataset], Iterator[dict[str, Any]]]

LOOPS: dict[str, Loop] = {
    "in the loop": iter,
    "in threads": lambda dataset: iter(shardio.Loader(dataset, threads=2)),
    "in workers": lambda dataset: iter(DataLoader(dataset, batch_size=None, num_workers=2)),
}
HEADER = r"sample '\d+', field '\w+' at offset \d+: its header is not the one that was indexed"


def npy(number: int) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.full(100, number, np.int32))
    return stream.getvalue()


def samples(kind: str, keys: range) -> dict[str, dict[str, bytes]]:
    """Samples whose data say their keys; equal sizes, so that shards differ in nothing else."""
    return {
        f"{key}": {"npy": npy(key)} if kind == "rows" else {"txt": b"%d" % key, "bin": b"%d" % key}
        for key in keys
    }


def overwrite(shard: Path, data: bytes, *, keep_time: bool = True) -> None:
    """Write other data of the same size into a file."""
    before = shard.stat()
    assert len(data) == before.st_size
    with shard.open("r+b") as stream:
        stream.write(data)
    os.utime(shard, ns=(0, before.st_mtime_ns + (0 if keep_time else 1)))


def check(*batches: dict[str, Any]) -> None:
    """Each sample has the bytes of its own key."""
    for batch in batches:
        for slot, key in enumerate(batch["__key__"]):
            if "npy" in batch:
                assert set(batch["npy"][slot].tolist()) == {int(key)}
            else:
                assert batch["txt"][slot] == key == batch["bin"][slot].decode()


def check_all(batches: Iterable[dict[str, Any]]) -> None:
    for batch in batches:
        check(batch)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Waits until a shard was opened ahead."""
    asked: list[str] = []
    monkeypatch.setattr(LocalShard, "read_ahead", lambda shard, *_: asked.append(shard.name))

    def wait(shard: str) -> None:
        for _ in range(1000):
            if shard in asked:
                return
            time.sleep(0.01)
        pytest.fail("it was not opened")

    return wait


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("kind", ["samples", "rows"])
@pytest.mark.parametrize("keep_time", [True, False], ids=["same time", "another time"])
def test_a_shard_overwritten_at_its_size_under_a_running_epoch_is_an_error(
    tmp_path: Path, loop: Loop, kind: str, keep_time: bool
) -> None:
    keys = range(1000, 1800)
    shard = make_shard(tmp_path / "a.tar", samples(kind, keys))
    other = make_shard(tmp_path / "b", samples(kind, keys[::-1])).read_bytes()
    dataset = shardio.ShardDataset(shard, batch_size=4, on_bad_sample="skip", shuffle=True)
    batches = loop(dataset)
    check(next(batches))
    overwrite(shard, other, keep_time=keep_time)
    with pytest.raises(shardio.TarError, match=r"a\.tar: .*changed after the dataset was opened"):
        check_all(batches)
    assert dataset.num_bad_samples == 0
    check_all(shardio.ShardDataset(shard, batch_size=4))


def test_the_error_has_the_place(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", samples("samples", range(8)))
    dataset = shardio.ShardDataset(shard, fields={"bin": "bin"})
    overwrite(shard, make_shard(tmp_path / "b", samples("samples", range(8)[::-1])).read_bytes())
    with pytest.raises(shardio.TarError) as caught:
        dataset[3]
    error = caught.value
    assert (error.shard, error.key, error.field) == (str(shard), "3", "bin")
    assert error.offset == (3 * 4 + 3) * 512


def test_a_member_that_is_overwritten_between_its_header_and_its_data_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = make_shard(tmp_path / "a.tar", samples("samples", range(8)))
    other = make_shard(tmp_path / "b", samples("samples", range(8)[::-1])).read_bytes()
    dataset = shardio.ShardDataset(shard, fields={"bin": "bin"})
    read = LocalShard.read

    def torn(file: LocalShard, offset: int, size: int) -> bytes:
        before = read(file, offset, size)
        overwrite(shard, other)
        return before[:512] + read(file, offset, size)[512:]

    monkeypatch.setattr(LocalShard, "read", torn)
    with pytest.raises(shardio.TarError, match=HEADER):
        dataset[3]


@pytest.mark.usefixtures("python_path")
def test_rows_that_are_overwritten_while_they_are_gathered_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = make_shard(tmp_path / "a.tar", samples("rows", range(8)))
    other = make_shard(tmp_path / "b", samples("rows", range(8)[::-1])).read_bytes()
    dataset = shardio.ShardDataset(shard, batch_size=8)
    copy, copied = RowCopier.copy, list[int]()

    def torn(copier: RowCopier, files: Any, counts: Any, starts: Any, width: int) -> Any:
        if copied:
            overwrite(shard, other)
        copied.append(len(starts))
        return copy(copier, files, counts, starts, width)

    monkeypatch.setattr(RowCopier, "copy", torn)
    with pytest.raises(shardio.TarError, match=HEADER):
        list(dataset)
    assert len(copied) > 1


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("kind", ["samples", "rows"])
def test_members_with_long_names_that_change_places_are_noticed(
    tmp_path: Path, form: int, kind: str
) -> None:
    """Their own headers are the same: only the extension headers before them differ."""
    numbers = range(1000, 1008)

    def make(path: Path, numbers: range) -> Path:
        with tarfile.open(path, "w", format=form) as archive:
            for number in numbers:
                info = tarfile.TarInfo(f"{'long' * 30}/{number}.npy")
                data = npy(number) if kind == "rows" else npy(number)[: 200 + number % 2]
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    shard = make(tmp_path / "a.tar", numbers)
    dataset = shardio.ShardDataset(shard, batch_size=8, decode=kind == "rows")
    (batch,) = dataset
    assert [key[-4:] for key in batch["__key__"]] == [str(number) for number in numbers]
    overwrite(shard, make(tmp_path / "b", numbers[::-1]).read_bytes())
    with pytest.raises(shardio.TarError, match="its header is not the one that was indexed"):
        list(dataset)


def test_what_was_opened_ahead_is_compared_when_its_window_begins(
    tmp_path: Path, waited: Callable[[str], None]
) -> None:
    """Only the time of change tells: the headers are the same."""
    for name, keys in (("a", range(8)), ("b", range(8, 16))):
        make_shard(tmp_path / f"{name}.tar", samples("samples", keys))
    steps = iter(shardio.ShardDataset(tmp_path, window=1, batch_size=4))
    next(steps)
    shard = tmp_path / "b.tar"
    waited(str(shard))
    overwrite(shard, shard.read_bytes().replace(b"9", b"7", 1), keep_time=False)
    check(next(steps))
    with pytest.raises(shardio.TarError, match=r"b\.tar: the shard was changed after the dataset"):
        next(steps)


@pytest.mark.parametrize("how", ["replaced", "appended", "touched"])
def test_a_change_that_leaves_the_bytes_where_they_are_is_an_error_of_the_next_epoch(
    tmp_path: Path, how: str
) -> None:
    shard = make_shard(tmp_path / "a.tar", samples("samples", range(8)))
    dataset = shardio.ShardDataset(shard, batch_size=2)
    steps = iter(dataset)
    check(next(steps))
    if how == "replaced":
        make_shard(tmp_path / "b", samples("samples", range(8)[::-1])).replace(shard)
    elif how == "appended":
        with tarfile.open(shard, "a") as archive:
            info = tarfile.TarInfo("new.txt")
            info.size = 20_000
            archive.addfile(info, io.BytesIO(bytes(20_000)))
    os.utime(shard, ns=(1, 1))
    rest = [*steps]
    assert len(rest) == 3
    check(*rest)
    for again in (lambda: list(dataset), lambda: dataset[0]):
        with pytest.raises(
            shardio.TarError, match=r"a\.tar: the shard (was changed|has \d+ bytes)"
        ):
            again()
    assert len(shardio.ShardDataset(shard).samples) == (9 if how == "appended" else 8)


@pytest.mark.parametrize("kind", ["samples", "rows"])
def test_a_shard_cut_off_under_a_running_epoch_is_an_error(tmp_path: Path, kind: str) -> None:
    shard = make_shard(tmp_path / "a.tar", samples(kind, range(80)))
    before = shard.stat()
    dataset = shardio.ShardDataset(shard, batch_size=2, on_bad_sample="skip")
    steps = iter(dataset)
    check(next(steps))
    os.truncate(shard, before.st_size // 2)
    os.utime(shard, ns=(0, before.st_mtime_ns))
    with pytest.raises(shardio.TarError, match="truncated"):
        check_all(steps)


@pytest.mark.parametrize("how", ["chmod", "copied"])
def test_the_same_shard_with_another_mode_or_inode_reads_on(tmp_path: Path, how: str) -> None:
    shard = make_shard(tmp_path / "a.tar", samples("samples", range(8)))
    dataset = shardio.ShardDataset(shard, batch_size=2)
    steps = iter(dataset)
    next(steps)
    if how == "chmod":
        shard.chmod(0o600)
    else:
        Path(shutil.copy2(shard, tmp_path / "b")).replace(shard)
    check(*steps, *dataset, *dataset)


def test_another_shard_of_the_same_size_and_time_is_told_by_its_headers(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", samples("samples", range(8)))
    other = make_shard(tmp_path / "b", samples("samples", range(8)[::-1]))
    dataset = shardio.ShardDataset(shard, batch_size=2)
    steps = iter(dataset)
    next(steps)
    os.utime(other, ns=(0, shard.stat().st_mtime_ns))
    other.replace(shard)
    check(*steps)  # of the file that is open
    with pytest.raises(shardio.TarError, match=HEADER):
        list(dataset)


def test_sources_of_a_mixture_are_compared_when_their_next_epoch_begins(tmp_path: Path) -> None:
    shards = [
        make_shard(tmp_path / f"{name}.tar", samples("samples", keys))
        for name, keys in (("a", range(4)), ("b", range(4, 36)))
    ]
    sources = [shardio.ShardDataset(shard, batch_size=4, shuffle="full") for shard in shards]
    steps = iter(shardio.Mix(sources, weights=[0.5, 0.5], stop="all"))
    check(next(steps))
    os.utime(shards[0], ns=(1, 1))
    with pytest.raises(shardio.TarError, match=r"a\.tar: the shard was changed"):
        check_all(steps)


def test_a_gzip_shard_that_changes_is_read_as_it_was_until_it_is_opened_again(
    tmp_path: Path,
) -> None:
    shard, plain = tmp_path / "a.tgz", tmp_path / "plain"
    shard.write_bytes(gzip.compress(make_shard(plain, samples("rows", range(8))).read_bytes()))
    dataset = shardio.ShardDataset(shard, batch_size=2)
    steps = iter(dataset)
    check(next(steps))
    make_shard(plain, samples("rows", range(8)[::-1]))
    shard.write_bytes(gzip.compress(plain.read_bytes()))
    read = [key for batch in (*steps, *dataset) for key in batch["__key__"]]
    assert read == [*map(str, range(2, 8)), *map(str, range(8))]
    check(*dataset)
    again = [*shardio.ShardDataset(shard, batch_size=8)]
    assert again[0]["__key__"] == [*map(str, range(8)[::-1])]
    check(again[0])


def test_with_checksums_other_data_under_the_same_headers_are_noticed(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", samples("samples", range(8)))
    shardio.index(shard)
    dataset = shardio.ShardDataset(shard, batch_size=8)
    overwrite(shard, shard.read_bytes().replace(b"7", b"8"))
    os.utime(shard)  # does not matter: the checksums tell
    with pytest.raises(shardio.SampleError, match=r"sample '7'.*CRC-32 differs"):
        list(dataset)

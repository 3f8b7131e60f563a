"""A file that is cut off while it is read is an error with a place, and kills no process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import shardio
from shardio.indexing import shard_index
from shardio.packing.sources.records import encode_example, frame_record
from shardio.storage.copying import RowCopier
from shardio.storage.local import LocalShard
from shardio.testing import make_shard

SAMPLES = {f"{number:04d}": {"bin": bytes([number]) * 5000} for number in range(200)}
ROWS = """
import os, sys, shardio
shard, fstat, batches = sys.argv[1], os.fstat, []
def cut(descriptor):
    status = fstat(descriptor)
    if batches and status.st_size > 512:
        os.truncate(shard, 512)
    return status
os.fstat = cut
try:
    for batch in shardio.ShardDataset(os.path.dirname(shard), batch_size=20):
        batches.append(batch)
except shardio.TarError as error:
    print(error)
"""


def test_rows_of_a_shard_that_is_cut_off_between_a_look_and_the_copy(tmp_path: Path) -> None:
    make_shard(tmp_path / "a.tar", {key: {"cls": b"%d" % int(key)} for key in SAMPLES})
    shardio.pack(tmp_path / "a.tar", tmp_path / "out", shards=1, jobs=1)
    command = [sys.executable, "-c", ROWS, str(tmp_path / "out" / "shard-000000.tar")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "it was truncated after it was indexed" in done.stdout


@pytest.mark.parametrize("memory", ["of the kernel", "missing"])
def test_rows_are_right_however_they_are_copied(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if memory == "missing":
        monkeypatch.delattr(os, "memfd_create")
    data = np.random.default_rng(0).integers(0, 256, (2, 30_000), np.uint8)
    files = []
    for number in range(2):
        (tmp_path / f"{number}").write_bytes(data[number].tobytes())
        files.append(LocalShard(str(tmp_path / f"{number}"), f"{number}"))
    copier = RowCopier()
    for counts, width in (((3, 2), 100), ((1500, 900), 7), ((0, 1), 30_000), ((2, 2), 5000)):
        last = 30_000 - width
        starts = np.random.default_rng(width).integers(0, last, sum(counts), endpoint=True)
        starts[-1] = last
        rows = copier.copy(files, counts, starts, width)
        shards = np.repeat([0, 1], counts)
        assert rows is not None
        assert np.array_equal(rows, data[shards[:, None], starts[:, None] + np.arange(width)])
        starts[0] = last + 1
        assert copier.copy(files, counts, starts, width) is None
    os.truncate(tmp_path / "1", 12_500)
    with pytest.raises(shardio.TarError, match="1: the file ends at byte 12500"):
        copier.copy(files, [1, 1], np.array([12_000, 12_400]), 200)


def test_a_forked_process_has_rows_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)))
    file, copier = LocalShard(str(tmp_path / "a"), "a"), RowCopier()
    rows = copier.copy([file], [1], np.array([7]), 4)
    child = os.fork()
    if not child:
        copier.copy([file], [1], np.array([99]), 4)
        os._exit(0)
    os.waitpid(child, 0)
    assert rows is not None
    assert rows.tolist() == [[7, 8, 9, 10]]


def verify(shard: Path) -> None:
    for finding in shardio.verify(shard).findings:
        raise shardio.ShardioError(finding.what)


READERS: dict[str, Callable[[Path], object]] = {
    "index": shardio.index,
    "open": shardio.ShardDataset,
    "verify": verify,
    "tfrecord": lambda path: shardio.pack(path, path.parent / "out", shards=1, jobs=1),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_is_cut_off_while_it_is_read_whole_is_told(
    tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reader == "tfrecord":
        path = tmp_path / "a.tfrecord"
        records = [encode_example({"x.bin": [each["bin"]]}) for each in SAMPLES.values()]
        framed = [bytes(b"".join(frame_record(record))) for record in records]
        path.write_bytes(b"".join(framed))
    else:
        path = make_shard(tmp_path / "a.tar", SAMPLES)
    size, fstat = path.stat().st_size, os.fstat

    def cut(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        if status.st_size == size:
            os.truncate(path, 8192)
        return status

    monkeypatch.setattr(os, "fstat", cut)
    with pytest.raises(shardio.ShardioError, match="truncated while it was read"):
        READERS[reader](path)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    make_shard(tmp_path / "a.tar", SAMPLES)
    shardio.pack(tmp_path / "a.tar", tmp_path / "out", shards=1, jobs=1)
    return tmp_path / "out"


def test_an_index_in_memory_does_not_change_with_its_file(packed: Path) -> None:
    steps = iter(shardio.ShardDataset(packed, batch_size=20))
    keys = next(steps)["__key__"]
    os.truncate(next((packed / "index").iterdir()), 100)
    assert sorted(keys + [key for batch in steps for key in batch["__key__"]]) == [*SAMPLES]


@pytest.mark.parametrize("how", ["cut off", "overwritten", "replaced", "removed"])
def test_a_mapped_index_is_looked_at_before_it_is_used(
    packed: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_index, "_MOST_READ", 0)
    dataset = shardio.ShardDataset(packed, batch_size=20)
    sample = dataset[0]
    index = next((packed / "index").iterdir())
    data = index.read_bytes()
    if how in {"removed", "replaced"}:
        index.unlink()
    if how == "cut off":
        os.truncate(index, 100)
    elif how != "removed":
        index.write_bytes(data if how == "replaced" else bytes(len(data)))
    if how in {"removed", "replaced"}:
        assert dataset[0] == sample
        return
    with pytest.raises(shardio.IndexFileError, match="index was changed while it was read"):
        dataset[0]


@pytest.mark.parametrize("byte", [b"\0", b"\x01", b"\x7f", b"\x81", b"\xff"])
def test_nonsense_in_a_mapped_index_is_never_followed(
    packed: Path, byte: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_index, "_MOST_READ", 0)
    steps = iter(shardio.ShardDataset(packed, batch_size=20))
    next(steps)
    index = next((packed / "index").iterdir())
    with index.open("r+b") as stream:
        stream.write(byte * index.stat().st_size)
    with pytest.raises(shardio.IndexFileError, match="index was changed while it was read"):
        list(steps)

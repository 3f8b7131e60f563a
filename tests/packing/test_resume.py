"""Packs that were interrupted, by whatever, go on where they were and end with the same bytes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import shardio
from shardio.errors import counted
from shardio.fields.image import decode_image
from shardio.packing import task as receipts
from shardio.packing.listing import Listing
from shardio.packing.sources import reader
from shardio.testing import digests, make_images, make_shard, read_members
from tests import programs

OPTIONS: dict[str, Any] = {"shards": 6, "split": {"train": 0.75, "val": 0.25}, "dedupe": "exact"}
PACK = "import sys, shardio; shardio.pack(*sys.argv[1:], **{options}, jobs={jobs})"
FAULTY = """
import errno, os, sys
import shardio

calls_left, code = int(sys.argv[3]), int(sys.argv[4])

def failing(call):
    def counted(*arguments, **options):
        global calls_left
        calls_left -= 1
        if calls_left == -1:
            raise OSError(code, os.strerror(code))
        return call(*arguments, **options)
    return counted

os.fsync, os.replace = failing(os.fsync), failing(os.replace)
try:
    shardio.pack(sys.argv[1], sys.argv[2], shards=3, jobs=1)
except (OSError, shardio.ShardioError) as error:
    print(error)
    sys.exit(1)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_images(tmp_path_factory.mktemp("in") / "in", classes=3, per_class=20, size=30)
    shutil.copy(folder / "class00/image0001.png", folder / "class01/image9999.png")
    return folder


@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_random_times_and_run_again_it_ends_with_the_same_bytes(
    source: Path, tmp_path: Path, jobs: int
) -> None:
    shardio.pack(source, tmp_path / "whole", **OPTIONS)
    expected = digests(tmp_path / "whole")
    command = [sys.executable, "-c", PACK.format(options=OPTIONS, jobs=jobs), str(source)]
    choose = np.random.default_rng(jobs)
    killed = 0
    for number in range(6):
        out = tmp_path / f"out{number}"
        process = subprocess.Popen([*command, str(out)])
        while not out.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(choose.random() * 0.1)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        for name, digest in digests(out).items():
            assert not name.endswith((".tar", ".idx")) or expected[name] == digest
        if (out / ".shardio-pack").exists():
            shardio.pack(source, out, **OPTIONS)
        assert digests(out) == expected
    assert killed


@pytest.mark.parametrize(("first", "code"), [(0, errno.ENOSPC), (1, errno.EIO)])
def test_an_error_at_any_sync_or_rename_is_a_sentence_and_can_be_taken_up(
    source: Path, tmp_path: Path, first: int, code: int
) -> None:
    shardio.pack(source, tmp_path / "whole", shards=3)
    expected = digests(tmp_path / "whole")
    for calls in range(first, 100, 2):
        out = tmp_path / f"out{calls}"
        done = programs.run(FAULTY, source, out, calls, code)
        if done.returncode == 0:
            break
        assert os.strerror(code) in done.stdout
        assert done.stdout.count("\n") == 1
        assert done.stderr == ""
        assert not out.exists() or (out / ".shardio-pack").exists()
        shardio.pack(source, out, shards=3)
        assert digests(out) == expected
        shutil.rmtree(out)
    assert 20 <= calls < 100


UNLOCKING = """
import os, signal, sys
import shardio

calls_left = int(sys.argv[3])
unlink = os.unlink

def dying(*arguments, **options):
    global calls_left
    calls_left -= 1
    if calls_left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return unlink(*arguments, **options)

os.unlink = dying
shardio.pack(sys.argv[1], sys.argv[2], **{options}, jobs=1)
"""


def test_killed_while_it_lets_the_folder_go_it_is_finished(source: Path, tmp_path: Path) -> None:
    """By whatever pack comes next, which does not replace what is there."""
    shardio.pack(source, tmp_path / "whole", **OPTIONS)
    expected = digests(tmp_path / "whole")
    for calls in range(100):
        out = tmp_path / f"out{calls}"
        code = UNLOCKING.format(options=OPTIONS)
        if programs.run(code, source, out, calls).returncode == 0:
            break
        try:
            shardio.pack(source / "nothing", out, **OPTIONS)
        except shardio.PackError as error:
            if "found to be finished" not in str(error):
                shardio.pack(source, out, **OPTIONS)
        assert digests(out) == expected
    assert calls >= 3


def test_run_again_after_a_kill_at_its_end_a_pack_ends_as_it_would_have(
    source: Path, tmp_path: Path
) -> None:
    summary = shardio.pack(source, tmp_path / "whole", **OPTIONS)
    expected, found = digests(tmp_path / "whole"), 0
    for calls in range(100):
        out = tmp_path / f"out{calls}"
        code = UNLOCKING.format(options=OPTIONS)
        if programs.run(code, source, out, calls).returncode == 0:
            break
        lock = out / ".shardio-pack"
        found += lock.exists() and b"finished" in lock.read_bytes()
        inodes = {path: path.stat().st_ino for path in out.rglob("shardio.json")}
        ends = lock.exists() and b"finished" in lock.read_bytes()
        if lock.exists():
            rerun = shardio.pack(source, out, **OPTIONS)
            assert replace(rerun, seconds=0) == replace(summary, seconds=0)
        assert digests(out) == expected
        if ends:
            assert inodes == {path: path.stat().st_ino for path in inodes}
    assert found >= 3


def test_another_pack_leaves_what_is_finished_and_says_so(source: Path, tmp_path: Path) -> None:
    shardio.pack(source, tmp_path / "whole", **OPTIONS)
    code = UNLOCKING.format(options=OPTIONS)
    for calls in range(100):
        out = tmp_path / f"out{calls}"
        assert programs.run(code, source, out, calls).returncode == -signal.SIGKILL
        if b"finished" in (out / ".shardio-pack").read_bytes():
            break
    with pytest.raises(shardio.PackError, match="of something else, has just been found to be fin"):
        shardio.pack(source, out, **{**OPTIONS, "seed": 1})
    assert digests(out) == digests(tmp_path / "whole")
    assert not (out / ".shardio-pack").exists()


@pytest.mark.parametrize(
    "text",
    [
        b"null",
        b"{}",
        b'{"made": 5, "bytes": 1, "image_sizes": 2}',
        b'{"made": "5"}',
        b'{"made": "5", "bytes": 1, "image_sizes": 2, "fields": [3]}',
    ],
)
def test_a_lock_that_does_not_say_what_was_made_is_refused(
    source: Path, tmp_path: Path, text: bytes
) -> None:
    out = tmp_path / "out"
    stop(source, out, 45)
    lock = out / ".shardio-pack"
    lock.write_bytes(lock.read_bytes() + text + b"\n")
    before = digests(out)
    with pytest.raises(shardio.PackError, match="it is not a lock that a pack wrote"):
        shardio.pack(source, out, shards=6)
    assert digests(out) == before


def stop_after(count: int) -> Any:
    """Progress that ends a pack after so many samples."""
    seen: list[int] = []

    def advance(more: int) -> None:
        seen.append(more)
        if sum(seen) > count:
            raise RuntimeError("stop")

    return lambda _: advance


def stop(source: Path, out: Path, count: int) -> dict[str, int]:
    """Interrupt a pack; the inodes of the shards that it finished."""
    with pytest.raises(RuntimeError):
        shardio.pack(source, out, shards=6, jobs=1, progress=stop_after(count))
    return {path.name: path.stat().st_ino for path in out.glob("*.tar")}


def test_what_is_finished_is_not_packed_again(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished = stop(source, out, 45)
    assert len(finished) >= 3
    shardio.pack(source, out, shards=6)
    for name, inode in finished.items():
        assert (out / name).stat().st_ino == inode
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("change", ["content", "deleted", "time alone"])
def test_files_that_change_between_two_runs_are_packed_as_they_are_then(
    source: Path, tmp_path: Path, change: str
) -> None:
    copy = tmp_path / "in"
    shutil.copytree(source, copy)
    out = tmp_path / "out"
    stop(copy, out, 45)
    for path in copy.rglob("*.png"):
        if change == "content":
            upside_down = np.ascontiguousarray(decode_image(path.read_bytes())[::-1])
            path.write_bytes(cv2.imencode(".png", upside_down)[1].tobytes())
        elif change == "time alone":
            os.utime(path, (1, 1))
        elif path.stem.endswith("3"):
            path.unlink()
    shardio.pack(copy, out, shards=6)
    shardio.pack(copy, tmp_path / "whole", shards=6)
    assert digests(out) == digests(tmp_path / "whole")


@pytest.mark.parametrize(
    "options", [{"shards": 6, "seed": 1}, {"shards": 2}, {"shards": 6, "resize": 8}]
)
def test_another_pack_takes_nothing_over_that_is_not_its_own(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    finished = stop(source, out, 45)
    shardio.pack(source, out, **options)
    shardio.pack(source, tmp_path / "whole", **options)
    assert digests(out) == digests(tmp_path / "whole")
    (said,) = caplog.messages
    assert said == (
        f"{out}: this pack starts afresh, since its samples or options differ from those of the "
        f"interrupted one, which had finished {counted(len(finished), 'shard')}"
    )


def test_a_pack_that_takes_all_up_discards_nothing_and_says_nothing(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop(source, tmp_path / "out", 45)
    shardio.pack(source, tmp_path / "out", shards=6)
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["shard-000000.tar", "index/shard-000000.tar.idx"])
@pytest.mark.parametrize("how", ["gone", "cut off"])
def test_a_finished_shard_that_is_not_whole_any_more_is_packed_again(
    source: Path, tmp_path: Path, name: str, how: str
) -> None:
    out = tmp_path / "out"
    stop(source, out, 45)
    if how == "gone":
        (out / name).unlink()
    else:
        os.truncate(out / name, 600)
    shardio.pack(source, out, shards=6)
    shardio.pack(source, tmp_path / "whole", shards=6)
    assert digests(out) == digests(tmp_path / "whole")


def test_a_generator_is_taken_up_too(tmp_path: Path) -> None:
    samples = [{"__key__": f"{i}", "bin": bytes([i]) * 1000} for i in range(60)]
    with pytest.raises(RuntimeError):
        shardio.pack(
            (each for each in samples),
            tmp_path / "out",
            shards=6,
            jobs=1,
            progress=stop_after(45),
        )
    first = tmp_path / "out/shard-000000.tar"
    inode = first.stat().st_ino
    shardio.pack((each for each in samples), tmp_path / "out", shards=6)
    shardio.pack(samples, tmp_path / "whole", shards=6)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert first.stat().st_ino == inode


def edit(path: Path, old: bytes, new: bytes) -> None:
    """Change a file in place, at its size and with its old time, as rsync and tar may."""
    before = path.stat()
    with path.open("r+b") as stream:
        stream.seek(path.read_bytes().index(old))
        stream.write(new)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.fixture
def aged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files seem to be old when they are packed, so that their times may be trusted."""
    monkeypatch.setattr(reader, "_MARGIN", -(10**12))


@pytest.fixture
def without_ctime(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system whose time of last change says nothing, as FAT and some of FUSE."""
    monkeypatch.setattr(reader, "_KEEP_CTIME", {})
    for module in (reader, receipts):
        monkeypatch.setattr(module, "state_of", state_without_ctime)


def state_without_ctime(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns} {status.st_mtime_ns}"


TEXTS = {f"{i:02d}": {"txt": b"text of sample %02d" % i} for i in range(60)}


@pytest.mark.parametrize("times", ["aged", "fresh", "without_ctime"])
@pytest.mark.parametrize("kind", ["files", "tar", "indexed tar"])
def test_a_source_that_was_edited_at_its_size_and_time_is_packed_as_it_is_now(
    tmp_path: Path, request: pytest.FixtureRequest, times: str, kind: str
) -> None:
    if times != "fresh":
        request.getfixturevalue(times)
    folder = tmp_path / "in"
    folder.mkdir()
    options: dict[str, Any] = {"shards": 6, "jobs": 1, "shuffle": False}
    if kind == "files":
        for key, fields in TEXTS.items():
            (folder / f"{key}.txt").write_bytes(fields["txt"])
        options["fields"], edited = "txt", folder / "03.txt"
    else:
        edited = make_shard(folder / "a.tar", TEXTS)
        if kind == "indexed tar":
            shardio.index(folder)
    with pytest.raises(RuntimeError):
        shardio.pack(folder, tmp_path / "out", **options, progress=stop_after(45))
    assert (tmp_path / "out/shard-000000.tar").exists()
    edit(edited, b"sample 03", b"SAMPLE 03")
    if kind == "indexed tar":
        with pytest.raises(shardio.PackError, match=r"a\.tar is not what was packed \(CRC-32"):
            shardio.pack(folder, tmp_path / "out", **options)
        return
    shardio.pack(folder, tmp_path / "out", **options)
    assert read_members(tmp_path / "out")["03.txt"] == b"text of SAMPLE 03"
    shardio.pack(folder, tmp_path / "whole", **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


@pytest.mark.parametrize("times", ["aged", "fresh", "without_ctime"])
def test_shards_whose_sources_did_not_change_are_kept_on_any_file_system(
    source: Path, tmp_path: Path, request: pytest.FixtureRequest, times: str
) -> None:
    if times != "fresh":
        request.getfixturevalue(times)
    out = tmp_path / "out"
    finished = stop(source, out, 45)
    shardio.pack(source, out, shards=6, jobs=1)
    assert {name: (out / name).stat().st_ino for name in finished} == finished


@pytest.mark.usefixtures("aged")
def test_files_whose_times_can_be_trusted_are_not_read_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    finished = stop(source, out, 45)
    read: list[bytes] = []
    real = reader.SourceReader._read_file

    def counting(self: Any, path: bytes, reserve: Any) -> memoryview:
        read.append(path)
        return real(self, path, reserve)

    monkeypatch.setattr(reader.SourceReader, "_read_file", counting)
    shardio.pack(source, out, shards=6, jobs=1)
    assert len(finished) >= 4
    assert 0 < len(read) <= 61 - 10 * len(finished)


def test_a_finished_shard_that_was_edited_at_its_size_is_packed_again(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stop(source, out, 45)
    edit(out / "shard-000000.tar", b"IDAT", b"DATA")
    shardio.pack(source, out, shards=6)
    shardio.pack(source, tmp_path / "whole", shards=6)
    assert digests(out) == digests(tmp_path / "whole")


@pytest.mark.parametrize("text", [b"5", b"[5]", b"[" * 100_000, b"\xff", b'{"sizes": 5}'])
def test_a_receipt_that_is_none_counts_for_nothing(
    source: Path, tmp_path: Path, text: bytes
) -> None:
    out = tmp_path / "out"
    stop(source, out, 45)
    (out / ".shardio-work/receipts/shard-000000.tar.json").write_bytes(text)
    shardio.pack(source, out, shards=6)
    shardio.pack(source, tmp_path / "whole", shards=6)
    assert digests(out) == digests(tmp_path / "whole")


def test_a_tar_that_was_edited_while_it_is_packed_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = make_shard(tmp_path / "a.tar", TEXTS)

    def listing(*arguments: Any, **options: Any) -> Any:
        listed = Listing(*arguments, **options)
        edit(tar, b"sample 03", b"SAMPLE 03")
        return listed

    monkeypatch.setattr("shardio.packing.job.Listing", listing)
    with pytest.raises(shardio.PackError, match=r"a\.tar: the file changed while it was packed"):
        shardio.pack(tar, tmp_path / "out", shards=2, jobs=1)


@pytest.mark.parametrize("how", ["mode", "link"])
def test_a_tar_whose_mode_or_links_change_while_it_is_packed_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its ctime changes, and its data do not."""
    tar = make_shard(tmp_path / "a.tar", TEXTS)
    shardio.pack(tar, tmp_path / "whole", shards=2, jobs=1)

    def listing(*arguments: Any, **options: Any) -> Any:
        listed = Listing(*arguments, **options)
        if how == "mode":
            tar.chmod(0o640)
        else:
            os.link(tar, tmp_path / "b.tar")
        return listed

    monkeypatch.setattr("shardio.packing.job.Listing", listing)
    shardio.pack(tar, tmp_path / "out", shards=2, jobs=1)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


@pytest.mark.parametrize("how", ["header", "time", "size"])
def test_a_tar_that_changes_with_its_mode_while_it_is_packed_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    tar = make_shard(tmp_path / "a.tar", TEXTS)

    def listing(*arguments: Any, **options: Any) -> Any:
        listed = Listing(*arguments, **options)
        tar.chmod(0o640)
        if how == "header":
            edit(tar, b"03.txt", b"X3.txt")
        elif how == "time":
            os.utime(tar, (1, 1))
        else:
            os.truncate(tar, tar.stat().st_size + 512)
        return listed

    monkeypatch.setattr("shardio.packing.job.Listing", listing)
    with pytest.raises(shardio.PackError, match=r"a\.tar: the file changed while it was packed"):
        shardio.pack(tar, tmp_path / "out", shards=2, jobs=1)


def test_a_conversion_of_a_tar_that_was_edited_is_not_taken_up(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "ab":
        make_shard(tmp_path / "in" / f"{name}.tar", TEXTS)
    with pytest.raises(RuntimeError):
        shardio.convert(
            tmp_path / "in", tmp_path / "out", to="tfrecord", jobs=1, progress=stop_after(90)
        )
    edit(tmp_path / "in/a.tar", b"sample 03", b"SAMPLE 03")
    with pytest.raises(shardio.PackError, match="a different conversion into this folder"):
        shardio.convert(tmp_path / "in", tmp_path / "out", to="tfrecord", jobs=1)

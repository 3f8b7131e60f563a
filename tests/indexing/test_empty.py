"""Shards that hold nothing, or nothing that is a sample, in every command and the dataset."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import shardio
from shardio.cli import commands
from shardio.indexing.catalog import open_catalog
from shardio.indexing.manifest import (
    INDEX_SUFFIX,
    Manifest,
    ShardReceipt,
    index_path,
    write_manifest,
)
from shardio.indexing.scan import index_shard
from shardio.indexing.shard_index import encode_index
from shardio.storage.cache import cache_entry
from shardio.storage.folder import Folder
from shardio.testing import make_shard

SAMPLES = {f"{number:04d}": {"txt": b"text", "cls": b"1"} for number in range(20)}
PLAN = ("--batch-size", "4")


def tar_of(*names: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name.endswith("/") else kind
            archive.addfile(info)
    return stream.getvalue()


NOTHING = {
    "zeros.tar": bytes(10_000_000),
    "zeros.tgz": gzip.compress(bytes(10_000_000)),
    "record.tar": bytes(10_241),
    "trailer.tar": bytes(1024) + b"trailer",
}
NO_SAMPLES = {
    "names": (tar_of("README", "data/LICENSE"), r"2 members .*: 2 without a dot in the name"),
    "dots": (
        tar_of(".gitignore", "a/.x.jpg"),
        "2 with names that start with a dot, such as '.gitig",
    ),
    "metadata": (tar_of("__key__/a.jpg"), "1 with names like __this__, such as '__key__/a.jpg'"),
    "folders": (tar_of("a/", "b.c/"), "2 that are folders, such as 'a"),
    "odd": (tar_of("a.\n/b.jpg"), r"with names that are not KEY.FIELD, such as 'a\.\\n/b.jpg'"),
    "long": (tar_of("\u202e" + "n" * 300), r"such as '\\u202en+\.\.\.n+'; name members KEY.FIELD"),
    "several": (
        tar_of("a/", "b", "c", ".d"),
        "it has 4 members but no field of a sample: 2 without a dot in the name, 1 that are "
        "folders, 1 with names that start with a dot",
    ),
}
COMMANDS: dict[str, Callable[[Path], tuple[str | Path, ...]]] = {
    "index": lambda folder: ("index", folder),
    "verify": lambda folder: ("verify", folder, "--jobs", "1"),
    "info": lambda folder: ("info", folder),
    "pack": lambda folder: ("pack", folder, folder.parent / "out", "--shards", "1"),
    "reshard": lambda folder: ("reshard", folder, folder.parent / "out", "--shards", "1"),
    "convert": lambda folder: ("convert", folder, folder.parent / "out", "--to", "wids"),
    "plan": lambda folder: ("plan", folder, *PLAN),
    "replay": lambda folder: (
        ("replay", folder, *PLAN, "--step", "0", "--to", folder.parent / "batch")
    ),
    "profile": lambda folder: ("profile", folder, *PLAN, "--seconds", "0.1", "--workers", "0"),
}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(commands, [*map(str, arguments)])


def said(done: Result) -> str:
    return f"{done.output}{done.exception}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a good shard."""
    (tmp_path / "shards").mkdir()
    make_shard(tmp_path / "shards/good.tar", SAMPLES)
    return tmp_path / "shards"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", NOTHING)
def test_every_command_finds_a_shard_of_nothing_beside_a_good_one(
    folder: Path, command: str, name: str
) -> None:
    (folder / name).write_bytes(NOTHING[name])
    for more in ((), ("--allow-empty",)):
        done = run(*COMMANDS[command](folder), *more)
        assert done.exit_code == 1
        assert f"{name}, byte 0: the shard has no members, only " in said(done)


@pytest.mark.parametrize("name", NOTHING)
def test_a_dataset_refuses_a_shard_of_nothing_beside_a_good_one(folder: Path, name: str) -> None:
    (folder / name).write_bytes(NOTHING[name])
    for allow_empty in (False, True):
        with pytest.raises(shardio.TarError, match="the shard has no members") as caught:
            shardio.ShardDataset(folder, allow_empty=allow_empty)
        assert caught.value.shard == str(folder / name)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_tar_without_samples_unless_it_is_allowed(
    folder: Path, command: str
) -> None:
    (folder / "odd.tar").write_bytes(tar_of("README", "x/"))
    arguments = COMMANDS[command](folder)
    done = run(*arguments)
    assert done.exit_code == 1
    assert "odd.tar: it has 2 members but no field of a sample" in said(done)
    assert not (folder.parent / "out").exists()
    if command != "profile":  # takes seconds
        done = run(*arguments, "--allow-empty")
        assert done.exit_code == 0, said(done)


@pytest.mark.parametrize("case", NO_SAMPLES)
def test_a_tar_without_samples_is_refused_with_the_reasons(tmp_path: Path, case: str) -> None:
    data, message = NO_SAMPLES[case]
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(shardio.TarError, match=message) as caught:
        shardio.ShardDataset(tmp_path)
    assert caught.value.shard == str(tmp_path / "a.tar")
    assert len(shardio.ShardDataset(tmp_path, allow_empty=True).samples) == 0
    (found,) = shardio.verify(tmp_path, jobs=1).problems
    assert str(found) in str(caught.value)
    assert shardio.verify(tmp_path, allow_empty=True, jobs=1).sound


@pytest.mark.parametrize("size", [512, 1024, 10_240])
def test_a_plain_empty_archive_is_a_shard_without_samples(folder: Path, size: int) -> None:
    (folder / "empty.tar").write_bytes(bytes(size))
    dataset = shardio.ShardDataset(folder)
    assert [shard.samples for shard in dataset.catalog.shards] == [0, 20]
    assert shardio.verify(folder, jobs=1).sound
    assert shardio.index(folder).samples == 20
    assert len(shardio.ShardDataset(folder)) == 20


def test_a_packed_folder_may_have_a_shard_without_samples(folder: Path) -> None:
    (folder / "empty.tar").write_bytes(bytes(1024))
    shardio.index(folder)
    receipts = [
        ShardReceipt(
            name=entry.path.rpartition("/")[2],
            samples=entry.samples,
            size=entry.size,
            sha256=hashlib.sha256(Path(entry.path).read_bytes()).hexdigest(),
        )
        for entry in open_catalog(folder).shards
    ]
    with Folder.open(folder) as held:
        write_manifest(held, Manifest(shards=(*receipts,), fields=("cls", "txt"), classes=None))
    assert [shard.samples for shard in open_catalog(folder).shards] == [0, 20]
    assert shardio.verify(folder, jobs=1).sound


@pytest.mark.parametrize("data", [bytes(1_000_000), tar_of("README")], ids=["zeros", "names"])
@pytest.mark.parametrize("place", ["cache", "beside", "manifest"])
def test_an_index_from_before_hides_nothing(tmp_path: Path, data: bytes, place: str) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "a.tar").write_bytes(bytes(1024))
    index = index_shard(folder / "a.tar", name="x", checksums=True)
    (folder / "a.tar").write_bytes(data)
    path = index_path(folder / "a.tar")
    if place == "cache":
        path = cache_entry(folder / "a.tar", INDEX_SUFFIX)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(encode_index(replace(index, shard_size=len(data)))))
    if place == "manifest":
        receipt = ShardReceipt(name="a.tar", samples=0, size=len(data), sha256="")
        with Folder.open(folder) as held:
            write_manifest(held, Manifest(shards=(receipt,), fields=(), classes=None))
    with pytest.raises(
        shardio.TarError, match=r"a\.tar.*(no members|it has 1 member but no field)"
    ):
        shardio.ShardDataset(folder)


def test_only_shards_without_samples_are_looked_at_again(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardio.indexing.foreign.index_shard", None)
    assert len(open_catalog(packed).shards) == 8


def test_allow_empty_must_be_a_truth_value(packed: Path) -> None:
    with pytest.raises(shardio.UsageError, match="allow_empty='yes': it must be True or False"):
        shardio.ShardDataset(packed, allow_empty="yes")  # type: ignore[arg-type]


# Shards that end without a mark


def cut_end(shard: Path, marks: int = 0) -> Path:
    """Take away what follows the last member."""
    data = shard.read_bytes().rstrip(b"\0")
    shard.write_bytes(data + bytes(-len(data) % 512 + marks * 512))
    return shard


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return messages


def test_a_shard_without_an_end_mark_is_read_with_one_warning_in_a_process(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = shardio.ShardDataset(folder)
    expected = [whole[number]["__key__"] for number in range(20)]
    shard = cut_end(folder / "good.tar")
    dataset = shardio.ShardDataset(folder)
    assert [dataset[number]["__key__"] for number in range(20)] == expected
    (message,) = logged(caplog)
    assert message.startswith(f"{shard}: the shard has no end-of-archive mark, so it may")
    assert message.endswith("; fetch or pack it again, or append 1,024 zero bytes if it is known "
                            "to be complete")  # fmt: skip
    shardio.ShardDataset(folder)
    shardio.index(folder)
    assert logged(caplog) == []


def test_the_warning_comes_again_in_each_process_though_the_index_is_in_the_cache(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_end(folder / "good.tar")
    shardio.ShardDataset(folder)
    monkeypatch.setattr("shardio.indexing.scan._warned", set())
    monkeypatch.setattr("shardio.indexing.foreign.index_shard", None)
    logged(caplog)
    shardio.ShardDataset(folder)
    assert len(logged(caplog)) == 1


def test_an_index_of_the_whole_shard_knows_its_end(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = cut_end(folder / "good.tar")
    shardio.index(folder)
    assert len(logged(caplog)) == 1
    monkeypatch.setattr("shardio.indexing.scan._warned", set())
    assert len(shardio.ShardDataset(folder)) == 20
    assert logged(caplog) == []
    shard.write_bytes(shard.read_bytes()[:-1024])
    with pytest.raises(shardio.IndexFileError, match="the index is stale"):
        shardio.ShardDataset(folder)


def test_very_many_shards_without_an_end_mark_are_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(12):
        cut_end(make_shard(tmp_path / f"{number:02d}.tar", SAMPLES))
    shardio.ShardDataset(tmp_path)
    (message,) = logged(caplog)
    assert message.startswith(f"{tmp_path}/00.tar and 11 other shards: the shard has no end-of-")


def test_a_shard_without_an_end_mark_is_a_problem_of_verify(folder: Path) -> None:
    shard = cut_end(folder / "good.tar")
    for index in (False, True):
        if index:
            shardio.index(folder)
        (found,) = shardio.verify(folder, jobs=1).problems
        assert found.offset == shard.stat().st_size
        assert found.what.startswith("the shard has no end-of-archive mark")
    done = run("verify", folder, "--jobs", "1", "--fix", folder.parent / "new")
    assert done.exit_code == 1
    assert shardio.verify(folder.parent / "new", jobs=1).sound
    assert len(shardio.ShardDataset(folder.parent / "new")) == 20


def test_one_block_of_zeros_ends_a_shard(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut_end(folder / "good.tar", marks=1)
    assert len(shardio.ShardDataset(folder)) == 20
    assert logged(caplog) == []
    assert shardio.verify(folder, jobs=1).sound


def test_a_trailer_is_passed_over_and_noted_by_verify(folder: Path) -> None:
    shard = folder / "good.tar"
    end = shard.stat().st_size
    with shard.open("ab") as stream:
        stream.write(b"d41d8cd98f00b204e9800998ecf8427e  good.tar\n")
    assert len(shardio.ShardDataset(folder)) == 20
    found = shardio.verify(folder, jobs=1)
    assert found.sound
    (note,) = found.findings
    assert (note.offset, note.severity) == (end, "note")
    assert note.what == "43 bytes that are no members follow the end of the archive"


def refusal(path: Path) -> str:
    """Why a tar does not open; it has samples if it does."""
    try:
        assert open_catalog(path).shards[0].samples > 0, path
    except shardio.TarError as error:
        return str(error)
    return ""


def test_no_tar_of_other_projects_opens_without_samples(shared_data: Path) -> None:
    refusals = [refusal(path) for path in sorted((shared_data / "tars").glob("*/*.t*"))]
    assert len(refusals) > 40
    assert sum("but no field of a sample" in each for each in refusals) > 10


def test_an_index_without_samples_of_a_shard_that_has_some_is_stale(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(bytes(10240))
    shardio.index(shard)
    make_shard(shard, {"0": {"txt": b"a"}})
    assert shard.stat().st_size == 10240
    with pytest.raises(shardio.IndexFileError, match="the index is stale: it has no samples"):
        open_catalog(shard)


def test_a_volume_label_without_an_end_is_no_archive(tmp_path: Path) -> None:
    label = tarfile.TarInfo("label")
    label.type = b"V"
    (tmp_path / "a.tar").write_bytes(label.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(shardio.TarError, match="no members and no end-of-archive mark"):
        shardio.index(tmp_path / "a.tar")

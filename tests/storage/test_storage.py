from __future__ import annotations

import gzip
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

import shardio
from shardio.storage.cache import cache_entry, plain_tar
from shardio.storage.folder import atomic_file, final_name
from shardio.storage.local import LocalShard


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with atomic_file(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]  # noqa: PTH208  names are the point


def test_an_error_while_writing_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_file(path) as stream:
        stream.write("no bytes")  # type: ignore[call-overload]  # the error
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_temporary_file_tells_the_name_it_was_to_get(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a.tar"):
        (temporary,) = tmp_path.iterdir()
    assert final_name(temporary.name) == "a.tar"
    for name in ("a.tar", ".a.tar.tmp", "a.tar.12-34.tmp", ".12-34.tmp", ".a.tar.12-34.tmp~"):
        assert final_name(name) == name


def test_a_changed_file_gets_another_cache_entry(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    entries = {cache_entry(path, ".x"), cache_entry(path, ".x")}
    os.utime(path, ns=(5, 5))
    entries.add(cache_entry(path, ".x"))
    path.write_bytes(b"22")
    entries.add(cache_entry(path, ".x"))
    assert len(entries) == 3


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_file_rewritten_with_its_old_size_and_time_gets_another_cache_entry(
    tmp_path: Path, how: str
) -> None:
    path, other = tmp_path / "a.tgz", tmp_path / "b"
    path.write_bytes(gzip.compress(b"old", mtime=0))
    before = path.stat()
    assert plain_tar(path).read_bytes() == b"old"
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        target = path if how == "in place" else other
        target.write_bytes(gzip.compress(b"new", mtime=0))
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
        target.replace(path)
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert plain_tar(path).read_bytes() == b"new"


@pytest.mark.parametrize("field", ["st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"])
def test_each_trait_of_a_file_takes_part_in_its_cache_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    names = ("st_mode", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
    path = tmp_path / "a"
    path.touch()
    traits = {name: getattr(path.stat(), name) for name in names}
    before = cache_entry(path, ".x")
    traits[field] += 1
    real = Path.stat

    def stat(self: Path, **options: bool) -> object:
        return SimpleNamespace(**traits) if self == path else real(self, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert cache_entry(path, ".x") != before


@pytest.mark.parametrize("variable", ["SHARDIO_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_the_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("SHARDIO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "c"))
    (tmp_path / "a").touch()
    inside = {"SHARDIO_CACHE": "c", "XDG_CACHE_HOME": "c/shardio", "HOME": "c/.cache/shardio"}
    assert cache_entry(tmp_path / "a", "").parent == tmp_path / inside[variable]


def test_a_cache_folder_that_cannot_be_made_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").touch()
    monkeypatch.setenv("SHARDIO_CACHE", str(tmp_path / "a/cache"))
    with pytest.raises(shardio.UsageError, match=r"cannot be used .* set SHARDIO_CACHE"):
        cache_entry(tmp_path / "a", ".x")


def test_a_shard_is_read_at_any_offset_and_never_short(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(range(100)))
    shard = LocalShard(str(tmp_path / "a.tar"), "a.tar")
    assert shard.size == 100
    assert shard.read(10, 5) == bytes(range(10, 15))
    assert shard.read(100, 0) == b""
    with pytest.raises(shardio.TarError, match="20 bytes at offset 90 lie outside") as caught:
        shard.read(90, 20)
    assert caught.value.offset == 90
    os.truncate(tmp_path / "a.tar", 95)
    with pytest.raises(shardio.TarError, match=r"a\.tar: the file ends at byte 95") as caught:
        shard.read(90, 10)
    assert caught.value.offset == 90

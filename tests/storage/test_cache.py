"""The cache folder is this user's own, and what is put into it has limits."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shardio
from shardio.indexing.catalog import open_catalog
from shardio.storage import compression
from shardio.storage.cache import cache_entry, plain_tar
from shardio.testing import make_shard

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
OTHER = 12345  # number of a user who is not this one


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "parent" / "cache"
    monkeypatch.setenv("SHARDIO_CACHE", str(folder))
    return folder


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return make_shard(tmp_path / "a.tar", {"1": {"txt": b"one"}, "2": {"txt": b"two"}})


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that other users can enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(params=[0o000, 0o002, 0o022, 0o077], ids="umask {0:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def shared(folder: Path, mode: int = 0o1777) -> Path:
    folder.mkdir(parents=True)
    folder.chmod(mode)
    return folder


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.usefixtures("umask")
def test_what_shardio_makes_is_closed_to_others_whatever_the_umask(
    cache: Path, shard: Path
) -> None:
    entry = open_catalog(shard).shards[0]
    assert Path(entry.index).parent == cache
    assert [mode(path) for path in (cache.parent, cache)] == [0o700, 0o700]
    assert mode(Path(entry.index)) == 0o600
    assert open_catalog(shard).shards[0] == entry  # believed the next time


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("of_folder", [0o755, 0o750, 0o1777, 0o1775])
def test_a_folder_that_others_enter_keeps_its_mode_and_gets_a_subfolder(
    cache: Path, shard: Path, of_folder: int
) -> None:
    shared(cache, of_folder)
    entry = open_catalog(shard).shards[0]
    own = cache / f"shardio-{os.geteuid()}"
    assert Path(entry.index).parent == own
    assert [mode(path) for path in (cache, own)] == [of_folder, 0o700]
    assert mode(Path(entry.index)) == 0o600
    assert open_catalog(shard).shards[0] == entry


def test_an_own_closed_folder_is_used_as_it_is(cache: Path, shard: Path) -> None:
    shared(cache, 0o700)
    assert cache_entry(shard, ".x").parent == cache


def test_the_cache_folder_may_be_a_link_of_the_user(cache: Path, shard: Path) -> None:
    target = shared(cache.parent / "large disk", 0o700)
    cache.symlink_to(target)
    open_catalog(shard)
    assert len(files(target)) == 1


def test_an_index_planted_in_a_shared_cache_is_not_believed(
    cache: Path, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDIO_CACHE", str(tmp_path / "known"))
    name = cache_entry(shard, ".idx").name
    monkeypatch.setenv("SHARDIO_CACHE", str(cache))
    other = make_shard(tmp_path / "b.tar", {"no": {"txt": b"lie"}, "2": {"txt": b"two"}})
    shardio.index(other)
    shared(cache)
    shutil.copy(tmp_path / "index/b.tar.idx", cache / name)
    samples = shardio.ShardDataset(shard, decode=False)
    assert [sample["__key__"] for sample in samples] == ["1", "2"]


def _link(entry: Path, victim: Path) -> None:
    entry.symlink_to(victim)


def _dangling_link(entry: Path, victim: Path) -> None:
    entry.symlink_to(victim.with_name("nothing"))


def _others_file(entry: Path, victim: Path) -> None:
    shutil.copy(victim, entry)
    os.chown(entry, OTHER, -1)


def _open_file(entry: Path, victim: Path) -> None:
    shutil.copy(victim, entry)
    entry.chmod(0o620)


def _folder(entry: Path, _: Path) -> None:
    entry.mkdir()


def _fifo(entry: Path, _: Path) -> None:
    os.mkfifo(entry)


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (_link, "it is a symbolic link"),
        (_dangling_link, "it is a symbolic link"),
        pytest.param(_others_file, "it belongs to another user, number 12345", marks=as_root),
        (_open_file, "it is open to other users: its mode is 0620"),
        (_folder, "it is not a file"),
        (_fifo, "it is not a file"),
    ],
)
@pytest.mark.parametrize("suffix", [".idx", ".tar"])
def test_an_entry_that_is_not_a_file_of_this_user_alone_is_refused(
    shard: Path,
    tmp_path: Path,
    plant: Callable[[Path, Path], None],
    reason: str,
    suffix: str,
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    source = shard
    if suffix == ".tar":
        source = tmp_path / "a.tgz"
        source.write_bytes(gzip.compress(shard.read_bytes()))
    entry = cache_entry(source, suffix)
    plant(entry, victim)
    before = entry.lstat()
    with pytest.raises(shardio.UsageError, match=f"{entry.name}: .*{reason}; remove it"):
        open_catalog(source)
    assert entry.lstat() == before
    assert victim.read_bytes() == b"precious"
    assert not victim.with_name("nothing").exists()


@pytest.mark.parametrize("of_folder", [0o777, 0o775, 0o2770])
def test_a_folder_in_which_others_may_replace_entries_is_refused(
    cache: Path, shard: Path, of_folder: int
) -> None:
    shared(cache, of_folder)
    with pytest.raises(shardio.UsageError, match=r"others? .*replace.* set SHARDIO_CACHE"):
        open_catalog(shard)
    assert not files(cache)


@as_root
def test_a_folder_of_another_user_is_refused(cache: Path, shard: Path) -> None:
    for of_folder in (0o700, 0o755, 0o1777):
        shutil.rmtree(cache, ignore_errors=True)
        os.chown(shared(cache, of_folder), OTHER, -1)
        with pytest.raises(shardio.UsageError, match=r"another user, number 12345.* set SHARDIO"):
            open_catalog(shard)
        assert not files(cache)


def test_a_subfolder_that_others_made_is_refused(cache: Path, shard: Path) -> None:
    own = shared(cache) / f"shardio-{os.geteuid()}"
    victim = shared(cache.parent / "victim", 0o700)
    own.symlink_to(victim)
    with pytest.raises(shardio.UsageError, match="it is not a folder"):
        open_catalog(shard)
    own.unlink()
    shared(own, 0o755)
    with pytest.raises(shardio.UsageError, match="it is open to other users: its mode is 0755"):
        open_catalog(shard)
    if os.geteuid() == 0:
        own.chmod(0o700)
        os.chown(own, OTHER, -1)
        with pytest.raises(shardio.UsageError, match="it belongs to another user"):
            open_catalog(shard)
    assert not files(cache)
    assert not files(victim)


def bomb(path: Path, size: int) -> Path:
    path.write_bytes(gzip.compress(bytes(size)))
    return path


def test_a_shard_that_is_far_larger_inside_is_refused_and_nothing_is_left(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "_ALWAYS", 1 << 20)
    path = bomb(tmp_path / "a.tgz", 8 << 20)
    with pytest.raises(shardio.TarError, match=r"a\.tgz: .* 200 times .* set SHARDIO_MAX_RATIO"):
        plain_tar(path)
    assert not files(cache)
    monkeypatch.setenv("SHARDIO_MAX_RATIO", "2000")
    assert plain_tar(path).stat().st_size == 8 << 20


def test_small_shards_may_be_as_much_larger_inside_as_they_like(tmp_path: Path) -> None:
    assert plain_tar(bomb(tmp_path / "a.tgz", 8 << 20)).stat().st_size == 8 << 20


def test_the_limit_holds_where_a_shard_is_verified_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "_ALWAYS", 1 << 20)
    bomb(tmp_path / "a.tgz", 8 << 20)
    (problem,) = shardio.verify(tmp_path).problems
    assert "set SHARDIO_MAX_RATIO higher" in str(problem)


@pytest.mark.parametrize("text", ["", "many", "0", "-1", "nan"])
def test_a_limit_that_is_no_number_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SHARDIO_MAX_RATIO", text)
    with pytest.raises(
        shardio.UsageError, match=r"SHARDIO_MAX_RATIO=.*: it must be a number greater than 0"
    ):
        plain_tar(bomb(tmp_path / "a.tgz", 8))


@pytest.mark.parametrize("size", [9 << 20, 8_100_000])
def test_a_copy_that_would_fill_the_disk_is_refused_and_nothing_is_left(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A twentieth stays free."""
    monkeypatch.setenv("SHARDIO_CACHE", str(small_disk / "cache"))
    monkeypatch.setattr(compression, "_BETWEEN_LOOKS", 0)
    path = bomb(tmp_path / "a.tgz", size)
    with pytest.raises(
        shardio.UsageError, match=r"/cache: .*No space left.* set SHARDIO_CACHE or cache_dir"
    ):
        plain_tar(path)
    assert not files(small_disk)
    assert plain_tar(bomb(tmp_path / "b.tgz", 7_500_000)).stat().st_size == 7_500_000


def test_a_full_temporary_directory_is_no_fault_of_the_shard_that_is_verified(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    path = bomb(tmp_path / "a.tgz", 9 << 20)
    sentence = rf"^{small_disk}: the temporary directory cannot be written .* set TMPDIR"
    with pytest.raises(shardio.ShardioError, match=sentence):
        shardio.verify(path.parent)


def test_a_full_disk_under_a_cached_index_is_one_sentence(
    small_disk: Path, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDIO_CACHE", str(small_disk / "cache"))
    cache_entry(shard, ".x")
    (small_disk / "full").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
    with pytest.raises(shardio.UsageError, match=r"/cache: .*No space left.* set SHARDIO_CACHE"):
        open_catalog(shard)
    assert files(small_disk) == ["full"]


def test_an_error_of_the_shards_own_disk_names_the_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bomb(tmp_path / "a.tgz", 100)
    opened = Path.open

    class Failing(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(5, "Input/output error")

    def open_(self: Path, *arguments: Any, **options: Any) -> Any:
        return Failing() if self == path else opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(OSError, match="Input/output error") as caught:
        plain_tar(path)
    assert caught.value.filename == str(path)


def _no_home(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)


def _home_that_is_no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").write_bytes(b"")
    monkeypatch.setenv("HOME", str(folder / "file"))


def _home_of_which_others_may_rename_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared(shared(folder / "home", 0o777) / ".cache" / "shardio", 0o700)
    monkeypatch.setenv("HOME", str(folder / "home"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_no_home, "this user has no home folder"),
        (_home_that_is_no_folder, "Not a directory"),
        (_home_of_which_others_may_rename_folders, "other users can replace its contents"),
    ],
)
def test_without_a_usual_cache_folder_indexes_go_to_the_temporary_directory(
    shard: Path,
    reachable: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[Path, pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    own = unused_temporary_directory(reachable, monkeypatch)
    make(reachable, monkeypatch)
    for _ in range(2):
        assert [sample["__key__"] for sample in shardio.ShardDataset(shard)] == ["1", "2"]
    assert [Path(name).suffix for name in files(own)] == [".idx"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert reason in line
    assert f"kept in {own}; set SHARDIO_CACHE" in line


def unused_temporary_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a temporary directory, let nothing name a cache folder; return the own subfolder."""
    monkeypatch.setattr("tempfile.tempdir", str(shared(folder / "temporary")))
    monkeypatch.setattr("shardio.storage.cache._warned", [])
    for name in ("SHARDIO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return folder / "temporary" / f"shardio-{os.geteuid()}"


def test_a_cache_folder_that_cannot_be_written_any_more_is_still_read(
    small_disk: Path, tmp_path: Path, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = unused_temporary_directory(tmp_path, monkeypatch)
    monkeypatch.setenv("HOME", str(small_disk))
    before = open_catalog(shard).shards[0].index
    assert before.startswith(str(small_disk))
    command = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(command, check=True)
    assert open_catalog(shard).shards[0].index == before
    other = make_shard(tmp_path / "b.tar", {"3": {"txt": b"three"}})
    assert Path(open_catalog(other).shards[0].index).parent == own


def _open_to_all(folder: Path) -> None:
    folder.chmod(0o777)


def _open_to_a_group(folder: Path) -> None:
    os.chown(folder, -1, OTHER)
    folder.chmod(0o770)


def _of_another_user(folder: Path) -> None:
    os.chown(folder, OTHER, -1)


@pytest.mark.parametrize("above", [1, 2])
@pytest.mark.parametrize("of_cache", [0o700, 0o755])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_open_to_all, "other users can replace its contents: its mode is 0777"),
        pytest.param(_open_to_a_group, "others? .*: its mode is 0770", marks=as_root),
        pytest.param(_of_another_user, "another user, number 12345", marks=as_root),
    ],
)
def test_a_cache_below_a_folder_in_which_others_may_rename_is_refused(
    reachable: Path,
    shard: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    reason: str,
    of_cache: int,
    above: int,
) -> None:
    parent = reachable / "parent"
    cache = shared(parent / "folder" / "cache", of_cache) if above == 2 else parent / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    cache.chmod(of_cache)
    change(parent)
    monkeypatch.setenv("SHARDIO_CACHE", str(cache))
    with pytest.raises(shardio.UsageError, match=rf"^{parent}: .*{reason}.*set SHARDIO_CACHE"):
        open_catalog(shard)
    assert not files(cache)
    parent.chmod(0o1777)
    os.chown(parent, os.geteuid(), -1)
    open_catalog(shard)
    assert len(files(cache)) == 1


def test_who_cannot_reach_a_folder_cannot_rename_it(
    tmp_path: Path, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared(tmp_path / "home", 0o700)
    monkeypatch.setenv("SHARDIO_CACHE", str(shared(tmp_path / "home/open", 0o777) / "cache"))
    open_catalog(shard)
    assert len(files(tmp_path / "home")) == 1

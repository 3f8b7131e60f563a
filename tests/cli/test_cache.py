"""shardio cache: what is listed, what is removed, and what stays."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import shardio
from shardio.cli import commands

SIZE = 1000


def run(*words: object) -> Result:
    return CliRunner().invoke(commands, ["cache", *map(str, words)], catch_exceptions=False)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Three shards, the last named the longest unused, an index, a part, and files of others."""
    folder = tmp_path / "cache"
    for number, digit in enumerate("abc"):
        place = folder / "remote" / (digit * 2)
        place.mkdir(parents=True)
        shard = place / f"{digit * 64}.tar"
        shard.write_bytes(bytes(SIZE))
        os.utime(shard, (9000 - number, 9000 - number))
    index = folder / "remote" / "aa" / f"{'a' * 64}.index"
    index.write_bytes(bytes(10))
    (folder / "remote" / "aa" / f"{'d' * 64}.{SIZE}.part").write_bytes(bytes(500))
    (folder / "remote" / "aa" / f".{'a' * 64}.index.1-7.tmp").write_bytes(bytes(5))
    (folder / "remote" / "cc" / "mine.tar").write_bytes(b"mine")
    (folder / f"{'e' * 32}.idx").write_bytes(b"of a local shard")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    return folder


def names(cache: Path) -> list[str]:
    return sorted(f"{path.stem[:1]}{path.suffix}" for path in cache.rglob("*.*"))


def test_ls_lists_shards_bytes_last_use_limit_and_folder(cache: Path) -> None:
    before = names(cache)
    done = run("ls", "--cache-dir", cache)
    text = " ".join(done.output.split())
    assert done.exit_code == 0
    assert f"{cache}/remote: 3 shards, 4.0 kB with indexes; the default limit is" in text
    for file in ("shard .* 1.0 kB aaaaaaaaaaaa", "left .* 1.0 kB d{12}", "index .* 10 B a{12}"):
        assert re.search(rf"\n  {file.replace(' ', ' +')}\n", done.output)
    assert "shard 1970-01-01" in text
    assert names(cache) == before
    listed = json.loads(run("ls", "--cache-dir", cache, "--json").output)
    assert listed | {"limit": 0} == json.loads(
        json.dumps(asdict(shardio.list_cache(cache_dir=cache)) | {"limit": 0})
    )
    assert listed["bytes"] == 4 * SIZE + 10 + 5
    assert listed["limit"] > 0


def test_ls_of_many_says_how_many_more(cache: Path) -> None:
    for number in range(30):
        path = cache / "remote" / "aa" / f"{number:064x}.index"
        path.touch(0o600)
    assert "and 16 files more, which --json lists" in run("ls", "--cache-dir", cache).output


def test_prune_removes_what_killed_processes_left(cache: Path) -> None:
    done = run("prune", "--cache-dir", cache)
    assert done.output.startswith(f"{cache}/remote: removed 2 files, 1.0 kB; ")
    assert names(cache) == ["a.index", "a.tar", "b.tar", "c.tar", "e.idx", "m.tar"]


def test_prune_removes_the_longest_unused_first(cache: Path) -> None:
    done = run("prune", "--limit", f"{2 * SIZE + 10}", "--cache-dir", cache, "--json")
    removal = json.loads(done.output)
    assert [Path(each["path"]).name[0] for each in removal["removed"][-1:]] == ["c"]
    assert removal["bytes"] == 2 * SIZE + 5
    assert removal["kept"] == 2 * SIZE + 10
    assert names(cache) == ["a.index", "a.tar", "b.tar", "e.idx", "m.tar"]


def test_clear_removes_all_that_ls_lists_and_nothing_else(cache: Path) -> None:
    assert run("clear", "--cache-dir", cache).exit_code == 0
    assert names(cache) == ["e.idx", "m.tar"]
    assert shardio.list_cache(cache_dir=cache).entries == ()
    (cache / "remote" / "cc" / "mine.tar").unlink()
    (cache / "remote" / "cc").rmdir()
    assert not (cache / "remote" / "aa").exists()


def test_clear_leaves_no_empty_folders(cache: Path) -> None:
    (cache / "remote" / "cc" / "mine.tar").unlink()
    shardio.clear_cache(cache_dir=cache)
    assert [path.name for path in cache.iterdir()] == [f"{'e' * 32}.idx"]


def test_the_usual_folder_is_that_of_the_environment(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDIO_CACHE", str(cache))
    assert shardio.list_cache().shards == 3
    assert run("clear").exit_code == 0
    assert shardio.list_cache().shards == 0


def test_a_negative_limit_is_refused(cache: Path) -> None:
    with pytest.raises(shardio.UsageError, match="limit=-1: it must be bytes, at least 0"):
        shardio.prune_cache(-1, cache_dir=cache)

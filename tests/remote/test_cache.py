"""The cache of whole shards: what stays, what goes, who fetches, and what it survives.

Named after the complaints about other tools that a test answers; see each.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import multiprocessing
import os
import shutil
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from torch.utils.data import DataLoader

import shardio
from servers import Nginx
from shardio.cli import commands
from shardio.storage import http, shard_cache
from shardio.storage.downloads import ComingShard
from shardio.storage.shard_cache import ShardCache
from tests.remote import shards
from tests.remote.shards import (
    BYTES,
    PACE,
    SAMPLES,
    bytes_of,
    files,
    local,
    make_set,
    open_set,
    ranges,
    read,
    stored,
    until,
    whole_gets,
)

Serve = Callable[..., Nginx]


def shard_size(out: Path) -> int:
    return max(path.stat().st_size for path in out.glob("*.tar"))


def index_bytes(out: Path) -> int:
    return sum(path.stat().st_size for path in out.rglob("*.idx"))


def test_the_second_epoch_asks_the_store_for_nothing(
    serve: Serve, out: Path, expected: shards.Read, tmp_path: Path
) -> None:
    web = serve(folder=out)
    dataset = open_set(web, tmp_path / "cache")
    assert read(dataset, PACE) == expected
    assert max(whole_gets(web).values()) == 1
    read(dataset, PACE)
    web.forget()
    assert read(dataset) == expected
    assert web.counts() == {}
    assert files(tmp_path / "cache") == {".tar": 8, ".index": 8, "": 1}


def test_whole_shards_are_read_as_local_files_are(
    serve: Serve, out: Path, expected: shards.Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No read goes through what waits for shards."""
    dataset = open_set(serve(folder=out), tmp_path / "cache")
    read(dataset, PACE)
    read(dataset, PACE)
    assert len(stored(tmp_path / "cache")) == 8
    calls: list[str] = []
    monkeypatch.setattr(ComingShard, "read", lambda *_: calls.append("read"))
    assert read(dataset) == expected
    assert calls == []


def test_half_of_the_set_in_the_cache_saves_half_of_the_bytes(serve: Serve, tmp_path: Path) -> None:
    """A step is long enough for shards to come in time on a busy machine, too."""
    out = make_set(tmp_path / "out", shards=40)
    web = serve(folder=out)
    limit = 20 * shard_size(out) + index_bytes(out)
    dataset = open_set(web, tmp_path / "cache", cache_limit=limit)
    read(dataset, 5 * PACE)
    total = sum(path.stat().st_size for path in out.glob("*.tar"))
    for _ in range(2):
        web.forget()
        assert len(read(dataset, 5 * PACE)) == 40 * SAMPLES
        fetched = whole_gets(web).total() * shard_size(out) + ranges(web) * BYTES
        assert 1 - fetched / total >= 0.49
        assert bytes_of(tmp_path / "cache" / "remote") <= limit


@pytest.mark.parametrize("limit", ["0", "below a shard", "below a window"])
def test_streaming_417_a_small_limit_is_no_deadlock(
    serve: Serve,
    out: Path,
    expected: shards.Read,
    tmp_path: Path,
    limit: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also streaming#475: a sentence names the limit, once."""
    one = shard_size(out)
    most = {"0": 0, "below a shard": one - 1, "below a window": one + index_bytes(out)}[limit]
    dataset = open_set(serve(folder=out), tmp_path / "cache", cache_limit=most)
    for _ in range(2):
        assert read(shardio.Loader(dataset, threads=2)) == expected
    assert bytes_of(tmp_path / "cache" / "remote") <= max(most, index_bytes(out))
    said = [record.getMessage() for record in caplog.records if record.name == "shardio"]
    assert len(said) == 1
    assert f"(its limit is {most:,})" in said[0]
    assert said[0].endswith("with a request for each; raise cache_limit")


def test_a_limit_that_nobody_gave_is_not_all_that_can_be_raised(
    serve: Serve,
    out: Path,
    expected: shards.Read,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk makes the default limit small."""
    monkeypatch.setattr(shard_cache, "SHARE_OF_FREE", 0.0)
    assert read(open_set(serve(folder=out), tmp_path / "cache")) == expected
    (said,) = [record.getMessage() for record in caplog.records if record.name == "shardio"]
    assert "(by default its limit is 0, a part of the free space)" in said
    assert "free some space, name another folder by cache_dir, or raise cache_limit" in said


def test_streaming_988_nothing_outside_the_cache_is_removed(
    serve: Serve, out: Path, tmp_path: Path
) -> None:
    cache, other = tmp_path / "cache", tmp_path / "other"
    other.mkdir()
    kept = [other / f"{'a' * 64}.tar", other / f"{'a' * 64}.5.part"]
    (cache / "remote" / "bb").mkdir(parents=True, mode=0o700)
    for folder in (cache, cache / "remote"):
        folder.chmod(0o700)
    (cache / "remote" / "aa").symlink_to(other)
    kept += [cache / "remote" / "bb" / "notes.txt", cache / f"{'c' * 32}.idx"]
    for path in kept:
        path.write_bytes(b"kept")
    read(open_set(serve(folder=out), cache, cache_limit=2 * shard_size(out)))
    shardio.prune_cache(0, cache_dir=cache)
    assert {path.read_bytes() for path in kept} == {b"kept"}
    assert stored(cache) == []
    assert len([*out.glob("*.tar")]) == 8


def test_what_others_add_meanwhile_makes_a_prune_without_a_limit_remove_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(name: str) -> None:
        folder = tmp_path / "remote" / name[:2]
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        (folder / f"{name}.tar").write_bytes(b"a shard")

    def prune_late(cache: ShardCache, limit: int | None = None) -> object:
        add("b" * 64)
        return prune(cache, limit)

    tmp_path.chmod(0o700)
    shardio.list_cache(cache_dir=tmp_path)
    add("a" * 64)
    prune = ShardCache.prune
    monkeypatch.setattr(ShardCache, "prune", prune_late)
    assert shardio.prune_cache(cache_dir=tmp_path).removed == ()
    assert len(stored(tmp_path)) == 2


def test_streaming_400_what_vanishes_is_fetched_again(
    serve: Serve, out: Path, expected: shards.Read, tmp_path: Path
) -> None:
    dataset = open_set(serve(folder=out), tmp_path / "cache")
    read(dataset, PACE)
    for path in stored(tmp_path / "cache")[::2]:
        path.unlink()
    assert read(dataset) == expected


@pytest.mark.parametrize("how", ["the shards' folder", "the whole folder"])
def test_a_cache_that_is_removed_while_it_is_read_comes_back(
    serve: Serve, out: Path, expected: shards.Read, tmp_path: Path, how: str
) -> None:
    cache = tmp_path / "cache"
    removed = cache if how == "the whole folder" else cache / "remote"
    dataset = open_set(serve(folder=out, latency=0.005), cache)
    found: shards.Read = {}
    for step, batch in enumerate(dataset):
        found |= dict(zip(batch["__key__"], map(bytes, batch["bin"]), strict=True))
        if step in (0, 3):
            shutil.rmtree(removed, ignore_errors=True)
    assert found == expected
    assert read(dataset, PACE) == expected
    assert stored(cache)
    assert not [*cache.rglob("*.part")]


def test_litdata_846_two_processes_and_a_cache_of_two_shards(
    serve: Serve, out: Path, expected: shards.Read, tmp_path: Path
) -> None:
    """What another process evicts is read all the same."""
    web, cache = serve(folder=out), tmp_path / "cache"
    limit = 2 * shard_size(out) + index_bytes(out)

    def train(seed: int) -> None:
        dataset = open_set(web, cache, cache_limit=limit, seed=seed)
        for _ in range(3):
            assert read(dataset, PACE) == expected

    shards.end(*[shards.start(train, seed) for seed in range(2)])
    assert not [*cache.rglob("*.part")]


def test_litdata_512_the_limit_holds_with_four_processes(
    serve: Serve, out: Path, tmp_path: Path
) -> None:
    web, cache = serve(folder=out), tmp_path / "cache"
    limit = 4 * shard_size(out) + index_bytes(out)

    def train(rank: int) -> None:
        options: dict[str, Any] = {"cache_limit": limit, "rank": rank, "world_size": 4}
        dataset = open_set(web, cache, **options, batch_size=2)
        for _ in range(3):
            assert len(read(dataset, PACE)) == 16

    running = [shards.start(train, rank) for rank in range(4)]
    most = 0
    while any(process.is_alive() for process in running):
        most = max(most, bytes_of(cache / "remote"))
        time.sleep(0.002)
    shards.end(*running)
    assert 0 < most <= limit


def test_four_processes_fetch_each_shard_once(
    serve: Serve, out: Path, expected: shards.Read, tmp_path: Path
) -> None:
    web, cache = serve(folder=out), tmp_path / "cache"
    web.pace(latency=0.02, rate=2e6)  # so that they meet

    def train(rank: int) -> None:
        dataset = open_set(web, cache, rank=rank, world_size=4, batch_size=2)
        for _ in range(2):
            assert len(read(dataset)) == 16

    shards.end(*[shards.start(train, rank) for rank in range(4)])
    assert set(whole_gets(web).values()) == {1}
    web.forget()
    assert read(open_set(web, cache)) == expected


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_litdata_872_workers_start_after_the_parent_has_read(
    serve: Serve, out: Path, expected: shards.Read, tmp_path: Path, start: str
) -> None:
    """Also litData#306: clients, cache and downloads of the parent are there."""
    web = serve(folder=out)
    dataset = open_set(web, tmp_path / "cache", cache_limit=4 * shard_size(out))
    assert read(dataset) == expected
    parent = iter(dataset)
    next(parent)  # its downloads run while the workers start
    workers = DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context=start, timeout=60
    )
    assert read(workers) == expected
    assert len([*parent]) == 7


def test_s3fs_914_a_fork_amid_downloads_leaves_both_whole(
    serve: Serve, out: Path, expected: shards.Read, tmp_path: Path
) -> None:
    web = serve(folder=out)
    web.pace(latency=0.01, rate=1e6)
    dataset = open_set(web, tmp_path / "cache")
    loop = iter(dataset)
    found = [next(loop)]

    def child(answers: Any) -> None:
        loop.close()  # type: ignore[attr-defined]  # the parent's, whose parts must stay
        answers.put(read(open_set(web, tmp_path / "cache")) == expected)

    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=child, args=(answers,))
    process.start()
    found += [*loop]
    assert sum(len(batch["__key__"]) for batch in found) == 64
    assert answers.get()
    process.join(30)
    assert process.exitcode == 0
    assert not [*tmp_path.rglob("*.part")]
    assert set(whole_gets(web).values()) == {1}


def test_a_fork_does_not_keep_the_locks_of_a_killed_process(
    serve: Serve, out: Path, expected: shards.Read, tmp_path: Path
) -> None:
    web, cache = serve(folder=out), tmp_path / "cache"
    web.fail("*.tar", stall=30, at=BYTES)
    note = tmp_path / "child"

    def train() -> None:
        loop = iter(open_set(web, cache))
        threading.Thread(target=next, args=(loop,), daemon=True).start()
        until(lambda: [*cache.rglob("*.part")])
        child = os.fork()
        if child:
            note.with_suffix(".new").write_text(str(child))
            note.with_suffix(".new").rename(note)
        time.sleep(600)

    process = shards.start(train)
    until(note.exists)
    try:
        process.kill()
        process.join()
        assert "left" in {entry.state for entry in shardio.list_cache(cache_dir=cache).entries}
        web.heal()
        assert read(open_set(web, cache)) == expected
        assert not [*cache.rglob("*.part")]
    finally:
        os.kill(int(note.read_text()), signal.SIGKILL)


def test_webdataset_84_killed_readers_leave_nothing_behind(
    serve: Serve,
    out: Path,
    expected: shards.Read,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    web, cache = serve(folder=out), tmp_path / "cache"
    monkeypatch.setattr(http, "_GATHERING", 0.0)  # bytes are written when they come
    web.fail("*.tar", stall=600, at=6 * BYTES)
    for _ in range(3):
        process = shards.start(lambda: read(open_set(web, cache)))
        until(lambda: any(path.stat().st_size for path in cache.rglob("*.part")))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL  # it had not ended
        assert [*cache.rglob("*.part")]
    web.heal()

    def train() -> None:
        dataset = open_set(web, cache)
        assert read(dataset, PACE) == expected
        assert read(dataset, PACE) == expected

    shards.end(shards.start(train))
    assert files(cache) == {".tar": 8, ".index": 8, "": 1}
    held = int((cache / "remote" / "usage").read_text())
    assert held == sum(entry.bytes for entry in shardio.list_cache(cache_dir=cache).entries)


def test_webdataset_471_equal_names_of_two_folders_stay_apart(serve: Serve, tmp_path: Path) -> None:
    for name in "ab":
        samples = [{"__key__": "0", "bin": name.encode() * BYTES}]
        shardio.pack(samples, tmp_path / "out" / name, shards=1)
    web = serve(folder=tmp_path / "out")
    for name in "abab":
        source = f"{web.url}/{name}/"
        dataset = shardio.ShardDataset(source, cache_dir=tmp_path / "cache", decode=False)
        assert next(iter(dataset))["bin"] == name.encode() * BYTES


def test_webdataset_145_shards_of_whole_buffers_end(serve: Serve, tmp_path: Path) -> None:
    for buffers in (1, 2):
        out = tmp_path / str(buffers)
        data = bytes((buffers << 20) - 10240)
        shardio.pack([{"__key__": "0", "bin": data}], out, shards=1)
        shard = next(out.glob("*.tar"))
        size = shard.stat().st_size
        data = bytes(len(data) + (buffers << 20) - size)
        shutil.rmtree(out)
        shardio.pack([{"__key__": "0", "bin": data}], out, shards=1)
        assert next(out.glob("*.tar")).stat().st_size == buffers << 20
        dataset = shardio.ShardDataset(
            f"{serve(folder=out).url}/", cache_dir=tmp_path / "cache", batch_size=1, decode=False
        )
        assert [bytes(batch["bin"][0]) for batch in dataset] == [data]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_datasets_329_a_file_system_without_locks(
    serve: Serve,
    out: Path,
    expected: shards.Read,
    tmp_path: Path,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flock = fcntl.flock

    def refuse(descriptor: int, operation: int) -> None:
        if str(cache) in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(code, os.strerror(code))
        flock(descriptor, operation)

    web, cache = serve(folder=out, latency=0.01), tmp_path / "cache"
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", refuse)
        names: set[str] = set()
        datasets = [open_set(web, cache, cache_limit=1 << 24), open_set(web, cache)]
        results: list[shards.Read] = []
        threads = [
            threading.Thread(target=lambda one=one: results.append(read(one))) for one in datasets
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            names |= {path.name for path in cache.rglob("*.part")}
        assert results == [expected, expected]
        assert all(name.count("-") == 2 for name in names)
    assert not [*cache.rglob("*.part")]
    assert read(open_set(web, cache)) == expected


def test_filesystem_spec_639_eighty_readers_of_one_coming_shard(
    serve: Serve, out: Path, expected: shards.Read, tmp_path: Path
) -> None:
    web = serve(folder=out)
    web.pace(latency=0.01, rate=500_000)
    results: list[shards.Read] = []
    dataset = [open_set(web, tmp_path / "cache") for _ in range(10)]
    threads = [
        threading.Thread(
            target=lambda one=one: results.append(read(shardio.Loader(one, threads=8)))
        )
        for one in dataset
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [expected] * 10
    assert set(whole_gets(web).values()) == {1}


def test_streaming_759_a_shard_that_rots_in_the_cache_is_fetched_again(
    serve: Serve, out: Path, expected: shards.Read, tmp_path: Path
) -> None:
    web, cache = serve(folder=out), tmp_path / "cache"
    dataset = open_set(web, cache)
    read(dataset, PACE)
    rotten = stored(cache)[0]
    rotten.chmod(0o600)
    content = bytearray(rotten.read_bytes())
    content[BYTES // 2] ^= 1
    rotten.write_bytes(content)
    web.forget()
    assert read(dataset, PACE) == expected
    assert ranges(web) >= 1
    assert read(dataset, PACE) == expected
    assert whole_gets(web).total() == 1
    assert b"".join(path.read_bytes() for path in sorted(out.glob("*.tar"))).count(
        stored(cache)[0].read_bytes()
    )


@pytest.mark.parametrize("damage", ["rotten", "truncated"])
def test_rows_that_rot_in_the_cache_are_fetched_again(
    serve: Serve, tmp_path: Path, damage: str
) -> None:
    """Rows of equal size are gathered, by another way than samples."""
    values = [{"__key__": f"{n:03d}", "cls": n % 7} for n in range(64)]
    shardio.pack(values, tmp_path / "out", shards=4, shuffle=False)
    cache = tmp_path / "cache"
    dataset = shardio.ShardDataset(
        f"{serve(folder=tmp_path / 'out').url}/", batch_size=16, window=2, cache_dir=cache
    )
    expected = [batch["label"].tolist() for batch in dataset]
    until(lambda: len([*dataset]) == 4 and len(stored(cache)) == 4)
    for path in stored(cache):
        if damage == "rotten":
            path.write_bytes(path.read_bytes().replace(b"3", b"5"))
        else:
            loop = iter(dataset)
    if damage == "truncated":
        found = [next(loop)]
        for path in stored(cache):
            os.truncate(path, 1000)
        found += [*loop]
    else:
        found = [*dataset]
    assert [batch["label"].tolist() for batch in found] == expected


def test_an_object_that_is_not_what_was_packed_is_an_error_after_two_tries(
    serve: Serve, tmp_path: Path
) -> None:
    out = make_set(tmp_path / "out", shards=2)
    shard = next(out.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # of no sample
    shard.write_bytes(content)
    web = serve(folder=out)
    dataset = open_set(web, tmp_path / "cache", on_bad_sample="skip", shuffle=False)
    with pytest.raises(
        shardio.TarError,
        match=r"SHA-256 differs, and did when it was fetched anew\); restore the shard",
    ):
        until(lambda: not read(dataset, PACE))  # small shards may be read by ranges first
    assert whole_gets(web)[shard.name] % 2 == 0


def test_streaming_759_a_body_that_came_wrong_once_is_fetched_anew(
    serve: Serve, out: Path, expected: shards.Read, tmp_path: Path
) -> None:
    web = serve(folder=out)
    dataset = open_set(web, tmp_path / "cache")
    web.fail("*.tar", zeros=shard_size(out), probability=0.3, times=4)
    for _ in range(3):
        assert read(dataset, PACE) == expected
    for path in stored(tmp_path / "cache"):
        assert path.read_bytes() in [shard.read_bytes() for shard in out.glob("*.tar")]


def test_the_folder_is_closed_to_others(serve: Serve, out: Path, tmp_path: Path) -> None:
    os.umask(os.umask(0))
    read(open_set(serve(folder=out), tmp_path / "cache"), PACE)
    for path in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]:
        assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO), path


@pytest.mark.parametrize("kind", ["shard", "folder", "index", "owner"])
def test_what_is_not_of_this_user_is_refused(
    serve: Serve, out: Path, tmp_path: Path, kind: str
) -> None:
    """A symbolic link, or an entry of another user."""
    web, cache = serve(folder=out), tmp_path / "cache"
    dataset = open_set(web, cache)
    until(lambda: read(dataset, PACE) and len(stored(cache)) == 8)
    victim = stored(cache)[0]
    victim = {"folder": victim.parent, "index": victim.with_suffix(".index")}.get(kind, victim)
    if kind == "owner":
        if os.geteuid():
            pytest.skip("only root may give files away")
        os.chown(victim, 12345, -1)
    else:
        victim.rename(tmp_path / "moved")
        victim.symlink_to(tmp_path / "moved")
    reason = "belongs to another user" if kind == "owner" else "is a symbolic link"
    with pytest.raises(shardio.UsageError, match=f"of the cache is not believed, since .*{reason}"):
        read(open_set(web, cache))
    assert victim.exists()


def test_a_part_that_is_a_link_is_never_written_through(
    serve: Serve, out: Path, tmp_path: Path
) -> None:
    web, cache = serve(folder=out), tmp_path / "cache"
    dataset = open_set(web, cache)
    entry = dataset.catalog.shards[0].remote
    assert entry is not None
    (tmp_path / "victim").write_bytes(b"mine")
    part = entry.cache.part_path(entry)
    part.parent.mkdir(mode=0o700, exist_ok=True)
    part.symlink_to(tmp_path / "victim")
    with pytest.raises(shardio.UsageError, match="is a symbolic link"):
        read(dataset, PACE)
    assert (tmp_path / "victim").read_bytes() == b"mine"


def test_a_full_disk_in_mid_download_is_one_warning(
    serve: Serve, small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = make_set(tmp_path / "out", shards=8, size=250_000)
    cache = small_disk / "cache"
    dataset = open_set(serve(folder=out), cache, cache_limit=1 << 30, window=8)
    (small_disk / "other").write_bytes(bytes(3 << 20))
    expected = local(out)
    for _ in range(2):
        assert read(shardio.Loader(dataset, threads=2)) == expected
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1
    assert "so that samples are read one by one" in said[0]
    assert not [*cache.rglob("*.part")]


def test_a_cache_folder_that_cannot_be_used_is_one_sentence(
    serve: Serve, out: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        shardio.SituationError, match=r"file.*the cache folder cannot be used \(Not"
    ):
        open_set(serve(folder=out), tmp_path / "file" / "cache")


def test_the_sum_is_counted_anew_where_it_is_lost(serve: Serve, out: Path, tmp_path: Path) -> None:
    web, cache = serve(folder=out), tmp_path / "cache"
    limit = 4 * shard_size(out) + index_bytes(out)
    dataset = open_set(web, cache, cache_limit=limit)
    for _ in range(3):
        read(dataset, PACE)
        (cache / "remote" / "usage").unlink()
    assert bytes_of(cache / "remote") <= limit


def test_cache_ls_names_shards_by_their_urls_without_secrets(
    serve: Serve, out: Path, tmp_path: Path
) -> None:
    (tmp_path / "a").touch()
    try:
        os.setxattr(tmp_path / "a", "user.a", b"")
    except (OSError, AttributeError):
        pytest.skip("this file system keeps no attributes")
    web, cache = serve(folder=out), tmp_path / "cache"
    url = web.url.replace("//", "//alibaba:sesame@")
    read(shardio.ShardDataset(f"{url}/?sig=sesame", cache_dir=cache, batch_size=8, decode=False))
    urls = [f"{web.url}/{path.name}" for path in out.glob("*.tar")]
    entries = shardio.list_cache(cache_dir=cache).entries
    assert sorted(each.url or "" for each in entries if each.state == "shard") == sorted(urls)
    assert {each.url for each in entries} == {*urls}
    said = CliRunner().invoke(commands, ["cache", "ls", "--cache-dir", str(cache)]).output
    assert all(url in said for url in urls)
    named = [each.url for each in entries if each.url is not None]
    assert named == sorted(named)
    assert " kB" in said
    assert "sesame" not in said


def test_a_shard_that_is_lost_while_training_is_to_be_restored(
    serve: Serve, tmp_path: Path
) -> None:
    """The way that the error of opening names gives the same bytes."""
    out = make_set(tmp_path / "out")
    dataset = open_set(serve(folder=out), tmp_path / "cache")
    before = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    for name in before:
        (out / name).unlink()
    told = (
        r"no such object \(.*\), though the dataset has this shard; restore the shard, or pack the "
        r"same samples into a new folder and copy the shard from there, then resume"
    )
    with pytest.raises(shardio.RemoteMissing, match=told) as caught:
        read(dataset)
    assert caught.value.status == 404
    with pytest.raises(shardio.IndexFileError, match="pack the same samples into a new folder"):
        shardio.ShardDataset(out)
    make_set(tmp_path / "new")
    for name, data in before.items():
        assert (tmp_path / "new" / name).read_bytes() == data
        shutil.copy(tmp_path / "new" / name, out)
    assert len(read(dataset)) == 8 * SAMPLES
